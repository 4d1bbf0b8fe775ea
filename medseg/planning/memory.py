"""Bytes of memory a training step or a prediction needs, without running it."""

import math
import statistics
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from medseg.io.records import format_record
from medseg.networks.build import HeadedNetwork
from medseg.planning.allocator import Event, live_peak, reserved_peak
from medseg.planning.storage import StorageRecorder
from medseg.planning.training_step import Job, build, build_parts, random_batch, run_step, without_data
from medseg.types.geometry import Geometry, Size3
from medseg.types.plan import Network, Plan, Training

MIB = 2**20
GPU_CONTEXT_BYTES = 500 * MIB  # what driver, kernels and libraries take; not verified on a GPU yet
GPU_WORKSPACE_BYTES = 256 * MIB  # what cuDNN's convolutions may ask for; not verified on a GPU yet


@dataclass(frozen=True)
class StepMemory:
    """Memory of one training step in bytes.

    `live_bytes`: tensors at the peak. `reserved_bytes`: what the allocator holds for them. `workspace_bytes`: what
    libraries use on top. `context_bytes`: what the device's runtime itself takes.
    """

    live_bytes: int
    reserved_bytes: int
    workspace_bytes: int
    context_bytes: int

    def total_bytes(self) -> int:
        """Everything a step takes from the device."""
        return self.reserved_bytes + self.workspace_bytes + self.context_bytes


def estimate_step(
    network: Network,
    *,
    channels: int,
    outputs: int,
    patch: Size3,
    batch: int,
    training: Training,
    gpu: bool = True,
    regions: bool = False,
) -> StepMemory:
    """Memory of a training step, from running the real network, loss and update on tensors without data.

    Every operation's results are counted from the moment they are made until autograd drops them, so weights,
    gradients, optimiser state, averaged weights, the batch and autocast's copies are all in. `patch` is (z, y, x).
    With `gpu` a model of the caching allocator, library workspace and context come on top; without, the CPU's
    allocator adds nothing. Takes a second or so; equal questions are answered from memory.
    """
    job = Job(network, channels, outputs, patch, batch, training, regions)
    return _estimate(_Question(format_record(job), job), gpu)


def measure_step(
    network: Network,
    *,
    channels: int,
    outputs: int,
    patch: Size3,
    batch: int,
    training: Training,
    device: torch.device,
    regions: bool = False,
) -> StepMemory:
    """The same, run for real on `device`, from the allocator's own account; context is not measured (0)."""
    job = Job(network, channels, outputs, patch, batch, training, regions)
    if device.type != "cpu":
        return _measure_gpu(job, device)
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profiler:
        _run(job, device, whole=False, steps=2)
    peak = _profiled_peak(profiler)
    return StepMemory(peak, peak, 0, 0)


def time_step(
    network: Network,
    *,
    channels: int,
    outputs: int,
    patch: Size3,
    batch: int,
    training: Training,
    device: torch.device,
    repeats: int = 5,
    regions: bool = False,
) -> float:
    """Median seconds of a training step on random data, after two that warm up."""
    job = Job(network, channels, outputs, patch, batch, training, regions)
    whole = device.type != "cpu"
    parts, data = build_parts(job, device), random_batch(job, device)
    seconds = []
    for _ in range(2 + repeats):
        start = time.perf_counter()
        run_step(parts, data, training, whole=whole)
        if whole:
            torch.get_device_module(device).synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


def estimate_prediction(plan: Plan, scan: Geometry) -> int:
    """Host bytes of predicting one scan of `scan`'s grid with weights and activations on another device.

    What lives at once: the scan as read (float32 per channel), the native labels (uint16), and the larger of two. To
    prepare: a channel of the scan (float32), the prepared image (float32, on the plan's spacing) and a channel of it.
    To predict: the prepared image twice, a ring of score slabs (float32, outputs x (patch + stride of the windows) x y
    x x; an upper bound, because prediction may advance along a cheaper axis), two native slabs of scores per class in
    flight, and a heat map of the patch per landmark (twice).
    """
    channels, outputs = len(plan.channels), plan.labels.outputs()
    wanted = plan.preprocess.spacing_mm
    pairs = zip(scan.shape, scan.spacing_mm, wanted, strict=True)
    z, y, x = (max(1, round(n * s / (t or s))) for n, s, t in pairs)
    patch = plan.sampling.patch
    z, y, x = (max(n, p) for n, p in zip((z, y, x), patch, strict=True))
    native = scan.shape[0] * scan.shape[1] * scan.shape[2]
    ring = min(z, round(patch[0] * (2 - plan.inference.overlap)) + 1)
    slabs = 2 * outputs * scan.shape[1] * scan.shape[2]
    maps = 2 * len(plan.landmarks) * math.prod(patch)
    to_prepare = native + (channels + 1) * z * y * x
    to_predict = 2 * channels * z * y * x + outputs * ring * y * x + slabs + maps
    return 4 * (channels * native + max(to_prepare, to_predict)) + 2 * native


@dataclass(frozen=True)
class _Question:
    """A job that is hashable: by its text."""

    text: str
    job: Job

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Question) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


@lru_cache(maxsize=4096)
def _estimate(question: _Question, gpu: bool) -> StepMemory:
    events = _events(question.job, whole=gpu)
    live = live_peak(events)
    if not gpu:
        return StepMemory(live, live, 0, 0)
    return StepMemory(live, reserved_peak(events), GPU_WORKSPACE_BYTES, GPU_CONTEXT_BYTES)


def _events(job: Job, *, whole: bool) -> tuple[Event, ...]:
    try:
        return _traced(job, None, whole=whole)
    except DataDependentOutputException:  # some networks look at numbers while they are built: build it in full
        built = build(job)
        return _traced(job, built, whole=whole)


def _traced(job: Job, built: HeadedNetwork | None, *, whole: bool) -> tuple[Event, ...]:
    with FakeTensorMode(), StorageRecorder(cpu_kernels=not whole) as recorder:
        _run(job, torch.device("cpu"), whole=whole, steps=1, built=built and without_data(built))
    return tuple(recorder.events)


def _run(job: Job, device: torch.device, *, whole: bool, steps: int, built: HeadedNetwork | None = None) -> None:
    parts, data = build_parts(job, device, channels_last=not whole, built=built), random_batch(job, device)
    for _ in range(steps):
        run_step(parts, data, job.training, whole=whole)


def _profiled_peak(profiler: Any) -> int:
    memory = (e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]")
    now = peak = 0
    for event in sorted(memory, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def _measure_gpu(job: Job, device: torch.device) -> StepMemory:
    account = torch.get_device_module(device)
    account.empty_cache()
    account.reset_peak_memory_stats(device)
    before = account.memory_reserved(device)
    _run(job, device, whole=True, steps=2)
    live, reserved = account.max_memory_allocated(device), account.max_memory_reserved(device)
    account.empty_cache()
    return StepMemory(live, reserved - before, 0, 0)
