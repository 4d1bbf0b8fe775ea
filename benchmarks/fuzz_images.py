"""Coverage-guided fuzzing of MetaImage, NRRD, PNG, BMP and TIFF: a right image or an error of medseg.

pip install atheris; python benchmarks/fuzz_images.py CORPUS -max_total_time=1200
"""

import io

import atheris

with atheris.instrument_imports(include=["medseg.io", "medseg.types", "tifffile"]):
    from medseg.errors import MedsegError
    from medseg.io.images import read_image

import numpy as np
import SimpleITK as sitk
import tifffile
from fuzz_target import fuzz, scratch
from PIL import Image as Picture

HOME = scratch()
sitk.ProcessObject.SetGlobalWarningDisplay(False)
GREY = np.arange(60, dtype=np.uint8).reshape(6, 10)


@atheris.instrument_func
def one(data: bytes) -> None:
    """The first byte says which format the rest claims to be."""
    which, body = (data[0] if data else 0) % 7, data[1:]
    if which == 0:
        name = "a.mha"
    elif which == 1:
        name = "a.nrrd"
    elif which == 2:
        name = "a.png"
    elif which == 3:
        name = "a.bmp"
    elif which == 4:
        name = "a.tif"
    elif which == 5:
        name = "a.mhd"
    else:
        name = "a.nhdr"
    (HOME / name).write_bytes(body)
    try:
        image = read_image([HOME / name])
    except MedsegError as error:
        assert error.where, error
        return
    assert image.array.ndim == 4 and image.array.shape[1:] == image.geometry.shape
    assert image.array.nbytes <= 8 * 4096 * 20000
    assert image.array.dtype.kind in "iu" or np.isfinite(image.array).all()


def seeds() -> dict[str, bytes]:
    """Small files of every format and compression."""
    found = {}
    volume = sitk.GetImageFromArray(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    for compressed in (False, True):
        for which, name in enumerate(("s.mha", "s.nrrd")):
            sitk.WriteImage(volume, str(HOME / name), compressed)
            found[f"{name}-{compressed}"] = bytes([which]) + (HOME / name).read_bytes()
    for mode in ("L", "RGB", "RGBA", "P", "1", "I;16"):
        for which, kind in ((2, "PNG"), (3, "BMP"), (4, "TIFF")):
            buffer = io.BytesIO()
            try:
                Picture.fromarray(GREY).convert(mode).save(buffer, format=kind)
            except (OSError, ValueError):
                continue
            found[f"{kind}-{mode.replace(';', '')}"] = bytes([which]) + buffer.getvalue()
    for name, options in {
        "plain": {},
        "zlib": {"compression": "zlib", "rowsperstrip": 2},
        "imagej": {"imagej": True, "resolution": (4, 2), "metadata": {"unit": "mm", "axes": "YX"}},
        "ome": {"ome": True, "metadata": {"axes": "YX", "PhysicalSizeX": 2.0}},
        "tiles": {"tile": (16, 16)},
    }.items():
        tifffile.imwrite(HOME / "s.tif", GREY, **options)
        found[f"tiff-{name}"] = b"\4" + (HOME / "s.tif").read_bytes()
    tifffile.imwrite(HOME / "s.tif", np.stack([GREY, GREY]), photometric="minisblack", compression="zlib")
    found["tiff-pages"] = b"\4" + (HOME / "s.tif").read_bytes()
    (HOME / "d.raw").write_bytes(bytes(120))
    for which, text in ((5, "MetaImage"), (6, "Nrrd")):
        sitk.WriteImage(volume, str(HOME / ("s.mhd" if which == 5 else "s.nhdr")))
        header = (HOME / ("s.mhd" if which == 5 else "s.nhdr")).read_bytes()
        found[text] = bytes([which]) + header.replace(b"s.raw", b"d.raw")
    return found


if __name__ == "__main__":
    (HOME / "d.raw").write_bytes(bytes(120))
    fuzz(one, seeds)
