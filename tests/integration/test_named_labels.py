"""Data sets of DICOM scans whose labels are contours or segments, through the command line."""

import json
from dataclasses import replace

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from medseg import check_dataset, train
from medseg.cli.app import main
from medseg.io.datasets import read_dataset
from medseg.io.images import read_image, read_labels
from medseg.io.pairs import read_pair
from medseg.io.rtstruct import write_rtstruct
from medseg.io.seg_nrrd import write_seg_nrrd
from medseg.types.geometry import Box
from medseg.types.image import LabelMap
from tests.dicom_phantoms import grid, write_dicom
from tests.phantoms import SHELL_AND_CORE, nested_ellipsoids
from tests.tiny_run import tiny_plan

SHAPE = (12, 24, 20)


def rtstruct(labels, image, path):
    write_rtstruct(labels, image, path)


def seg(labels, image, path):
    """A binary SEG by highdicom itself, without frames for empty slices."""
    described = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=item.name,
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.Organ,
            algorithm_type="MANUAL",
        )
        for number, item in enumerate(labels.labels.items, start=1)
    ]
    made = highdicom.seg.Segmentation(
        source_images=[pydicom.dcmread(file) for file in image.source.files],
        pixel_array=labels.array,
        segmentation_type="BINARY",
        segment_descriptions=described,
        series_instance_uid=generate_uid(),
        series_number=2,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="none",
        manufacturer_model_name="none",
        software_versions="1",
        device_serial_number="1",
    )
    made.save_as(path)


def slicer(labels, image, path):
    """A .seg.nrrd that 3D Slicer might leave: cropped to what is drawn, slices from the top down."""
    box = np.argwhere(labels.array)
    (z, y, x), (top, back, left) = box.min(axis=0), box.max(axis=0) + 1
    part = labels.geometry.crop(Box((int(z), int(y), int(x)), (int(top), int(back), int(left))))
    upside = np.array(part.direction) * [1, 1, -1]
    last = tuple(float(v) for v in (part.affine() @ [part.shape[0] - 1, 0, 0, 1])[:3])
    geometry = replace(part, origin_mm=last, direction=tuple(tuple(row) for row in upside.tolist()))
    write_seg_nrrd(LabelMap(labels.array[z:top, y:back, x:left][::-1], geometry, labels.labels), path)


WRITERS = {
    "rtstruct": (rtstruct, "labelsTr/{}.dcm"),
    "seg": (seg, "labelsTr/{}/any name.dcm"),
    "slicer": (slicer, "labelsTr/{}.seg.nrrd"),
}


@pytest.fixture(params=sorted(WRITERS))
def data(request, tmp_path):
    """Five cases; the label names differ in case from those of the files."""
    write, name = WRITERS[request.param]
    folder = tmp_path / "data"
    for seed in range(5):
        pixels, labels = nested_ellipsoids(SHAPE, seed=seed)
        series = folder / f"imagesTr/case_{seed}_0000"
        write_dicom(series, np.rint(pixels), grid(SHAPE, spacing_mm=(2.0, 1.0, 1.0), frame=f"1.2.3.{seed}"))
        image = read_image([series])
        path = folder / name.format(f"case_{seed}")
        path.parent.mkdir(parents=True, exist_ok=True)
        write(LabelMap(labels, image.geometry, SHELL_AND_CORE), image, path)
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "Shell": 4, "CORE": 2}, "numTraining": 5}
    (folder / "dataset.json").write_text(json.dumps(described), "utf-8")
    return folder


def test_labels_are_found_by_name_on_the_grid_of_their_image(data):
    dataset = read_dataset(data)
    assert [case.id for case in dataset.cases] == [f"case_{seed}" for seed in range(5)]
    for seed, case in enumerate(dataset.cases):
        image, labels = read_pair(case, dataset)
        expected = np.array([0, 4, 2])[nested_ellipsoids(SHAPE, seed=seed)[1]]
        assert np.array_equal(labels.array, expected)
        assert labels.geometry == image.geometry and labels.warnings == ()


@pytest.mark.slow
@pytest.mark.parametrize("data", ["rtstruct", "seg"], indirect=True)
def test_check_and_plan_take_them_as_any_labels(data, tmp_path, capsys):
    assert main(["check", str(data)]) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out
    run = tmp_path / "run"
    assert main(["plan", str(data), "--vram", "4", "--device", "cpu", "-o", str(run)]) == 0
    plan = json.loads((run / "plan-3d_fullres.json").read_text("utf-8"))
    assert {item["name"]: item["values"] for item in plan["labels"]["items"]} == {"CORE": [2], "Shell": [4]}


def test_check_names_what_is_there(data):
    content = json.loads((data / "dataset.json").read_text("utf-8"))
    content["labels"] = {"background": 0, "Shell": 1, "kernel": 2}
    (data / "dataset.json").write_text(json.dumps(content), "utf-8")
    faults = check_dataset(data)
    assert {fault.severity for fault in faults} == {"warning"}
    assert 'label map: holds no "kernel", taken as absent; it holds "shell", "core"' in faults[0].what
    assert faults[-1].what == 'label "kernel" is in no label map'
    content["labels"] = {"background": 0, "kernel": 2}
    (data / "dataset.json").write_text(json.dumps(content), "utf-8")
    errors = [fault for fault in check_dataset(data) if fault.severity == "error"]
    assert len(errors) == 5 and 'it holds "shell", "core"' in errors[0].what


def test_labels_of_another_scan_are_errors(data):
    one, other = (case.label for case in read_dataset(data).cases[:2])
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)
    errors = [fault for fault in check_dataset(data) if fault.severity == "error"]
    if one.suffix == ".dcm":
        assert [fault.case for fault in errors] == ["case_0", "case_1"]
    else:  # .seg.nrrd does not say what it was drawn on
        assert errors == []


@pytest.mark.slow
@pytest.mark.parametrize("data", ["rtstruct"], indirect=True)
def test_a_model_trained_on_them_writes_what_can_be_trained_on_again(data, tmp_path):
    dataset = read_dataset(data)
    plan = tiny_plan(channels=("CT",), labels=dataset.labels, steps_per_epoch=20, augment=())
    train(plan, data, tmp_path / "run", folds=0, device="cpu")
    scan, out = dataset.cases[0].images[0], tmp_path / "out"
    forms = ["nii.gz", "rtstruct", "dicom-seg", "seg.nrrd"]
    order = ["predict", str(tmp_path / "run"), str(scan), "-o", str(out), "--device", "cpu", "--format", *forms]
    assert main(order) == 0
    image = read_image([scan])
    files = {path.name.split(".", 1)[1]: path for path in out.iterdir() if path.is_file() and path.name[0] != "r"}
    assert {"nii.gz", "rtstruct.dcm", "seg.dcm", "seg.nrrd"} <= set(files), sorted(files)
    expected = read_labels(files.pop("nii.gz"), dataset.labels).array
    assert expected.any()
    for ending in ("rtstruct.dcm", "seg.dcm", "seg.nrrd"):
        assert np.array_equal(read_labels(files[ending], dataset.labels, image).array, expected), ending
