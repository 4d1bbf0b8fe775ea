"""Prediction of single scans and folders with a network whose answer is known: label 1 above 100, 2 above 200."""

import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from safetensors.torch import save_file

from medseg.errors import BundleError, DatasetError, ImageError, PlanError
from medseg.io.bundles import bundle_sha256, load_bundle, save_bundle
from medseg.io.images import read_image, read_labels, write_labels
from medseg.io.itk import write_itk
from medseg.io.nifti import write_nifti
from medseg.networks.build import build_network
from medseg.types.geometry import Geometry
from medseg.types.image import Image, LabelMap, Probabilities
from medseg.types.labels import Label, Labels
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
from medseg.types.result import Provenance
from medseg.workflow import model, predict_case
from medseg.workflow import predict as job
from medseg.workflow.predict import PredictOptions, load_model, predict_folder

LABELS = Labels((Label("bone", (1,)), Label("metal", (2,))))
OBLIQUE = Geometry(
    (7, 12, 10),
    (2.0, 0.5, 0.75),
    (-12.0, 30.0, 5.0),
    ((0.0, -1.0, 0.0), (0.8, 0.0, 0.6), (-0.6, 0.0, 0.8)),
)
CPU = PredictOptions(device="cpu")


@pytest.fixture(autouse=True)
def my_lab(monkeypatch):
    """A backbone that hands the image on, in an importable module."""

    class Same(torch.nn.Module):
        feature_channels = (1,)

        def forward(self, image):
            return (image,)

    module = types.ModuleType("my_lab")
    module.same = lambda topology, *, in_channels: Same()
    monkeypatch.setitem(sys.modules, "my_lab", module)


def make_plan(ndim=3, **changes):
    topology = Topology(ndim, (1,), ((1, 1, 1),), ((1, 1, 1),), (1,))
    values = {
        "schema": "medseg.plan/1",
        "name": "threshold",
        "channels": ("CT",),
        "labels": LABELS,
        "preprocess": Preprocess((None, None, None), (Step("none"),)),
        "network": Network("my_lab:same", topology),
        "sampling": Sampling((1, 8, 8) if ndim == 2 else (4, 8, 8), 2),
        "training": Training((LossTerm(1.0, "dice_ce"),), Step("sgd"), Step("poly"), (), 1, precision="fp32"),
        "inference": Inference(mirror_axes=(1, 2)),
        "postprocess": (Step("drop_small", {"min_mm3": 2.0}),),
        "origin": Origin("0.1.0", "0" * 64, Budget(4.0), "unet"),
        "reasons": {},
    }
    return Plan(**(values | changes))


def make_bundle(folder: Path, plan: Plan) -> Path:
    network = build_network(plan.network, channels=1, outputs=3)
    state = network.state_dict()
    for name, value in state.items():
        new = torch.tensor([0.0, 1.0, 2.0] if value.dim() > 1 else [0.0, -100.0, -300.0])
        state[name] = new.reshape(value.shape).contiguous()
    weights = folder / "weights.safetensors"
    save_file(state, weights)
    save_bundle(folder / "bundle", plan, {0: weights, 1: weights}, {})
    return folder / "bundle"


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path, make_plan())


