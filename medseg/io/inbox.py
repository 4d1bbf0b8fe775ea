"""Studies that arrive file by file: the folder is the whole state, so that a killed receiver loses nothing.

    incoming/<study>/scans/<series>/<instance>.dcm    being received; complete when quiet for a while
    work/<study>/scans, results, attempts             taken up; stays until its results are sent
    results/<study>/                                  what was written and sent
    done/<study>.json                                 which instances the results cover
    failed/<study>/reason.json, scans, results        for a person to look at

Names are hashes of UIDs. A study moves between folders by one rename.
"""

import hashlib
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medseg.errors import MedsegError
from medseg.io.files import sync_folder, whole_file, write_text
from medseg.io.records import read_record, write_record

_OUTCOME = "outcome.json"


class InboxFull(MedsegError):
    """No room for another study or file: as many studies wait, or as many bytes lie here, as allowed."""


@dataclass(frozen=True)
class Outcome:
    """What prediction of one study left: names in its results folder, and per failed series what is wrong."""

    outputs: tuple[str, ...]
    segmented: tuple[str, ...]
    errors: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudyRecord:
    """`done/<study>.json`: the instances of each series that was segmented."""

    schema: Literal["medseg.study/1"]
    series: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Failure:
    """`failed/<study>/reason.json`."""

    schema: Literal["medseg.failure/1"]
    reasons: tuple[str, ...]


