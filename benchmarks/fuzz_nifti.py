"""Coverage-guided fuzzing of the NIfTI reader: whatever the bytes, a right image or an error of medseg.

pip install atheris; python benchmarks/fuzz_nifti.py CORPUS -max_total_time=1200
"""

import gzip
import random

import atheris

with atheris.instrument_imports(include=["medseg.io", "medseg.types", "nibabel.nifti1", "nibabel.wrapstruct"]):
    from medseg.errors import MedsegError
    from medseg.io.images import read_image

import nibabel as nib
import numpy as np
from fuzz_target import fuzz, scratch

HOME = scratch()


NUMBERS = (0, 1, -1, 2, 3, 5, 7, 127, 255, 352, 32767, -32768, 1e-30, 0.5, 1e9, 1e38, float("nan"), float("inf"))


@atheris.instrument_func
def one(data: bytes) -> None:
    """The first byte says how the rest is stored: plain, gzip, gzip with its end cut or changed, or a pair."""
    how, body = (data[0] if data else 0) % 6, data[1:]
    name, stored = "a.nii.gz", gzip.compress(body, 1, mtime=0)
    if how == 0:
        name, stored = "a.nii", body
    elif how == 1:
        stored = stored[:-5]
    elif how == 2:
        stored = stored[:-6] + b"x" * 6
    elif how == 3:
        stored += body[-9:]
    elif how == 4:
        name, stored = "a.hdr", body[:348]
        (HOME / "a.img").write_bytes(body[348:])
    (HOME / name).write_bytes(stored)
    check(HOME / name)


def change(data: bytes, rng: random.Random) -> bytes:
    """Set a field of the header to a number that is awkward for its type."""
    second = data[5:9] == b"n+2\0"
    layout = np.dtype(nib.Nifti2Header.template_dtype if second else nib.Nifti1Header.template_dtype)
    kind, at = layout.fields[rng.choice(layout.names)][:2]
    base = kind.base
    if base.kind not in "iuf":
        return data
    number = rng.choice(NUMBERS)
    with np.errstate(all="ignore"):
        whole = int(np.clip(np.nan_to_num(number), -(2**40), 2**40))
        value = np.array(number if base.kind == "f" else whole).astype(base)
    at += 1 + base.itemsize * rng.randrange(kind.itemsize // base.itemsize)
    return data[:at] + value.tobytes() + data[at + base.itemsize :]


def check(path) -> None:
    try:
        image = read_image([path])
    except MedsegError as error:
        assert error.where, error
        return
    assert image.array.ndim == 4 and image.array.shape[1:] == image.geometry.shape
    assert image.array.nbytes <= 8 * 1032 * 20000
    assert image.array.dtype.kind in "iu" or np.isfinite(image.array).all()
    assert np.isfinite(image.geometry.affine()).all()
    assert abs(np.linalg.det(image.geometry.affine())) > 0


def seeds() -> dict[str, bytes]:
    """Small files of both versions, voxel types and byte orders."""
    found = {}
    affine = np.diag([-2.0, -3.0, 4.0, 1.0])
    for number, (dtype, shape) in enumerate(
        [("u1", (3, 4, 5)), ("<i2", (3, 4, 5)), ("f4", (3, 4)), ("f8", (2, 3, 4, 2)), ("<u4", (2, 2, 2, 1, 3))]
    ):
        data = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
        for kind in (nib.Nifti1Image, nib.Nifti2Image):
            raw = kind(data, affine).to_bytes()
            found[f"{kind.__name__}-{number}"] = bytes([5 * (number % 2)]) + raw
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.dtype(">i2"))
    found["big-endian"] = (
        b"\0" + nib.Nifti1Image(np.arange(60, dtype=">i2").reshape(3, 4, 5), affine, header).to_bytes()
    )
    single = bytearray(nib.Nifti1Image(np.arange(60, dtype="i2").reshape(3, 4, 5), affine).to_bytes())
    single[344:348], single[108:112] = b"ni1\0", bytes(4)
    found["pair"] = b"\4" + bytes(single[:348] + single[352:])
    return found


if __name__ == "__main__":
    fuzz(one, seeds, change)
