"""The table of docs/dicom.md: what becomes of every folder of awkward DICOM.

python -m tests.acceptance.awkward_table DATA/dicom-awkward
"""

import re
import sys
from collections import Counter
from pathlib import Path

from medseg.errors import MedsegError
from medseg.io.dicom_series import find_series, read_series
from medseg.io.images import is_image, read_image


def table(root):
    """Markdown lines: folder, what is read with warnings, what is not and why."""
    lines = ["| folder | read | set aside or refused |", "|---|---|---|"]
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        read, rest = outcomes(folder)
        lines.append(f"| `{folder.name}` | {_listed(read)} | {_listed(rest)} |")
    return lines


def outcomes(folder):
    """Counters of what was read and of reasons, in words without paths."""
    read, rest = Counter(), Counter()
    found, refused = find_series(folder)
    for series in found:
        name = f"{series.modality or 'unknown'} {'colour ' if _colours(series) else ''}"
        try:
            image = read_series(series)
        except MedsegError as error:
            rest[f"{name}{series.summary.split(', ', 1)[1]}: {_plain(str(error), folder)}"] += 1
            continue
        read[_described(image, name)] += 1
    for path, reason in refused.items():
        if is_image(path):
            read[_described(read_image([path]), f"{path.name} ")] += 1
        else:
            rest[reason] += 1
    return read, rest


def _described(image, name):
    z, y, x = image.geometry.shape
    dz, dy, dx = image.geometry.spacing_mm
    size = f"{x} x {y} x {z}, {dx:.4g} x {dy:.4g} x {dz:.4g} {image.geometry.unit}"
    multi = ", multi-frame" if image.source.format == "dicom-enhanced" else ""
    said = f" ({'; '.join(image.warnings)})" if image.warnings else ""
    return f"{name}{size}{multi}{said}"


def _colours(series):
    return any(one.header.pixels.samples == 3 for one in series.slices)


def _plain(text, folder):
    """The words of an error, with file names and without folders and hint."""
    text = re.sub(r"\S*/(?=[^/\s]+)", "", text.replace(str(folder.parent), ""))
    return text.split(". ")[0]


def _listed(counter):
    return "<br>".join(f"{count} x: {words}" if count > 1 else words for words, count in counter.items()) or "-"


if __name__ == "__main__":
    print("\n".join(table(Path(sys.argv[1]))))  # noqa: T201