@dataclass
class Inbox:
    """The folder `root`, which holds at most `max_studies` unfinished studies and `max_bytes` of received files.

    Owns `root`: one process per folder. `receive` may be called from several threads, the rest from one.
    """

    root: Path
    max_studies: int
    max_bytes: int
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _touched: dict[str, float] = field(default_factory=dict, repr=False)
    _bytes: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("incoming", "work", "results", "done", "failed"):
            (self.root / name).mkdir(mode=0o700, exist_ok=True)
        for part in self.root.rglob(".part-*"):
            part.unlink(missing_ok=True)
        now = time.monotonic()
        self._touched = {name: now for name in self._names("incoming")}
        self._weigh()

    def receive(self, study_uid: str, series_uid: str, instance_uid: str, content: bytes) -> None:
        """Keep one DICOM file; on return it is on disk, whole and synced.

        Raises InboxFull, or OSError where the disk is full or broken; nothing is kept then.
        """
        study = hashed(study_uid)
        path = self.root / "incoming" / study / "scans" / hashed(series_uid) / f"{hashed(instance_uid)}.dcm"
        with self._lock:
            waiting = self.unfinished()
            if study not in waiting and len(waiting) >= self.max_studies:
                raise InboxFull(f"{self.max_studies} studies wait already", where=self.root, hint="send it again later")
            if self._bytes + len(content) > self.max_bytes:
                raise InboxFull(f"received files reach {self.max_bytes} bytes", where=self.root, hint="make room")
            with whole_file(path) as part:
                part.write_bytes(content)
            self._bytes += len(content)
            self._touched[study] = time.monotonic()

    def unfinished(self) -> set[str]:
        """Studies being received or worked on."""
        return {*self._touched, *self._names("work")}

    def take(self, quiet_s: float) -> str | None:
        """Move the study that is complete for longest, with no file for `quiet_s`, to work and return its name."""
        busy = set(self._names("work"))
        with self._lock:
            ready = [(when, name) for name, when in self._touched.items() if name not in busy]
            when, study = min(ready, default=(0.0, ""))
            if not study or time.monotonic() - when < quiet_s:
                return None
            _move(self.root / "incoming" / study, self.root / "work" / study)
            del self._touched[study]
        return study

    def working(self) -> list[str]:
        """Studies taken up and not finished, also by a process before this one."""
        return self._names("work")

    def scans(self, study: str) -> Path:
        """Folder of the received files of a study in work, a subfolder per series."""
        return self.root / "work" / study / "scans"

    def results(self, study: str) -> Path:
        """Folder for what is made of a study in work."""
        return self.root / "work" / study / "results"

    def leave_out_known(self, study: str) -> tuple[str, ...]:
        """Delete series that an earlier result covers; returns faults of those that complete an older series.

        A series received again in full, with more instances than before, counts as new.
        """
        known = self._record(study).series
        faults = []
        for series, instances in self.series(study).items():
            before, now = set(known.get(series, ())), set(instances)
            if before and not now - before:
                shutil.rmtree(self.scans(study) / series)
            elif before and not now >= before:
                text = f"series {series}: {len(now - before)} files arrived after it was segmented without them"
                faults.append(f"{text}. send the whole series again, or wait longer for files (--quiet)")
        return tuple(faults)

    def is_empty(self, study: str) -> bool:
        """Whether no file of a study in work is left to look at."""
        return not self.series(study)

    def count_attempt(self, study: str) -> int:
        """How often prediction of this study began, this time included; it survives a crash."""
        path = self.root / "work" / study / "attempts"
        before = path.read_text(encoding="ascii") if path.is_file() else ""
        number = int(before) + 1 if before.strip().isdecimal() else 1
        write_text(path, f"{number}\n")
        return number

    def keep_outcome(self, study: str, outcome: Outcome) -> None:
        """Note that prediction ended; from now on a restart sends its results instead of predicting again."""
        write_record(outcome, self.results(study) / _OUTCOME)

    def outcome(self, study: str) -> Outcome | None:
        """The noted outcome of a study in work."""
        path = self.results(study) / _OUTCOME
        return read_record(path, Outcome) if path.is_file() else None

    def finish(self, study: str, outcome: Outcome) -> None:
        """Results are sent: keep them beside older ones, delete the scans; with errors, all goes to failed."""
        series = {name: files for name, files in self.series(study).items() if name in outcome.segmented}
        if series:
            record = StudyRecord("medseg.study/1", {**self._record(study).series, **series})
            write_record(record, self.root / "done" / f"{study}.json")
        if outcome.errors:
            self.fail(study, *outcome.errors)
            return
        for path in sorted(self.results(study).glob("*")):
            _move(path, self.root / "results" / study / path.name)
        shutil.rmtree(self.root / "work" / study)
        self._weigh()

    def fail(self, study: str, *reasons: str) -> None:
        """Put a study aside with the reasons; an older failure of it is replaced."""
        write_record(Failure("medseg.failure/1", reasons), self.root / "work" / study / "reason.json")
        shutil.rmtree(self.root / "failed" / study, ignore_errors=True)
        _move(self.root / "work" / study, self.root / "failed" / study)
        self._weigh()

    def _record(self, study: str) -> StudyRecord:
        path = self.root / "done" / f"{study}.json"
        return read_record(path, StudyRecord) if path.is_file() else StudyRecord("medseg.study/1", {})

    def series(self, study: str) -> dict[str, tuple[str, ...]]:
        """Instances of each series of a study in work."""
        found: dict[str, tuple[str, ...]] = {}
        for path in sorted(self.scans(study).glob("*/*.dcm")):
            found[path.parent.name] = (*found.get(path.parent.name, ()), path.stem)
        return found

    def _names(self, part: str) -> list[str]:
        return sorted(path.name for path in (self.root / part).iterdir() if path.is_dir())

    def _weigh(self) -> None:
        with self._lock:
            self._bytes = sum(path.stat().st_size for path in self._received())

    def _received(self) -> list[Path]:
        return [path for part in ("incoming", "work", "failed") for path in (self.root / part).glob("*/scans/*/*.dcm")]


def hashed(uid: str) -> str:
    """The name of a study, series or instance: the start of the SHA-256 of its UID, as in case ids.

    >>> hashed("1.2.840.1")
    'f9a13599155b'
    """
    return hashlib.sha256(uid.encode("utf-8")).hexdigest()[:12]


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)
    sync_folder(target.parent)
    sync_folder(source.parent)
