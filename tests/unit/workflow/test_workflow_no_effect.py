"""Options that change nothing are said in the line of each scan."""

from pathlib import Path

import pytest
from threshold_lab import GRID, make_bundle, scan

from medseg.io.nifti import write_nifti
from medseg.types.dataset import Case
from medseg.workflow.no_effect import without_effect
from medseg.workflow.predict import PredictOptions, predict_folder
from medseg.workflow.predict_case import Job

CASE = Case("a", (Path("in/a.dcm"),))


def job(*formats, **changes):
    return Job(CASE, Path("out"), formats, None, Path("in"), **changes)


def names(notes):
    """The options that have no effect."""
    return [note.partition(" has no effect")[0] for note in notes if " has no effect" in note]


@pytest.mark.parametrize(
    ("made", "options", "expected"),
    [
        (job("nii.gz"), {}, []),
        (job("nii.gz"), {"overlap": 0.25}, []),
        (job(landmarks=("nasion",)), {"overlap": 0.25}, ["--overlap"]),
        (job("nii.gz", landmarks=("nasion",)), {"overlap": 0.25}, ["--overlap"]),
        (job("nii.gz"), {"temporal_median": 3}, ["--temporal-median"]),
        (job("gif", cine=Path("in/a.dcm")), {"temporal_median": 3}, []),
        (job("nii.gz"), {"seg_kind": "labelmap"}, ["--seg-kind"]),
        (job(landmarks=("nasion",)), {"seg_kind": "labelmap"}, ["--seg-kind"]),
        (job("nii.gz", "dicom-seg"), {"seg_kind": "labelmap"}, []),
    ],
)
def test_options_for_other_models_scans_or_formats_are_said(made, options, expected):
    assert names(without_effect(made, PredictOptions(**options))) == expected


def test_the_line_of_a_scan_says_what_had_no_effect(tmp_path):
    bundle = make_bundle(tmp_path / "model")
    write_nifti(scan()[0], GRID, tmp_path / "ct.nii.gz")
    options = PredictOptions(device="cpu", trust=("threshold_lab",), temporal_median=3, seg_kind="labelmap")
    (line,) = predict_folder(bundle, [tmp_path / "ct.nii.gz"], tmp_path / "out", options=options).cases
    assert line.status == "ok" and names(line.warnings) == ["--temporal-median", "--seg-kind"]
