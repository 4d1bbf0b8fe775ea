import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from phantoms import SHELL_AND_CORE, write_nifti_dataset, write_png_dataset
from tiny_run import tiny_plan

from medseg.errors import DatasetError, ImageError, PlanError, TrainingError
from medseg.io.bundles import bundle_sha256, load_bundle
from medseg.io.cache import open_case
from medseg.io.datasets import read_dataset
from medseg.io.images import read_labels
from medseg.io.records import read_record, write_record
from medseg.training.lock import locked
from medseg.types.dataset import Case, Dataset, Split
from medseg.types.plan import Inference, LossTerm, Step
from medseg.workflow import devices, validate_fold
from medseg.workflow.devices import resolve_device, resolve_precision
from medseg.workflow.predict import load_model
from medseg.workflow.run_folds import run_raters, run_splits, say_absent_raters
from medseg.workflow.train import prepare, train


def flat_plan(**training):
    settings = {"epochs": 2, "steps_per_epoch": 4, "augment": (), "optimizer": Step("adamw", {"lr": 0.01})}
    return tiny_plan(ndim=2, channels=("MRI",), **{**settings, **training})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "Bilder ä"
    write_png_dataset(folder, 10, shape=(24, 20))
    return folder


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """Fold 1 alone."""
    run = tmp_path_factory.mktemp("run")
    train(flat_plan(), pictures, run, folds=1, device="cpu")
    return run


def test_prepare_skips_finished_cases_and_redoes_broken_ones(pictures, tmp_path):
    data, plan = read_dataset(pictures), flat_plan()
    seen = []
    cache = prepare(plan, data, tmp_path, workers=2, report=seen.append)
    assert [p.done for p in seen] == list(range(1, 11)) and seen[0].stage == "prepare"
    times = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    victim = next(cache.glob("disc_03.image*"))
    victim.write_bytes(b"")
    assert prepare(plan, data, tmp_path) == cache
    changed = {path.name for path in cache.iterdir() if path.stat().st_mtime_ns != times[path.name]}
    assert changed and all("disc_03" in name for name in changed)
    case = open_case(cache, "disc_03")
    assert case.shape == (1, 24, 20) and set(case.foreground) == {1, 2}


def test_prepare_lists_every_case_that_fails_and_keeps_the_rest(tmp_path):
    folder = tmp_path / "data"
    write_nifti_dataset(folder, 5, shape=(6, 8, 8))
    for number in (1, 3):
        (folder / "imagesTr" / f"phantom 0{number}_0000.nii.gz").write_bytes(b"no image")
    plan = tiny_plan(channels=("MRI",))
    with pytest.raises(DatasetError, match=r"2 of 5 cases(?s:.)*phantom 01(?s:.)*phantom 03"):
        prepare(plan, read_dataset(folder), tmp_path / "run")
    cache = next((tmp_path / "run" / "cache").iterdir())
    assert open_case(cache, "phantom 04").channels == ("MRI",)


def test_one_fold_gives_a_bundle_with_out_of_fold_scores(trained, pictures):
    bundle = load_bundle(trained / "bundle")
    splits = read_record(trained / "splits.json", tuple[Split, ...])
    held_out = splits[1].val
    assert [member.fold for member in bundle.members] == [1]
    assert bundle.scores["cases"] == len(held_out) == 2
    assert [row["case"] for row in bundle.scores["per_case"]] == list(held_out)
    found = sorted(path.name for path in (trained / "fold_1" / "validation").glob("*.nii.gz"))
    assert found == sorted(f"{name}.nii.gz" for name in held_out)
    assert "postprocess" in bundle.plan.reasons and "2 validation cases" in bundle.plan.reasons["postprocess"]
    per_fold = json.loads((trained / "fold_1" / "validation_scores.json").read_text())
    assert per_fold["per_case"][0]["dice"] == bundle.scores["per_case"][0]["dice_before"]


def test_validation_equals_prediction_without_cleaning(trained, pictures):
    bundle = load_bundle(trained / "bundle")
    path = sorted((trained / "fold_1" / "validation").glob("*.nii.gz"))[0]
    name = path.name.removesuffix(".nii.gz")
    from medseg.io.images import read_image
    from medseg.workflow.model import PredictOptions, members_of, predict_image

    options, cpu = PredictOptions(clean=False, folds=(1,)), torch.device("cpu")
    image = read_image([pictures / "imagesTr" / f"{name}_0000.png"], channels=("MRI",))
    made = predict_image(image, bundle, members_of(bundle, cpu, options), device=cpu, options=options)
    assert np.array_equal(made.labels.array, read_labels(path, SHELL_AND_CORE).array)


