"""Image planes of DICOM files as one volume in scanner units."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped

from medseg.errors import DicomError
from medseg.io.dicom_frames import check_frames, is_plain, stored_frame
from medseg.io.dicom_headers import Pixels, Slice
from medseg.io.dicom_planes import Plane
from medseg.io.dicom_values import tag_name

_AGAIN = "export the series again"
_INT16 = np.iinfo(np.int16)
_EXACT = 1 << 24  # whole numbers up to here are exact in float32
_MEASURED = frozenset({"CT", "PT", "NM"})  # values are quantities, whatever the display is told


def read_volume(slices: Sequence[Slice]) -> tuple[Shaped[np.ndarray, "c z y x"], tuple[str, ...]]:
    """Decode planes in the given order, with what was doubtful; slope, intercept and tables are applied plane by plane.

    int16 where every value is a whole number that fits, else float32. Bits outside BitsStored are masked. MONOCHROME1
    (white is low) is inverted within the stored range where values have no unit; see `white_is_low`. Values in padding
    areas stay as stored. Colours come as three channels. Nothing is allocated before every file has been found long
    enough for it. Raises DicomError naming the file.
    """
    check_volume(slices)
    first = slices[0].header.pixels
    volume = np.empty((first.samples, len(slices), first.rows, first.columns), dtype=np.int16)
    masked, rounded = 0, False
    for index, one in enumerate(slices):
        stored, dirty = _masked(stored_frame(one.header, one.plane.frame), one.header.pixels)
        if dirty and not is_plain(one.header):
            raise DicomError(f"decodes to values beyond {tag_name('BitsStored')}", where=one.name, hint=_AGAIN)
        masked += dirty
        planes = _scaled(stored, one)
        fits = planes.dtype == np.int16 or (
            planes.dtype.kind in "iu" and planes.min() >= _INT16.min and planes.max() <= _INT16.max
        )
        if volume.dtype == np.int16 and not fits:
            volume = _as_float(volume, index)
        if not fits and planes.dtype.kind in "iu":
            rounded |= bool(max(-int(planes.min()), int(planes.max())) > _EXACT)
        volume[:, index] = planes
    return volume, _warnings(slices, masked, rounded)


def check_volume(slices: Sequence[Slice]) -> None:
    """Raise DicomError for what can be known to fail before any pixel is decoded: scales, layouts, lengths of files."""
    _check_scale(slices)
    for header in {id(one.header): one.header for one in slices}.values():
        check_frames(header)


def _as_float(volume: Shaped[np.ndarray, "c z y x"], filled: int) -> Shaped[np.ndarray, "c z y x"]:
    """The volume in single precision; planes from `filled` on hold nothing yet and are not touched."""
    wider = np.empty(volume.shape, dtype=np.float32)
    wider[:, :filled] = volume[:, :filled]
    return wider


def same_pixels(one: Slice, other: Slice) -> bool:
    """Whether two planes have equal stored values and scale."""
    scale = [(s.plane.slope, s.plane.intercept, s.plane.unit, s.plane.lut, white_is_low(s)) for s in (one, other)]
    if scale[0] != scale[1]:
        return False
    for header in (one.header, other.header):
        check_frames(header)
    first, second = (_masked(stored_frame(s.header, s.plane.frame), s.header.pixels)[0] for s in (one, other))
    return bool(np.array_equal(first, second))


def white_is_low(one: Slice) -> bool:
    """Whether stored grey values are inverted: MONOCHROME1 in projection X-ray, and wherever values have no unit.

    It is a hint for the display. CT, PET and nuclear medicine values, and what names a unit in RescaleType or Units,
    are quantities and stay; in a projection, bone is to be brighter than air on every detector.
    """
    if one.header.pixels.photometric != "MONOCHROME1" or one.header.modality in _MEASURED:
        return False
    return one.header.kind == "projection" or one.plane.unit.upper() in {"", "US", "UNSPECIFIED"}


def _check_scale(slices: Sequence[Slice]) -> None:
    """Every plane has a usable scale of one kind and unit."""
    reference = next((one for one in slices if _kind(one.plane) != "none"), slices[0])
    for one in slices:
        plane, where = one.plane, one.name
        if _kind(plane) == "none" and one is not reference and _kind(reference.plane) != "none":
            keyword = "ModalityLUTSequence" if reference.plane.lut else "RescaleSlope"
            raise DicomError(f"lacks {tag_name(keyword)}, which other slices have", where=where, hint=_AGAIN)
        if _kind(plane) != _kind(reference.plane):
            raise DicomError(f"has a {tag_name('ModalityLUTSequence')}, others a slope", where=where, hint=_AGAIN)
        if plane.unit != reference.plane.unit:
            raise DicomError(
                f"{tag_name('RescaleType')} or {tag_name('Units')} is {plane.unit or 'missing'}, "
                f"{reference.plane.unit or 'missing'} in other slices",
                where=where,
                hint="split the series by unit",
            )
        if plane.lut and not plane.lut.entries:
            raise DicomError(f"{tag_name('ModalityLUTSequence')} is damaged", where=where, hint=_AGAIN)
        _slope(one)


def _kind(plane: Plane) -> str:
    return "table" if plane.lut else "none" if plane.slope is None and plane.intercept is None else "slope"


def _slope(one: Slice) -> tuple[float, float]:
    plane = one.plane
    if (plane.slope is None) != (plane.intercept is None):
        keyword = "RescaleSlope" if plane.slope is None else "RescaleIntercept"
        raise DicomError(f"lacks {tag_name(keyword)}", where=one.name, hint=_AGAIN)
    slope, intercept = (1.0,) if plane.slope is None else plane.slope, plane.intercept or (0.0,)
    if len(slope) != 1 or plane.intercept == () or len(intercept) != 1:
        raise DicomError(f"{tag_name('RescaleSlope')} or intercept is no number", where=one.name, hint=_AGAIN)
    if slope[0] == 0:
        raise DicomError(f"{tag_name('RescaleSlope')} is 0", where=one.name, hint=_AGAIN)
    return slope[0], intercept[0]


def _masked(raw: Shaped[np.ndarray, "*any"], pixels: Pixels) -> tuple[Shaped[np.ndarray, "*any"], bool]:
    """The bits that BitsStored and HighBit name, sign-extended; and whether others were set."""
    if raw.dtype.kind == "f" or (pixels.stored, pixels.high) == (pixels.allocated, pixels.allocated - 1):
        return raw, False
    above = pixels.allocated - 1 - pixels.high
    below = pixels.high + 1 - pixels.stored
    if pixels.signed:
        low, high = -(1 << pixels.stored - 1), (1 << pixels.stored - 1) - 1
    else:
        low, high = 0, (1 << pixels.stored) - 1
    found = _bounds(raw)
    if below == 0 and found[0] >= low and found[1] <= high:
        return raw, False
    clean = (raw << above) >> (above + below)
    unsigned = raw.view(raw.dtype.str.replace("i", "u"))
    used = ((1 << pixels.stored) - 1) << below
    return clean, bool(np.any(unsigned & ~unsigned.dtype.type(used)))


def _bounds(values: Shaped[np.ndarray, "*any"]) -> tuple[int, int]:
    """No value lies outside; unsigned ones start at 0."""
    return (0 if values.dtype.kind == "u" else int(values.min())), int(values.max())


def _scaled(stored: Shaped[np.ndarray, "*s y x"], one: Slice) -> Shaped[np.ndarray, "*s y x"]:
    """Modality values; whole numbers where slope and intercept are."""
    plane, pixels = one.plane, one.header.pixels
    inverted = white_is_low(one)
    if plane.lut:
        table = np.array(plane.lut.entries, dtype=np.int64)
        values = table[np.clip(stored.astype(np.int64) - plane.lut.first, 0, len(table) - 1)]
        return table.max() + table.min() - values if inverted else values
    slope, intercept = _slope(one)
    if inverted:
        stored = (-1 if pixels.signed else (1 << pixels.stored) - 1) - stored.astype(np.int64)
    if stored.dtype.kind == "f" or not (slope.is_integer() and intercept.is_integer()):
        return (stored * slope + intercept).astype(np.float32)
    if (slope, intercept) == (1.0, 0.0):
        return stored
    reach = max(map(abs, _bounds(stored))) * max(abs(slope), 1) + abs(intercept)
    wide = stored.astype(np.int16 if reach <= _INT16.max else np.int32 if reach < 1 << 31 else np.int64)
    if slope != 1:
        np.multiply(wide, int(slope), out=wide)
    np.add(wide, int(intercept), out=wide)
    return wide


def _warnings(slices: Sequence[Slice], masked: int, rounded: bool) -> tuple[str, ...]:
    first = slices[0]
    said = []
    if white_is_low(first):
        said.append("MONOCHROME1: grey values are inverted so that white is high")
    elif first.header.pixels.photometric == "MONOCHROME1":
        said.append("MONOCHROME1 is a hint for the display; values are not inverted")
    if masked:
        what = "overlays" if first.header.pixels.overlays else "bits"
        said.append(f"{what} beyond {tag_name('BitsStored')} are masked in {masked} of {len(slices)} slices")
    if rounded:
        said.append("values beyond 16777216 are rounded to single precision")
    if first.header.modality == "CT" and _kind(first.plane) == "none":
        said.append(f"CT without {tag_name('RescaleSlope')}: values are as stored, perhaps not HU")
    return tuple(said)
