"""Sort the image planes of many files into volumes, from their headers alone."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from medseg.errors import MedsegError
from medseg.io.dicom_headers import Header, Slice
from medseg.io.dicom_pixels import same_pixels
from medseg.io.dicom_planes import KEYS, Plane
from medseg.io.identifiers import shown_value

Group = tuple[Slice, ...]
_SCOUT_PLANES = 3  # planes of another orientation that a localizer has at most
_SAME_PLACE_MM = 0.005  # positions are often written with two decimals
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_ALIKE = 0.01  # of direction cosines in one stack
_UNEVEN = 0.02  # of the slice distance, by which distances differ in one volume


def group_slices(headers: Iterable[Header]) -> tuple[list[tuple[Group, str]], dict[int, str]]:
    """Stacks of planes with what tells each from others of its series, and reasons for the headers left out.

    Reasons are keyed by the place of a header in the iterable. Planes of one stack share series, frame of reference,
    matrix, kind of object and orientation; a stack whose positions repeat is split by the attribute (echo, time,
    b-value ...) that makes them unique, if there is one, else by folder where each holds a
    volume of its own and their pixels differ; in this case alone pixels are read. Frames of a multi-frame file mix with
    other files only where both belong to one concatenation.
    """
    refused: dict[int, str] = {}
    stacks: dict[tuple[object, ...], list[list[Slice]]] = {}
    number: dict[int, int] = {}
    for index, header in enumerate(headers):
        reason = unplaced(header)
        if reason:
            refused[index] = reason
            continue
        number[id(header)] = index
        alike = stacks.setdefault(_stack_key(header), [])
        for plane in header.planes:
            one = Slice(header, plane)
            near = next((stack for stack in alike if same_orientation(stack[0].plane, plane)), None)
            if near is None:
                alike.append([one])
            else:
                near.append(one)
    kept = _without_scouts([stack for alike in stacks.values() for stack in alike], refused, number)
    return [part for stack in kept for part in _split(stack)], refused


def unplaced(header: Header) -> str | None:
    """Why an image has no planes that could lie in a volume, or None."""
    if header.planes:
        captured = header.sop_class.startswith(_SECONDARY_CAPTURE) and header.kind == "volume"
        lost = captured and not any(plane.position for plane in header.planes)
        return "is a secondary capture (screen shot) without a position in the patient" if lost else None
    if header.kind == "ultrasound":
        return f"is an ultrasound cine ({header.frames} frames); frames are time, not slices"
    return f"is a multi-frame object ({header.frames} frames) that gives its frames no position"


def same_orientation(one: Plane, other: Plane) -> bool:
    """Whether both state nearly the same direction cosines, or none."""
    if not one.orientation or not other.orientation or len(one.orientation) != len(other.orientation):
        return one.orientation == other.orientation
    return max(abs(a - b) for a, b in zip(one.orientation, other.orientation, strict=True)) < _ALIKE


def along_normal(planes: Sequence[Plane]) -> list[float] | None:
    """Positions along the normal of the first plane in mm; None where a position or orientation is missing."""
    cosines = planes[0].orientation
    if not cosines or len(cosines) != 6 or any(not p.position or len(p.position) != 3 for p in planes):
        return None
    normal = np.cross(cosines[:3], cosines[3:])
    points = np.array([plane.position for plane in planes], dtype=np.float64)
    return [float(value) for value in points @ normal]


def _stack_key(header: Header) -> tuple[object, ...]:
    pixels = header.pixels
    size = (pixels.rows, pixels.columns, pixels.samples)
    key = (header.series_uid, header.frame_uid, header.sop_class, header.modality, *size)
    alone = header.frames > 1 or header.kind == "projection" or not header.planes[0].position
    if not alone:
        return key
    placed = header.frames > 1 or header.kind != "volume"
    return (*key, header.concatenation_uid or header.path) if placed else key


def _without_scouts(stacks: list[list[Slice]], refused: dict[int, str], number: dict[int, int]) -> list[list[Slice]]:
    """Stacks without the few planes of another orientation or matrix that are sent with a long one as localizers."""
    longest: dict[str, list[Slice]] = {}
    for stack in stacks:
        uid = stack[0].header.series_uid
        longest[uid] = max(longest.get(uid, []), stack, key=len)
    kept = []
    for stack in stacks:
        main = longest[stack[0].header.series_uid]
        if _is_scout(stack, main):
            for one in stack:
                refused[number[id(one.header)]] = (
                    f"is a localizer or rendering: {len(stack)} planes of another orientation, matrix or colour "
                    f"than the {len(main)} of its series"
                )
        else:
            kept.append(stack)
    return kept


def _is_scout(stack: Sequence[Slice], main: Sequence[Slice]) -> bool:
    first, usual = stack[0], main[0]
    if len(stack) > _SCOUT_PLANES or len(main) < 3 * len(stack) or not first.header.series_uid:
        return False
    sizes = [(s.header.pixels.rows, s.header.pixels.columns, s.header.pixels.samples) for s in (first, usual)]
    unlike = sizes[0] != sizes[1] or not same_orientation(first.plane, usual.plane)
    return unlike and first.header.frames == 1 and bool(first.plane.orientation)


def _split(stack: list[Slice]) -> list[tuple[Group, str]]:
    """The stack, or its volumes if positions repeat and attributes tell which plane belongs to which."""
    places = _places(stack)
    distinct = {(place, *_identity(one)) for place, one in zip(places, stack, strict=True)}
    most = max(Counter(place for place, _, _ in distinct).values())
    if len(set(places)) in (1, len(stack)):
        return [(tuple(stack), "")]
    return (_by_attribute(stack, places, most) if most > 1 else []) or _by_folder(stack, places) or [(tuple(stack), "")]


def _by_attribute(stack: list[Slice], places: list[int], most: int) -> list[tuple[Group, str]]:
    """Parts by the first attribute, or pair of them, that tells the planes at one place apart."""
    stated = {name for one in stack for name, _ in one.plane.keys}
    names = [name for name in KEYS if name in stated] + sorted(stated - set(KEYS))
    values = {name: [dict(one.plane.keys).get(name, "") for one in stack] for name in names}
    varying = [name for name in names if len(set(values[name])) > 1]
    pairs = [(a, b) for i, a in enumerate(varying) for b in varying[i + 1 :]]
    for keys in [*((name,) for name in varying), *pairs]:
        parts = _parted(stack, places, list(zip(*(values[name] for name in keys), strict=True)), most)
        if parts:
            return [(part, _label(keys, value)) for value, part in parts.items()]
    return []


def _by_folder(stack: Sequence[Slice], places: Sequence[int]) -> list[tuple[Group, str]]:
    """One part per folder if the planes of each, alone, lie at even places of their own and differ from the others'."""
    parts: dict[str, list[int]] = {}
    for index, one in enumerate(stack):
        parts.setdefault(str(one.header.path.parent), []).append(index)
    along = along_normal([one.plane for one in stack])
    for members in parts.values():
        if along is None or len(members) < 2 or len({places[i] for i in members}) < len(members):
            return []
        steps = np.diff(np.sort([along[i] for i in members]))
        if steps.max() - steps.min() > max(_UNEVEN * steps.min(), 2 * _SAME_PLACE_MM):
            return []
    if len(parts) < 2 or not _differ(stack, places):
        return []
    numbered = enumerate(sorted(parts), start=1)
    return [(tuple(stack[i] for i in parts[folder]), f"folder {n} of {len(parts)}") for n, folder in numbered]


