"""What is lost or mixed up where regions, which may overlap, are written into one label map."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

from medseg.types.dataset import Fault
from medseg.types.labels import Label, Labels

_FILE = "dataset.json"


def region_faults(labels: Labels) -> tuple[Fault, ...]:
    """What is wrong with the regions of a data set and the values that they write; nothing for plain classes.

    An error where a predicted label map, read again, would not say which regions a voxel lies in. A warning for a
    region that a later one hides, since later regions are written over earlier ones, as in nnU-Net, and for two that
    overlap in part.

    >>> brain = Labels((Label("whole", (1, 2, 4), write=1), Label("core", (1, 4), write=2), Label("enhancing", (4,))))
    >>> [(fault.severity, fault.what) for fault in region_faults(brain)]
    [('error', 'voxels of "whole", written as 1, would count as "core" too')]
    >>> region_faults(brain)[0].fix
    'write "regions_class_order": [2, 1, 4]'
    """
    if not labels.are_regions():
        return ()
    clash = next(_clashes(labels), "")
    wrong = [Fault("", _FILE, "error", clash, _remedy(labels))] if clash else []
    return (*wrong, *_hidden(labels), *_partly_shared(labels))


def _clashes(labels: Labels) -> Iterator[str]:
    """Values that one region writes and that then mean something else."""
    for one in labels.items:
        if one.written == labels.ignore:
            yield f'region "{one.name}" would be written as {one.written}, the ignore value'
        for other in labels.items:
            if other.name != one.name and other.written == one.written:
                yield f'regions "{one.name}" and "{other.name}" would both be written as {one.written}'
            elif misread := _misread(one, other):
                yield misread


def _misread(one: Label, other: Label) -> str:
    """How voxels of one region, once they are written, stand to another that lies around, inside or apart from it."""
    mine, theirs = set(one.values), set(other.values)
    counted = one.written in {*theirs, other.written}
    said = f'voxels of "{one.name}", written as {one.written}, would'
    if mine <= theirs and not counted:
        return f'{said} be missing from "{other.name}"'
    if counted and (theirs < mine or not mine & theirs):
        return f'{said} count as "{other.name}" too'
    return ""


def _hidden(labels: Labels) -> Iterator[Fault]:
    """Regions that a later one covers wherever they are."""
    order = ", ".join(item.name for item in sorted(labels.items, key=lambda item: -len(item.values)))
    for number, item in enumerate(labels.items, start=1):
        over = [f'"{later.name}"' for later in labels.items[number:] if set(item.values) <= set(later.values)]
        if over:
            what = f'region "{item.name}" lies in {", ".join(over)}, written over it: no label map would show it'
            fix = f"list larger regions before the smaller ones in them, as for nnU-Net ({order})"
            yield Fault("", _FILE, "warning", what, f"{fix}, and regions_class_order in the same order")


def _partly_shared(labels: Labels) -> Iterator[Fault]:
    """Pairs of which neither holds the other: one value per voxel cannot say which of the two, or both, it lies in."""
    for one, other in combinations(labels.items, 2):
        mine, theirs = set(one.values), set(other.values)
        if mine & theirs and mine - theirs and theirs - mine:
            what = f'regions "{one.name}" and "{other.name}" overlap in part: label maps cannot show where both are'
            fix = "make regions of the three parts, or let one hold the other"
            yield Fault("", _FILE, "warning", what, f"{fix}; probabilities are not affected")


def _remedy(labels: Labels) -> str:
    """Values that tell all regions apart, the smallest regions choosing first; other advice where there are none."""
    shared = Counter(value for item in labels.items for value in item.values)
    unused = max(labels.known() | {labels.ignore or 0}) + 1
    chosen: dict[str, int] = {}
    for item in sorted(labels.items, key=lambda item: len(item.values)):
        left = sorted(set(item.values) - set(chosen.values()), key=lambda value: (shared[value], value))
        chosen[item.name] = left[0] if left else unused
        unused = unused if left else unused + 1
    told = tuple(replace(item, write=chosen[item.name]) for item in labels.items)
    if any(_clashes(replace(labels, items=told))):
        return "leave out a region that is no more than the regions inside it, or give it a value of its own"
    return f'write "regions_class_order": {[chosen[name] for name in labels.names()]}'