def test_other_folds_extend_the_bundle_and_nothing_is_done_twice(trained, pictures, tmp_path):
    trained = Path(shutil.copytree(trained, tmp_path / "run"))
    weights = trained / "fold_1" / "weights.safetensors"
    prediction = next((trained / "fold_1" / "validation").glob("*.nii.gz"))
    before = weights.stat().st_mtime_ns, prediction.stat().st_mtime_ns
    stages = set()
    bundle = train(flat_plan(), pictures, trained, folds=[0], device="cpu", report=lambda p: stages.add(p.stage))
    assert [member.fold for member in bundle.members] == [0, 1]
    assert bundle.scores["cases"] == 4 and bundle.scores["folds"] == [0, 1]
    assert (weights.stat().st_mtime_ns, prediction.stat().st_mtime_ns) == before
    assert "train fold_0" in stages and "train fold_1" not in stages and "validate fold_1" not in stages
    model = load_model(trained, "cpu")
    labels = model.predict(pictures / "imagesTs" / "disc_10_0000.png").labels
    assert labels.array.shape == (1, 24, 20)


def test_a_fold_that_finishes_elsewhere_meanwhile_is_in_the_bundle(pictures, tmp_path):
    plan, elsewhere = flat_plan(epochs=1, steps_per_epoch=1), []

    def hook(end):
        if not elsewhere:
            elsewhere.append(train(plan, pictures, tmp_path, folds=3, device="cpu").scores["members"])

    bundle = train(plan, pictures, tmp_path, folds=2, device="cpu", hooks=[hook])
    assert elsewhere == [["3"]] and bundle.scores["members"] == ["2", "3"]
    assert bundle.scores["cases"] == 4


def test_predictions_of_other_weights_are_not_taken_over(tmp_path):
    out = tmp_path / "validation"
    validate_fold._forget_others(out, "one")
    (out / "a.nii.gz").write_bytes(b"x")
    validate_fold._forget_others(out, "one")
    assert (out / "a.nii.gz").exists()
    validate_fold._forget_others(out, "two")
    assert not (out / "a.nii.gz").exists()


def test_training_on_all_cases_needs_no_folds_and_keeps_the_plans_cleaning(pictures, tmp_path):
    bundle = train(flat_plan(epochs=1, steps_per_epoch=1), pictures, tmp_path, folds="all", device="cpu")
    assert [member.fold for member in bundle.members] == ["all"]
    assert bundle.plan.postprocess == () and bundle.scores["cases"] == 0
    assert not (tmp_path / "splits.json").exists()
    assert "dice" not in json.loads((tmp_path / "fold_all" / "metrics.jsonl").read_text())


def test_a_run_folder_belongs_to_one_plan(trained, pictures):
    with pytest.raises(TrainingError, match="another plan"):
        train(flat_plan(seed=4), pictures, trained, folds=0, device="cpu")


def test_a_plan_of_another_data_set_is_refused(pictures, tmp_path):
    with pytest.raises(PlanError, match="channels"):
        train(tiny_plan(ndim=2), pictures, tmp_path, folds=0, device="cpu")


def test_folds_that_do_not_exist_are_refused(trained, pictures):
    with pytest.raises(TrainingError, match=r"no folds \[7\].*0 to 4"):
        train(flat_plan(), pictures, trained, folds=[0, 7], device="cpu")


def test_a_case_lost_from_the_data_set_is_named(trained, pictures, tmp_path):
    text = (trained / "splits.json").read_text().replace("disc_04", "disc_99")
    (tmp_path / "splits.json").write_text(text)
    with pytest.raises(DatasetError, match="disc_99"):
        train(flat_plan(), pictures, tmp_path, folds=0, device="cpu")


def test_devices_are_resolved_or_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(PlanError, match=r'"cuda:0" is not here'):
        resolve_device("cuda:0")
    with pytest.raises(PlanError, match="no device is called"):
        resolve_device("gpu one")
    with pytest.raises(PlanError, match="not supported"):
        resolve_device("meta")


