"""Seconds and memory of reading one DICOM series, with medseg and others side by side in one run.

    python benchmarks/read_dicom.py DATA/cbct-icat/DICOM
    python benchmarks/read_dicom.py --phantom 400 FOLDER

Every reader has a process of its own, one after the other, each file cached before. Memory is the peak of the process,
and that peak less what the process held after its imports. The decoder for pydicom is pylibjpeg-libjpeg (GPL): it is
installed by hand for this and is no dependency.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np

READERS = ("medseg", "SimpleITK", "pydicom")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--phantom", type=int, metavar="N", help="first write N uncompressed slices of 512 x 512")
    parser.add_argument("--reader", choices=READERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reader:
        print(json.dumps(measure(options.reader, options.folder)))
        return
    if options.phantom:
        write_phantom(options.folder, options.phantom)
    for path in options.folder.iterdir():
        path.read_bytes()
    print("| reader | seconds | processor seconds | peak MiB | MiB above imports | sum of values |")
    print("|---|---|---|---|---|---|")
    for reader in READERS:
        command = [sys.executable, __file__, str(options.folder), "--reader", reader]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"| {reader} | failed: {done.stderr.strip().splitlines()[-1]} |")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {reader} | {found['seconds']:.2f} | {found['cpu']:.2f} | {found['peak']:.0f} | "
            f"{found['above']:.0f} | {found['sum']} |"
        )


def measure(reader, folder):
    """Read the folder with imports done; voxels are touched by summing them after the clock has stopped."""
    read = {"medseg": by_medseg, "SimpleITK": by_simpleitk, "pydicom": by_pydicom}[reader]()
    before, start, cpu = peak_mib(), time.perf_counter(), time.process_time()
    volume = read(folder)
    found = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu, "peak": peak_mib()}
    return {**found, "above": found["peak"] - before, "sum": int(volume.sum(dtype=np.int64))}


def by_medseg():
    import SimpleITK  # noqa: F401  medseg imports it on first use

    from medseg.io.images import read_image

    return lambda folder: read_image([folder]).array


def by_simpleitk():
    import SimpleITK as sitk

    def read(folder):
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        return sitk.GetArrayFromImage(reader.Execute())

    return read


def by_pydicom():
    """What one writes by hand: sort by position, decode, rescale, stack."""
    import pydicom

    warnings.simplefilter("ignore")

    def read(folder):
        slices = [pydicom.dcmread(path) for path in folder.iterdir()]
        slices.sort(key=lambda ds: float(ds.ImagePositionPatient[2]))
        planes = [ds.pixel_array.astype(np.int16) * int(ds.RescaleSlope) + int(ds.RescaleIntercept) for ds in slices]
        return np.stack(planes)

    return read


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_phantom(folder, count):
    import pydicom
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    folder.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0)
    for k in range(count):
        ds = pydicom.Dataset()
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = f"1.2.826.0.1.3680043.10.1.9.{k + 1}"
        ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.826.0.1.3680043.10.1.8", "1.2.826.0.1.3680043.10.1.7"
        ds.Modality, ds.Rows, ds.Columns, ds.SamplesPerPixel = "CT", 512, 512, 1
        ds.PhotometricInterpretation, ds.PixelRepresentation = "MONOCHROME2", 0
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
        ds.PixelSpacing, ds.ImageOrientationPatient = [0.5, 0.5], [1, 0, 0, 0, 1, 0]
        ds.ImagePositionPatient = [0, 0, k]
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        ds.PixelData = values.integers(0, 4096, (512, 512), dtype=np.uint16).tobytes()
        ds.save_as(folder / f"{k:04d}.dcm", enforce_file_format=True)


if __name__ == "__main__":
    main()
