"""The predicted memory of a step against the allocator's own account, and the allocator's model against its rules."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from medseg.losses.build import build_loss
from medseg.networks.build import build_network
from medseg.planning.allocator import Event, live_peak, reserved_peak
from medseg.planning.memory import (
    StepMemory,
    _profiled_peak,
    estimate_prediction,
    estimate_step,
    measure_step,
    time_step,
)
from medseg.planning.storage import StorageRecorder
from medseg.planning.training_step import Job, random_batch
from medseg.training.optim import build_optimizer
from medseg.training.step import new_scaler, train_step
from medseg.types.geometry import Geometry
from medseg.types.labels import Label, Labels
from medseg.types.plan import (
    Budget,
    Inference,
    LossTerm,
    Network,
    Origin,
    Plan,
    Preprocess,
    Sampling,
    Step,
    Topology,
    Training,
)

MIB = 2**20
FLAT = Topology(2, (16, 32, 64), ((1, 1, 1), (1, 2, 2), (1, 2, 2)), ((1, 3, 3),) * 3, (2, 2, 2))
THICK = Topology(3, (16, 32, 64), ((1, 1, 1), (2, 2, 2), (2, 2, 2)), ((3, 3, 3),) * 3, (1, 2, 2))
TRAINING = Training(
    (LossTerm(1.0, "dice_ce"),), Step("sgd"), Step("poly"), (), epochs=1, precision="fp32", clip_grad_norm=12.0
)
HEADS, GUIDED = (Step("segmentation"), Step("boundary")), (LossTerm(1.0, "dice_ce"), LossTerm(1.0, "gg_net"))
PAIR = (LossTerm(1.0, "dice"), LossTerm(1.0, "cross_entropy"))
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "operation",
    [lambda x: x * (x > 0), lambda x: x + x.bfloat16(), lambda x: (x > 0).sum(), lambda x: (x > 0).sum((0, 1))],
    ids=["masked", "two precisions", "counted", "counted by column"],
)
def test_copies_in_another_type_are_counted(operation: Any) -> None:
    x = torch.randn(64, 64, 64)
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profiler:
        result = operation(x)
    with StorageRecorder(cpu_kernels=True) as recorder:
        again = operation(x)
    assert torch.equal(result, again)
    assert live_peak(recorder.events) == pytest.approx(_profiled_peak(profiler), abs=4096)


def _job(**changes: Any) -> dict[str, Any]:
    job = {"network": Network("unet", FLAT), "channels": 1, "outputs": 3, "patch": (1, 96, 96), "batch": 2}
    return {**job, "training": TRAINING, **changes}


@pytest.mark.parametrize(
    ("job", "tolerance"),
    [
        (_job(), 0.02),
        (_job(training=replace(TRAINING, losses=PAIR, weighting="uncertainty")), 0.02),
        (_job(network=Network("unet", FLAT, options={"attention": "rater_code", "rater_code_raters": 3})), 0.02),
        (_job(network=Network("resenc_unet", THICK), patch=(16, 32, 32), outputs=4), 0.02),
        (_job(network=Network("unet", FLAT, options={"norm": "group"}), batch=3), 0.05),
        (_job(network=Network("unet", THICK), patch=(16, 32, 32), batch=1), 0.03),
        (_job(training=replace(TRAINING, optimizer=Step("adamw"), ema=0.99), outputs=20), 0.02),
        (_job(network=Network("gg_net", FLAT, HEADS), training=replace(TRAINING, losses=GUIDED)), 0.02),
    ],
    ids=[
        "2d-plain",
        "learnt-weights",
        "raters",
        "3d-residual",
        "group-norm",
        "slow-convolutions",
        "adamw-ema-20-classes",
        "two-heads",
    ],
)
def test_the_estimate_is_what_the_allocator_counts(job: dict[str, Any], tolerance: float) -> None:
    estimate, measured = estimate_step(**job, gpu=False), measure_step(**job, device=CPU)
    assert estimate.live_bytes == pytest.approx(measured.live_bytes, rel=tolerance)
    assert estimate.total_bytes() == estimate.live_bytes


def test_autocast_copies_are_counted() -> None:
    job = _job(training=replace(TRAINING, precision="bf16"), patch=(1, 128, 128), batch=4)
    estimate, measured = estimate_step(**job, gpu=False), measure_step(**job, device=CPU)
    assert estimate.live_bytes == pytest.approx(measured.live_bytes, rel=0.04)  # kernels differ by processor
    assert estimate.live_bytes < 0.75 * estimate_step(**_job(patch=(1, 128, 128), batch=4), gpu=False).live_bytes


def test_it_holds_for_the_step_that_training_takes() -> None:
    job = Job(Network("resenc_unet", THICK), 1, 3, (16, 32, 32), 2, TRAINING)
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profiler:
        network = build_network(job.network, channels=1, outputs=3)
        optimizer, _ = build_optimizer(network, TRAINING.optimizer, TRAINING.schedule)
        loss, batch = build_loss(TRAINING.losses), random_batch(job, CPU)
        for _ in range(2):
            train_step(network, batch, loss, optimizer, scaler=new_scaler("fp32", CPU), clip_grad_norm=12.0)
    job_of = _job(network=job.network, patch=job.patch)
    assert estimate_step(**job_of, gpu=False).live_bytes == pytest.approx(_profiled_peak(profiler), rel=0.02)


def test_more_of_anything_takes_more() -> None:
    base = estimate_step(**_job()).live_bytes
    more = [
        _job(batch=3),
        _job(patch=(1, 96, 128)),
        _job(outputs=40),
        _job(training=replace(TRAINING, optimizer=Step("adamw"))),
        _job(training=replace(TRAINING, ema=0.99)),
    ]
    assert all(estimate_step(**job).live_bytes > base for job in more)
    assert estimate_step(**_job(), regions=True).live_bytes > base


def test_a_gpu_needs_allocator_rounding_workspace_and_context_on_top() -> None:
    memory = estimate_step(**_job())
    assert memory.reserved_bytes >= memory.live_bytes and memory.reserved_bytes % (2 * MIB) == 0
    assert memory.total_bytes() == memory.reserved_bytes + memory.workspace_bytes + memory.context_bytes
    assert memory.context_bytes > 0
    assert StepMemory(1, 2, 3, 4).total_bytes() == 9


def test_the_estimate_computes_nothing_and_remembers() -> None:
    huge = _job(network=Network("unet", THICK), patch=(512, 512, 512), batch=64)
    first = estimate_step(**huge)
    assert first.live_bytes > 2**40
    assert estimate_step(**huge) is first


def test_a_step_takes_time() -> None:
    small, large = _job(patch=(1, 32, 32), batch=1), _job(patch=(1, 128, 128), batch=2)
    assert 0 < time_step(**small, device=CPU, repeats=3) < time_step(**large, device=CPU, repeats=3)


def test_live_bytes_count_each_block_until_it_is_freed() -> None:
    assert live_peak([Event(1, 10), Event(2, 20), Event(1, 0), Event(3, 15), Event(2, 0), Event(3, 0)]) == 35
    assert live_peak([]) == 0


@pytest.mark.parametrize(
    ("sizes", "reserved"),
    [
        ([1], 2 * MIB),
        ([MIB, MIB], 2 * MIB),
        ([MIB, MIB, 1], 4 * MIB),
        ([MIB + 1], 20 * MIB),
        ([9 * MIB, 9 * MIB], 20 * MIB),
        ([10 * MIB], 10 * MIB),
        ([11 * MIB + 1], 12 * MIB),
        ([512 * 4000, 513], 20 * MIB + 2 * MIB),
    ],
)
def test_segments_follow_the_caching_allocators_rules(sizes: list[int], reserved: int) -> None:
    assert reserved_peak([Event(i, n) for i, n in enumerate(sizes)]) == reserved


def test_freed_blocks_are_used_again_smallest_fit_first_and_neighbours_join() -> None:
    start = [Event(1, 40 * MIB), Event(2, 30 * MIB), Event(1, 0), Event(2, 0)]
    assert reserved_peak([*start, Event(3, 30 * MIB), Event(4, 40 * MIB)]) == 70 * MIB
    parts = [Event(5, 10 * MIB), Event(6, 10 * MIB), Event(7, 10 * MIB)]
    free = [Event(6, 0), Event(5, 0), Event(7, 0)]
    assert reserved_peak([Event(1, 30 * MIB), Event(1, 0), *parts, *free, Event(8, 30 * MIB)]) == 30 * MIB


def _plan(outputs: int) -> Plan:
    items = tuple(Label(f"class {i}", (i,)) for i in range(1, outputs))
    return Plan(
        "medseg.plan/1",
        "phantom",
        ("CT",),
        Labels(items),
        Preprocess((2.0, 1.0, 1.0), (Step("z_score"),)),
        Network("unet", THICK),
        Sampling((16, 32, 32), 2),
        TRAINING,
        Inference(),
        (),
        Origin("0", "0", Budget(1.0), "unet"),
        {},
    )


def test_prediction_grows_with_classes_by_slabs_and_not_by_volumes() -> None:
    scan = Geometry((400, 256, 256), (0.5, 1.0, 1.0))
    few, many = (estimate_prediction(_plan(k), scan) for k in (3, 43))
    voxels = 400 * 256 * 256
    assert 4 * voxels < few < 20 * voxels
    assert 0 < many - few < 0.3 * 40 * 4 * voxels
    assert estimate_prediction(_plan(3), Geometry((800, 256, 256), (0.5, 1.0, 1.0))) > 1.5 * few
