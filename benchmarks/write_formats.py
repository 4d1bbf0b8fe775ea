"""Write one label map on its DICOM series in every format: seconds, peak memory, bytes, and what second readers find.

    python benchmarks/write_formats.py SERIES_FOLDER LABELS.nii.gz NAME=VALUE [NAME=VALUE ...] [--dcmqi FOLDER]

SERIES_FOLDER holds one series and LABELS a label map on its grid; each format is written in a process of its own. The
peak is that of writing and reading back, above what is in memory before (the label map). Second readers: nibabel,
SimpleITK, highdicom, and dcmqi's `segimage2itkimage` where FOLDER holds it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

FORMATS = ("nii.gz", "nrrd", "mha", "seg.nrrd", "dicom-seg binary", "dicom-seg labelmap", "rtstruct")


def memory(key):
    """A line of /proc/self/status in MiB."""
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(key))


def write_one(series, labels, classes, form, out):
    """Write one format and read it back; prints a JSON record."""
    from dataclasses import replace

    from medseg.io.dicom_series import find_series, read_series
    from medseg.io.images import read_labels
    from medseg.io.outputs import output_name, write_results
    from medseg.types.labels import Label, Labels
    from medseg.types.result import Prediction, Provenance
    from medseg.workflow.write_back import check_written

    kind = form.split()[1] if " " in form else "binary"
    form = form.split()[0]
    (found,), _ = find_series(Path(series))
    scan = read_series(found)
    names = Labels(tuple(Label(name, (int(value),)) for name, value in (pair.split("=") for pair in classes)))
    label_map = read_labels(Path(labels), names)
    assert label_map.geometry.same_grid(scan.geometry, tol_mm=0.01)
    prediction = Prediction("case", replace(label_map, geometry=scan.geometry), {}, source=scan.source)
    del scan
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, start, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    write_results(prediction, out, "case", (form,), Provenance("benchmark", "0" * 64), seg_kind=kind)
    written, cpu_written, peak = time.perf_counter() - start, time.process_time() - cpu, memory("VmHWM") - before
    Path("/proc/self/clear_refs").write_text("5")
    before, start, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    check_written(prediction, out, "case", (form,))
    path = out / output_name("case", form)
    record = {
        "path": str(path), "MB": path.stat().st_size / 1e6, "s": written, "cpu": cpu_written, "peak": peak,
        "check_s": time.perf_counter() - start, "check_cpu": time.process_time() - cpu,
        "check_peak": memory("VmHWM") - before,
    }  # fmt: skip
    sys.stdout.write(json.dumps(record) + "\n")


def of_masks(masks, affine):
    """Volume in ml and centroid of masks, whose indices `affine` takes to LPS points."""
    voxel = abs(np.linalg.det(affine[:3, :3])) / 1000
    for mask in masks:
        sums = [np.count_nonzero(mask)]
        for axis in range(3):
            other = tuple(a for a in range(3) if a != axis)
            sums.append(mask.sum(axis=other, dtype=np.int64) @ np.arange(mask.shape[axis]))
        yield sums[0] * voxel, (affine @ [*np.array(sums[1:]) / max(sums[0], 1), 1])[:3]


def itk_affine(image):
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return affine


def second_reader(path, form, values):
    """Volumes and centroids by a library that has not written the file."""
    import highdicom
    import nibabel as nib
    import SimpleITK as sitk

    if form == "nii.gz":
        image = nib.load(path)
        array = np.asarray(image.dataobj)
        return list(of_masks((array == v for v in values), np.diag([-1, -1, 1, 1]) @ image.affine))
    if form.startswith("dicom-seg"):
        volume = highdicom.seg.segread(path).get_volume(combine_segments=True, allow_missing_positions=True)
        return list(of_masks((volume.array == n for n in range(1, len(values) + 1)), volume.affine))
    image = sitk.ReadImage(str(path))
    array = sitk.GetArrayViewFromImage(image).transpose(2, 1, 0)
    return list(of_masks((array == v for v in values), itk_affine(image)))


def by_dcmqi(path, tool, count):
    """Volumes and centroids of the files that dcmqi makes of a SEG, one per group of segments."""
    import SimpleITK as sitk

    with tempfile.TemporaryDirectory() as folder:
        command = [tool / "bin/segimage2itkimage", "--inputDICOM", path, "--outputDirectory", folder, "-t", "nrrd"]
        subprocess.run(command, check=True, capture_output=True, env={"PYTHONPATH": str(tool), "PATH": "/usr/bin"})
        found = {}
        for file in sorted(Path(folder).glob("*.nrrd")):
            image = sitk.ReadImage(str(file))
            array = sitk.GetArrayViewFromImage(image).transpose(2, 1, 0)
            for value in range(1, count + 1):
                if (array == value).any():
                    found[value] = next(of_masks([array == value], itk_affine(image)))
        return [found[value] for value in range(1, count + 1)]


def main():
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("series", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("classes", nargs="+")
    parser.add_argument("--dcmqi", type=Path)
    parser.add_argument("--one")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.one:
        write_one(given.series, given.labels, given.classes, given.one, given.out)
        return
    values = [int(pair.split("=")[1]) for pair in given.classes]
    truth = second_reader(given.labels, "nii.gz", values)
    print("| format | MB | write s (CPU) | peak MiB | check s (CPU) | peak MiB | second reader: volume, centroid off |")
    print("|---|---|---|---|---|---|---|")
    for form in FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            own = [sys.executable, __file__, given.series, given.labels, *given.classes, "--one", form, "--out", folder]
            done = subprocess.run(own, check=True, capture_output=True, text=True)
            record = json.loads(done.stdout.splitlines()[-1])
            cells = [form, f"{record['MB']:.1f}", f"{record['s']:.1f} ({record['cpu']:.1f})", f"{record['peak']:.0f}"]
            cells += [f"{record['check_s']:.1f} ({record['check_cpu']:.1f})", f"{record['check_peak']:.0f}"]
            seen = []
            if form != "rtstruct":
                seen.append(("", second_reader(Path(record["path"]), form, values)))
            if form == "dicom-seg binary" and given.dcmqi:
                seen.append(("dcmqi ", by_dcmqi(record["path"], given.dcmqi, len(values))))
            told = []
            for name, found in seen:
                part = max(abs(a[0] / b[0] - 1) for a, b in zip(found, truth, strict=True))
                apart = max(np.linalg.norm(a[1] - b[1]) for a, b in zip(found, truth, strict=True))
                told.append(f"{name}{part:.0e}, {apart:.0e} mm")
            print("| " + " | ".join([*cells, "; ".join(told) or "-"]) + " |", flush=True)


if __name__ == "__main__":
    main()
