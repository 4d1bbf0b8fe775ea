import json
import math
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
from PIL import Image as Pillow
from tiny_run import tiny_plan

from medseg.io.landmarks import write_landmarks
from medseg.io.records import write_record
from medseg.types.labels import Labels
from medseg.types.landmarks import Landmarks
from medseg.types.result import CaseScores, LabelScores
from medseg.workflow.report import Page, Picture, mean_dice, read_curves, write_page, write_report

PNG = b"\x89PNG\r\n\x1a\n"


def scores(case, dice, hd95=1.0):
    state = "both_empty" if math.isnan(dice) else "both"
    row = LabelScores(dice, dice, hd95, 0.5, dice, 1.0, 1.0, 1, 1, 0, state)
    return CaseScores(case, {"tooth <1>": row})


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in {"src", "href"}]

    def handle_data(self, data):
        self.text += data


def read(path):
    page = Links()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def test_the_page_needs_nothing_but_itself_and_escapes_names(tmp_path):
    picture = Picture("case <b>", PNG, "Dice 0.5")
    page = Page("Ünder test", ("text & more",), (("a", "b"),), (scores("one", 0.5),), (picture,), (picture,))
    seen = read(write_page(page, tmp_path / "a folder" / "page.html"))
    assert len(seen.found) == 2 and all(link.startswith("data:image/png;base64,") for link in seen.found)
    for text in ("Ünder test", "text & more", "case <b>", "tooth <1> Dice", "0.500"):
        assert text in seen.text


def test_undefined_is_a_dash_infinite_is_said_and_failed_is_named(tmp_path):
    failed = CaseScores("gone", {}, status="failed", error="no prediction")
    rows = (scores("good", 0.9), scores("void", math.nan, math.nan), scores("miss", 0.0, math.inf), failed)
    text = read(write_page(Page("t", scores=rows), tmp_path / "p.html")).text
    assert "–" in text and "inf" in text and "failed" in text
    assert "0.450" in text, "mean over the two defined values"


def test_mean_dice_is_over_defined_cases():
    assert mean_dice([scores("a", 0.8), scores("b", 0.6), scores("c", math.nan)]) == 0.7
    assert math.isnan(mean_dice([])) and math.isnan(mean_dice([scores("c", math.nan)]))


def test_curves_are_found_per_fold(tmp_path):
    for fold in (1, 0):
        (tmp_path / f"fold_{fold}").mkdir()
        (tmp_path / f"fold_{fold}" / "curves.png").write_bytes(PNG)
    assert [curve.title for curve in read_curves(tmp_path)] == ["fold 0", "fold 1"]
    assert read_curves(tmp_path / "nothing") == ()


def landmark_run(tmp_path):
    """A run folder with validated points of three flat cases: 3 mm off, right, and one of two landmarks missing."""
    names = ("nasion", "menton")
    data, run = tmp_path / "data", tmp_path / "run"
    truth = np.array([[3.0, 3.0, 0.0], [6.0, 4.0, 0.0]])
    found = {"a": truth + (3.0, 0.0, 0.0), "b": truth, "c": np.where([[False], [True]], np.nan, truth)}
    for part in (data / "imagesTr", data / "landmarksTr", run / "fold_0" / "validation"):
        part.mkdir(parents=True)
    for seed, (case, points) in enumerate(found.items()):
        pixels = np.random.default_rng(seed).integers(0, 255, (20, 30)).astype(np.uint8)
        Pillow.fromarray(pixels).save(data / f"imagesTr/{case}.png")
        write_landmarks(Landmarks(names, truth), data / f"landmarksTr/{case}.csv")
        write_landmarks(Landmarks(names, points), run / f"fold_0/validation/{case}.landmarks.csv")
    content = {"channel_names": {"0": "MR"}, "landmarks": {"names": list(names)}, "spacing_mm": 0.5}
    (data / "dataset.json").write_text(json.dumps(content))
    plan = replace(tiny_plan(ndim=2), labels=Labels(()), landmarks=names)
    write_record(plan, run / "bundle" / "plan.json")
    return run, data


def test_a_run_that_finds_landmarks_only_has_a_table_and_pictures_worst_first(tmp_path):
    path = write_report(*landmark_run(tmp_path))
    page = read(path)
    assert len(page.found) == 3
    text = " ".join(page.text.split())
    assert "mean radial error1.20 mm" in text, "of five landmarks"
    assert "menton1.5002.1211.5003.00033.3 %" in text
    first, second, third = (text.index(f"{case}, fold 0: mean radial error") for case in "abc")
    assert first < second < third
    assert "Crosses: landmarks found" in text and "Dice" not in text


def test_cases_that_could_not_be_validated_are_named_with_the_reason_and_not_scored(tmp_path):
    run, data = landmark_run(tmp_path)
    failed = [{"case": "b", "fold": 0, "error": "b.png: cannot be read"}]
    (run / "bundle" / "scores.json").write_text(json.dumps({"failed": failed}))
    page = read(write_report(run, data))
    text = " ".join(page.text.split())
    assert "not validated: b, fold 0b.png: cannot be read" in text
    assert "validated cases2" in text and len(page.found) == 2
