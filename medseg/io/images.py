"""Read scans and label maps of any format, and write label maps and probabilities."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from medseg.errors import DicomError, GeometryError, ImageError, MedsegError
from medseg.io.channels import match_channels, same_channels
from medseg.io.flat_spacing import image_with_spacing
from medseg.io.identifiers import shown_uid
from medseg.io.itk import read_itk, write_itk
from medseg.io.label_values import some_of, values_in, whole_numbers
from medseg.io.named_labels import is_named, read_named_labels
from medseg.io.nifti import read_nifti, write_nifti
from medseg.io.raster import RASTER, read_raster, write_raster
from medseg.types.geometry import Geometry
from medseg.types.image import Image, LabelMap, Probabilities
from medseg.types.labels import Labels

_NIFTI = (".nii.gz", ".nii")
_PAIR = (".hdr.gz", ".hdr")
_ITK = (".mha", ".mhd", ".nrrd", ".nhdr")
SUFFIXES = (*_NIFTI, *_PAIR, *_ITK, *RASTER)
_DICOM = (".dcm", ".dicom", ".ima")


def is_image(path: Path) -> bool:
    """Whether the suffix is one of SUFFIXES, in any case; DICOM files are asked for with `is_dicom`.

    >>> is_image(Path("scan.NII.GZ")), is_image(Path("notes.txt"))
    (True, False)
    """
    return bool(_suffix(path))


def image_stem(path: Path) -> str:
    """File name without its image suffix.

    >>> image_stem(Path("a/case.01.nii.gz"))
    'case.01'
    """
    suffix = _suffix(path)
    return path.name[: -len(suffix)] if suffix else path.stem


def is_dicom(path: Path) -> bool:
    """Whether a file has a DICOM suffix or a DICOM preamble."""
    if path.suffix.lower() in _DICOM:
        return True
    if is_image(path) or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_image(
    paths: Sequence[Path],
    *,
    channels: tuple[str, ...] = (),
    files: Sequence[Sequence[Path]] = (),
    volumes: Sequence[int] = (),
    spacing_mm: tuple[float, float] | None = None,
) -> Image:
    """Read one scan: one path per channel, or one path that holds all channels.

    A path is a file of SUFFIXES, a folder that holds one DICOM series, or a DICOM file, which stands for its series
    in the same folder. Array (c, z, y, x) in scanner
    units, integer where the file is, else float32. Channels must share one grid: corner voxels up to 0.001 mm apart
    are equal, up to max(0.01 mm, 1 % of the smallest voxel side) they are taken as the first channel's with a
    warning. A colour file where one channel is asked becomes grey: exactly if its channels are equal, else by
    luminance with a warning. `channels` names the channels and fixes their number; without it, a fourth axis that is
    time is refused. `files` and `volumes`, as in `Case`, say which DICOM files to read for each path, and which of
    the volumes they hold, whatever else lies beside them. `spacing_mm` (y, x) is that of flat images and ultrasound
    files that state none.

    Raises ImageError for files that cannot be read, hold NaN or infinite voxels, or another number of channels;
    GeometryError for grids that are invalid or differ; DicomError for series that are no regular volume.
    """
    if not paths:
        raise ImageError("no file given", hint="give one path per channel")
    if channels and len(paths) not in (1, len(channels)):
        raise ImageError(
            f"{len(paths)} files for channels {', '.join(channels)}", where=paths[0], hint="give one file per channel"
        )
    expected = 1 if len(paths) > 1 else len(channels)
    own = list(zip_longest(paths, files, volumes, fillvalue=None))
    parts = [
        match_channels(
            _read_path(path, only or (), volume or 0, channels_named=expected > 1, spacing_mm=spacing_mm),
            expected,
            path,
        )
        for path, only, volume in own
        if path is not None
    ]
    warnings = list(parts[0].warnings)
    for path, part in zip(paths[1:], parts[1:], strict=True):
        notes = (*part.warnings, *check_same_grid(parts[0].geometry, part.geometry, where=path))
        warnings += [f"{path.name}: {note}" for note in notes]
    arrays = [part.array for part in parts]
    source = parts[0].source
    if source is not None and len(parts) > 1:
        every = dict.fromkeys(file for part in parts if part.source for file in part.source.files)
        source = replace(source, files=tuple(every))  # channels may be frames of one file
    array = arrays[0] if len(arrays) == 1 else _stack(arrays)
    names = channels or tuple(str(i) for i in range(len(array)))
    return Image(array, parts[0].geometry, names, source, tuple(warnings))


def check_same_grid(reference: Geometry, other: Geometry, *, where: object = "") -> tuple[str, ...]:
    """Warnings (none if equal) about `other` being taken as `reference`; tolerances as in `read_image`.

    Raises GeometryError, with the size of the difference, if the grids are not the same.
    """
    if reference.shape != other.shape:
        raise GeometryError(
            f"shape {other.shape} differs from {reference.shape}, both (z, y, x)",
            where=where,
            hint="resample it onto the grid of the first image",
        )
    if reference.unit != other.unit:
        return ("only one of two files states a spacing; their shapes agree and they are taken as one grid",)
    if reference.same_grid(other):
        return ()
    apart = reference.corner_distance_mm(other)
    if apart > max(1e-2, 0.01 * min(reference.spacing_mm)):
        raise GeometryError(
            f"its grid lies up to {apart:.3g} mm away from that of the first image",
            where=where,
            hint="resample it, or copy the header if only the header is wrong",
        )
    return (f"its grid lies {apart:.2g} mm away and is taken as equal",)


def read_labels(path: Path, labels: Labels, image: Image | None = None, *, predicted: bool = False) -> LabelMap:
    """Read a label map, uint8 or uint16 (z, y, x), values as stored (float files must hold whole numbers).

    DICOM SEG, RTSTRUCT and .seg.nrrd name their structures: those named like `labels` are taken, with the values of
    `labels`, on the grid of `image`, which DICOM SEG and RTSTRUCT need.
    Raises ImageError, naming the values, where a voxel is neither background, nor a class, nor the ignore value, nor,
    in a map that medseg `predicted`, what a class is written as; and what the readers of named structures raise.
    """
    if is_named(path):
        return read_named_labels(path, labels, image)
    image = read_stored(path)
    allowed = labels.known() | {0} | ({labels.ignore} if labels.ignore is not None else set())
    allowed |= {item.written for item in labels.items if predicted}
    grid = whole_numbers(image.array[0], max(allowed), path)
    unknown = sorted(set(values_in(grid)) - allowed)
    if unknown:
        hint = f"known values are {sorted(allowed)}"
        raise ImageError(f"holds values {some_of(unknown)} that are no class", where=path, hint=hint)
    return LabelMap(grid, image.geometry, labels, image.warnings)


def read_stored(path: Path) -> Image:
    """A label map of any values, as stored: one channel. Raises ImageError for colours, layers and JPEG files."""
    image = _read_path(path, stored_values=True)
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise ImageError("is a JPEG file, which cannot hold labels", where=path, hint="save label maps as PNG")
    array = image.array[:1] if len(image.array) == 3 and same_channels(image.array) else image.array
    if len(array) != 1:
        raise ImageError(f"has {len(array)} channels", where=path, hint="a label map holds one number per voxel")
    return replace(image, array=array, channels=image.channels[:1])


def write_labels(labels: LabelMap, path: Path) -> None:
    """Write a label map, whole or not at all: .nii, .nii.gz, .mha, .nrrd, and for one slice .png, .tif.

    Raises ImageError for other suffixes, several slices in a flat format, and values beyond 65535.
    """
    array = labels.array
    if array.shape != labels.geometry.shape:
        raise ImageError(f"array {array.shape} is not of shape {labels.geometry.shape}", where=path)
    top = int(array.max())
    if int(array.min()) < 0 or top > np.iinfo(np.uint16).max:
        raise ImageError(f"holds value {top}", where=path, hint="label values are 0 to 65535")
    array = array.astype(np.uint8 if top < 256 else np.uint16, copy=False)
    suffix = _suffix(path)
    if suffix in _NIFTI:
        write_nifti(array, labels.geometry, path)
    elif suffix in (".mha", ".nrrd"):
        write_itk(array, labels.geometry, path)
    elif suffix in (".png", ".tif", ".tiff"):
        write_raster(array, labels.geometry, path)
    else:
        raise ImageError("no label map format", where=path, hint="use .nii.gz, .mha, .nrrd, .png or .tif")


def write_scores(probabilities: Probabilities, path: Path) -> None:
    """Write float32 probabilities: 4D .nii or .nii.gz, or vectors in .mha or .nrrd; raises ImageError for others."""
    array = probabilities.array.astype(np.float32, copy=False)
    if _suffix(path) in _NIFTI:
        write_nifti(array, probabilities.geometry, path)
    elif _suffix(path) in (".mha", ".nrrd"):
        write_itk(array, probabilities.geometry, path)
    else:
        raise ImageError("no format for probabilities", where=path, hint="use .nii.gz, .mha or .nrrd")


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def _read_path(
    path: Path,
    files: Sequence[Path] = (),
    volume: int = 0,
    *,
    stored_values: bool = False,
    channels_named: bool = False,
    spacing_mm: tuple[float, float] | None = None,
) -> Image:
    try:
        if files or path.is_dir() or (path.is_file() and is_dicom(path)):
            image = _read_dicom(path, files, volume, spacing_mm)
        else:
            image = _decode(path, stored_values, channels_named)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ImageError(f"cannot be opened ({reason})", where=path, hint="check the path") from error
    except MemoryError as error:
        raise ImageError("needs more memory than there is", where=path, hint="crop or split the file") from error
    except MedsegError as error:
        if error.where:
            raise
        raise type(error)(error.what, where=path, hint=error.hint) from error
    if image.array.dtype.kind == "f":
        bad = image.array.size - int(np.count_nonzero(np.isfinite(image.array)))
        if bad:
            raise ImageError(f"{bad} voxels are NaN or infinite", where=path, hint="replace them in the file")
    return image if spacing_mm is None else image_with_spacing(image, spacing_mm)


def _decode(path: Path, stored_values: bool, channels_named: bool) -> Image:
    suffix = _suffix(path)
    if not path.is_file():
        what = "is no regular file" if path.exists() else "does not exist"
        raise ImageError(what, where=path, hint="check the path")
    if suffix in (*_NIFTI, *_PAIR):
        return read_nifti(path, channels_named=channels_named)
    if suffix in _ITK:
        return read_itk(path, channels_named=channels_named)
    if suffix in RASTER:
        return read_raster(path, stored_values=stored_values)
    raise ImageError("is no known image format", where=path, hint=f"use DICOM or one of {', '.join(SUFFIXES)}")


def _read_dicom(
    path: Path, files: Sequence[Path] = (), volume: int = 0, spacing_mm: tuple[float, float] | None = None
) -> Image:
    """A volume of `files`, else the one series in a folder, or the series in its folder that a file belongs to."""
    from medseg.io.dicom_series import choose_volume, find_series, group_files, read_series

    aside: tuple[str, ...] = ()
    if files:
        found, refused = group_files(files)
        found = tuple(series for series in found if set(series.files) == set(files))[volume : volume + 1]
    elif path.is_dir():
        found, refused = find_series(path)
        found, aside = choose_volume(found)
    else:
        found, refused = group_files(
            sorted(file for file in path.parent.iterdir() if file.is_file() and not file.name.startswith("."))
        )
        found = tuple(series for series in found if path in series.files)
        refused = {file: reason for file, reason in refused.items() if file == path}
    reasons = "; ".join(sorted(set(refused.values()))[:3])
    if len(found) > 1:
        listed = "; ".join(f"{one.summary}, series {shown_uid(one.uid) or 'without UID'}" for one in found)
        hint = f"give the folder of one, or choose with medseg convert --series UID; `medseg inspect {path}` shows more"
        raise DicomError(f"holds {len(found)} series: {listed}", where=path, hint=hint)
    if not found:
        reasons = reasons or "no files"
        raise DicomError(f"holds no readable DICOM series ({reasons})", where=path, hint="give a folder of slices")
    image = read_series(found[0], spacing_mm=spacing_mm)
    notes = [*aside, *([f"{len(refused)} other files were left out ({reasons})"] if refused else [])]
    if path.is_file() and not files and len(found[0].files) > 1:
        notes.append(f"read with the {len(found[0].files) - 1} other files of its series")
    return replace(image, warnings=(*image.warnings, *notes))


def _stack(arrays: Sequence[Shaped[np.ndarray, "1 z y x"]]) -> Shaped[np.ndarray, "c z y x"]:
    dtype = np.result_type(*arrays)
    return np.concatenate(arrays, dtype=np.float32 if dtype == np.float64 else dtype, casting="same_kind")
