import logging

from medseg.cli.progress import shown_progress
from medseg.cli.tables import report_lines, score_lines
from medseg.types.progress import Progress
from medseg.types.result import CaseReport, RunReport


def test_without_a_terminal_the_end_of_a_stage_is_one_plain_line(capsys):
    with shown_progress() as report:
        for done in [*range(1, 101), *range(1, 101)]:
            report(Progress("train fold_0", done, 100, {"loss": 0.25}))
        logging.getLogger("medseg").info("a log line")
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["train fold_0 100/100 loss 0.25", "a log line"]
    assert captured.out == ""


def test_long_stages_say_how_much_time_is_left(capsys, monkeypatch):
    clock = iter(range(0, 100_000, 30))  # a case takes half a minute
    monkeypatch.setattr("medseg.cli.progress.time.monotonic", lambda: next(clock))
    with shown_progress() as report:
        for done in (1, 2, 3, 300, 301):
            report(Progress("cases", done, 302))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "cases 2/302 (2.5 h left)" and lines[-1] == "cases 301/302 (1 min left)"


def test_logging_is_left_as_it_was():
    log = logging.getLogger("medseg")
    before = (log.level, list(log.handlers))
    with shown_progress():
        pass
    assert (log.level, list(log.handlers)) == before


def test_report_lines_say_what_failed_and_count():
    cases = (
        CaseReport("a", "ok", 1.0, ("a.nii.gz",), {"tooth": 1.234}, ("odd header",)),
        CaseReport("b", "failed", 1.0, error="b.nii.gz: cut off. copy it again"),
        CaseReport("c", "skipped", 0.0, ("c.nii.gz",), {"tooth": 2.0}),
        CaseReport("d", "ok", 1.0, ("d.nii.gz",), area_mm2={"cyst": 12.345, "wall": 0.0}),
        CaseReport("e", "ok", 1.0, ("e.gif",), largest_area_mm2={"cyst": 7.0}),
    )
    text = report_lines(RunReport("medseg.report/1", "0", "0", "cpu", cases))
    assert text.splitlines() == [
        "ok: a: tooth 1.23 ml",
        "  warning: odd header",
        "failed: b: b.nii.gz: cut off. copy it again",
        "skipped: c: tooth 2.00 ml",
        "ok: d: cyst 12.35 mm2, wall 0.00 mm2",
        "ok: e: cyst up to 7.00 mm2",
        "3 ok, 1 skipped, 1 failed",
    ]


def test_score_lines_give_the_dice_the_cases_and_the_cleaning():
    scores = {"mean_dice": 0.875, "dice": {"a": 0.9, "b": 0.85, "c": None}, "cases": 8, "cleaning": "nothing helps"}
    assert score_lines(scores).splitlines() == [
        "validation: mean Dice 0.875 on 8 cases (a 0.900, b 0.850, c undefined)",
        "cleaning: nothing helps",
    ]
    assert "every case was trained on" in score_lines({"cases": 0})
    assert score_lines({**scores, "failed": [{}, {}]}).splitlines()[-1].startswith("NOT VALIDATED: 2 cases failed")


def test_score_lines_of_landmarks_give_distance_success_and_what_is_missing():
    every = {"n": 38, "missing": 2, "mean_mm": 1.234, "sdr": {"2": 0.75, "2.5": 0.8, "3": 0.9, "4": 1.0}}
    landmarks = {"summary": {"all": every}}
    line = "validation: 38 landmarks, mean distance 1.23 mm (75 % within 2 mm, 80 % within 2.5 mm, 90 % within 3 mm, "
    line += "100 % within 4 mm, 2 missing)"
    assert score_lines({"cases": 2, "landmarks": landmarks}) == line
    both = {"mean_dice": 0.5, "dice": {"a": 0.5}, "cases": 2, "cleaning": "none", "landmarks": landmarks}
    assert score_lines(both).splitlines()[2] == line
    none = {"n": 0, "missing": 0, "mean_mm": None, "sdr": {"2": None}}
    assert "no reference" in score_lines({"cases": 2, "landmarks": {"summary": {"all": none}}})
