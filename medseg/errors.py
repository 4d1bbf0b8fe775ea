"""Every error medseg raises on purpose; each says what, where and what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

_NO_MEMORY = ("out of memory", "not enough memory", "allocate memory", "ALLOC_FAILED")


class MedsegError(Exception):
    """An error a user can act on: `where` is a path, case id or plan field; `hint` is the next action.

    >>> str(MedsegError("spacing is 0", where="case_001.nii.gz", hint="set pixdim in the header"))
    'case_001.nii.gz: spacing is 0. set pixdim in the header'
    """

    def __init__(self, what: str, *, where: object = "", hint: str = "") -> None:
        self.what = what
        self.where = str(where)
        self.hint = hint
        text = f"{self.where}: {what}" if self.where else what
        super().__init__(f"{text}. {hint}" if hint else text)


class DatasetError(MedsegError):
    """A dataset folder or case is incomplete or contradictory."""


class ImageError(MedsegError):
    """A file cannot be read as an image, or its voxels cannot be trusted."""


class GeometryError(MedsegError):
    """Two grids that must share a space do not, or a grid is not a valid one."""


class DicomError(MedsegError):
    """A DICOM series cannot be read as one regular volume."""


class NetworkError(MedsegError):
    """Another machine cannot be reached, refuses, or answers in a way that cannot be used."""


class PlanError(MedsegError):
    """A plan file does not fit its schema, or names an unknown step."""


class BudgetError(MedsegError):
    """Nothing fits the budget of memory or time."""


class BundleError(MedsegError):
    """A model bundle is damaged, too new, or needs code that is not trusted."""


class TrainingError(MedsegError):
    """A training run cannot start, or stopped because memory ran out or its numbers are not finite."""


class Interrupted(MedsegError):
    """Training was asked to stop and did, after saving; `signum` is the signal, and 128 + signum the exit code."""

    def __init__(self, signum: int, *, where: object = "") -> None:
        super().__init__(
            f"training stopped on signal {signum}; everything up to the last step is saved",
            where=where,
            hint="run the same command to go on",
        )
        self.signum = signum


def lacks_memory(error: BaseException) -> bool:
    """Whether an error of Python, NumPy or torch says that memory ran out, that of the machine or of a device.

    >>> lacks_memory(MemoryError()), lacks_memory(RuntimeError("shapes differ"))
    (True, False)
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


@contextmanager
def memory_errors(kind: type[MedsegError], what: str, *, where: object = "", hint: str = "") -> Iterator[None]:
    """Within the block, memory that runs out is an error of `kind`."""
    try:
        yield
    except Exception as error:
        if not lacks_memory(error):
            raise
        raise kind(what, where=where, hint=hint) from error
