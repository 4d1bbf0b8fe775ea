"""One run per folder: a lock the system releases when its process ends, however it ends."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from medseg.errors import MedsegError, TrainingError

_LOG = logging.getLogger("medseg")
_TURN_S = 0.5  # between looks at a lock that is waited for
_FAR = 1 << 20  # Windows locks bytes; one beyond the text keeps the text readable


@contextmanager
def locked(
    folder: Path,
    *,
    doing: str = "training",
    error: type[MedsegError] = TrainingError,
    remove: bool = False,
    wait: bool = False,
) -> Iterator[None]:
    """Hold `folder`/lock, which names this process; `remove` takes the file away afterwards.

    Raises `error` with the other process' id and what it is `doing` where a running one holds it, or with `wait` takes
    its turn. The lock of a process that ended or was killed is free.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    with path.open("a+b") as file:
        taken = _take(file)
        if wait and not taken:
            _LOG.info("waiting for process %s in %s", _owner(path), folder)
        while wait and not taken:
            time.sleep(_TURN_S)
            taken = _take(file)
        if not taken or not _is_at(path, file):
            raise error(
                f"process {_owner(path)} is already {doing} here",
                where=folder,
                hint="wait for it, stop it, or choose another output folder",
            )
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
            if remove:
                with suppress(OSError):  # Windows does not remove open files
                    path.unlink()
            _release(file)


def _is_at(path: Path, file: IO[bytes]) -> bool:
    """Whether the open file is still the one at `path`, not one that its last owner has removed."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _owner(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() or "unknown"


if sys.platform == "win32":
    import msvcrt

    def _take(file: IO[bytes]) -> bool:
        file.seek(_FAR)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _release(file: IO[bytes]) -> None:
        file.seek(_FAR)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _take(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _release(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)