def scan(geometry, seed=0):
    """A dark scan with a bright box and a brighter core, and its labels."""
    array = np.random.default_rng(seed).integers(-50, 50, geometry.shape).astype(np.int16)
    labels = np.zeros(geometry.shape, np.uint8)
    z, y, x = (slice(n // 4, n - n // 4) for n in geometry.shape)
    array[z, y, x], labels[z, y, x] = 150, 1
    array[z, y.start + 1 : y.stop - 1, x.start + 1 : x.stop - 1] = 280
    labels[z, y.start + 1 : y.stop - 1, x.start + 1 : x.stop - 1] = 2
    return array, labels


def write_scans(folder, count=3):
    folder.mkdir()
    for seed in range(count):
        write_nifti(scan(OBLIQUE, seed)[0], OBLIQUE, folder / f"scän {seed}.nii.gz")
    return folder


def trusted(**changes):
    return PredictOptions(**({"device": "cpu", "trust": ("my_lab",)} | changes))


def test_a_worker_that_finds_another_bundle_predicts_nothing(bundle):
    made_by = Provenance("threshold", bundle_sha256(load_bundle(bundle, trust=("my_lab",))))
    predict_case.predictor_in_worker(bundle, trusted(), made_by)
    with pytest.raises(BundleError, match="has changed since this run began"):
        predict_case.predictor_in_worker(bundle, trusted(), replace(made_by, bundle_sha256="0" * 64))


def test_a_file_is_segmented_on_its_own_oblique_grid(bundle, tmp_path):
    array, labels = scan(OBLIQUE)
    write_nifti(array, OBLIQUE, tmp_path / "a.nii.gz")
    result = load_model(bundle, "cpu", trust=("my_lab",)).predict(tmp_path / "a.nii.gz")
    stored = read_image([tmp_path / "a.nii.gz"])
    assert result.labels.geometry == stored.geometry and result.case_id == "a"
    np.testing.assert_array_equal(result.labels.array, labels)
    assert result.volumes_ml["metal"] == pytest.approx((labels == 2).sum() * 0.75 / 1000)


def test_a_2d_network_goes_slice_by_slice_through_a_volume(tmp_path):
    bundle = make_bundle(tmp_path, make_plan(ndim=2))
    array, labels = scan(OBLIQUE)
    result = load_model(bundle, "cpu", trust=("my_lab",)).predict(Image(array[None], OBLIQUE, ("CT",)))
    np.testing.assert_array_equal(result.labels.array, labels)


@pytest.mark.parametrize(("index", "spacing"), [((slice(None),), (2.0, 0.5, 0.75)), ((2,), (0.5, 0.75))])
def test_arrays_need_spacing_and_keep_their_shape(bundle, index, spacing):
    array, labels = scan(OBLIQUE)
    model = load_model(bundle, "cpu", trust=("my_lab",))
    result = model.predict(array[index], spacing=spacing)
    np.testing.assert_array_equal(result.labels.array, np.atleast_3d(labels[index]).reshape(result.labels.array.shape))
    assert result.labels.geometry.spacing_mm[-2:] == spacing[-2:]
    with pytest.raises(ImageError, match="spacing"):
        model.predict(array)
    with pytest.raises(ImageError, match="2 channels"):
        model.predict(np.stack([array, array]), spacing=(2.0, 0.5, 0.75))
    with pytest.raises(ImageError, match="NaN"):
        model.predict(np.full((3, 4, 5), np.nan), spacing=(1, 1, 1))


def test_arrays_are_pixels_to_a_model_of_pictures_without_spacing(tmp_path):
    plan = make_plan(ndim=2)
    plan = replace(plan, preprocess=replace(plan.preprocess, spacing_mm=(None, 2.0, 2.0), unit="px"))
    model = load_model(make_bundle(tmp_path, plan), "cpu", trust=("my_lab",))
    array, _ = scan(Geometry((1, 12, 10), (1.0, 1.0, 1.0)))
    grid = Geometry((1, 12, 10), (1.0, 1.0, 1.0), unit="px")
    found = model.predict(array[0]).labels
    assert found.geometry == grid
    np.testing.assert_array_equal(found.array, model.predict(Image(array[None], grid, ("CT",))).labels.array)
    with pytest.raises(ImageError, match="states its spacing in mm, and the model was made for pictures"):
        model.predict(array[0], spacing=(0.5, 0.5))


def test_the_spacing_of_a_picture_may_be_given_and_is_never_ignored(bundle, tmp_path):
    array, _ = scan(Geometry((1, 12, 10), (1.0, 1.0, 1.0)))
    Pillow.fromarray(np.clip(array[0], 0, 255).astype(np.uint8)).save(tmp_path / "a.png")
    write_nifti(scan(OBLIQUE)[0], OBLIQUE, tmp_path / "b.nii.gz")
    model = load_model(bundle, "cpu", trust=("my_lab",))
    assert model.predict(tmp_path / "a.png").labels.geometry.unit == "px"
    for found in (
        model.predict(tmp_path / "a.png", spacing=(0.5, 0.75)),
        replace(model, options=trusted(spacing_mm=(0.5, 0.75))).predict(tmp_path / "a.png"),
    ):
        assert (found.labels.geometry.unit, found.labels.geometry.spacing_mm[1:]) == ("mm", (0.5, 0.75))
    own = model.predict(tmp_path / "b.nii.gz", spacing=(0.1, 0.1))
    assert own.labels.geometry.spacing_mm == pytest.approx(OBLIQUE.spacing_mm)
    assert any("spacing of its own" in warning for warning in own.warnings)
    for wrong in (tmp_path / "b.nii.gz", Image(array[None], Geometry((1, 12, 10), (1.0, 1.0, 1.0)), ("CT",))):
        with pytest.raises(ImageError, match="spacing"):
            model.predict(wrong, spacing=(2.0, 0.5, 0.75))


def test_a_folder_leaves_label_maps_and_a_report(bundle, tmp_path):
    steps = []
    out = tmp_path / "öut put"
    report = predict_folder(bundle, [write_scans(tmp_path / "in")], out, options=trusted(), report=steps.append)
    assert [(c.case_id, c.status, c.outputs) for c in report.cases] == [
        (f"scän {i}", "ok", (f"scän {i}.nii.gz",)) for i in range(3)
    ]
    for seed in range(3):
        found = read_labels(out / f"scän {seed}.nii.gz", LABELS)
        np.testing.assert_array_equal(found.array, scan(OBLIQUE, seed)[1])
        assert found.geometry.same_grid(read_image([tmp_path / "in" / f"scän {seed}.nii.gz"]).geometry)
    stored = json.loads((out / "report.json").read_text())
    assert stored["schema"] == "medseg.report/1" and len(stored["cases"]) == 3 and len(stored["bundle_sha256"]) == 64
    assert ("cases", 3, 3) in {(s.stage, s.done, s.total) for s in steps}


def test_bad_scans_are_failed_lines_and_the_others_are_done(bundle, tmp_path, monkeypatch):
    folder = write_scans(tmp_path / "in", 4)
    (folder / "scän 1.nii.gz").write_bytes(b"no scan")
    (folder / "notes.txt").write_text("not a scan")
    out = tmp_path / "out"
    write_labels(LabelMap(scan(OBLIQUE)[1], OBLIQUE, LABELS), out / "scän 1.nii.gz")
    (out / "report.json").write_text("{}")  # of a run that wrote it
    whole = job.predict_image

    def fails(image, *arguments, case_id, **options):
        if case_id == "scän 2":
            raise MemoryError
        if case_id == "scän 3":
            raise ZeroDivisionError("by\nzero")
        return whole(image, *arguments, case_id=case_id, **options)

    monkeypatch.setattr(predict_case, "predict_image", fails)
    report = predict_folder(bundle, [folder], out, options=trusted())
    lines = {c.case_id: c for c in report.cases}
    assert {name: line.status for name, line in lines.items()} == {
        "scän 0": "ok",
        "scän 1": "failed",
        "scän 2": "failed",
        "scän 3": "failed",
        "*.txt": "skipped",
    }
    assert "scän 1.nii.gz" in lines["scän 1"].error
    assert "out of memory" in lines["scän 2"].error and "scän 2.nii.gz" in lines["scän 2"].error
    assert "internal error ZeroDivisionError: by zero" in lines["scän 3"].error
    assert all("\n" not in line.error for line in lines.values() if line.error)
    assert sorted(p.name for p in out.iterdir()) == ["report.json", "scän 0.nii.gz"]


def test_resume_keeps_what_is_whole_and_redoes_the_rest(bundle, tmp_path):
    folder, out = write_scans(tmp_path / "in", 4), tmp_path / "out"
    predict_folder(bundle, [folder], out, options=trusted())
    (out / "scän 1.nii.gz").write_bytes(b"")
    data = (out / "scän 2.nii.gz").read_bytes()
    (out / "scän 2.nii.gz").write_bytes(data[: len(data) // 2])
    (out / "scän 3.nii.gz").unlink()
    report = predict_folder(bundle, [folder], out, options=trusted(resume=True))
    assert [c.status for c in report.cases] == ["skipped", "ok", "ok", "ok"]
    assert report.cases[0].volumes_ml
    again = predict_folder(bundle, [folder], out, options=trusted(resume=True))
    assert [c.status for c in again.cases] == ["skipped"] * 4
    other = predict_folder(bundle, [folder], out, options=trusted(resume=True, clean=False))
    assert [c.status for c in other.cases] == ["ok"] * 4
    fresh = predict_folder(bundle, [folder], out, options=trusted(clean=False))
    assert [c.status for c in fresh.cases] == ["ok"] * 4


def test_a_run_stopped_twice_forgets_no_finished_case(bundle, tmp_path, monkeypatch):
    folder, out = write_scans(tmp_path / "in", 3), tmp_path / "out"
    predict_folder(bundle, [folder], out, options=trusted())
    (out / "scän 0.nii.gz").unlink()

    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(predict_case, "predict_image", stopped)
    with pytest.raises(KeyboardInterrupt):
        predict_folder(bundle, [folder], out, options=trusted(resume=True))
    lines = json.loads((out / "report.json").read_text())["cases"]
    assert {line["case_id"] for line in lines} >= {"scän 1", "scän 2"}


def test_results_never_touch_the_inputs(bundle, tmp_path):
    folder = write_scans(tmp_path / "in", 1)
    before = (folder / "scän 0.nii.gz").read_bytes()
    for inputs, out in (
        ([folder], folder),
        ([folder], folder / "out"),
        ([folder / "scän 0.nii.gz"], folder),
    ):
        with pytest.raises(DatasetError, match="choose"):
            predict_folder(bundle, inputs, out, options=trusted())
    assert (folder / "scän 0.nii.gz").read_bytes() == before and len(list(folder.iterdir())) == 1


def test_formats_follow_the_input_or_the_option(bundle, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    array, labels = scan(OBLIQUE)
    write_itk(array, OBLIQUE, folder / "b.mha")
    flat, flat_labels = scan(Geometry((1, 12, 16), (1.0, 1.0, 1.0)))
    Pillow.fromarray(np.clip(flat[0], 0, 255).astype(np.uint8)).save(folder / "c.png")
    report = predict_folder(bundle, [folder], tmp_path / "out", options=trusted())
    assert [c.outputs for c in report.cases] == [("b.mha",), ("c.png",)]
    np.testing.assert_array_equal(np.asarray(Pillow.open(tmp_path / "out" / "c.png")), flat_labels[0])
    np.testing.assert_array_equal(read_labels(tmp_path / "out" / "b.mha", LABELS).array, labels)
    nrrd = predict_folder(bundle, [folder / "b.mha"], tmp_path / "out", options=trusted(format=("nrrd",)))
    assert nrrd.cases[0].outputs == ("b.nrrd",)
    assert report.cases[1].volumes_ml is None


def test_results_of_another_run_in_other_formats_stay_with_a_warning(bundle, tmp_path):
    (tmp_path / "in").mkdir()
    write_nifti(scan(OBLIQUE)[0], OBLIQUE, tmp_path / "in/a.nii.gz")
    out = tmp_path / "out"
    options = trusted(format=("nii.gz", "nrrd"), save_probabilities=True)
    predict_folder(bundle, [tmp_path / "in"], out, options=options)
    (again,) = predict_folder(
        bundle, [tmp_path / "in"], out, options=trusted(format=("mha", "nrrd"), clean=False)
    ).cases
    assert again.outputs == ("a.mha", "a.nrrd") and again.status == "ok"
    older = [note.split()[0] for note in again.warnings if "not of this run" in note]
    assert older == ["a.nii.gz", "probabilities/a.nii.gz"]
    assert all((out / name).is_file() for name in older)
    for name in older:
        (out / name).unlink()
    (last,) = predict_folder(bundle, [tmp_path / "in"], out, options=trusted(format=("mha", "nrrd"))).cases
    assert not any("not of this run" in note for note in last.warnings)


def test_a_scan_beside_its_results_is_no_older_result(bundle, tmp_path):
    write_nifti(scan(OBLIQUE)[0], OBLIQUE, tmp_path / "a.nii.gz")
    (line,) = predict_folder(bundle, [tmp_path / "a.nii.gz"], tmp_path, options=trusted(format=("nrrd",))).cases
    assert not any("not of this run" in note for note in line.warnings)


def test_probabilities_lie_on_the_grid_of_the_scan(bundle, tmp_path):
    folder = write_scans(tmp_path / "in", 1)
    report = predict_folder(bundle, [folder], tmp_path / "out", options=trusted(save_probabilities=True))
    assert report.cases[0].outputs == ("scän 0.nii.gz", "probabilities/scän 0.nii.gz")
    stored = read_image([tmp_path / "out" / report.cases[0].outputs[1]])
    assert stored.array.shape == (3, *OBLIQUE.shape)
    np.testing.assert_allclose(stored.array.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(stored.array.argmax(0), scan(OBLIQUE)[1])


def test_cleaning_mirroring_and_overlap_are_options(bundle, tmp_path, monkeypatch):
    array, labels = scan(OBLIQUE)
    array[0, 0, 0] = 150
    image = Image(array[None], OBLIQUE, ("CT",))
    calls = []
    module = sys.modules["my_lab"]
    same = module.same

    def counted(topology, *, in_channels):
        network = same(topology, in_channels=in_channels)
        network.register_forward_hook(lambda *_: calls.append(1))
        return network

    module.same = counted
    model = load_model(bundle, "cpu", trust=("my_lab",), folds=[0])
    np.testing.assert_array_equal(model.predict(image).labels.array, labels)
    with_tta = len(calls)
    calls.clear()
    plain = load_model(bundle, "cpu", trust=("my_lab",), folds=[0], tta=False)
    plain.predict(image)
    assert with_tta == 4 * len(calls)
    kept = predict_one(plain, image, trusted(clean=False))
    assert kept.labels.array[0, 0, 0] == 1
    with pytest.raises(PlanError, match="overlap"):
        predict_one(plain, image, trusted(overlap=1.5))


def predict_one(model, image, options):
    return job.predict_image(image, model.bundle, model.members, device=model.device, options=options)


def test_what_concerns_every_case_is_an_error_at_once(bundle, tmp_path):
    folder = write_scans(tmp_path / "in", 1)
    with pytest.raises(BundleError, match="trusted"):
        predict_folder(bundle, [folder], tmp_path / "out", options=CPU)
    with pytest.raises(BundleError, match="folds are 0, 1"):
        predict_folder(bundle, [folder], tmp_path / "out", options=trusted(folds=(7,)))
    with pytest.raises(PlanError, match="overlap"):
        predict_folder(bundle, [folder], tmp_path / "out", options=trusted(overlap=1.0))
    with pytest.raises(DatasetError, match="no scans"):
        predict_folder(bundle, [], tmp_path / "out", options=trusted())
    assert not (tmp_path / "out").exists()


def test_weights_of_another_network_are_refused(tmp_path):
    plan = make_plan()
    bundle = make_bundle(tmp_path, plan)
    save_file({"other": torch.ones(2)}, tmp_path / "weights.safetensors")
    save_bundle(bundle, plan, {0: tmp_path / "weights.safetensors"}, {})
    with pytest.raises(BundleError, match="do not fit the plan"):
        load_model(bundle, "cpu", trust=("my_lab",))


def test_a_run_folder_stands_for_its_bundle(bundle):
    assert load_model(bundle.parent, "cpu", trust=("my_lab",)).bundle.root == bundle


def test_probabilities_outside_of_the_fan_are_those_of_background():
    fan = np.zeros((1, 4, 6), bool)
    fan[:, 1:, 2:5] = True
    grid = Geometry((1, 4, 6), (1.0, 0.5, 0.5))
    array = np.full((3, 1, 4, 6), 1 / 3, np.float32)
    cut = model.outside_is_background(Probabilities(array, grid, Labels((Label("a", (1,)), Label("b", (2,))))), fan)
    np.testing.assert_array_equal(cut.array[:, fan], array[:, fan])
    np.testing.assert_array_equal(cut.array[:, ~fan].T, np.tile([1.0, 0.0, 0.0], (int((~fan).sum()), 1)))
    regions = Labels((Label("whole", (1, 2)), Label("core", (2,))))
    assert not model.outside_is_background(Probabilities(array[:2], grid, regions), fan).array[:, ~fan].any()
