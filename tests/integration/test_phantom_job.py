"""The whole job through the command line: check, plan, train, predict, evaluate, report."""

import json
import shutil

import numpy as np
import pytest
from phantoms import SHELL_AND_CORE, write_nifti_dataset, write_png_dataset

from medseg import read_image, read_labels
from medseg.cli import main


def shrink(path, *, channels, epochs, steps):
    """Edit a plan file as a user would, so that it trains in seconds."""
    plan = json.loads(path.read_text(encoding="utf-8"))
    topology = plan["network"]["topology"]
    topology["channels"] = [channels * min(2**stage, 4) for stage in range(len(topology["channels"]))]
    topology["blocks"] = [1] * len(topology["blocks"])
    plan["training"] |= {
        "epochs": epochs,
        "steps_per_epoch": steps,
        "augment": [],
        "ema": None,
        "optimizer": {"use": "adamw", "options": {"lr": 0.01}},
        "schedule": {"use": "poly", "options": {}},
    }
    plan["sampling"]["batch"] = 2
    path.write_text(json.dumps(plan), encoding="utf-8")
    return plan


def dice_of(folder):
    summary = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["summary"]
    return {name: values["dice"]["mean"] for name, values in summary["labels"].items()}


@pytest.mark.slow
def test_a_3d_job_from_data_set_to_scores(tmp_path, capsys):
    data, run, out = tmp_path / "Dätä set", tmp_path / "run", tmp_path / "out"
    write_nifti_dataset(data, 10)
    assert main(["check", str(data)]) == 0
    assert main(["plan", str(data), "--vram", "2", "--device", "cpu", "-o", str(run)]) == 0
    plan_file = run / "plan-3d_fullres.json"
    shrink(plan_file, channels=8, epochs=3, steps=20)
    train = ["train", str(plan_file), str(data), "-o", str(run), "--fold", "0", "--device", "cpu"]
    assert main(train) == 0
    weights = (run / "fold_0" / "weights.safetensors").read_bytes()
    assert main(train) == 0, "a finished run is left as it is"
    assert (run / "fold_0" / "weights.safetensors").read_bytes() == weights

    scans = tmp_path / "scans"
    shutil.copytree(data / "imagesTs", scans)
    (scans / "broken_0000.nii.gz").write_bytes(b"no image")
    capsys.readouterr()
    assert main(["predict", str(run), str(scans), "-o", str(out), "--device", "cpu"]) == 1
    printed = capsys.readouterr().out
    assert "2 ok" in printed and "1 failed" in printed and "Traceback" not in printed
    lines = json.loads((out / "report.json").read_text(encoding="utf-8"))["cases"]
    failed = [line for line in lines if line["status"] == "failed"]
    assert len(failed) == 1 and "broken" in failed[0]["error"]
    assert main(["predict", str(run / "bundle"), str(data / "imagesTs"), "-o", str(out), "--resume"]) == 0
    assert "2 skipped" in capsys.readouterr().out

    scan = read_image([data / "imagesTs" / "phantom 10_0000.nii.gz"])
    labels = read_labels(out / "phantom 10.nii.gz", SHELL_AND_CORE)
    assert labels.geometry.same_grid(scan.geometry)

    assert main(["evaluate", str(out), str(data / "labelsTs"), "-o", str(tmp_path / "scores")]) == 0
    dice = dice_of(tmp_path / "scores")
    assert set(dice) == {"shell", "core"} and min(dice.values()) > 0.8, dice
    assert main(["report", str(run), str(data)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") >= 3 and "plan" in page.lower()

    moved = tmp_path / "elsewhere"
    shutil.copytree(run / "bundle", moved)
    shutil.rmtree(run)
    again = tmp_path / "again"
    assert main(["predict", str(moved), str(data / "imagesTs"), "-o", str(again), "--device", "cpu"]) == 0
    assert np.array_equal(read_labels(again / "phantom 10.nii.gz", SHELL_AND_CORE).array, labels.array)


@pytest.mark.slow
def test_a_2d_job_on_png(tmp_path):
    data, run, out = tmp_path / "data", tmp_path / "run", tmp_path / "out"
    write_png_dataset(data, 10)
    assert main(["plan", str(data), "--vram", "2", "--device", "cpu", "-o", str(run)]) == 0
    shrink(run / "plan-2d.json", channels=8, epochs=3, steps=20)
    train = ["train", str(run / "plan-2d.json"), str(data), "-o", str(run), "--fold", "all", "--device", "cpu"]
    assert main(train) == 0
    assert main(["predict", str(run), str(data / "imagesTs"), "-o", str(out), "--format", "nii.gz"]) == 0
    assert main(["predict", str(run), str(data / "imagesTs"), "-o", str(out / "png")]) == 0
    assert sorted(path.name for path in (out / "png").glob("*.png")) == ["disc_10.png", "disc_11.png"]
    assert main(["evaluate", str(out / "png"), str(data / "labelsTs"), "-o", str(tmp_path / "scores")]) == 0
    dice = dice_of(tmp_path / "scores")
    assert min(dice.values()) > 0.8, dice


def test_errors_are_one_line_and_exit_2(tmp_path, capsys):
    assert main(["train", str(tmp_path / "none.json"), str(tmp_path), "-o", str(tmp_path)]) == 2
    assert main(["predict", str(tmp_path), str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert main(["train", str(tmp_path / "p"), str(tmp_path), "-o", str(tmp_path), "--fold", "first"]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 3 and all(line.startswith("error: ") for line in errors)
    assert main(["predict"]) == 2 and main(["nonsense"]) == 2
    assert main(["check", str(tmp_path)]) == 1


def test_version(capsys):
    assert main(["-v"]) == 0
    assert capsys.readouterr().out.strip() == __import__("medseg").__version__
