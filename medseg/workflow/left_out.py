"""What lies beside the scans of a batch: a line for what is no scan, a note for scans that lie beside it."""

from collections.abc import Sequence
from pathlib import Path

from medseg.io.identifiers import masked
from medseg.io.images import is_dicom, is_image
from medseg.types.dataset import Case
from medseg.types.result import CaseReport
from medseg.workflow.predict_case import roots_of

_ASIDE = ("no image", "no part of a volume", "localizer", "index of files", "screen shot", "holds no pixels")
_MODALITIES = {
    "ct": "CT",
    "cbct": "CT",
    "mr": "MR",
    "mri": "MR",
    "us": "US",
    "ultrasound": "US",
    "pt": "PT",
    "pet": "PT",
}


def notes_before(cases: Sequence[Case], refused: dict[Path, str], channels: Sequence[str]) -> list[tuple[str, ...]]:
    """What is doubtful about each case before it is read: files left out beside it, or a modality not trained on."""
    beside: dict[Path, list[str]] = {}
    for path, reason in refused.items():
        beside.setdefault(path.parent, []).append(reason)
    notes = []
    for case in cases:
        found = []
        homes = dict.fromkeys(file.parent for files in case.files for file in files)
        left_out = [reason for home in homes for reason in beside.get(home, [])]
        if left_out:
            what = "; ".join(sorted(set(left_out))[:3])
            found.append(f"{len(left_out)} other files of its folder were left out ({what})")
        for channel, modality in zip(channels, case.modalities, strict=False):
            expected = _MODALITIES.get(channel.casefold(), modality)
            if expected != modality:
                stated = {"": "of no stated modality", "unknown": "of an unknown modality"}.get(modality, modality)
                found.append(f"is {stated}, and the model was trained on {channel}")
        notes.append(tuple(found))
    return notes


def refused_lines(
    refused: dict[Path, str], inputs: Sequence[Path], given: Sequence[Path], keep_identifiers: bool
) -> list[CaseReport]:
    """Failed; but what is no scan and merely lies beside them is left out. One line for each folder and reason."""
    root_of = roots_of(inputs)
    grouped: dict[tuple[Path, str], list[Path]] = {}
    for path, reason in refused.items():
        alone = path in given or is_image(path)
        grouped.setdefault((path if alone else path.parent, reason), []).append(path)
    lines = []
    for (_, reason), paths in grouped.items():
        first = paths[0]
        name = str(first) if keep_identifiers else masked(first, root_of(first))
        if first in given:
            name = first.name if keep_identifiers or is_image(first) else f"input {given.index(first) + 1} ({name})"
        text = reason if len(paths) == 1 else f"{len(paths)} files: {reason}"
        if first in given or not _set_aside(first, reason):
            lines.append(CaseReport(name, "failed", 0.0, error=f"{name}: {text}"))
        else:
            lines.append(CaseReport(name, "skipped", 0.0, warnings=(text,)))
    return lines


def _set_aside(path: Path, reason: str) -> bool:
    """Whether a refused file is no scan: a text, a DICOM report, a scout, an index, a screen shot."""
    if any(words in reason for words in _ASIDE):
        return True
    return path.is_file() and not (is_image(path) or is_dicom(path) or "archive" in reason)
