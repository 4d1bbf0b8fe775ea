"""The main job and the readers on real data.

    pytest -m acceptance --data FOLDER

FOLDER holds mr-hippocampus (Decathlon Task04 in the nnU-Net layout) and cbct-icat/DICOM (517 slices).
"""

import json

import numpy as np
import pytest
import SimpleITK as sitk

import medseg
from medseg.cli.app import main
from medseg.io.dicom_series import find_series, read_series

pytestmark = pytest.mark.acceptance


def test_a_whole_data_set_has_no_fault(real_data):
    assert medseg.check_dataset(real_data / "mr-hippocampus") == ()


def test_five_minutes_of_training_reach_the_field(real_data, tmp_path):
    """Plan, train fold 0 for five minutes, score 40 whole volumes nobody trained on."""
    data, run = str(real_data / "mr-hippocampus"), str(tmp_path / "run")
    assert main(["plan", data, "--vram", "8", "--hours", str(5 / 60), "--device", "cpu", "-o", run]) == 0
    assert main(["train", run + "/plan-3d_fullres.json", data, "-o", run, "--fold", "0", "--device", "cpu"]) == 0
    scores = json.loads((tmp_path / "run" / "fold_0" / "validation_scores.json").read_text("utf-8"))
    assert len(scores["per_case"]) == 40
    assert (
        min(np.mean([case["dice"][name] for case in scores["per_case"]]) for name in ("anterior", "posterior")) > 0.85
    )


def test_a_cbct_series_reads_as_another_reader_reads_it(real_data):
    (series,), _ = find_series(real_data / "cbct-icat" / "DICOM")
    image = read_series(series)
    other = sitk.ReadImage([str(file) for file in series.files])
    assert image.array.shape == (1, 517, 640, 640)
    assert np.array_equal(image.array[0], sitk.GetArrayViewFromImage(other))
    assert image.geometry.spacing_mm == pytest.approx(other.GetSpacing()[::-1], abs=1e-4)
    assert image.geometry.origin_mm == pytest.approx(other.GetOrigin(), abs=1e-3)
