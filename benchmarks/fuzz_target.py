"""What the fuzzers share: a file in memory, limits, and the one rule that only errors of medseg may be raised."""

import atexit
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

LIMITS = {"-timeout": 10, "-rss_limit_mb": 1500, "-max_len": 20000}


def scratch() -> Path:
    """A folder in memory where the system has one; removed at the end."""
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=shared if shared.is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def fuzz(
    target: Callable[[bytes], None],
    seeds: Callable[[], dict[str, bytes]],
    change: Callable[[bytes, random.Random], bytes] | None = None,
) -> None:
    """Run libFuzzer on `target` with the arguments of the command line; an empty corpus folder gets `seeds` first.

    `change` knows the format; every other mutation is its, the rest are libFuzzer's.
    """
    folders = [Path(word) for word in sys.argv[1:] if not word.startswith("-")]
    for folder in folders[:1]:
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            for name, data in seeds().items():
                (folder / name).write_bytes(data)
    given = {word.split("=")[0] for word in sys.argv}
    limits = [f"{name}={value}" for name, value in LIMITS.items() if name not in given]

    def mutate(data: bytes, longest: int, seed: int) -> bytes:
        if change is None or seed % 2:
            return atheris.Mutate(data, longest)
        return change(data, random.Random(seed))[:longest]

    atheris.Setup([sys.argv[0], *sys.argv[1:], *limits], target, custom_mutator=mutate)
    atheris.Fuzz()
