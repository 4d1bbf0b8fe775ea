"""Nothing a library says of a file reaches stderr, from a command or from its worker processes."""

import logging
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from dicom_phantoms import grid, write_dicom
from threshold_lab import make_bundle

from medseg.io.processes import Limits, run_apart
from medseg.io.quiet import quiet_libraries

PIXELS = np.zeros((3, 32, 32), np.int16)
HERE = Path(__file__).parent.parent.parent


def speaks():
    return say


def say(item):
    warnings.warn(f"Invalid value for VR UI: {item}", stacklevel=1)
    logging.getLogger("highdicom.image").warning("Unknown encoding %s", item)
    return item


def test_worker_processes_say_nothing(capfd):
    assert dict(run_apart(speaks, (), ["Geheim"], Limits())) == {0: "Geheim"}
    assert capfd.readouterr() == ("", "")


def test_afterwards_all_is_as_before(caplog):
    before = list(warnings.filters), list(logging.getLogger().handlers), logging.getLogger("nibabel.global").disabled
    with pytest.raises(KeyError), quiet_libraries():
        raise KeyError
    after = list(warnings.filters), list(logging.getLogger().handlers), logging.getLogger("nibabel.global").disabled
    assert before == after
    with pytest.warns(UserWarning, match="Geheim"):
        say("Geheim")


@pytest.mark.parametrize("workers", ["0", "1"])
def test_predict_quotes_no_tag(tmp_path, workers):
    bundle = make_bundle(tmp_path / "model")
    frame, study = "Geheim-frame", "Geheim-study"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_dicom(
            tmp_path / "in", PIXELS, grid(PIXELS.shape, frame=frame), study=study, series="Geheim-series",
            SpecificCharacterSet="GEHEIM_SET",
        )  # fmt: skip
    command = [sys.executable, "-m", "medseg.cli", "predict", bundle, tmp_path / "in", "-o", tmp_path / "out"]
    command += ["--format", "nii.gz", "rtstruct", "dicom-seg", "--device", "cpu", "--trust", "threshold_lab"]
    path = {"PYTHONPATH": str(HERE), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--workers", workers], env=path, capture_output=True, text=True, check=False)
    assert "Warning" not in done.stderr and "pydicom" not in done.stderr, done.stderr
    assert "eheim" not in done.stderr and "EHEIM" not in done.stderr, done.stderr
