import pytest
import torch
from tiny_run import fill_cache, tiny_plan

from medseg.io.cache import open_case
from medseg.planning.memory import estimate_step, measure_step
from medseg.planning.training_step import Job, random_batch
from medseg.training.batches import batches, validation_batches
from medseg.types.plan import Step

CPU = torch.device("cpu")
MIXUP = Step("mixup", {"alpha": 1.0})


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return [open_case(folder, name) for name in fill_cache(folder, 3)]


def first(plan, cases, count, **options):
    stream = batches(plan, cases, device=CPU, **options)
    try:
        return [next(stream) for _ in range(count)]
    finally:
        stream.close()


@pytest.mark.parametrize("ndim", [2, 3])
def test_mixed_batches_are_a_function_of_seed_and_step(cases, ndim):
    plain, plan = tiny_plan(ndim=ndim, augment=()), tiny_plan(ndim=ndim, augment=(MIXUP,))
    alone, mixed = first(plain, cases, 4), first(plan, cases, 4)
    for one, both in zip(alone, mixed, strict=True):
        assert torch.equal(one.target, both.target)
        share = both.mixed.share.reshape(-1, *(1,) * (ndim + 1))
        assert torch.equal(both.mixed.target, one.target.flip(0))
        torch.testing.assert_close(both.image, share * one.image + (1 - share) * one.image.flip(0))
    again = [*first(plan, cases, 2, workers=2), *first(plan, cases, 2, start=2)]
    assert all(torch.equal(a.image, b.image) for a, b in zip(mixed, again, strict=True))
    assert all(torch.equal(a.mixed.share, b.mixed.share) for a, b in zip(mixed, again, strict=True))
    assert not torch.equal(mixed[0].mixed.share, mixed[1].mixed.share)


def test_validation_is_not_mixed(cases):
    plan = tiny_plan(augment=(MIXUP,))
    assert all(batch.mixed is None for batch in validation_batches(plan, cases, steps=2, device=CPU))


def test_the_planner_counts_the_second_truth():
    steps = []
    for augment in ((MIXUP,), ()):
        plan = tiny_plan(augment=augment)
        job = Job(plan.network, 1, plan.labels.outputs(), plan.sampling.patch, 2, plan.training)
        batch = random_batch(job, CPU)
        assert (batch.mixed is None) == (not augment)
        options = {"channels": 1, "outputs": 3, "patch": plan.sampling.patch, "batch": 2, "training": plan.training}
        estimate = estimate_step(plan.network, gpu=False, **options)
        assert estimate.live_bytes == pytest.approx(
            measure_step(plan.network, device=CPU, **options).live_bytes, rel=0.02
        )
        steps.append(estimate.live_bytes)
    assert steps[0] > steps[1]
