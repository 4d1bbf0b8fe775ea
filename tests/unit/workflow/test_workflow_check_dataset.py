"""Seeded defects are all found, in one run; a sound dataset has none."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.io.images import write_labels, write_scores
from medseg.types.geometry import Geometry
from medseg.types.image import LabelMap, Probabilities
from medseg.types.labels import Label, Labels
from medseg.workflow.check_dataset import Fault, check_dataset, format_faults

LABELS = Labels((Label("organ", (1,)), Label("lesion", (2,))))
GRID = Geometry((6, 12, 10), (2.0, 1.0, 1.0))


def write_image(folder: Path, case: str, array: np.ndarray, grid: Geometry = GRID) -> None:
    scores = Probabilities(array.astype(np.float32).reshape(-1, *grid.shape), grid, LABELS)
    write_scores(scores, folder / f"imagesTr/{case}_0000.nii.gz")


def write_label(folder: Path, case: str, array: np.ndarray, grid: Geometry = GRID) -> None:
    write_labels(LabelMap(array.astype(np.uint8), grid, LABELS), folder / f"labelsTr/{case}.nii.gz")


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 20, GRID.shape)


def mask() -> np.ndarray:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[1:4, 2:8, 3:7] = 1
    labels[2, 3, 4] = 2
    return labels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five sound cases of noise, c0 to c4."""
    root = tmp_path / "Data sät"
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True)
    describe(root)
    for i in range(5):
        write_image(root, f"c{i}", noise(i))
        write_label(root, f"c{i}", mask())
    return root


def describe(root: Path, **more) -> None:
    labels = {"background": 0, "organ": 1, "lesion": 2}
    content = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz", **more}
    (root / "dataset.json").write_text(json.dumps(content))


def about(faults: tuple[Fault, ...], case: str) -> list[Fault]:
    return [fault for fault in faults if fault.case == case]


def test_sound_data_have_no_fault(folder):
    assert check_dataset(folder) == ()
    assert format_faults(()) == "0 errors, 0 warnings"


def test_all_defects_are_found_in_one_run_errors_first(folder):
    broken = noise(0)
    broken[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(broken.T.astype(np.float32), np.eye(4)), folder / "imagesTr/c0_0000.nii.gz")
    write_label(folder, "c1", np.where(mask() == 2, 7, mask()))
    write_label(folder, "c2", 0 * mask())
    write_image(folder, "c3", np.full(GRID.shape, 5.0))
    (folder / "labelsTr/c4.nii.gz").write_bytes(b"torn")
    write_image(folder, "lonely", noise(9))
    faults = check_dataset(folder)
    assert "NaN" in about(faults, "c0")[0].what
    assert about(faults, "c0")[0].file == "imagesTr/c0_0000.nii.gz"
    assert "7 (1 voxel)" in about(faults, "c1")[0].what
    assert [(f.severity, "empty" in f.what) for f in about(faults, "c2")] == [("warning", True)]
    assert "same value" in about(faults, "c3")[0].what
    assert about(faults, "c4")[0].file == "labelsTr/c4.nii.gz"
    assert "label map is missing" in about(faults, "lonely")[0].what
    severities = [fault.severity for fault in faults]
    assert severities == sorted(severities)
    assert all(fault.fix for fault in faults)


@pytest.mark.parametrize(("shift", "severity"), [(0.004, "warning"), (0.02, "error"), (20.0, "error")])
def test_label_grids_apart_are_repaired_or_refused(folder, shift, severity):
    write_label(folder, "c3", mask(), replace(GRID, origin_mm=(shift, 0.0, 0.0)))
    (fault,) = check_dataset(folder)
    assert (fault.case, fault.file, fault.severity) == ("c3", "labelsTr/c3.nii.gz", severity)
    assert ("origin" in fault.what) == (severity == "error")
    assert ("1 %" in fault.fix) == (severity == "warning")


def test_label_shape_fractions_and_channels(folder):
    write_label(folder, "c0", mask()[:5], replace(GRID, shape=(5, 12, 10)))
    fraction = Probabilities((mask() * 0.37).astype(np.float32)[None], GRID, LABELS)
    write_scores(fraction, folder / "labelsTr/c1.nii.gz")
    write_image(folder, "c2", np.stack([noise(2), noise(7)]))
    faults = check_dataset(folder)
    assert "shape" in about(faults, "c0")[0].what
    assert "0.37" in about(faults, "c1")[0].what
    assert "2 channels" in about(faults, "c2")[0].what
    assert {fault.severity for fault in faults} == {"error"}
    assert len(faults) == 3


def test_a_label_that_never_occurs_is_a_warning(folder):
    describe(folder, labels={"background": 0, "organ": 1, "lesion": 2, "vessel": 3})
    (fault,) = check_dataset(folder)
    assert (fault.severity, fault.file) == ("warning", "dataset.json")
    assert "vessel" in fault.what


def test_near_duplicates_are_named_with_their_folds_unless_grouped(folder):
    write_image(folder, "c4", 3 * noise(1) + np.random.default_rng(8).normal(0, 1, GRID.shape))
    (fault,) = check_dataset(folder)
    assert (fault.case, fault.severity) == ("c1", "warning")
    assert "c4" in fault.what
    assert "folds" in fault.what
    groups = {f"c{i}": str(i % 3) for i in range(5)}
    describe(folder, groups=groups)
    assert check_dataset(folder) == ()


def test_one_patient_on_both_sides_of_a_given_split(folder):
    describe(folder, groups={f"c{i}": "p" if i < 2 else str(i) for i in range(5)})
    splits = [{"train": ["c0", "c2", "c3", "c4"], "val": ["c1"]}]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    faults = check_dataset(folder)
    assert [fault.severity for fault in faults] == ["error"]
    assert 'group "p"' in faults[0].what


def test_scans_with_and_without_spacing(folder):
    write_image(folder, "c0", noise(0), replace(GRID, unit="px"))
    faults = check_dataset(folder)
    assert any(f.severity == "error" and "no spacing" in f.what and "c0" in f.what for f in faults)


def test_a_broken_description_is_reported_not_raised(tmp_path):
    assert check_dataset(tmp_path / "no")[0].severity == "error"
    (tmp_path / "dataset.json").write_text("{")
    (fault,) = check_dataset(tmp_path)
    assert "JSON" in fault.what


def test_progress_and_number_of_workers(folder):
    seen = []
    write_label(folder, "c2", 0 * mask())
    assert check_dataset(folder, workers=1) == check_dataset(folder, workers=3, report=seen.append)
    assert [(p.stage, p.done, p.total) for p in seen] == [("check", i, 5) for i in range(1, 6)]


def test_text_names_case_file_and_fix():
    text = format_faults(
        [Fault("a", "imagesTr/a.png", "error", "is torn", "copy it again"), Fault("", "", "warning", "w", "f")]
    )
    assert text.splitlines()[0].split() == ["error", "a", "imagesTr/a.png"]
    assert "fix: copy it again" in text
    assert "whole dataset" in text
    assert text.endswith("1 error, 1 warning")