def _differ(stack: Sequence[Slice], places: Sequence[int]) -> bool:
    """Whether any two planes at one place hold different values; one that cannot be decoded differs from all."""
    first: dict[int, Slice] = {}
    try:
        for place, one in zip(places, stack, strict=True):
            if first.setdefault(place, one) is not one and not same_pixels(first[place], one):
                return True
    except MedsegError:
        return True
    return False


def _places(stack: Sequence[Slice]) -> list[int]:
    """A number for every plane's place; planes at the same place have the same."""
    along = along_normal([one.plane for one in stack])
    if along is None:
        return list(range(len(stack)))
    order = np.argsort(along, kind="stable")
    steps = np.diff(np.array(along)[order]) > _SAME_PLACE_MM
    numbers = np.empty(len(stack), dtype=int)
    numbers[order] = np.concatenate([[0], np.cumsum(steps)])
    return [int(value) for value in numbers]


def _parted(
    stack: Sequence[Slice], places: Sequence[int], values: Sequence[tuple[str, ...]], most: int
) -> dict[tuple[str, ...], Group] | None:
    """Parts by value if there are as many as planes at one place, and no place occurs twice in a part."""
    if len(set(values)) != most:
        return None
    parts: dict[tuple[str, ...], list[Slice]] = {}
    found: dict[tuple[str, ...], set[tuple[int, str, int]]] = {}
    for one, place, value in zip(stack, places, values, strict=True):
        parts.setdefault(value, []).append(one)
        found.setdefault(value, set()).add((place, *_identity(one)))
    if any(len({place for place, _, _ in part}) < len(part) for part in found.values()):
        return None
    return {value: tuple(parts[value]) for value in sorted(parts, key=_as_numbers)}


def _identity(one: Slice) -> tuple[str, int]:
    """Equal for copies of one plane."""
    return one.header.sop_uid or str(one.header.path), one.plane.frame


def _as_numbers(value: tuple[str, ...]) -> tuple[tuple[float, str], ...]:
    found = []
    for part in value:
        try:
            found.append((float(part), part))
        except ValueError:
            found.append((0.0, part))
    return tuple(found)


def _label(keys: Sequence[str], value: Sequence[str]) -> str:
    return ", ".join(f"{key} {shown_value(part)[:40] or 'none'}" for key, part in zip(keys, value, strict=True))
