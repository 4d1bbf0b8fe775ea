"""The programs in pipelines/ run as a reader would run them."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dicom_phantoms import grid, write_dicom
from phantoms import write_nifti_dataset
from safetensors.torch import save_file
from test_phantom_job import shrink
from tiny_run import tiny_plan

from medseg.cli import main
from medseg.io.bundles import save_bundle
from medseg.networks.build import build_network

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"


def run(name, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, PIPELINES / name, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_dicom_inbox_becomes_a_table_and_a_bad_series_a_line_of_it(tmp_path):
    plan = tiny_plan(channels=("CT",))
    weights = build_network(plan.network, channels=1, outputs=3).state_dict()
    save_file({name: weight.contiguous() for name, weight in weights.items()}, tmp_path / "weights.safetensors")
    save_bundle(tmp_path / "model", plan, {0: tmp_path / "weights.safetensors"}, {})
    pixels = np.random.default_rng(0).integers(-100, 900, (18, 20, 20))
    write_dicom(tmp_path / "in/one/series", pixels, grid(pixels.shape, spacing_mm=(1.0, 1.0, 1.0)))
    write_dicom(tmp_path / "in/two", pixels, grid(pixels.shape, spacing_mm=(1.0, 1.0, 1.0)))
    (tmp_path / "in/two/007.dcm").unlink()
    words = (tmp_path / "model", tmp_path / "in", tmp_path / "out", "--device", "cpu", "--no-tta")
    done = run("batch_dicom.py", *words)
    assert done.returncode == 1 and "1 series segmented, 1 failed" in done.stdout, done.stderr
    rows = list(csv.DictReader((tmp_path / "out/volumes.csv").read_text("utf-8").splitlines()))
    assert sorted(row["status"] for row in rows) == ["failed", "ok"]
    good, bad = sorted(rows, key=lambda row: row["status"] != "ok")
    volumes = [float(good[f"{name}_ml"]) for name in plan.labels.names()]
    assert 0 < sum(volumes) <= pixels.size / 1000 + 1e-6 and bad["remarks"]
    assert "Phantom" not in (tmp_path / "out/volumes.csv").read_text("utf-8")
    assert run("batch_dicom.py", *words).stdout.startswith("1 series segmented"), "what is done is kept"


@pytest.mark.slow
def test_all_plans_are_cross_validated_and_the_best_is_named(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    write_nifti_dataset(data, 5)
    assert main(["plan", str(data), "--vram", "2", "--device", "cpu", "-o", str(out)]) == 0
    plans = [shrink(path, channels=4, epochs=1, steps=4) for path in sorted(out.glob("plan-*.json"))]
    done = run("cross_validate.py", data, out, "--vram", 2, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"(\S+): mean Dice (\S+) out of fold", done.stdout))
    assert set(found) == {plan["name"] for plan in plans}
    best = max(found, key=lambda name: float(found[name]))
    run_folder = out / best.rpartition("-")[2]
    assert f"best: {best}," in done.stdout and (run_folder / "bundle" / "members" / "fold_4.safetensors").is_file()
    other = run("cross_validate.py", data, out, "--vram", 3, "--device", "cpu")
    assert other.returncode != 0 and "plans for other options" in other.stderr
