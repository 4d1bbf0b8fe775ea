"""One DICOM series predicted into every format at once: five readers find the same structures in the same place."""

import json

import highdicom
import nibabel as nib
import numpy as np
import pacs
import pydicom
import pytest
import SimpleITK as sitk
from dicom_phantoms import OBLIQUE, grid, write_dicom

from medseg.cli import main

SHAPE, SPACING = (12, 20, 24), (2.0, 0.7, 0.5)
FORMATS = ("nii.gz", "nrrd", "mha", "seg.nrrd", "dicom-seg", "rtstruct")
NAMES = tuple(item.name for item in pacs.LABELS.items)
VOXEL_MM3 = 2.0 * 0.7 * 0.5


def structures():
    """Voxels of the two classes, unlike any of their mirror images."""
    array = np.zeros(SHAPE, np.uint8)
    array[2:8, 3:11, 4:18] = 1
    array[7:10, 12:17, 1:6] = 2
    return array


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder with everything that `medseg predict` wrote, and what it printed."""
    folder = tmp_path_factory.mktemp("formats")
    bundle = pacs.make_bundle(folder / "model")
    geometry = grid(SHAPE, axes=OBLIQUE, spacing_mm=SPACING)
    pixels = np.array([0, 400, 3000], np.int16)[structures()]
    person = {"PatientName": "Geheim^Person", "PatientID": "ID-Q4711Z"}
    write_dicom(folder / "scans" / "Geheim Person", pixels, geometry, **person)
    arguments = ["predict", str(bundle), str(folder / "scans"), "-o", str(folder / "out"), "--device", "cpu"]
    return folder, [*arguments, "--trust", "pacs_net", "--format", *FORMATS], geometry


@pytest.fixture(scope="module")
def out(run):
    folder, command, _ = run
    assert main(command) == 0
    return folder / "out"


def expected(geometry):
    found = {}
    for value, name in enumerate(NAMES, start=1):
        index = np.argwhere(structures() == value)
        found[name] = len(index) * VOXEL_MM3, (np.c_[index, np.ones(len(index))] @ geometry.affine().T)[:, :3].mean(0)
    return found


def measured(masks, affine):
    """Volume and centroid of masks whose indices `affine` takes to LPS points."""
    voxel = abs(np.linalg.det(affine[:3, :3]))
    result = {}
    for name, mask in zip(NAMES, masks, strict=True):
        index = np.argwhere(mask)
        result[name] = len(index) * voxel, (np.c_[index, np.ones(len(index))] @ affine.T)[:, :3].mean(0)
    return result


def by_nibabel(path):
    image = nib.load(path)
    array = np.asarray(image.dataobj)
    return measured([array == 1, array == 2], np.diag([-1, -1, 1, 1]) @ image.affine)


def by_itk(path):
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    return measured([array == 1, array == 2], affine)


def by_highdicom(path):
    seg = highdicom.seg.segread(path)
    volume = seg.get_volume(combine_segments=True, allow_missing_positions=True)
    assert [seg.get_segment_description(n).segment_label for n in seg.segment_numbers] == list(NAMES)
    return measured([volume.array == 1, volume.array == 2], volume.affine)


def by_polygons(path):
    """Area and centroid of each contour in its plane, times the distance of planes."""
    data = pydicom.dcmread(path)
    named = {item.ROINumber: item.ROIName for item in data.StructureSetROISequence}
    result = {}
    for roi in data.ROIContourSequence:
        volume, moment = 0.0, np.zeros(3)
        for contour in roi.ContourSequence:
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            corner, following = points[1:-1] - points[0], points[2:] - points[0]
            normals = np.cross(corner, following) / 2
            signed = normals @ (normals.sum(0) / np.linalg.norm(normals.sum(0)))
            middles = points[0] + (corner + following) / 3
            volume, moment = volume + signed.sum() * SPACING[0], moment + signed @ middles * SPACING[0]
        result[named[roi.ReferencedROINumber]] = volume, moment / volume
    return result


@pytest.mark.parametrize(
    ("form", "read", "volume_part", "apart_mm"),
    [
        ("nii.gz", by_nibabel, 1e-5, 1e-3),
        ("nrrd", by_itk, 1e-9, 1e-6),
        ("mha", by_itk, 1e-9, 1e-4),
        ("seg.nrrd", by_itk, 1e-9, 1e-6),
        ("seg.dcm", by_highdicom, 1e-6, 1e-3),
        ("rtstruct.dcm", by_polygons, 0.05, 0.05),
    ],
)
def test_a_second_reader_finds_every_structure(out, run, form, read, volume_part, apart_mm):
    (path,) = (path for path in out.iterdir() if path.name.split(".", 1)[1] == form)
    found = read(path)
    for name, (volume, centroid) in expected(run[2]).items():
        assert found[name][0] == pytest.approx(volume, rel=volume_part), name
        assert np.linalg.norm(found[name][1] - centroid) < apart_mm, name


def test_nothing_but_the_dicom_objects_knows_the_patient(out, capsys):
    names = sorted(path.name for path in out.iterdir())
    assert len(names) == len(FORMATS) + 1 and "report.json" in names
    for path in out.iterdir():
        assert "Geheim" not in path.name and "Q4711Z" not in path.name
        text = path.read_bytes()
        assert (b"Geheim" in text) == path.name.endswith(".dcm"), path.name
    (line,) = json.loads((out / "report.json").read_text("utf-8"))["cases"]
    assert len(line["outputs"]) == len(FORMATS) and not line["warnings"]


def test_resume_trusts_whole_files_only(out, run, capsys):
    _, command, _ = run
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir() if "report" not in path.name}
    assert main([*command, "--resume"]) == 0
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir() if "report" not in path.name} == before
    for ending, read in (("seg.dcm", by_highdicom), ("rtstruct.dcm", by_polygons), ("seg.nrrd", by_itk)):
        (path,) = out.glob(f"*.{ending}")
        whole, cut = str(read(path)), path.read_bytes()[:-30]
        path.write_bytes(cut)
        assert main([*command, "--resume"]) == 0
        assert path.read_bytes() != cut and str(read(path)) == whole, ending


def test_formats_that_need_dicom_fail_before_anything_is_predicted(run, tmp_path, capsys):
    _, command, _ = run
    scan = sitk.GetImageFromArray(np.zeros(SHAPE, np.int16))
    sitk.WriteImage(scan, str(tmp_path / "in.nrrd"))
    bundle = command[1]
    arguments = ["predict", bundle, str(tmp_path / "in.nrrd"), "-o", str(tmp_path / "out"), "--trust", "pacs_net"]
    assert main([*arguments, "--device", "cpu", "--format", "nii.gz", "dicom-seg"]) == 1
    (line,) = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))["cases"]
    assert "needs a scan that was read from DICOM" in line["error"]
    assert not list((tmp_path / "out").glob("in.*"))
