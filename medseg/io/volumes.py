"""Write scans of any shape: NIfTI, NRRD and MetaImage."""

from pathlib import Path

from medseg.errors import ImageError
from medseg.io.itk import write_itk
from medseg.io.nifti import write_nifti
from medseg.types.image import Image

_NIFTI = (".nii.gz", ".nii")
_ITK = (".mha", ".nrrd")
_SEGMENTATION = ".seg.nrrd"


def check_volume_format(path: Path) -> None:
    """Raise ImageError unless `path` ends in .nii.gz, .nii, .mha or .nrrd, the formats that hold any volume.

    Names of segmentations (.seg.nrrd) are refused too: other programs would take the scan for one.
    """
    if path.name.lower().endswith(_SEGMENTATION):
        what = f"{_SEGMENTATION} is the name of segmentations, and this writes a scan"
        raise ImageError(what, where=path, hint="use .nrrd; medseg predict --format seg.nrrd writes segmentations")
    if not path.name.lower().endswith((*_NIFTI, *_ITK)):
        raise ImageError("is no format for volumes", where=path, hint="use .nii.gz, .nii, .mha or .nrrd")


def write_image(image: Image, path: Path) -> None:
    """Write a scan in its own voxel type, whole or not at all.

    Several channels become a fourth axis in NIfTI and vectors in the others. Raises ImageError for other suffixes
    and for what the format cannot hold.
    """
    check_volume_format(path)
    array = image.array[0] if len(image.array) == 1 else image.array
    write = write_nifti if path.name.lower().endswith(_NIFTI) else write_itk
    write(array, image.geometry, path)
