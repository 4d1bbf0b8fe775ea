import pytest

from medseg.planning import presets
from medseg.planning.presets import PRESETS
from medseg.types.plan import Step


def test_channels_double_up_to_a_cap_that_follows_the_base():
    unet = PRESETS["unet"]
    assert unet.stage_channels(7, ndim=2, base=32) == (32, 64, 128, 256, 512, 512, 512)
    assert unet.stage_channels(6, ndim=3, base=16) == (16, 32, 64, 128, 160, 160)


def test_long_runs_use_sgd_and_short_ones_adamw_with_averaged_weights():
    optimizer, schedule, ema = presets.optimiser(250_000).value
    assert (optimizer.use, schedule.use, ema) == ("sgd", "poly", None)
    assert optimizer.options == {"lr": 0.01, "momentum": 0.99, "weight_decay": 3e-5}
    optimizer, schedule, ema = presets.optimiser(2_000).value
    assert (optimizer.use, schedule.use) == ("adamw", "cosine_restarts")
    assert ema is not None and 0.99 <= ema <= 0.999


@pytest.mark.parametrize("steps", [1, 19, 40, 150, 999, 1_500, 4_999, 20_000, 250_000])
def test_epochs_use_the_steps_and_a_run_has_at_least_twenty(steps):
    count, size = presets.epochs(steps)
    assert steps - size < count * size <= steps
    assert count >= 20 or size == 1


def mirror(*axes):
    return Step("mirror", {"axes": list(axes)})


def _uses(decision):
    return [step.use for step in decision.value]


def test_3d_augmentation_has_the_published_order_and_ranges():
    decision = presets.augmentation((64, 64, 64), mirror(0, 2))
    published = ["affine", "noise", "blur", "brightness", "contrast", "low_resolution", "gamma", "gamma", "mirror"]
    assert _uses(decision) == published
    assert decision.value[0].options == {"p": 0.2, "degrees": 30.0, "scale_low": 0.7, "scale_high": 1.4}
    assert decision.value[-1].options == {"axes": [0, 2]}
    assert "mirrored along z, x" in decision.reason


def test_nothing_is_mirrored_where_no_axis_may_be():
    decision = presets.augmentation((64, 64, 64), None)
    assert "mirror" not in _uses(decision) and "never mirrored" in decision.reason


def test_flat_volumes_turn_in_the_plane_only():
    options = {step.use: step.options for step in presets.augmentation((16, 64, 64), None).value}
    assert options["affine"]["in_plane"] is True and options["affine"]["degrees"] == 180.0
    assert options["low_resolution"] == {"in_plane": True}


@pytest.mark.parametrize(("patch", "degrees"), [((1, 64, 64), 180.0), ((1, 64, 128), 15.0)])
def test_long_2d_patches_turn_little(patch, degrees):
    assert presets.augmentation(patch, None).value[0].options["degrees"] == degrees


def test_ultrasound_gets_speckle_and_stays_upright():
    decision = presets.augmentation((1, 64, 64), mirror(2), modality="us", pictures=True)
    assert decision.value[0].options["degrees"] == 15.0
    depth = {"time_gain", "attenuation", "shadow"}
    assert depth | {"speckle"} <= set(_uses(decision))
    for patch in ((32, 64, 64), (1, 64, 64)):  # whole volumes, and slices of them
        volume = set(_uses(presets.augmentation(patch, None, modality="us")))
        assert "speckle" in volume and not depth & volume


def test_cone_beam_scans_get_what_their_machines_do_and_others_do_not():
    own = {"metal_streak", "cupping", "ring", "offset", "truncation"}
    decision = presets.augmentation((64, 64, 64), None, modality="cbct")
    assert own <= set(_uses(decision)) and "metal streaks" in decision.reason
    assert not own & set(_uses(presets.augmentation((64, 64, 64), None, modality="ct")))
