"""The examples run as a reader would run them, on the data that ship with them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name, *arguments, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_train_then_predict(tmp_path):
    trained = run("train_small.py", folder=tmp_path)
    assert "mean Dice of fold 0: 0." in trained and (tmp_path / "example-output" / "small" / "bundle").is_dir()
    file, array = run("predict_array.py", folder=tmp_path).splitlines()
    assert file.removeprefix("file:  ") == array.removeprefix("array: "), "the same scan, from disk and from memory"
    assert "anterior" in file and " ml" in file


@pytest.mark.slow
def test_own_loss_and_network(tmp_path):
    printed = run("own_loss_and_network.py", str(tmp_path / "own run"), folder=tmp_path)
    assert "own_loss_and_network" in printed and "posterior" in printed


@pytest.mark.slow
def test_plan_two_budgets(tmp_path):
    printed = run("plan_two_budgets.py", folder=tmp_path)
    assert printed.count("---") == 2 and "3d_fullres" in printed and "2d" in printed


def test_score_masks(tmp_path):
    printed = run("score_masks.py", folder=tmp_path)
    assert "Dice 0.800" in printed and "HD95 2.00 mm" in printed and "nan (both_empty)" in printed
