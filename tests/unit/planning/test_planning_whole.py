import math
from dataclasses import replace

import pytest
from toy_fingerprints import alike, feature_bytes, toy, voxel_seconds

from medseg.errors import BudgetError
from medseg.planning import presets
from medseg.planning.design import Wishes
from medseg.planning.fit import GIB
from medseg.planning.planner import make_plans
from medseg.types.labels import Labels
from medseg.types.plan import Budget

EIGHT = Budget(8.0)
NAMES = ("menton", "condyle_l", "condyle_r")
HEADS = replace(toy([(300, 300, 240), (280, 320, 200)], [(0.4, 0.4, 0.4)] * 2), landmarks=NAMES)
CEPHALOGRAMS = replace(alike((1, 800, 645), (1.0, 0.3, 0.3), 150, ndim=2), landmarks=NAMES, labels=Labels(()))


def plan(fingerprint, budget=EIGHT, preset="unet", heads=(), **more):
    quick = {"estimate": feature_bytes, "prediction_bytes": lambda plan, scan: 1}
    (made,) = make_plans(fingerprint, budget, preset, wishes=Wishes({}, heads), **{**quick, **more})
    return made


def test_the_patch_covers_the_largest_scan_on_a_grid_that_fits():
    made = plan(HEADS)
    spacing = made.preprocess.spacing_mm
    assert spacing[0] == spacing[1] == spacing[2] > 0.4
    largest = [round(n * 0.4 / s) for n, s in zip((300, 320, 240), spacing, strict=True)]
    sizes = zip(made.sampling.patch, largest, made.network.topology.divisor(), strict=True)
    assert all(0 <= p - n < d for p, n, d in sizes)
    job = {"channels": 1, "outputs": 3, "patch": made.sampling.patch, "batch": 2, "training": made.training}
    used = feature_bytes(made.network, **job).total_bytes()
    assert 0.7 * 8 * presets.VRAM_SHARE * GIB < used <= 8 * presets.VRAM_SHARE * GIB
    assert made.landmarks == NAMES and made.name.endswith("3d_lowres")
    assert "coarsened from 0.4 x 0.4 x 0.4" in made.reasons["preprocess.spacing_mm"]
    assert "covers every scan" in made.reasons["sampling.patch"]


def test_more_memory_gives_finer_voxels_up_to_the_scans_own():
    spacings = [plan(HEADS, Budget(gib)).preprocess.spacing_mm[0] for gib in (2.0, 8.0, 24.0, 400.0)]
    assert spacings == sorted(spacings, reverse=True) and len(set(spacings)) == 4
    whole = plan(HEADS, Budget(400.0))
    assert whole.preprocess.spacing_mm == (0.4, 0.4, 0.4) and whole.name.endswith("3d_fullres")


def test_thick_slices_stay_until_the_others_are_as_thick():
    thick = replace(alike((80, 512, 512), (3.0, 0.5, 0.5), 5), landmarks=NAMES)
    z, y, x = plan(thick).preprocess.spacing_mm
    assert z == 3.0 and y == x and 0.5 < y < 3.0


def test_pictures():
    made = plan(CEPHALOGRAMS)
    assert made.preprocess.spacing_mm == (None, 0.3, 0.3) and made.name.endswith("2d")
    assert made.sampling.patch[1] >= 800 and made.sampling.patch[2] >= 645
    assert made.sampling.foreground_fraction == 0.0
    assert [term.use for term in made.training.losses] == ["dsnt"]
    assert made.training.losses[0].options == {"sigma_mm": 0.3}
    assert plan(CEPHALOGRAMS, heads=("heatmap",)).training.losses[0].options == {"sigma_mm": 0.9}
    coarse = plan(CEPHALOGRAMS, Budget(1.0))
    assert coarse.preprocess.spacing_mm[1] == coarse.preprocess.spacing_mm[2] > 0.3


def test_pictures_in_pixels_keep_them_where_they_fit():
    pixels = replace(CEPHALOGRAMS, unit="px", cases=alike((1, 300, 200), (1.0,) * 3, 9, ndim=2).cases)
    assert plan(pixels).preprocess.spacing_mm == (None, None, None)
    coarse = plan(replace(pixels, cases=alike((1, 3000, 2000), (1.0,) * 3, 9, ndim=2).cases))
    assert coarse.preprocess.spacing_mm[1] > 1 and "px, coarsened from 1 x 1" in coarse.reasons["preprocess.spacing_mm"]


def test_whole_scans_are_changed_moderately():
    steps = {step.use: step.options for step in plan(HEADS).training.augment}
    assert steps["affine"]["degrees"] == 15.0 and steps["affine"]["scale_low"] == 0.85
    assert "mirror" not in steps or steps["mirror"]["swap_axis"] == 2


def test_labels_beside_landmarks_have_dice_per_scan():
    made = plan(HEADS)
    assert [step.use for step in made.network.heads] == ["segmentation", "dsnt"]
    assert made.training.losses[0].options == {"batch_dice": False}
    assert "the patch is the whole scan" in made.reasons["training.losses"]


def test_a_short_time_makes_voxels_coarser():
    quick = plan(HEADS, Budget(8.0, hours=0.2), seconds_of=voxel_seconds)
    slow = plan(HEADS, Budget(8.0, hours=50.0), seconds_of=voxel_seconds)
    assert quick.preprocess.spacing_mm[0] > slow.preprocess.spacing_mm[0]
    steps = quick.training.epochs * quick.training.steps_per_epoch
    assert steps * quick.origin.budget.step_s <= 0.2 * 3600 and steps >= 200


def test_a_short_time_makes_voxels_coarser_before_the_network_gets_narrow():
    minutes = {m: plan(CEPHALOGRAMS, Budget(8.0, hours=m / 60), seconds_of=voxel_seconds) for m in (2, 4, 60)}
    for made in minutes.values():
        assert made.network.topology.channels[0] >= presets.USEFUL_CHANNELS
    spacing = {m: made.preprocess.spacing_mm[1] for m, made in minutes.items()}
    assert spacing[2] > spacing[4] > spacing[60] == 0.3


def test_where_every_grid_affords_only_a_narrow_network_one_of_them_is_taken():
    small = replace(alike((1, 20, 20), (1.0, 0.3, 0.3), 20, ndim=2), landmarks=NAMES, labels=Labels(()))
    made = plan(small, Budget(8.0, hours=0.01), seconds_of=lambda *_: 0.05)
    assert made.network.topology.channels[0] < presets.USEFUL_CHANNELS


def test_no_memory_at_all():
    with pytest.raises(BudgetError, match="smallest that would fit"):
        plan(HEADS, Budget(0.3))
    assert math.isfinite(plan(HEADS, Budget(0.8)).sampling.batch)
