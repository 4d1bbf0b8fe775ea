import math
from dataclasses import replace

import pytest
from toy_fingerprints import feature_bytes, voxel_seconds

from medseg.errors import PlanError
from medseg.planning import presets
from medseg.planning.fit import Fit, Shortage, fit_patch
from medseg.planning.presets import PRESETS
from medseg.planning.timing import fit_time
from medseg.types.plan import LossTerm, Step, Training

TRAINING = Training((LossTerm(1.0, "dice_ce"),), Step("sgd"), Step("poly"), (), epochs=1)
SCAN = Fit(3, PRESETS["unet"], (0.4, 0.4, 0.4), (400.0, 400.0, 300.0), 20, 1, 3, TRAINING, 8.0)
SMALL = replace(SCAN, spacing_mm=(1.0, 1.0, 1.0), median=(36.0, 50.0, 35.0), cases=200)
SLICE = replace(SCAN, ndim=2, median=(40.0, 500.0, 400.0))


def _steps(fit, hours, seconds_of=voxel_seconds):
    return fit_time(fit, hours=hours, seconds_of=seconds_of, estimate=feature_bytes)


def test_time_to_spare_gives_the_full_network_and_a_larger_batch():
    fitted = _steps(SMALL, 5.0)
    assert fitted.network.topology.channels[0] == 32
    assert 2 < fitted.sampling.batch < 7, "memory would allow 7"
    assert presets.LONG_STEPS <= fitted.steps <= 5 * 3600 / fitted.step_s
    assert _steps(SMALL, 24.0).sampling.batch == 7


def test_tight_time_gives_the_largest_network_with_enough_steps():
    fitted = _steps(SMALL, 0.12)
    base = fitted.network.topology.channels[0]
    assert base in presets.BASE_CHANNELS[:-1] and fitted.sampling.batch == 2
    assert fitted.steps >= presets.steps_worth(base)
    wider = presets.BASE_CHANNELS[presets.BASE_CHANNELS.index(base) + 1]
    network = SMALL.network(fitted.sampling.patch, wider)
    slower = voxel_seconds(network, fitted.sampling, TRAINING)
    assert 0.12 * 3600 * presets.TIME_SHARE / slower < presets.steps_worth(wider)
    assert f"{fitted.step_s:.3g} s each" in fitted.reasons["training.epochs"]


def test_too_little_time_for_any_network_shrinks_the_patch():
    fitted = _steps(SCAN, 0.25)
    assert fitted.network.topology.channels[0] == presets.BASE_CHANNELS[0]
    assert fitted.steps >= presets.steps_worth(8)
    assert math.prod(fitted.sampling.patch) < math.prod(fit_patch(SCAN, estimate=feature_bytes, base=8).sampling.patch)
    assert "quick enough" in fitted.reasons["sampling.patch"]


def test_the_patch_shrinks_for_more_steps_but_sees_a_quarter_of_the_scan():
    """The whole of MIDDLE fits memory, and 400 of its steps the time."""
    middle = replace(SCAN, spacing_mm=(1.0, 1.0, 1.0), median=(96.0, 96.0, 96.0))
    whole = fit_patch(middle, estimate=feature_bytes, base=8)
    assert math.prod(whole.sampling.patch) == 96**3
    step_s = voxel_seconds(whole.network, whole.sampling, TRAINING)
    for steps, least, most, why in (
        (400, 1000, 1600, "for 1000 steps"),  # of the whole scan, of the patch, and what the plan says of it
        (100, 250, 999, "the smallest that sees a quarter"),
        (40, 250, 400, "for 250 steps"),
    ):
        fitted = _steps(middle, steps * step_s / 3600 / presets.TIME_SHARE)
        seen = math.prod(fitted.sampling.patch) / 96**3
        assert least <= fitted.steps <= most and why in fitted.reasons["sampling.patch"]
        assert 0.25 <= seen < 0.5 if steps > 40 else seen < 0.25


def test_the_hours_error_names_hours_that_do():
    with pytest.raises(Shortage) as caught:
        _steps(SCAN, 0.001)
    assert caught.value.where == "hours"
    assert _steps(SCAN, caught.value.need).steps >= presets.steps_worth(8)


def test_no_more_steps_than_a_long_run():
    fitted = _steps(SMALL, 1000.0, lambda network, sampling, training: 1e-3 * sampling.batch)
    assert fitted.steps == presets.MAX_STEPS


def test_a_wider_network_that_memory_does_not_allow_is_not_taken():
    fitted = _steps(replace(SCAN, vram_gib=0.6), 500.0)
    assert 8 <= fitted.network.topology.channels[0] < 32
    with pytest.raises(Shortage):
        fit_patch(replace(SCAN, vram_gib=0.6), estimate=feature_bytes, base=32)


def test_memory_that_runs_out_while_a_step_is_timed_is_an_error_with_a_hint():
    def short(network, sampling, training):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    with pytest.raises(PlanError, match=r"patch .*, batch 2: out of memory while a training step was timed") as caught:
        _steps(SMALL, 5.0, short)
    assert "--vram" in caught.value.hint
