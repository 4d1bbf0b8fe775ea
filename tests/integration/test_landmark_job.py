"""Landmarks through the command line, check to report: pictures whose spacing dataset.json states, and volumes."""

import json

import numpy as np
import pytest
from PIL import Image as Pillow
from test_landmarks import NAMES as HEAD_NAMES
from test_landmarks import write_heads

from medseg.cli.app import main
from medseg.io.landmarks import read_landmarks, write_landmarks
from medseg.io.records import read_record
from medseg.types.landmarks import Landmarks
from medseg.types.plan import Plan

NAMES = ("nasion", "menton")
SPACING = 0.5  # mm


def write_faces(folder, cases):
    """Pictures of 48 x 40 pixels, a bright spot at one landmark and a dark one at the other; two more to predict."""
    for number in range(cases + 2):
        part, rng = "Tr" if number < cases else "Ts", np.random.default_rng(number)
        points = np.column_stack([rng.uniform(12, 28, 2), rng.uniform((8, 30), (16, 40)), [0, 0]])  # x, y in pixels
        y, x = np.mgrid[:48, :40]
        spots = [np.exp(-((x - px) ** 2 + (y - py) ** 2) / 8) for px, py, _ in points]
        pixels = 128 + rng.normal(0, 4, x.shape) + 100 * (spots[0] - spots[1])
        for kind in ("images", "landmarks"):
            (folder / f"{kind}{part}").mkdir(parents=True, exist_ok=True)
        Pillow.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"images{part}/face_{number}.png")
        write_landmarks(Landmarks(NAMES, points * SPACING), folder / f"landmarks{part}/face_{number}.csv")
    content = {"channel_names": {"0": "X-ray"}, "landmarks": {"names": list(NAMES)}, "spacing_mm": [SPACING, SPACING]}
    (folder / "dataset.json").write_text(json.dumps(content))


def shorten(path, *, steps, **training):
    """Edit a plan file as a user would, so that it trains in seconds."""
    content = json.loads(path.read_text())
    topology = content["network"]["topology"]
    topology["channels"] = [8] * len(topology["channels"])
    content["training"] |= {"epochs": 3, "steps_per_epoch": steps, "precision": "fp32", **training}
    content["training"]["optimizer"] = {"use": "adamw", "options": {"lr": 0.01}}
    path.write_text(json.dumps(content))


def test_pictures_of_faces_from_check_to_report(tmp_path, capsys):
    data, run, out = tmp_path / "data", tmp_path / "run", tmp_path / "out"
    write_faces(data, 10)
    assert main(["check", str(data)]) == 0
    assert main(["plan", str(data), "--vram", "1", "-o", str(run)]) == 0
    path = run / "plan-2d.json"
    plan = read_record(path, Plan)
    assert plan.landmarks == NAMES and plan.labels.items == () and [head.use for head in plan.network.heads] == ["dsnt"]
    assert plan.sampling.patch[1] >= 48 and plan.sampling.patch[2] >= 40
    shorten(path, steps=20)
    assert main(["train", str(path), str(data), "-o", str(run), "--fold", "0", "--device", "cpu"]) == 0
    scans = [str(data / "imagesTs"), "-o", str(out), "--device", "cpu"]
    assert main(["predict", str(run / "bundle"), *scans]) == 1, "the pictures state no spacing"
    assert "--spacing" in capsys.readouterr().out
    assert main(["predict", str(run / "bundle"), *scans, "--spacing", str(SPACING)]) == 0
    assert main(["evaluate", str(out), str(data / "landmarksTs"), "-o", str(tmp_path / "scores")]) == 0
    scores = json.loads((tmp_path / "scores/landmarks.json").read_text())["summary"]
    assert scores["all"]["n"] == 4 and scores["all"]["missing"] == 0
    assert scores["all"]["mean_mm"] < 2.5, "the middle of the picture is about 6 mm away"
    found = read_landmarks(out / "face_10.mrk.json")
    assert found.names == NAMES and found.confidence is not None
    assert main(["report", str(run), str(data)]) == 0
    assert "mean radial error" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_heads_in_three_dimensions_from_check_to_scores(tmp_path):
    data, unseen, run, out = (tmp_path / name for name in ("data", "unseen", "run", "out"))
    write_heads(data, 10, flat=False)
    write_heads(unseen, 2, flat=False, first=100)
    assert main(["check", str(data)]) == 0
    assert main(["plan", str(data), "--vram", "2", "-o", str(run)]) == 0
    assert [path.name for path in run.glob("plan-*.json")] == ["plan-3d_fullres.json"], "whole scans: one plan"
    path = run / "plan-3d_fullres.json"
    plan = read_record(path, Plan)
    assert plan.landmarks == HEAD_NAMES and plan.labels.items == ()
    assert [(head.use, dict(head.options)) for head in plan.network.heads] == [("dsnt", {"points": 3})]
    assert [term.use for term in plan.training.losses] == ["dsnt"]
    assert plan.network.topology.ndim == 3 and plan.network.topology.divisor()[0] > 1
    assert all(patch >= scan for patch, scan in zip(plan.sampling.patch, (10, 24, 24), strict=True))
    assert "3 landmarks to find" in plan.reasons["network.heads"]
    assert "covers every scan" in plan.reasons["sampling.patch"]
    assert "landmarks: no axis but that between paired sides" in plan.reasons["inference.mirror_axes"]
    shorten(path, steps=40, augment=[], ema=None)
    assert main(["train", str(path), str(data), "-o", str(run), "--fold", "0", "--device", "cpu"]) == 0
    scans = [str(unseen / "imagesTr"), "-o", str(out), "--device", "cpu"]
    assert main(["predict", str(run / "bundle"), *scans]) == 0
    assert main(["evaluate", str(out), str(unseen / "landmarksTr"), "-o", str(tmp_path / "scores")]) == 0
    scores = json.loads((tmp_path / "scores/landmarks.json").read_text())["summary"]
    assert (scores["all"]["n"], scores["all"]["missing"], scores["unit"]) == (5, 0, "mm"), "nobody placed one of them"
    assert scores["all"]["mean_mm"] < 4, "the middle of the scan is about 7 mm away"
