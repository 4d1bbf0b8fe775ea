"""Values that only predictions hold, because a region writes a value that is no class, are read wherever they are."""

import numpy as np
import pytest

from medseg.errors import ImageError
from medseg.io.images import write_labels
from medseg.io.outputs import check_whole
from medseg.postprocess.chain import clean
from medseg.types.geometry import Geometry
from medseg.types.image import LabelMap
from medseg.types.labels import Label, Labels
from medseg.types.plan import Step
from medseg.workflow.evaluate import evaluate
from medseg.workflow.model import volumes_ml

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


@pytest.mark.parametrize(
    ("step", "left"),
    [
        (Step("drop_small", {"min_fraction": 0.3333}), 15.0),
        (Step("keep_largest"), 15.0),
        (Step("fill_holes"), 17.0),
        (Step("drop_small", {"min_fraction": 0.3333, "names": ["cortex"]}), 15.0),
    ],
)
def test_regions_of_values_larger_than_what_is_written_are_measured_and_cleaned(step, left):
    """As in parcellations of the brain: 1001 and 2001 do not fit a map of one byte, 1 does."""
    labels = Labels((Label("cortex", (1001, 2001), write=1), Label("white", (2, 41), write=2)))
    array = np.zeros((1, 8, 8), np.uint8)
    array[0, 1:5, 1:5], array[0, 2, 2], array[0, 7, 7], array[0, 6, 1:3] = 1, 0, 1, 2
    found = LabelMap(array, Geometry((1, 8, 8), (10.0, 10.0, 10.0)), labels)
    assert volumes_ml(found) == {"cortex": 16.0, "white": 2.0}
    assert volumes_ml(clean(found, (step,))) == {"cortex": left, "white": 2.0}
