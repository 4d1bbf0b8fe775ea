"""Coverage-guided fuzzing of model bundles: whatever the bytes, a verified card or an error of medseg.

pip install atheris; python benchmarks/fuzz_bundle.py CORPUS -max_total_time=1200
"""

import hashlib
import json
import random
import shutil
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["medseg.io", "medseg.types", "medseg.workflow.show_model", "json"]):
    from medseg.errors import MedsegError
    from medseg.io.records import format_record
    from medseg.workflow.show_model import format_card, show_model

import numpy as np
from fuzz_target import fuzz, scratch
from safetensors.numpy import load_file, save_file

HOME = scratch()
ROOT = HOME / "bundle"
ODD = (None, True, 0, 1, -1, 2**63, 10**30, 1e308, float("nan"), "", "x", "../x", "/x", "a:b", "\0", [], {}, "all", 1.5)
NAMES = ("manifest.json", "plan.json", "scores.json", "members/fold_0.safetensors")


@atheris.instrument_func
def one(data: bytes) -> None:
    """The first byte says which file of a sound bundle the rest replaces; the manifest vouches for it."""
    which, body = (data[0] if data else 0) % 4, data[1:]
    if which == 0:
        name = "manifest.json"
    elif which == 1:
        name = "plan.json"
    elif which == 2:
        name = "scores.json"
    else:
        name = "members/fold_0.safetensors"
    sound = {name: (ROOT / name).read_bytes() for name in (name, "manifest.json")}
    try:
        (ROOT / name).write_bytes(body)
        if name != "manifest.json":
            vouch(name, body)
        try:
            card = show_model(ROOT)
        except MedsegError as error:
            assert error.where, error
            return
        assert format_card(card) and json.loads(format_record(card))
        if name.endswith(".safetensors"):
            tensors = load_file(ROOT / name) if "BF16" not in str(body) and "F8_" not in str(body) else {}
            assert not tensors or sum(t.size for t in tensors.values()) == card.members[0].parameters
    finally:
        for path, text in sound.items():
            (ROOT / path).write_bytes(text)
        left = sorted(path.name for path in HOME.iterdir())
        assert left == ["bundle", "weights"], left


def change(data: bytes, rng: random.Random) -> bytes:
    """Replace, drop, double or nest one value of the JSON text, also of a tensor table."""
    tensors = len(data) > 9 and data[0] % 4 == 3
    start = 9 if tensors else 1
    end = start + int.from_bytes(data[1:9], "little") if tensors else len(data)
    try:
        value = json.loads(data[start:end])
    except (ValueError, RecursionError):
        return data
    holders = list(containers(value))
    if not holders:
        return data
    holder = rng.choice(holders)
    key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    holder[key] = rng.choice([*ODD, [holder[key]], {"a": holder[key]}, [holder[key], holder[key]]])
    if isinstance(holder, dict) and rng.random() < 0.3:
        holder[rng.choice(["", "use", "fold", "weights", "../x", "__metadata__"])] = holder.pop(key)
    text = json.dumps(value).encode()
    return data[:1] + (len(text).to_bytes(8, "little") if tensors else b"") + text + data[end:]


def containers(value):
    """Every dict and list with something in it."""
    if isinstance(value, (dict, list)) and value:
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from containers(item)


def vouch(name: str, body: bytes) -> None:
    manifest = json.loads((ROOT / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}
    (ROOT / "manifest.json").write_text(json.dumps(manifest))


def make() -> None:
    from medseg.io.bundles import save_bundle
    from medseg.io.records import read_record
    from medseg.types.plan import Plan

    plan = Path(__file__).parent.parent / "tests" / "fuzz_corpus" / "plan.json"
    save_file({"a": np.ones((2, 2), np.float32), "b": np.ones(3, np.float16)}, HOME / "weights")
    shutil.rmtree(ROOT, ignore_errors=True)
    save_bundle(ROOT, read_record(plan, Plan), {0: HOME / "weights"}, {"mean_dice": 0.5, "cases": 4})


def seeds() -> dict[str, bytes]:
    """Each file of the sound bundle."""
    return {f"sound-{i}": bytes([i]) + (ROOT / name).read_bytes() for i, name in enumerate(NAMES)}


if __name__ == "__main__":
    make()
    fuzz(one, seeds, change)
