"""Prediction with a landmark model whose answer is known: the brightest and the darkest voxel of a scan."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from medseg.cli.tables import report_lines
from medseg.errors import DatasetError, ImageError
from medseg.io.bundles import save_bundle
from medseg.io.landmarks import read_landmarks, write_landmarks
from medseg.io.nifti import write_nifti
from medseg.io.raster import write_raster
from medseg.networks.build import build_network
from medseg.types.geometry import Geometry
from medseg.types.image import Image
from medseg.types.labels import Label, Labels
from medseg.types.landmarks import Landmarks
from medseg.types.plan import (
    Budget,
    Inference,
    LossTerm,
    Network,
    Origin,
    Plan,
    Preprocess,
    Sampling,
    Step,
    Topology,
    Training,
)
from medseg.workflow import write_back
from medseg.workflow.predict import PredictOptions, load_model, predict_folder

OBLIQUE = Geometry(
    (7, 12, 10),
    (2.0, 0.5, 0.75),
    (-12.0, 30.0, 5.0),
    ((0.0, -1.0, 0.0), (0.8, 0.0, 0.6), (-0.6, 0.0, 0.8)),
)
BRIGHT, DARK = (2, 9, 4), (6, 1, 8)
FILES = ("a.mrk.json", "a.landmarks.csv")


@pytest.fixture(autouse=True)
def my_lab(monkeypatch):
    class Same(torch.nn.Module):
        feature_channels = (1,)

        def forward(self, image):
            return (image,)

    module = types.ModuleType("my_lab")
    module.same = lambda topology, *, in_channels: Same()
    monkeypatch.setitem(sys.modules, "my_lab", module)


def make_bundle(folder: Path, *, ndim=3, labels=(), points=("bright", "dark"), patch=None):
    heads = (Step("dsnt", {"points": len(points)}), *([Step("segmentation")] if labels else []))
    terms = (LossTerm(1.0, "dsnt"), *([LossTerm(1.0, "dice_ce")] if labels else []))
    plan = Plan(
        "medseg.plan/1",
        "spots",
        ("CT",),
        Labels(tuple(Label(name, (value,)) for value, name in enumerate(labels, start=1))),
        Preprocess((None, None, None), (Step("none"),)),
        Network("my_lab:same", Topology(ndim, (1,), ((1, 1, 1),), ((1, 1, 1),), (1,)), heads),
        Sampling(patch or ((1, 8, 8) if ndim == 2 else (4, 8, 8)), 1),
        Training(terms, Step("sgd"), Step("poly"), (), 1, precision="fp32"),
        Inference(mirror_axes=(1, 2)),
        (),
        Origin("0.1.0", "0" * 64, Budget(4.0), "unet"),
        {},
        landmarks=points,
    )
    state = build_network(plan.network, channels=1, outputs=plan.labels.outputs()).state_dict()
    known = {"heads.0.maps.weight": [1.0, -1.0][: len(points)], "heads.1.convs.0.weight": [0.0, 1.0]}
    for name, value in state.items():
        state[name] = torch.tensor(known.get(name, [0.0, -50.0])).reshape(value.shape).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "weights.safetensors")
    save_bundle(folder / "bundle", plan, {0: folder / "weights.safetensors"}, {})
    return folder / "bundle"


def spots(shape=OBLIQUE.shape):
    array = np.zeros(shape, np.int16)
    array[BRIGHT], array[DARK] = 100, -100
    return array


def place(geometry, *points):
    return np.array([(geometry.affine() @ [*point, 1.0])[:3] for point in points])


def options(**changes):
    return PredictOptions(**({"device": "cpu", "trust": ("my_lab",)} | changes))


def test_a_landmark_model_gives_points_in_mm_and_no_classes(tmp_path):
    model = load_model(make_bundle(tmp_path), "cpu", trust=("my_lab",))
    found = model.predict(Image(spots()[None], OBLIQUE, ("CT",)))
    assert found.landmarks.names == ("bright", "dark")
    np.testing.assert_allclose(found.landmarks.points_mm, place(OBLIQUE, BRIGHT, DARK), atol=1e-3)
    np.testing.assert_allclose(found.landmarks.confidence, 1.0, atol=1e-3)
    assert found.labels.geometry == OBLIQUE and not found.labels.array.any() and found.volumes_ml == {}


def test_a_joint_model_gives_labels_and_points_in_one_pass(tmp_path):
    model = load_model(make_bundle(tmp_path, labels=("spot",)), "cpu", trust=("my_lab",))
    seen = []
    network = model.members[0].network
    network.register_forward_hook(lambda *_: seen.append(1))
    found = model.predict(Image(spots()[None], OBLIQUE, ("CT",)))
    assert len(seen) == 4  # one per mirror
    np.testing.assert_allclose(found.landmarks.points_mm, place(OBLIQUE, BRIGHT, DARK), atol=1e-3)
    assert found.labels.array.sum() == found.labels.array[BRIGHT] == 1
    assert found.volumes_ml == {"spot": pytest.approx(0.00075)}


def test_files_of_a_landmark_model_are_points_only_and_the_report_lists_them(tmp_path):
    bundle = make_bundle(tmp_path / "model")
    write_nifti(spots(), OBLIQUE, tmp_path / "a.nii.gz")
    report = predict_folder(bundle, [tmp_path / "a.nii.gz"], tmp_path / "out", options=options())
    (case,) = report.cases
    assert case.status == "ok" and case.outputs == FILES and case.volumes_ml is None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted((*FILES, "report.json"))
    line = json.loads((tmp_path / "out" / "report.json").read_text())["cases"][0]
    np.testing.assert_allclose(list(line["landmarks"].values()), place(OBLIQUE, BRIGHT, DARK), atol=2e-3)
    for name in FILES:
        read = read_landmarks(tmp_path / "out" / name)
        assert read.names == ("bright", "dark")
        np.testing.assert_allclose(read.points_mm, place(OBLIQUE, BRIGHT, DARK), atol=1e-3)
    assert "2 of 2 landmarks" in report_lines(report)


@pytest.mark.parametrize("scan", [True, False])
def test_points_that_somebody_placed_are_not_written_over(tmp_path, scan):
    bundle = make_bundle(tmp_path / "model")
    write_nifti(spots(), OBLIQUE, tmp_path / "a.nii.gz")
    if not scan:
        (tmp_path / "a.nii.gz").write_bytes(b"no scan")
    placed = tmp_path / "a.mrk.json"
    write_landmarks(Landmarks(("dark",), np.zeros((1, 3))), placed)
    before = placed.read_bytes()
    with pytest.raises(DatasetError, match=r"a\.mrk\.json: is there already, in a folder without a report"):
        predict_folder(bundle, [tmp_path / "a.nii.gz"], tmp_path, options=options())
    assert placed.read_bytes() == before


def test_results_of_a_run_before_are_replaced(tmp_path):
    bundle = make_bundle(tmp_path / "model")
    write_nifti(spots(), OBLIQUE, tmp_path / "a.nii.gz")
    for _ in range(2):
        assert predict_folder(bundle, [tmp_path / "a.nii.gz"], tmp_path, options=options()).cases[0].status == "ok"


def test_files_of_a_joint_model_lie_beside_its_label_map(tmp_path):
    bundle = make_bundle(tmp_path / "model", labels=("spot",))
    write_nifti(spots(), OBLIQUE, tmp_path / "a.nii.gz")
    wanted = options(save_probabilities=True, format=("mha",))
    report = predict_folder(bundle, [tmp_path / "a.nii.gz"], tmp_path / "out", options=wanted)
    assert report.cases[0].outputs == ("a.mha", *FILES, "probabilities/a.nii.gz")
    assert all((tmp_path / "out" / name).is_file() for name in report.cases[0].outputs)


def test_resume_keeps_whole_landmark_files_and_makes_damaged_ones_again(tmp_path):
    bundle = make_bundle(tmp_path / "model")
    write_nifti(spots(), OBLIQUE, tmp_path / "a.nii.gz")
    run = lambda: predict_folder(bundle, [tmp_path / "a.nii.gz"], tmp_path / "out", options=options(resume=True))  # noqa: E731
    run()
    again = run()
    assert again.cases[0].status == "skipped" and set(again.cases[0].landmarks) == {"bright", "dark"}
    table = tmp_path / "out" / "a.landmarks.csv"
    table.write_text(table.read_text().replace("dark", "grey"))
    assert run().cases[0].status == "ok"
    assert "dark" in table.read_text()
    table.unlink()
    assert run().cases[0].status == "ok" and table.is_file()


def test_formats_asked_of_a_landmark_model_are_said_not_to_be_written(tmp_path):
    write_nifti(spots(), OBLIQUE, tmp_path / "a.nii.gz")
    wanted = options(format=("nrrd",), save_probabilities=True)
    bundle = make_bundle(tmp_path / "model")
    (case,) = predict_folder(bundle, [tmp_path / "a.nii.gz"], tmp_path / "out", options=wanted).cases
    assert case.outputs == FILES and any("landmarks only" in warning for warning in case.warnings)


def test_a_landmark_outside_of_the_scan_is_null_in_the_report_and_undefined_in_the_files(tmp_path):
    """A scan of one bright column at its edge: padding of 0 is brighter than all of a scan below 0."""
    array = np.full((4, 8, 5), -100, np.int16)
    array[1, 2, 3] = -300
    geometry = Geometry(array.shape, (1.0, 1.0, 1.0))
    write_nifti(array, geometry, tmp_path / "a.nii.gz")
    bundle = make_bundle(tmp_path / "model", patch=(4, 8, 40))
    (case,) = predict_folder(bundle, [tmp_path / "a.nii.gz"], tmp_path / "out", options=options(tta=False)).cases
    assert case.landmarks["bright"] is not None  # the middle of padding on both sides lies within
    one_sided = make_bundle(tmp_path / "other", patch=(4, 8, 6))
    (case,) = predict_folder(one_sided, [tmp_path / "a.nii.gz"], tmp_path / "out", options=options(tta=False)).cases
    assert case.landmarks["bright"] is None and case.landmarks["dark"] is not None
    assert any('"bright"' in warning and "outside of the scan" in warning for warning in case.warnings)
    for name in FILES:
        read = read_landmarks(tmp_path / "out" / name)
        assert np.isnan(read.points_mm[0]).all() and not np.isnan(read.points_mm[1]).any()


def test_an_image_without_spacing_says_that_its_landmarks_are_in_pixels(tmp_path):
    picture = np.zeros((1, 12, 16), np.uint8)
    picture[0, 3, 11] = 200
    write_raster(picture, Geometry(picture.shape, (1.0, 1.0, 1.0), unit="px"), tmp_path / "a.png")
    bundle = make_bundle(tmp_path / "model", ndim=2, points=("bright",))
    (case,) = predict_folder(bundle, [tmp_path / "a.png"], tmp_path / "out", options=options()).cases
    assert case.status == "ok" and case.landmarks == {"bright": pytest.approx((11.0, 3.0, 0.0), abs=1e-2)}
    assert any("pixels" in warning for warning in case.warnings)


def test_a_flat_landmark_model_fails_on_a_volume_and_leaves_no_file(tmp_path):
    bundle = make_bundle(tmp_path / "model", ndim=2)
    write_nifti(spots(), OBLIQUE, tmp_path / "a.nii.gz")
    (case,) = predict_folder(bundle, [tmp_path / "a.nii.gz"], tmp_path / "out", options=options()).cases
    assert case.status == "failed" and "7 slices" in case.error
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.json"]


@pytest.mark.parametrize("confidence", [[0.5, 1.0, 3e-7], None])
def test_landmark_files_are_compared_with_what_was_found(tmp_path, monkeypatch, confidence):
    points = np.array([[1.23456789, -2.0, 3.0], [np.nan] * 3, [0.0, 0.0, 1e4]])
    found = Landmarks(("a", "b", "ü, x"), points, None if confidence is None else np.array(confidence))
    assert write_back.write_landmarks_checked(found, tmp_path, "c") == ("c.mrk.json", "c.landmarks.csv")
    kept = {path: path.read_text() for path in tmp_path.iterdir()}
    assert len(kept) == 2

    def moved(path):
        read = read_landmarks(path)
        return Landmarks(read.names, read.points_mm + 1e-3, read.confidence)

    monkeypatch.setattr(write_back, "read_landmarks", moved)
    with pytest.raises(ImageError, match="lie elsewhere"):
        write_back.write_landmarks_checked(found, tmp_path, "c")
    assert not list(tmp_path.iterdir())
