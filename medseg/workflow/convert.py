"""medseg convert: any readable scan as NIfTI, NRRD or MetaImage, in scanner units and the right place."""

from dataclasses import replace
from pathlib import Path

from medseg.errors import DicomError
from medseg.io.archives import unpacked
from medseg.io.identifiers import shown_uid
from medseg.io.images import read_image
from medseg.io.volumes import check_volume_format, write_image
from medseg.types.image import Image
from medseg.types.progress import Progress, Report, silent


def convert(
    source: str | Path,
    out: str | Path,
    *,
    series: str | None = None,
    part: str | None = None,
    channels: tuple[str, ...] = (),
    spacing_mm: tuple[float, float] | None = None,
    report: Report = silent,
) -> Image:
    """Read the scan at `source` and write it to `out`; returns what was written, with the reader's warnings.

    `source` is a file, a DICOM folder, file or archive; `out` ends in .nii.gz, .nii, .nrrd or .mha and is written whole
    or not at all. Integers stay integers unless the scanner's units need fractions. `series` is the SeriesInstanceUID
    of one of several series in a folder, and `part` the one of its volumes with this name ("EchoTime 4.6"). `channels`
    names the channels of a file with a fourth axis; without it, time points are refused. `spacing_mm` (y, x) is that
    of flat images and ultrasound files that state none.

    Raises ImageError, GeometryError or DicomError where the scan cannot be read right, and ImageError where `out`
    cannot hold it.
    """
    source, out = Path(source), Path(out)
    check_volume_format(out)
    report(Progress("convert", 0, 2))
    with unpacked(source) as opened:
        if series is None and part is None:
            image = read_image([opened], channels=channels, spacing_mm=spacing_mm)
        else:
            image = _one_series(opened, series, part, spacing_mm)
    if image.geometry.unit == "px":
        note = "no spacing is stated; one voxel is written as 1 mm"
        image = replace(image, warnings=(*image.warnings, note))
    report(Progress("convert", 1, 2))
    write_image(image, out)
    report(Progress("convert", 2, 2))
    return image


def _one_series(folder: Path, uid: str | None, part: str | None, spacing_mm: tuple[float, float] | None) -> Image:
    """The one volume of a folder with this SeriesInstanceUID and name of its part."""
    from medseg.io.dicom_series import find_series

    if not folder.is_dir():
        raise DicomError("is no folder", where=folder, hint="name a series only where a folder holds several")
    found, refused = find_series(folder)
    alike = [one for one in found if uid in (None, one.uid, shown_uid(one.uid)) and part in (None, one.part)]
    if len(alike) != 1:
        some = (alike or found)[:20]
        listed = "; ".join(
            f"--series {shown_uid(one.uid)}{f' --part {one.part!r}' if one.part else ''}" for one in some
        )
        asked = " and ".join(filter(None, [uid and f"series {uid}", part and f"part {part!r}"]))
        count = f"holds {len(alike)} volumes of {asked}" if alike else f"holds no {asked}"
        raise DicomError(count, where=folder, hint=f"there are {listed}" if listed else "it holds no series")
    (one,) = alike
    volume = [other for other in found if set(other.files) == set(one.files)].index(one)
    image = read_image([folder], files=[one.files], volumes=[volume], spacing_mm=spacing_mm)
    others = len(refused) + len({file for other in found for file in other.files} - set(one.files))
    note = (f"{others} other files were left out",) if others else ()
    return replace(image, warnings=(*image.warnings, *note))
