"""Structures by name: which of a file's segments or contours are a data set's classes, and one label map of them.

Also ITK-SNAP's label descriptions, which name the values of a label map.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Shaped

from medseg.errors import ImageError
from medseg.types.labels import Label, Labels

Mask = Bool[np.ndarray, "z y x"]
_SNAP_LINE = re.compile(r'\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+[\d.]+\s+[01]\s+[01]\s+"(.*)"\s*')


def choose(names: Sequence[str], labels: Labels, *, where: object = "") -> tuple[list[tuple[int, Label]], list[str]]:
    """Which of a file's structures are the wanted labels, as (index in `names`, label) in label order; and warnings.

    Names are compared without regard to case and to spaces around them. A label without a structure is taken as
    absent in this case, with a warning. The ignore value is looked for under the name "ignore".
    Raises ImageError, listing the names, if none is there or one is there twice.

    >>> choose(["Body", "LIVER "], Labels((Label("liver", (1,)),)))
    ([(1, Label(name='liver', values=(1,), code=None, write=None))], [])
    """
    there = [_plain(name) for name in names]
    listed = ", ".join(f'"{name.strip()}"' for name in names) or "none"
    wanted = [*labels.items] + ([] if labels.ignore is None else [Label("ignore", (labels.ignore,))])
    found, missing = [], []
    for label in wanted:
        places = [index for index, name in enumerate(there) if name == _plain(label.name)]
        exact = [index for index in places if names[index] == label.name]
        places = exact if len(exact) == 1 else places
        if len(places) > 1:
            what = f'holds {len(places)} structures named "{label.name}"'
            raise ImageError(what, where=where, hint=f"rename all but one; it holds {listed}")
        if places:
            found.append((places[0], label))
        elif label.name != "ignore" or labels.ignore is None:
            missing.append(label.name)
    if not found:
        lacks = ", ".join(f'"{name}"' for name in missing)
        what = f"holds no structure of the labels {lacks}; it holds {listed}"
        raise ImageError(what, where=where, hint="correct the names in dataset.json or in the file")
    return found, [f'holds no "{name}", taken as absent; it holds {listed}' for name in missing]


def numbered(names: Sequence[str]) -> Labels:
    """Labels of every structure of a file, with the values 1, 2, ... in its order and names made unique.

    >>> numbered(["GTV", "", "GTV"]).names()
    ('GTV', 'structure 2', 'GTV (2)')
    """
    items: list[Label] = []
    taken: set[str] = set()
    for value, name in enumerate(names, start=1):
        plain = name.strip() or f"structure {value}"
        unique, number = plain, 1
        while unique in taken:
            number += 1
            unique = f"{plain} ({number})"
        taken.add(unique)
        items.append(Label(unique, (value,)))
    return Labels(tuple(items))


def paint(
    masks: Iterable[tuple[Label, Mask]], labels: Labels, shape: tuple[int, int, int]
) -> tuple[Shaped[np.ndarray, "z y x"], list[str]]:
    """One label map of structures in the given order, uint8 or uint16, and warnings about those that overlap.

    Where structures overlap the later one wins; regions that are nested as their values say lose nothing by that.
    """
    top = max(labels.known() | {item.written for item in labels.items} | {labels.ignore or 0})
    array = np.zeros(shape, dtype=np.uint8 if top < 256 else np.uint16)
    names = {item.written: item.name for item in labels.items} | {labels.ignore or 0: "ignore"}
    regions = labels.are_regions()
    kept: list[tuple[Label, Mask]] = []
    warnings = []
    for label, mask in masks:
        if regions:
            kept.append((label, mask))
        else:
            counts = np.bincount(array[mask], minlength=1)
            over = [(names[int(value)], int(counts[value])) for value in np.flatnonzero(counts) if value]
            warnings += [
                f'{n} voxels lie in "{name}" and in "{label.name}" and count as the latter' for name, n in over
            ]
        array[mask] = label.written
    for label, mask in kept:
        changed = int(np.count_nonzero(np.isin(array, label.values) != mask))
        if changed:
            what = f'region "{label.name}" differs from its structure in {changed} voxels'
            warnings.append(f"{what}, because regions overlap otherwise than their values say")
    return array, warnings


def read_snap_labels(path: Path) -> tuple[Label, ...]:
    """The labels of an ITK-SNAP label description file (IDX R G B A VIS MSH "NAME"), without the clear label 0.

    Raises ImageError naming the line that is not of this form.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ImageError(f"cannot be opened ({error.strerror})", where=path, hint="check the path") from error
    except UnicodeDecodeError as error:
        raise ImageError("is not UTF-8 text", where=path, hint="save the label descriptions again") from error
    labels = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _SNAP_LINE.fullmatch(line)
        if found is None:
            hint = 'write IDX R G B A VIS MSH "NAME", as ITK-SNAP does'
            raise ImageError(f"line {number} is no label description", where=path, hint=hint)
        if int(found[1]):
            labels.append(Label(found[5].strip(), (int(found[1]),)))
    if not labels:
        raise ImageError("describes no label", where=path, hint="save the label descriptions again")
    return tuple(labels)


def _plain(name: str) -> str:
    return name.strip().casefold()
