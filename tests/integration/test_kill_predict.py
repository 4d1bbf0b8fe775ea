"""A batch that is killed at any moment and started again ends as one that was not, and does no case twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import threshold_lab
from threshold_lab import GRID, make_bundle, scan

from medseg.io.nifti import write_nifti

SCRIPT = Path(threshold_lab.__file__)


def start(bundle, folder, out, *, pause_s):
    command = [sys.executable, SCRIPT, "predict", bundle, folder, "-o", out, "--device", "cpu", "--resume"]
    command += ["--trust", "threshold_lab", "--workers", "1"]
    return subprocess.Popen(
        command, env=os.environ | {"PAUSE_S": str(pause_s)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def lines(out):
    path = out / "report.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[1:-1]] if path.is_file() else []


def finished(process):
    text, _ = process.communicate(timeout=300)
    return process.returncode, text.decode()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_resumed_equals_unbroken(tmp_path, how):
    bundle, folder, out = make_bundle(tmp_path / "model"), tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for seed in range(12):
        write_nifti(scan(seed)[0], GRID, folder / f"s{seed:02d}.nii.gz")
    process = start(bundle, folder, out, pause_s=0.3)
    while len(lines(out)) < 4:
        assert process.poll() is None, finished(process)[1]
        time.sleep(0.05)
    process.send_signal(how)
    code, text = finished(process)
    assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143}[how] and "Traceback" not in text
    done = lines(out) if how == signal.SIGKILL else json.loads((out / "report.json").read_text())["cases"]
    times = {line["case_id"]: (out / line["outputs"][0]).stat().st_mtime_ns for line in done}
    assert 4 <= len(done) < 12

    code, text = finished(start(bundle, folder, out, pause_s=0))
    assert code == 0, text
    assert f"{len(done)} skipped" in text and f"{12 - len(done)} ok" in text
    assert {name: (out / f"{name}.nii.gz").stat().st_mtime_ns for name in times} == times
    whole = tmp_path / "whole"
    assert finished(start(bundle, folder, whole, pause_s=0))[0] == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
    for path in whole.glob("*.nii.gz"):
        assert path.read_bytes() == (out / path.name).read_bytes()