def test_precision_follows_what_the_device_is_fast_in(monkeypatch, caplog):
    cpu, card = torch.device("cpu"), torch.device("cuda", 0)
    monkeypatch.setattr(devices, "_cpu_has_bf16", lambda: True)
    with caplog.at_level(logging.WARNING, "medseg"):
        assert resolve_precision("bf16", cpu) == "bf16"
        assert resolve_precision("fp32", cpu) == "fp32"
        assert not caplog.records
        assert resolve_precision("fp16", cpu) == "fp32"
        monkeypatch.setattr(devices, "_cpu_has_bf16", lambda: False)
        assert resolve_precision("bf16", cpu) == "fp32"
        assert len(caplog.records) == 2
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert resolve_precision("bf16", card) == resolve_precision("fp16", card) == "fp16"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert resolve_precision("bf16", card) == "bf16"


def test_cases_added_later_join_the_folds_and_the_others_stay(trained, pictures, tmp_path):
    data = read_dataset(pictures)
    fewer = replace(data, cases=data.cases[:-1])
    before = run_splits(fewer, tmp_path, "cv")
    after = run_splits(data, tmp_path, "cv")
    assert [set(old.val) - set(new.val) for old, new in zip(before, after, strict=True)] == [set()] * len(before)
    assert sum(data.cases[-1].id in split.val for split in after) == 1
    assert run_splits(data, tmp_path, "cv") == after


def test_a_finished_fold_is_never_scored_on_what_it_has_learnt(trained, pictures, tmp_path):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    first, second, third, *rest = read_record(run / "splits.json", tuple[Split, ...])
    write_record((first, third, second, *rest), run / "splits.json")
    with pytest.raises(TrainingError, match=r"was trained on \d cases that its fold holds out now"):
        train(flat_plan(), pictures, run, folds=1, device="cpu")


def test_a_student_says_whether_its_teacher_saw_what_it_is_scored_on(pictures, trained, tmp_path, caplog):
    student = flat_plan(losses=(LossTerm(1.0, "distillation"),))
    run = tmp_path / "student"
    run.mkdir()
    shutil.copy(trained / "splits.json", run)
    bundle = train(student, pictures, run, folds=1, device="cpu", teacher=trained)
    assert bundle.scores["teacher"]["never_saw_validation"] is True
    with caplog.at_level(logging.WARNING, logger="medseg"):
        bundle = train(student, pictures, run, folds=2, device="cpu", teacher=trained)
    assert bundle.scores["teacher"]["never_saw_validation"] is False
    assert "too good" in caplog.text
    lesson = read_record(run / "fold_2" / "teacher.json", dict[str, str])
    assert lesson == {"bundle_sha256": bundle_sha256(load_bundle(trained / "bundle")), "member": ""}
    write_record({**lesson, "member": "2"}, run / "fold_2" / "teacher.json")  # as another teacher would have left it
    bundle = train(student, pictures, run, folds=2, device="cpu", teacher=trained)
    assert bundle.scores["teacher"]["never_saw_validation"] is True
    with pytest.raises(PlanError, match="needs a teacher"):
        train(student, pictures, tmp_path / "alone", folds=1, device="cpu")


def test_folds_of_the_data_sets_own_stay_as_they_are(pictures, tmp_path, caplog):
    data = read_dataset(pictures)
    *names, left_out = [case.id for case in data.cases]
    thirds = [tuple(names[k : k + 3]) for k in (0, 3, 6)]
    turns = tuple(Split(tuple(name for name in names if name not in val), val) for val in thirds)
    held_out = (Split(tuple(names[:7]), tuple(names[7:])),)
    for number, own in enumerate((turns, held_out)):
        run, given = tmp_path / str(number), replace(data, splits=own)
        for _ in range(2):
            caplog.clear()
            with caplog.at_level(logging.WARNING, "medseg"):
                assert run_splits(given, run, "cv") == own
            (said,) = [record.getMessage() for record in caplog.records]
            assert "1 cases are in no fold" in said and left_out in said
        assert read_record(run / "splits.json", tuple[Split, ...]) == own
    assert run_splits(data, tmp_path / "1", "cv") == held_out, "also when the data set no longer says so"


def test_groups_that_are_corrected_later_are_not_split_by_the_old_folds(pictures, tmp_path):
    data = read_dataset(pictures)
    splits = run_splits(data, tmp_path, "cv")
    (one, *_), (other, *_) = splits[0].train, splits[0].val
    known = tuple(replace(case, group="twins") if case.id in (one, other) else case for case in data.cases)
    with pytest.raises(DatasetError, match=r"do not fit(?s:.)*twins.*both sides of fold 0"):
        run_splits(replace(data, cases=known), tmp_path, "cv")
    assert run_splits(data, tmp_path, "cv") == splits
    with pytest.raises(DatasetError, match="other folds than the data set's own"):
        run_splits(replace(data, splits=splits[::-1]), tmp_path, "cv")


