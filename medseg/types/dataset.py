"""A dataset is a list of cases, as data; nothing is read until someone asks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medseg.types.labels import Labels


@dataclass(frozen=True)
class Case:
    """One subject visit: one file or DICOM folder per channel, or one file that holds all channels.

    `group` names what must never be split between folds, usually the patient. Of DICOM scans, `files` lists per channel
    the files to read, `volumes` which of the volumes in these files, counted from 0, `series_uids` their series, and
    `modalities` what these say they are.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None = None
    group: str | None = None
    files: tuple[tuple[Path, ...], ...] = ()
    volumes: tuple[int, ...] = ()
    series_uids: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Split:
    """Case ids of one cross-validation fold."""

    train: tuple[str, ...]
    val: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """`dataset.json` in memory; `splits` only where the data set brings its own."""

    name: str
    root: Path
    channels: tuple[str, ...]
    labels: Labels
    cases: tuple[Case, ...]
    splits: tuple[Split, ...] = ()


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a dataset: `case` and `file` (relative to its folder) may be empty, `fix` says what to do.

    An error makes the data unusable as they are; a warning says what was settled or what a person should look at.
    """

    case: str
    file: str
    severity: Literal["error", "warning"]
    what: str
    fix: str
