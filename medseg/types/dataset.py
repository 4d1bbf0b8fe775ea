"""A dataset is a list of cases, as data; nothing is read until someone asks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medseg.types.labels import Labels


@dataclass(frozen=True)
class Case:
    """One subject visit: one file or DICOM folder per channel, or one file that holds all channels.

    `landmarks` is a file of points. A case has a label map, landmarks, or both, unless it is only to be predicted.
    `group` names what must never be split between folds, usually the patient. Of DICOM scans, `files` lists per channel
    the files to read, `volumes` which of the volumes in these files, counted from 0, `series_uids` their series, and
    `modalities` what these say they are. `rater` is who annotated it.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None = None
    group: str | None = None
    files: tuple[tuple[Path, ...], ...] = ()
    volumes: tuple[int, ...] = ()
    series_uids: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    landmarks: Path | None = None
    rater: str | None = None


@dataclass(frozen=True)
class Split:
    """Case ids of one cross-validation fold."""

    train: tuple[str, ...]
    val: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """`dataset.json` in memory; `splits` only where the data set brings its own.

    `landmarks` are the names of the points that cases may have; of a data set with nothing else, `labels` is empty.
    `spacing_mm` (y, x) is that of flat images that state none.
    """

    name: str
    root: Path
    channels: tuple[str, ...]
    labels: Labels
    cases: tuple[Case, ...]
    splits: tuple[Split, ...] = ()
    landmarks: tuple[str, ...] = ()
    spacing_mm: tuple[float, float] | None = None

    def raters(self) -> tuple[str, ...]:
        """Everybody who annotated, by name."""
        return tuple(sorted({case.rater for case in self.cases if case.rater is not None}))


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
