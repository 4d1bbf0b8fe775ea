"""Command from one file format to another: convert."""

from pathlib import Path
from typing import Annotated

from medseg.cli.terms import OK, Out, Words, complain, pixel_spacing, show


def convert(
    source: Path,
    /,
    *,
    out: Out,
    series: str | None = None,
    part: str | None = None,
    channels: Annotated[tuple[str, ...], Words] = (),
    spacing: Annotated[tuple[float, ...], Words] = (),
) -> int:
    """Write any readable scan as .nii.gz, .nii, .nrrd or .mha, in scanner units and the right place.

    Example: medseg convert DICOM_FOLDER -o scan.nii.gz

    Parameters
    ----------
    source
        Image file, folder or archive of one DICOM series, or one of its files.
    out
        File to write; an existing one is replaced.
    series
        SeriesInstanceUID of one of several series in a folder.
    part
        Which volume of a series that holds several, as `medseg inspect` names it, e.g. "EchoTime 4.6".
    channels
        Names of the channels of a file with a fourth axis; without them, time points are refused.
    spacing
        Pixel spacing in mm, one number or y and x, of flat images and ultrasound that state none.
    """
    from medseg.cli.progress import shown_progress
    from medseg.workflow import convert as job

    with shown_progress(lines=False) as report:
        image = job.convert(
            source,
            out,
            series=series,
            part=part,
            channels=channels,
            spacing_mm=pixel_spacing(spacing),
            report=report,
        )
    for warning in image.warnings:
        complain(f"warning: {warning}", OK)
    c, z, y, x = image.array.shape
    dz, dy, dx = image.geometry.spacing_mm
    size = f"{x} x {y} x {z} voxels of {dx:.4g} x {dy:.4g} x {dz:.4g} {image.geometry.unit}"
    show(f"{out}: {size}, {image.array.dtype}{f', {c} channels' if c > 1 else ''}")
    return OK
