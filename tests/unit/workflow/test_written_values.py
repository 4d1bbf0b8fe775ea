"""Values that only predictions hold, because a region writes a value that is no class, are read wherever they are."""

import numpy as np
import pytest

from medseg.errors import ImageError
from medseg.io.images import write_labels
from medseg.io.outputs import check_whole
from medseg.types.geometry import Geometry
from medseg.types.image import LabelMap
from medseg.types.labels import Label, Labels
from medseg.workflow.evaluate import evaluate

LABELS = Labels((Label("both", (1, 2), write=3), Label("left", (1,)), Label("right", (2,))))
GRID = Geometry((4, 8, 8), (2.0, 1.0, 1.0))


def write(path, value):
    array = np.zeros(GRID.shape, np.uint8)
    array[1:3, 1:5, 1:5] = value
    write_labels(LabelMap(array, GRID, LABELS), path)


def test_a_resumed_run_keeps_what_it_wrote(tmp_path):
    write(tmp_path / "a.nii.gz", 3)
    check_whole(tmp_path / "a.nii.gz", "nii.gz", LABELS)
    write(tmp_path / "a.nii.gz", 4)
    with pytest.raises(ImageError, match="holds values 4 that are no class"):
        check_whole(tmp_path / "a.nii.gz", "nii.gz", LABELS)


def test_predictions_may_hold_what_references_may_not(tmp_path):
    write(tmp_path / "found" / "a.nii.gz", 3)
    write(tmp_path / "true" / "a.nii.gz", 1)
    (score,) = evaluate(tmp_path / "found", tmp_path / "true", labels=LABELS)
    assert score.status == "ok" and score.labels["both"].dice == 1.0 and score.labels["left"].dice == 0.0
    (score,) = evaluate(tmp_path / "true", tmp_path / "found", labels=LABELS)
    assert score.status == "failed" and "holds values 3 that are no class" in score.error
