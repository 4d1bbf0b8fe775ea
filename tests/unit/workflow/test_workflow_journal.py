from dataclasses import replace

import pytest

from medseg.types.result import CaseReport, RunReport
from medseg.workflow import journal

BLANK = RunReport("medseg.report/1", "0", "abc", "cpu", (), {"clean": "True"})
LINES = tuple(CaseReport(name, "ok", 1.0, (f"{name}.nii.gz",), {"tooth \u2028 Zahn": 1.5}) for name in "abc")


def test_lines_are_found_again_before_and_after_the_end(tmp_path):
    journal.begin(tmp_path, BLANK, LINES[:1])
    for line in LINES[1:]:
        journal.append(tmp_path, line)
    whole = replace(BLANK, cases=LINES)
    assert journal.earlier(tmp_path) == whole
    journal.finish(tmp_path, whole)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert journal.earlier(tmp_path) == whole


def test_appending_does_not_touch_what_is_there(tmp_path):
    journal.begin(tmp_path, BLANK, ())
    before = (tmp_path / "report.jsonl").stat()
    journal.append(tmp_path, LINES[0])
    after = (tmp_path / "report.jsonl").stat()
    assert after.st_ino == before.st_ino and after.st_size > before.st_size


@pytest.mark.parametrize("kept", range(0, 60, 7))
def test_a_line_that_was_cut_off_counts_for_nothing(tmp_path, kept):
    journal.begin(tmp_path, BLANK, LINES[:2])
    path = tmp_path / "report.jsonl"
    whole = path.read_bytes()
    journal.append(tmp_path, LINES[2])
    path.write_bytes(path.read_bytes()[: len(whole) + kept])
    assert journal.earlier(tmp_path) == replace(BLANK, cases=LINES[:2])


def test_the_last_line_of_a_case_counts(tmp_path):
    journal.begin(tmp_path, BLANK, LINES)
    failed = replace(LINES[0], status="failed", outputs=())
    journal.append(tmp_path, failed)
    assert journal.earlier(tmp_path).cases == (failed, *LINES[1:])


@pytest.mark.parametrize("text", ["", "no json\n", "{}\n", '{"schema":"medseg.report/1"'])
def test_what_cannot_be_read_vouches_for_nothing(tmp_path, text):
    assert journal.earlier(tmp_path) is None
    (tmp_path / "report.jsonl").write_text(text)
    assert journal.earlier(tmp_path) is None
