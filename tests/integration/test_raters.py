"""Two people who annotate differently: one network that knows who did what."""

import json

import numpy as np
import pytest
from phantoms import nested_ellipsoids
from PIL import Image as Pillow

import medseg
from medseg.cli import main

CASES, SHAPE = 12, (48, 40)


def write_dataset(folder):
    """Discs: Ann outlines the whole disc, Ben its core only, in turn; the last two are unseen and by both."""
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    raters = {}
    for seed in range(CASES):
        image, labels = nested_ellipsoids(SHAPE, seed=seed)
        name, rater = f"disc_{seed:02d}", ("Ann", "Ben")[seed % 2]
        raters[name] = rater
        mask = (labels > 0) if rater == "Ann" else (labels == 2)
        Pillow.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / "imagesTr" / f"{name}_0000.png")
        Pillow.fromarray(mask.astype(np.uint8)).save(folder / "labelsTr" / f"{name}.png")
    description = {
        "name": "discs",
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "disc": 1},
        "numTraining": CASES,
        "file_ending": ".png",
        "raters": raters,
    }
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")


def shrink(path):
    plan = json.loads(path.read_text(encoding="utf-8"))
    topology = plan["network"]["topology"]
    topology["channels"] = [8 * min(2**stage, 4) for stage in range(len(topology["channels"]))]
    topology["blocks"] = [1] * len(topology["blocks"])
    plan["training"] |= {
        "epochs": 2,
        "steps_per_epoch": 60,
        "augment": [],
        "ema": None,
        "weighting": "fixed",
        "optimizer": {"use": "adamw", "options": {"lr": 0.01}},
    }
    plan["sampling"]["batch"] = 4
    path.write_text(json.dumps(plan), encoding="utf-8")
    return plan


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@pytest.mark.slow
def test_each_rater_is_imitated_and_nobody_in_particular_lies_between(tmp_path, capsys):
    data, run = tmp_path / "data", tmp_path / "run"
    write_dataset(data)
    plan = ["plan", str(data), "--vram", "2", "--device", "cpu", "-o", str(run), "--option", "attention=rater_code"]
    assert main(plan) == 0
    made = shrink(run / "plan-2d.json")
    assert made["raters"] == ["Ann", "Ben"] and made["training"]["losses"][-1]["use"] == "rater_prior"
    train = ["train", str(run / "plan-2d.json"), str(data), "-o", str(run)]
    assert main([*train, "--fold", "all", "--device", "cpu"]) == 0
    image, truth = nested_ellipsoids(SHAPE, seed=CASES)
    scan = np.clip(image, 0, 255)[None].astype(np.float32)
    found = {}
    for rater in ("Ann", "Ben", None):
        model = medseg.load_model(run, "cpu", rater=rater)
        found[rater] = model.predict(scan[0], spacing=(1.0, 1.0)).labels.array[0] == 1
    disc, core = truth > 0, truth == 2
    assert dice(found["Ann"], disc) > 0.9 > dice(found["Ann"], core)
    assert dice(found["Ben"], core) > 0.85 > dice(found["Ben"], disc)
    assert found["Ben"].sum() < found[None].sum() < found["Ann"].sum()

    described = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    described["raters"]["disc_00"] = "Ben"
    (data / "dataset.json").write_text(json.dumps(described), encoding="utf-8")
    assert main([*train, "--fold", "0", "--device", "cpu"]) == 2
    said = capsys.readouterr()
    assert "had other raters" in said.err + said.out and "disc_00" in said.err + said.out

    (tmp_path / "scans").mkdir()
    Pillow.fromarray(scan[0].astype(np.uint8)).save(tmp_path / "scans" / "new_0000.png")
    ask = ["predict", str(run), str(tmp_path / "scans"), "-o", str(tmp_path / "out"), "--device", "cpu", "--rater"]
    assert main([*ask, "Ben"]) == 0
    assert (np.array(Pillow.open(tmp_path / "out" / "new.png")) == found["Ben"]).mean() > 0.99
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["settings"]["rater"] == "2"
    capsys.readouterr()
    assert main([*ask, "Eve"]) == 2
    said = capsys.readouterr()
    assert "Eve" in said.err + said.out and "known are Ann, Ben" in said.err + said.out
