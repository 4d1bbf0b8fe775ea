"""Landmarks from their files into the cache of prepared cases."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
from phantoms import write_scan
from tiny_run import tiny_plan

from medseg.errors import DatasetError, PlanError
from medseg.io.cache import open_case
from medseg.io.datasets import read_dataset
from medseg.io.landmarks import write_landmarks
from medseg.planning.fingerprint import measure_dataset
from medseg.training.session import CHECKPOINT
from medseg.types.geometry import Box
from medseg.types.labels import Labels
from medseg.types.landmarks import Landmarks
from medseg.types.plan import LossTerm, Step
from medseg.workflow.run_folds import say_changed_annotations
from medseg.workflow.train import prepare, train

NAMES = ("tip", "unknown", "base")
PLACES = np.array([[5.0, 12.0, 18.0], [np.nan] * 3, [15.0, 3.0, 6.0]])  # mm, x y z


def bright_at_points(folder):
    """A scan of 2 x 1 x 1 mm that is bright in one voxel at each point, stored from right to left by NIfTI."""
    image = np.zeros((14, 24, 20), np.float32)
    image[9, 12, 5], image[3, 3, 15] = 100, 200
    write_scan(image, folder / "imagesTr/a_0000.nii.gz")
    content = {"channel_names": {"0": "MR"}, "landmarks": {"names": list(NAMES)}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))
    (folder / "landmarksTr").mkdir()
    write_landmarks(Landmarks(NAMES, PLACES), folder / "landmarksTr/a.mrk.json")
    return read_dataset(folder)


def landmark_plan(**preprocess):
    plan = replace(tiny_plan(), labels=Labels(()), landmarks=NAMES)
    return replace(plan, preprocess=replace(plan.preprocess, **preprocess))


@pytest.mark.parametrize(
    ("preprocess", "size"),
    [
        ({}, (14, 24, 20)),
        ({"orientation": "RAS"}, (14, 24, 20)),
        ({"orientation": "PSL"}, (20, 14, 24)),
        ({"crop": "nonzero"}, (7, 10, 11)),
    ],
)
def test_points_lie_on_the_prepared_grid_where_the_scan_is_bright(tmp_path, preprocess, size):
    dataset = bright_at_points(tmp_path)
    cache = prepare(landmark_plan(**preprocess), dataset, tmp_path / "run", workers=1)
    case = open_case(cache, "a")
    assert case.shape == size
    image, labels = case.read(Box((0, 0, 0), case.shape))
    assert not labels.any() and case.foreground == {}
    assert np.isnan(case.points[1]).all()
    brightest = [np.argwhere(image[0] == value)[0] for value in np.sort(np.unique(image))[-2:]]
    assert case.points[[0, 2]] == pytest.approx(np.array(brightest), abs=1e-6)


def test_points_follow_a_resampled_grid_within_its_voxels(tmp_path):
    dataset = bright_at_points(tmp_path)
    cache = prepare(landmark_plan(spacing_mm=(1.0, 0.5, 2.0)), dataset, tmp_path / "run", workers=1)
    case = open_case(cache, "a")
    assert case.shape == (28, 48, 10)
    assert case.points[0] == pytest.approx((9 * 2 + 0.5, 12 * 2 + 0.5, 5 / 2 - 0.25))


def test_a_landmark_file_that_changes_makes_its_case_stale_and_no_other(tmp_path):
    dataset = bright_at_points(tmp_path)
    plan = landmark_plan()
    cache = prepare(plan, dataset, tmp_path / "run", workers=1)
    before = (cache / "a.json").stat().st_mtime_ns
    prepare(plan, dataset, tmp_path / "run", workers=1)
    assert (cache / "a.json").stat().st_mtime_ns == before
    write_landmarks(Landmarks(NAMES, PLACES + 1), tmp_path / "landmarksTr/a.mrk.json")
    prepare(plan, dataset, tmp_path / "run", workers=1)
    assert open_case(cache, "a").points[0] == pytest.approx((9.5, 13, 6))
    assert prepare(replace(plan, landmarks=NAMES[::-1]), dataset, tmp_path / "run", workers=1) != cache


def test_a_corrected_spacing_of_flat_scans_is_prepared_anew(tmp_path):
    dataset = replace(bright_at_points(tmp_path), spacing_mm=(0.5, 0.5))
    caches = {
        prepare(landmark_plan(), replace(dataset, spacing_mm=spacing), tmp_path / "run", workers=1)
        for spacing in (None, (0.5, 0.5), (0.25, 0.25))
    }
    assert len(caches) == 3


def test_a_damaged_landmark_file_is_named(tmp_path):
    dataset = bright_at_points(tmp_path)
    (tmp_path / "landmarksTr/a.mrk.json").write_text("{")
    with pytest.raises(DatasetError, match=r"a: .*a\.mrk\.json"):
        prepare(landmark_plan(), dataset, tmp_path / "run", workers=1)


def test_a_plan_for_other_landmarks_is_refused(tmp_path):
    bright_at_points(tmp_path)
    plan = replace(landmark_plan(), landmarks=("tip",))
    network = replace(plan.network, heads=(Step("dsnt", {"points": 1}),))
    training = replace(plan.training, losses=(LossTerm(1.0, "dsnt"),), augment=())
    with pytest.raises(PlanError, match="landmarks differ from the data set's"):
        train(replace(plan, network=network, training=training), tmp_path, tmp_path / "run", device="cpu")


def test_points_that_the_crop_leaves_out_are_said(tmp_path, caplog):
    dataset = bright_at_points(tmp_path)
    write_landmarks(
        Landmarks(NAMES, np.array([PLACES[0], [0.0, 0.0, 0.0], [500.0] * 3])), tmp_path / "landmarksTr/a.mrk.json"
    )
    with caplog.at_level(logging.WARNING, "medseg"):
        case = open_case(prepare(landmark_plan(crop="nonzero"), dataset, tmp_path / "run", workers=1), "a")
    assert "a: 1 landmarks lie outside the box that the crop keeps" in caplog.text
    assert np.isnan(case.points).any(axis=1).tolist() == [False, True, True]


def test_points_outside_of_the_prepared_scan_are_unknown_also_in_the_padding_of_its_patch(tmp_path):
    dataset = bright_at_points(tmp_path)
    places = np.array([[19.5, 23.5, 27.0], [19.8, 5.0, 5.0], [5.0, 5.0, -1.1]])  # at an edge, and beyond two others
    write_landmarks(Landmarks(NAMES, places), tmp_path / "landmarksTr/a.mrk.json")
    case = open_case(prepare(landmark_plan(), dataset, tmp_path / "run", workers=1), "a")
    assert case.points[0] == pytest.approx((13.5, 23.5, 19.5))
    assert np.isnan(case.points[1:]).all()


@pytest.mark.parametrize("job", ["plan", "train"])
def test_landmarks_that_all_lie_outside_of_their_scan_are_refused(tmp_path, job):
    bright_at_points(tmp_path)
    write_landmarks(Landmarks(NAMES, PLACES * (-1, -1, 1)), tmp_path / "landmarksTr/a.mrk.json")
    dataset = read_dataset(tmp_path)
    with pytest.raises(DatasetError, match=r"a\.mrk\.json: its landmarks \(2\) all lie outside of the scan"):
        if job == "plan":
            measure_dataset(dataset, workers=1)
        else:
            prepare(landmark_plan(), dataset, tmp_path / "run", workers=1)
    write_landmarks(Landmarks(NAMES, np.full((3, 3), np.nan)), tmp_path / "landmarksTr/a.mrk.json")
    assert np.isnan(open_case(prepare(landmark_plan(), dataset, tmp_path / "run", workers=1), "a").points).all()


def test_what_is_doubtful_in_a_landmark_file_is_said_when_it_is_prepared(tmp_path, caplog):
    dataset = bright_at_points(tmp_path)
    file = tmp_path / "landmarksTr/a.mrk.json"
    content = json.loads(file.read_text())
    del content["markups"][0]["coordinateSystem"]
    file.write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING, "medseg"):
        prepare(landmark_plan(), dataset, tmp_path / "run", workers=1)
    assert "a: landmarks: names no coordinate system; LPS is assumed" in caplog.text


def test_a_fold_says_which_cases_have_changed_since_it_began(tmp_path, caplog):
    dataset, fold = bright_at_points(tmp_path), tmp_path / "run/fold_0"

    def said():
        caplog.clear()
        cache = prepare(landmark_plan(), dataset, tmp_path / "run", workers=1)
        with caplog.at_level(logging.WARNING, "medseg"):
            say_changed_annotations(fold, ["a"], cache)
        return caplog.text

    file = tmp_path / "landmarksTr/a.mrk.json"
    write_landmarks(Landmarks(NAMES, PLACES + 2), file)
    assert said() == ""
    write_landmarks(Landmarks(NAMES, PLACES), file)
    assert said() == "", "nothing was learnt yet"
    (fold / CHECKPOINT).touch()
    file.write_text(file.read_text() + "\n")  # another file, the same points
    assert said() == ""
    write_landmarks(Landmarks(NAMES, PLACES + 1), file)
    assert "fold_0: label maps or landmarks of 1 cases have changed since it began: a. Delete" in said()
    assert "fold_0: label maps" in said(), "as long as what it learnt from is not what is there"
    write_landmarks(Landmarks(NAMES, PLACES), file)
    assert said() == ""
    (fold / "annotations.json").unlink()
    write_landmarks(Landmarks(NAMES, PLACES + 1), file)
    assert said() == "" and not (fold / "annotations.json").exists(), "of folds that began earlier nobody knows"
