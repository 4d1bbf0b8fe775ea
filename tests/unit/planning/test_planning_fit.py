import math
from dataclasses import replace

import pytest
from toy_fingerprints import Bytes, feature_bytes

from medseg.errors import BudgetError
from medseg.planning import presets
from medseg.planning.fit import GIB, Fit, Shortage, first_patch, fit_memory, patches
from medseg.planning.presets import PRESETS
from medseg.types.plan import LossTerm, Sampling, Step, Training

TRAINING = Training((LossTerm(1.0, "dice_ce"),), Step("sgd"), Step("poly"), (), epochs=1)
SCAN = Fit(3, PRESETS["unet"], (0.4, 0.4, 0.4), (400.0, 400.0, 300.0), 20, 1, 3, TRAINING, 8.0)
SMALL = replace(SCAN, spacing_mm=(1.0, 1.0, 1.0), median=(36.0, 50.0, 35.0), cases=200)
SLICE = replace(SCAN, ndim=2, median=(40.0, 500.0, 400.0))


def _bytes(fit, sampling, base=32):
    network = fit.network(sampling.patch, base)
    return feature_bytes(
        network, channels=1, outputs=3, patch=sampling.patch, batch=sampling.batch, training=TRAINING
    ).total_bytes()


def test_the_first_patch_is_isotropic_in_mm_and_within_the_scan():
    assert first_patch(SCAN) == (256, 256, 256)
    assert first_patch(SMALL) == (40, 56, 40)
    assert first_patch(SLICE) == (1, 512, 448)
    thick = first_patch(replace(SCAN, spacing_mm=(2.0, 0.5, 0.5), median=(1000.0,) * 3))
    assert thick[1] == thick[2] == pytest.approx(4 * thick[0], rel=0.15)


def test_candidates_shrink_and_keep_their_proportions():
    candidates = patches(SCAN)
    sizes = [math.prod(patch) for patch in candidates]
    assert sizes == sorted(sizes, reverse=True) and len(set(candidates)) == len(candidates)
    assert min(candidates[-1]) >= 32
    middle = candidates[len(candidates) // 2]
    assert max(p / m for p, m in zip(middle, SCAN.median, strict=True)) < 2 * min(
        p / m for p, m in zip(middle, SCAN.median, strict=True)
    )


@pytest.mark.parametrize("vram", [2.0, 4.0, 8.0, 24.0])
def test_the_patch_is_the_largest_candidate_that_fits_with_batch_two(vram):
    fit = replace(SCAN, vram_gib=vram)
    fitted = fit_memory(fit, estimate=feature_bytes)
    limit = vram * presets.VRAM_SHARE * GIB
    linear = next(p for p in patches(fit) if _bytes(fit, Sampling(p, 2)) <= limit)
    assert fitted.sampling.patch == linear
    assert _bytes(fit, fitted.sampling) <= limit
    assert fitted.network.topology.divisor() == fit.network(linear, 32).topology.divisor()


def test_memory_that_is_left_goes_to_the_batch_up_to_five_percent_of_the_data():
    fitted = fit_memory(SMALL, estimate=feature_bytes)
    assert fitted.sampling == Sampling((40, 56, 40), 7)
    assert "limited by 5% of all voxels" in fitted.reasons["sampling.batch"]


@pytest.mark.parametrize("vram", [0.75, 1.0, 1.25, 1.5])
def test_up_to_eight_samples_the_batch_is_the_largest_that_fits(vram):
    many = replace(SMALL, cases=10**6, vram_gib=vram)
    fitted = fit_memory(many, estimate=feature_bytes)
    limit = vram * presets.VRAM_SHARE * GIB
    assert 2 <= fitted.sampling.batch < 8
    assert _bytes(many, fitted.sampling) <= limit
    assert _bytes(many, replace(fitted.sampling, batch=fitted.sampling.batch + 1)) > limit


def test_larger_batches_are_certain_to_fit_and_cost_no_estimates():
    asked = []

    def with_weights(network, **what):
        asked.append(what["batch"])
        activations = feature_bytes(network, **what).count
        return Bytes(max(10**8 + activations, 3 * 10**8 + activations // 2))

    many = replace(SMALL, cases=10**6, vram_gib=8.0)
    batch = fit_memory(many, estimate=with_weights).sampling.batch
    assert max(asked) == presets.PROBED_BATCH and len(asked) <= 4
    network = many.network((40, 56, 40), 32)
    need = with_weights(network, channels=1, outputs=3, patch=(40, 56, 40), batch=batch, training=TRAINING)
    assert 8 < batch <= presets.BATCH_AT_MOST
    assert need.total_bytes() <= 8 * presets.VRAM_SHARE * GIB


def test_a_batch_is_never_below_two():
    assert fit_memory(replace(SCAN, cases=1), estimate=feature_bytes).sampling.batch == 2


def test_reasons_hold_the_numbers():
    reasons = fit_memory(SCAN, estimate=feature_bytes).reasons
    assert "400 x 400 x 300" in reasons["sampling.patch"] and "8 GiB" in reasons["sampling.patch"]
    assert "stages down to" in reasons["network.topology"]
    small = fit_memory(SMALL, estimate=feature_bytes).reasons["sampling.patch"]
    assert small == "40 x 56 x 40 covers 100% of the median scan (36 x 50 x 35); no larger one is useful"


def test_a_budget_error_names_the_smallest_that_fits():
    with pytest.raises(BudgetError, match="smallest that would fit is") as caught:
        fit_memory(replace(SCAN, vram_gib=0.5), estimate=feature_bytes)
    need = caught.value.need
    fit_memory(replace(SCAN, vram_gib=need), estimate=feature_bytes)
    with pytest.raises(Shortage):
        fit_memory(replace(SCAN, vram_gib=need - 0.11), estimate=feature_bytes)


def test_the_estimator_is_asked_about_this_task():
    asked = []

    def record(network, **what):
        asked.append((network.use, what["channels"], what["outputs"], what["training"]))
        return Bytes(1)

    fit_memory(replace(SMALL, channels=4, outputs=9, preset=PRESETS["resenc"]), estimate=record)
    assert asked and all(one == ("resenc_unet", 4, 9, TRAINING) for one in asked)
