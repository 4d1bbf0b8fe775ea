"""medseg convert: any readable scan as NIfTI, NRRD or MetaImage, in scanner units and the right place."""

from dataclasses import replace
from pathlib import Path

from medseg.errors import DicomError
from medseg.io.images import read_image
from medseg.io.volumes import check_volume_format, write_image
from medseg.types.image import Image
from medseg.types.progress import Progress, Report, silent


def convert(
    source: Path,
    out: Path,
    *,
    series: str | None = None,
    channels: tuple[str, ...] = (),
    report: Report = silent,
) -> Image:
    """Read the scan at `source` and write it to `out`; returns what was written, with the reader's warnings.

    `source` is a file, a DICOM folder or a DICOM file; `out` ends in .nii.gz, .nii, .nrrd or .mha and is written whole
    or not at all. Integers stay integers unless the scanner's units need fractions. `series` is the SeriesInstanceUID
    of one of several series in a folder. `channels` names the channels of a file with a fourth axis; without it, time
    points are refused.

    Raises ImageError, GeometryError or DicomError where the scan cannot be read right, and ImageError where `out`
    cannot hold it.
    """
    check_volume_format(out)
    report(Progress("convert", 0, 2))
    image = read_image([source], channels=channels) if series is None else _one_series(source, series)
    report(Progress("convert", 1, 2))
    write_image(image, out)
    report(Progress("convert", 2, 2))
    return image


def _one_series(folder: Path, uid: str) -> Image:
    """The series of a folder with this SeriesInstanceUID."""
    from medseg.io.dicom_series import find_series, read_series

    if not folder.is_dir():
        raise DicomError("is no folder", where=folder, hint="name a series only where a folder holds several")
    found, refused = find_series(folder)
    alike = [one for one in found if one.uid == uid]
    if not alike:
        known = "; ".join(f"{one.uid} ({one.summary})" for one in found) or "none that can be read"
        raise DicomError(f"holds no series {uid}", where=folder, hint=f"its series are {known}")
    if len(alike) > 1:
        listed = "; ".join(one.summary for one in alike)
        raise DicomError(
            f"series {uid} holds {len(alike)} unlike stacks: {listed}", where=folder, hint="put each in its own folder"
        )
    image = read_series(alike[0])
    others = len(refused) + sum(len(one.files) for one in found) - len(alike[0].files)
    note = (f"{others} other files were left out",) if others else ()
    return replace(image, warnings=(*image.warnings, *note))
