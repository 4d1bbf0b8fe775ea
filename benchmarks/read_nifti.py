"""Seconds and peak memory to read a 512 x 512 x 400 int16 .nii.gz, beside nibabel and SimpleITK, each in its process.

python benchmarks/read_nifti.py
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np


def write(path: Path) -> None:
    rng = np.random.default_rng(0)
    volume = np.zeros((512, 512, 400), np.int16)
    for k in range(400):
        volume[:, :, k] = rng.normal(0, 20, (512, 512)).cumsum(0) / 4 - 1000
    nib.save(nib.Nifti1Image(volume, np.diag([-0.5, -0.5, 0.5, 1.0])), path)


def read(reader: str, path: Path) -> None:
    if reader == "medseg":
        from medseg.io.images import read_image

        start = time.perf_counter()
        size = read_image([path]).array.nbytes
    elif reader == "nibabel":
        start = time.perf_counter()
        size = np.asarray(nib.load(path).dataobj).nbytes
    else:
        import SimpleITK as sitk

        start = time.perf_counter()
        size = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).nbytes
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{reader:10} {seconds:6.2f} s {peak:6.0f} MiB at most, {size / 2**20:.0f} MiB of voxels")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        read(sys.argv[1], Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder) / "scan.nii.gz")
            for reader in ("medseg", "nibabel", "simpleitk") * 3:
                subprocess.run([sys.executable, __file__, reader, Path(folder) / "scan.nii.gz"], check=True)
