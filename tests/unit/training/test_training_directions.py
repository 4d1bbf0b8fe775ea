"""Slices of a 2D network taken across several axes of a scan."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from tiny_run import tiny_plan

from medseg.errors import PlanError, TrainingError
from medseg.io.cache import open_case, write_case
from medseg.training.batches import batches, draw_sample
from medseg.training.focus import build_sampler
from medseg.types.geometry import Geometry, slice_across
from medseg.types.image import Image, LabelMap
from medseg.types.labels import Label, Labels
from medseg.types.plan import Inference, Sampling, Step
from medseg.workflow.check_plan import check_plan

CPU = torch.device("cpu")
ORGAN = Labels((Label("organ", (1,)),))


def _plan(directions, batch=2):
    plan = replace(tiny_plan(ndim=2, labels=ORGAN, augment=()), sampling=Sampling((1, 4, 6), batch))
    return replace(plan, sampling=replace(plan.sampling, directions=directions))


def _case(folder, spacing=(1.0, 1.0, 1.0)):
    """A scan whose voxels say where they are: 10000 z + 100 y + x; the organ is one voxel."""
    z, y, x = np.indices((12, 14, 16))
    labels = np.zeros((12, 14, 16), np.uint8)
    labels[5, 6, 7] = 1
    grid = Geometry(labels.shape, spacing)
    image = Image((10_000 * z + 100 * y + x)[None].astype(np.float32), grid, ("MR",))
    write_case(folder, "a", image, LabelMap(labels, grid, ORGAN), patch=(1, 4, 6))
    return open_case(folder, "a")


def _axis(patch):
    """Across which axis a patch (c, h, w) was taken: the one that does not change in it."""
    places = [patch.image[0].long() // 10_000, patch.image[0].long() // 100 % 100, patch.image[0].long() % 100]
    (fixed,) = [axis for axis, place in enumerate(places) if len(place.unique()) == 1]
    first, second = (places[axis] for axis in range(3) if axis != fixed)
    assert (first.diff(dim=0) == 1).all() and (second.diff(dim=1) == 1).all()  # the other axes in their order
    return fixed


def test_slices_lie_across_every_axis_alike_and_the_same_ones_again(tmp_path):
    plan, case = _plan(("z", "y", "x")), _case(tmp_path)
    sampler = build_sampler(plan.sampling.focus, [case], ORGAN)
    drawn = [draw_sample(plan, sampler, step, 0)[0] for step in range(150)]
    assert all(patch.image.shape == (1, 4, 6) for patch in drawn)
    inside = [patch for patch in drawn if (patch.image > 0).all()]
    counts = np.bincount([_axis(patch) for patch in inside], minlength=3)
    assert (counts > 0.2 * len(inside)).all()
    again = draw_sample(plan, sampler, 7, 0)[0]
    assert torch.equal(again.image, drawn[7].image)
    only = [draw_sample(_plan(("y",)), sampler, step, 0)[0] for step in range(20)]
    assert {_axis(patch) for patch in only if (patch.image > 0).all()} == {1}


def test_a_forced_slice_shows_its_voxel_across_any_axis(tmp_path):
    plan, case = _plan(("z", "y", "x")), _case(tmp_path)
    for batch in islice(batches(plan, [case], device=CPU), 20):
        assert batch.image.shape == (2, 1, 4, 6) and (batch.target[1] == 1).sum() == 1
        assert batch.image[1][batch.target[1] == 1].item() == 50_607


def test_without_directions_nothing_changes(tmp_path):
    case = _case(tmp_path)
    sampler = build_sampler(Step("uniform_classes"), [case], ORGAN)
    for step in range(10):
        plain, flat = (draw_sample(_plan(some), sampler, step, 0)[0] for some in ((), ("z",)))
        assert plain.image.shape == flat.image.shape == (1, 4, 6)
        if (plain.image > 0).all():
            assert _axis(plain) == 0


def test_what_has_no_such_slices_is_refused(tmp_path):
    case = _case(tmp_path, (2.5, 1.0, 1.0))
    with pytest.raises(TrainingError, match=r"a: sampling\.directions: a spacing of .* anisotropic"):
        next(batches(_plan(("z", "x")), [case], device=CPU))
    thick = tiny_plan(ndim=3)
    with pytest.raises(PlanError, match="3D network"):
        check_plan(replace(thick, sampling=replace(thick.sampling, directions=("y",))))
    sided = replace(_plan(("z", "x")), inference=Inference(swap_axis=2, swap_labels=(("organ", "organ"),)))
    with pytest.raises(PlanError, match="left from right"):
        check_plan(sided)
    flipped = _plan(("z", "x"))
    flipped = replace(flipped, training=replace(flipped.training, augment=(Step("mirror", {"axes": [1]}),)))
    with pytest.raises(PlanError, match="flips more axes than it names"):
        check_plan(flipped)
    assert [slice_across((1, 4, 6), axis) for axis in range(3)] == [(1, 4, 6), (4, 1, 6), (4, 6, 1)]
