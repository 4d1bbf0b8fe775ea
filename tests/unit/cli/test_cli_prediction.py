"""Options of `medseg evaluate` that have no effect are said."""

import numpy as np
import pytest

from medseg.cli.app import main
from medseg.io.images import write_labels
from medseg.io.landmarks import write_landmarks
from medseg.types.geometry import Geometry
from medseg.types.image import LabelMap
from medseg.types.labels import Label, Labels
from medseg.types.landmarks import Landmarks

LABELS = Labels((Label("1", (1,)),))


@pytest.fixture
def folders(tmp_path):
    """The same point and the same mask as predictions and references, in folders of their own."""
    mask = np.zeros((2, 4, 4), np.uint8)
    mask[0, 1:3] = 1
    for name in ("points", "points ref", "masks", "masks ref"):
        (tmp_path / name).mkdir()
    for name in ("points", "points ref"):
        write_landmarks(Landmarks(("nasion",), np.zeros((1, 3))), tmp_path / name / "a.csv")
    for name in ("masks", "masks ref"):
        write_labels(LabelMap(mask, Geometry(mask.shape, (1.0, 1.0, 1.0)), LABELS), tmp_path / name / "a.nii.gz")
    return tmp_path


def evaluate(folders, kind, *words):
    return main(["evaluate", str(folders / kind), str(folders / f"{kind} ref"), *map(str, words)])


def test_options_for_label_maps_are_said_where_only_landmarks_are_scored(folders, capsys):
    words = ("--labels", folders / "none.json", "--tolerance", 2, "--ultrasound", folders / "masks")
    assert evaluate(folders, "points", *words) == 0
    captured = capsys.readouterr()
    expected = "warning: --labels --tolerance --ultrasound without effect: there are no label maps to score\n"
    assert expected in captured.err and "nasion" in captured.out
    assert evaluate(folders, "points", "--second-reader", folders / "points") == 0
    assert "without effect" not in capsys.readouterr().err


def test_a_second_reader_is_said_where_only_label_maps_are_scored(folders, capsys):
    assert evaluate(folders, "masks", "--second-reader", folders / "points") == 0
    expected = "warning: --second-reader without effect: there are no landmarks to score\n"
    assert expected in capsys.readouterr().err
    assert evaluate(folders, "masks", "--tolerance", 2) == 0
    assert "without effect" not in capsys.readouterr().err