def test_patches_of_sparsely_annotated_scans_lie_where_somebody_annotated(tmp_path):
    folder = tmp_path / "data"
    write_nifti_dataset(folder, 1, shape=(12, 8, 8))
    content = json.loads((folder / "dataset.json").read_text())
    content["labels"]["ignore"] = 9
    (folder / "dataset.json").write_text(json.dumps(content))
    (label,) = (folder / "labelsTr").iterdir()
    import nibabel

    made = nibabel.load(label)
    values = np.asarray(made.dataobj).copy()
    values[:, :, [k for k in range(12) if k != 7]] = 9
    nibabel.save(nibabel.Nifti1Image(values, made.affine, made.header), label)
    data = read_dataset(folder)
    plan = tiny_plan(channels=("MRI",), labels=data.labels)
    cache = prepare(plan, data, tmp_path / "run", workers=1)
    case = open_case(cache, data.cases[0].id)
    assert case.inside is not None and set(case.inside[:, 0].tolist()) == {7}
    assert len(case.inside) == 64


def test_other_inference_settings_keep_the_weights_and_validate_again(trained, pictures, tmp_path):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    weights = run / "fold_1" / "weights.safetensors"
    prediction = next((run / "fold_1" / "validation").glob("*.nii.gz"))
    before = weights.stat().st_mtime_ns, prediction.stat().st_mtime_ns
    plan, stages = replace(flat_plan(), inference=Inference(overlap=0.25)), []
    bundle = train(plan, pictures, run, folds=1, device="cpu", report=lambda p: stages.append(p.stage))
    assert bundle.plan.inference.overlap == 0.25 and bundle.scores["cases"] == 2
    assert weights.stat().st_mtime_ns == before[0] and "train fold_1" not in stages
    assert prediction.stat().st_mtime_ns != before[1] and stages.count("validate fold_1") == 2
    train(plan, pictures, run, folds=1, device="cpu", report=lambda p: stages.append(p.stage))
    assert stages.count("validate fold_1") == 2, "the same settings are not validated twice"


def test_a_case_that_cannot_be_predicted_costs_only_itself(pictures, tmp_path, monkeypatch, caplog):
    plan, real, bad, short = flat_plan(epochs=1, steps_per_epoch=1), validate_fold.predict_image, [], None

    def predict_image(image, *args, case_id, **options):
        if case_id in bad:
            raise short or ImageError("is too large", where=case_id, hint="crop it")
        return real(image, *args, case_id=case_id, **options)

    monkeypatch.setattr(validate_fold, "predict_image", predict_image)
    held_out = run_splits(read_dataset(pictures), tmp_path, "cv")[2].val
    bad += held_out
    with pytest.raises(TrainingError, match=r"none of 2 validation cases can be scored .*is too large"):
        train(plan, pictures, tmp_path, folds=2, device="cpu")
    assert (tmp_path / "fold_2" / "weights.safetensors").exists()
    bad.pop()
    with caplog.at_level(logging.WARNING, "medseg"):
        bundle = train(plan, pictures, tmp_path, folds=2, device="cpu")
    assert [row["case"] for row in bundle.scores["per_case"]] == [held_out[1]] and bundle.scores["cases"] == 1
    (failed,) = bundle.scores["failed"]
    assert failed == {"case": held_out[0], "fold": 2, "error": "is too large"}
    assert f"fold 2 is validated without {held_out[0]}: {held_out[0]}: is too large. crop it" in caplog.text
    short = torch.OutOfMemoryError("CUDA out of memory.")
    bundle = train(plan, pictures, tmp_path, folds=2, device="cpu")
    assert [row["error"] for row in bundle.scores["failed"]] == ["out of memory"]
    bad.clear()
    healed = train(plan, pictures, tmp_path, folds=2, device="cpu")
    assert healed.scores["cases"] == 2 and "failed" not in healed.scores


