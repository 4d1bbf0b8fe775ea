"""Every bad or awkward input of tests/bad_inputs leads to the outcome its manifest states, through the command line."""

import json
import sys
import warnings
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bad_inputs"))
import judge
import make_bad_inputs

MEDSEG = [sys.executable, "-m", "medseg.cli"]
COMMANDS = {
    "image": [*MEDSEG, "convert", "{input}", "-o", "{out}/image.nii.gz"],
    "dataset": [*MEDSEG, "check", "{input}"],
    "model": [*MEDSEG, "model", "show", "{input}"],
}
NAMES = [name for name, case in make_bad_inputs.CASES.items() if case["kind"] in COMMANDS]


def test_no_case_is_left_out():
    kinds = [make_bad_inputs.CASES[name]["kind"] for name in NAMES]
    assert {kind: kinds.count(kind) for kind in COMMANDS} == {"image": 35, "dataset": 6, "model": 4}


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", NAMES)
def test_the_outcome_is_the_stated_one(name, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["make_bad_inputs.py", str(tmp_path), "--only", name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_bad_inputs.main()
    (case,) = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))["cases"]
    result = judge.run_command(case, tmp_path.resolve(), COMMANDS)
    passed, word, detail = judge.verdict(case, result)
    assert passed, f"{word}: {detail}\n{result.get('text', '')}"
