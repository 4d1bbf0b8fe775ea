"""The eight fault recipes of tests/bad_inputs on the command line: kills, full disks, locked folders, runaway numbers.

pytest -m acceptance tests/acceptance/test_faults.py
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from phantoms import write_nifti_dataset, write_scan
from safetensors.numpy import load_file
from tiny_run import tiny_plan

from medseg.io.records import write_record
from medseg.types.plan import Step

pytestmark = pytest.mark.acceptance
FAULTS = Path(__file__).parents[1] / "bad_inputs" / "faults.py"
MEDSEG = [sys.executable, "-m", "medseg.cli"]
LOADS = f"{sys.executable} -c \"import sys; from safetensors import safe_open; safe_open(sys.argv[1], 'numpy').keys()\""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_nifti_dataset(folder / "set", 5)
    network = tiny_plan().network
    wide = replace(network, topology=replace(network.topology, channels=(48, 192)))
    write_record(tiny_plan(channels=("MRI",), epochs=4, steps_per_epoch=5), folder / "plan.json")
    write_record(tiny_plan(channels=("MRI",), epochs=60, steps_per_epoch=10), folder / "long.json")
    write_record(replace(tiny_plan(channels=("MRI",), epochs=1), network=wide), folder / "wide.json")
    steep = tiny_plan(
        channels=("MRI",), optimizer=Step("sgd", {"lr": 1e6, "momentum": 0.9}), epochs=2, clip_grad_norm=None
    )
    write_record(steep, folder / "steep.json")
    return folder


@pytest.fixture(scope="module")
def bundle(data):
    subprocess.run([*train(data, "plan"), "-o", data / "run"], check=True, capture_output=True)
    return data / "run" / "bundle"


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    for seed in range(20):
        write_scan(
            np.random.default_rng(seed).normal(size=(20, 24, 20)).astype(np.float32), folder / f"s{seed:02d}.nii"
        )
    return folder


def train(data, plan):
    return [*MEDSEG, "train", data / f"{plan}.json", data / "set", "--fold", "0", "--device", "cpu"]


def hurt(what, command, *more):
    """Run faults.py; its summary, and the lines of its trials."""
    words = [sys.executable, FAULTS, what, "--cmd", " ".join(map(str, [*command, "-o", "{out}"])), *more]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")][:-1]


@pytest.mark.parametrize("what", ["kill9", "sigterm"])
def test_a_training_that_is_killed_ends_as_an_unbroken_one(data, what):
    trials = hurt(what, train(data, "plan"), "--same", "bundle/members/fold_0.safetensors", "--repeats", "3")
    assert all(trial["same"] and not trial["traceback"] for trial in trials)
    assert any(trial["kills"] for trial in trials)


def test_a_full_disk_stops_training_with_one_line_and_whole_files(data):
    (trial,) = hurt("fsize", train(data, "wide"), "--mb", "1", "--glob", "*.safetensors", "--loads", LOADS + " {file}")
    assert trial["last"].startswith("error: ") and not trial["traceback"]


def test_two_trainings_in_one_folder_do_not_mix(data):
    (trial,) = hurt("twice", train(data, "long"), "--same", "bundle/members/fold_0.safetensors", "--warm", "4")
    assert trial["second"] != 0 and trial["code"] == 0 and trial["same"]


def test_a_batch_that_is_killed_ends_as_an_unbroken_one(bundle, scans):
    command = [*MEDSEG, "predict", bundle, scans, "--resume", "--device", "cpu"]
    for trial in hurt(
        "kill9", command, "--same", "s19.nii.gz", "--repeats", "3", "--loads", f"{sys.executable} -c pass"
    ):
        assert trial["same"]


def run(command, **limits):
    start = time.monotonic()
    done = subprocess.run([str(word) for word in command], check=False, capture_output=True, text=True, **limits)
    return done, time.monotonic() - start


def full_disk():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 10, 16 << 10))


def test_a_full_disk_fails_the_case_and_leaves_no_part_of_it(bundle, tmp_path):
    write_scan(np.random.default_rng(0).normal(size=(40, 80, 80)).astype(np.float32), tmp_path / "in" / "large.nii")
    write_scan(np.random.default_rng(0).normal(size=(20, 24, 20)).astype(np.float32), tmp_path / "in" / "small.nii")
    out = tmp_path / "out"
    command = [*MEDSEG, "predict", bundle, tmp_path / "in", "-o", out, "--device", "cpu", "--no-tta"]
    done, _ = run(command, preexec_fn=full_disk)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    cases = {case["case_id"]: case for case in json.loads((out / "report.json").read_text())["cases"]}
    assert {name: case["status"] for name, case in cases.items()} == {"large": "failed", "small": "ok"}
    assert not list(out.rglob("*large*")) and not list(out.rglob(".part-*"))
    assert nib.load(out / "small.nii.gz").shape == (20, 24, 20)


def test_a_folder_that_cannot_be_written_is_noticed_before_the_model_is_loaded(bundle, scans, tmp_path):
    out = tmp_path / "out"
    out.mkdir(mode=0o555)
    if os.getuid() == 0:
        subprocess.run(["chattr", "+i", out], check=False, capture_output=True)
    try:
        probe = subprocess.run(["touch", out / "x"], check=False, capture_output=True)
        if probe.returncode == 0:
            pytest.skip("this user may write everywhere")
        done, seconds = run([*MEDSEG, "predict", bundle, scans, "-o", out, "--device", "cpu"])
    finally:
        subprocess.run(["chattr", "-i", out], check=False, capture_output=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert seconds < 10


def test_a_loss_that_runs_away_stops_and_saves_no_nan(data, tmp_path):
    done, _ = run([*train(data, "steep"), "-o", tmp_path / "run"])
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "finite" in done.stderr.splitlines()[-1]
    for path in tmp_path.rglob("*.safetensors"):
        assert all(np.isfinite(tensor).all() for tensor in load_file(path).values()), path