def test_a_scan_that_was_replaced_is_validated_again(trained, pictures, tmp_path):
    data, run = Path(shutil.copytree(pictures, tmp_path / "data")), Path(shutil.copytree(trained, tmp_path / "run"))
    stages = []
    options = {"folds": 1, "device": "cpu", "report": lambda progress: stages.append(progress.stage)}
    train(flat_plan(), data, run, **options)
    assert "validate fold_1" not in stages  # the same files, wherever they lie
    name = run_splits(read_dataset(data), run, "cv")[1].val[0]
    (scan,) = (data / "imagesTr").glob(f"{name}_0000.*")
    os.utime(scan, ns=(1, 1))
    train(flat_plan(), data, run, **options)
    assert "validate fold_1" in stages


def test_leftovers_of_killed_processes_go_and_files_of_living_ones_stay(trained, pictures, tmp_path):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    left = [
        next((run / "cache").iterdir()) / ".part-a1b2c3d4-disc_03.image.b2nd",
        run / "fold_1" / ".part-a1b2c3d4-validation_scores.json",
        run / "fold_1" / "validation" / ".part-a1b2c3d4-disc_03.nii.gz",
        run / "fold_2" / ".part-a1b2c3d4-checkpoint.safetensors",
    ]
    another = run / "fold_3" / ".part-a1b2c3d4-checkpoint.safetensors"
    for path in (*left, another):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    plan = flat_plan()
    with locked(run / "fold_3"):
        train(plan, pictures, run, folds=2, device="cpu")
        assert [path for path in left if path.exists()] == []
        with pytest.raises(TrainingError, match="already training"):
            train(plan, pictures, run, folds=3, device="cpu")
        assert another.exists()
    train(plan, pictures, run, folds=3, device="cpu")
    assert not list(run.rglob(".part-*"))


def test_regions_that_no_label_map_would_show_are_said_before_training(tmp_path, caplog):
    folder = tmp_path / "data"
    write_png_dataset(folder, 5, shape=(24, 20))
    content = json.loads((folder / "dataset.json").read_text())
    content |= {"labels": {"background": 0, "core": [2], "disc": [1, 2]}, "regions_class_order": [2, 1]}
    (folder / "dataset.json").write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING, "medseg"), pytest.raises(PlanError, match="labels differ"):
        train(flat_plan(), folder, tmp_path / "run", device="cpu")
    assert 'region "core" lies in "disc"' in caplog.text and "larger regions before" in caplog.text


def test_raters_of_a_run_stay_and_cases_may_come_and_go(tmp_path):
    plan = replace(flat_plan(), raters=("A", "B"))

    def data(**raters):
        cases = tuple(Case(name, (), rater=rater) for name, rater in raters.items())
        return Dataset("d", tmp_path, ("MRI",), SHELL_AND_CORE, cases)

    assert run_raters(data(a="A", b="B", c=None), plan, tmp_path) == {"a": "A", "b": "B"}
    assert run_raters(data(a="A", c=None, d="B"), plan, tmp_path) == {"a": "A", "d": "B"}
    for changed in ({"a": "B"}, {"a": None}, {"c": "A"}, {"b": "A"}, {"d": "A"}):
        with pytest.raises(DatasetError, match=f"1 cases had other raters.*: {next(iter(changed))}"):
            run_raters(data(**changed), plan, tmp_path)
    assert run_raters(data(a="B"), flat_plan(), tmp_path) == {"a": "B"}, "a plan without raters minds nobody"


def test_a_fold_without_a_raters_cases_says_so(caplog):
    plan = replace(flat_plan(), raters=("A", "B"))
    say_absent_raters(plan, {"a": "A", "b": "B"}, 2, ["a", "b"])
    assert not caplog.records
    say_absent_raters(plan, {"a": "A", "b": "B"}, 2, ["a", "c"])
    assert "fold 2" in caplog.text and "raters B" in caplog.text


def test_a_call_names_the_cases_whose_labels_were_corrected_after_a_fold_began(pictures, tmp_path, caplog):
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(pictures, data)
    train(flat_plan(), data, run, folds=0, device="cpu")
    learnt = (run / "fold_0" / "weights.safetensors").read_bytes()
    case = read_record(run / "splits.json", tuple[Split, ...])[0].train[0]
    (label,) = (data / "labelsTr").glob(f"{case}.*")
    other = next(path for path in sorted((data / "labelsTr").iterdir()) if path.read_bytes() != label.read_bytes())
    shutil.copyfile(other, label)
    with caplog.at_level(logging.WARNING, "medseg"):
        train(flat_plan(), data, run, folds=0, device="cpu")
    assert f"fold_0: label maps or landmarks of 1 cases have changed since it began: {case}." in caplog.text
    assert (run / "fold_0" / "weights.safetensors").read_bytes() == learnt
