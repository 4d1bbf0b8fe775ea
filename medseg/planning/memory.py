"""Bytes of memory a training step or a prediction needs, without running it."""

import statistics
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from medseg.io.records import format_record
from medseg.planning.allocator import Event, live_peak, reserved_peak
from medseg.planning.training_step import Job, build_parts, random_batch, run_step
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
) -> float:
    """Median seconds of a training step on random data, after two that warm up."""
    job = Job(network, channels, outputs, patch, batch, training)
    whole = device.type != "cpu"
    parts, data = build_parts(job, device), random_batch(job, device)
    seconds = []
    for _ in range(2 + repeats):
        start = time.perf_counter()
        run_step(parts, data, training, whole=whole)
        if whole:
            torch.accelerator.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


def estimate_prediction(plan: Plan, scan: Geometry) -> int:
    """Host bytes of predicting one scan of `scan`'s grid with weights and activations on another device.

    The sum of what lives at once: the scan as read (float32 per channel), the prepared image (float32, on the
    plan's spacing, twice while it is resampled), a ring of score slabs (float32, outputs x (patch + stride of the
    windows) x y x x), two native slabs of scores per class in flight, and the native labels (uint16).
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
    return 4 * (channels * native + 2 * channels * z * y * x + outputs * ring * y * x + slabs) + 2 * native


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
    with FakeTensorMode(), _Recorder(cpu=not whole) as recorder:
        _run(job, torch.device("cpu"), whole=whole, steps=1)
    return tuple(recorder.events)


def _run(job: Job, device: torch.device, *, whole: bool, steps: int) -> None:
    parts, data = build_parts(job, device, channels_last=not whole), random_batch(job, device)
    for _ in range(steps):
        run_step(parts, data, job.training, whole=whole)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes when each storage appears among the results of an operation, and when it is gone.

    `cpu`: also count what the CPU's kernels need inside the two operations where it matters (`_inside`).
    """

    def __init__(self, *, cpu: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cpu = cpu
        self.events: list[Event] = []
        self._known: dict[int, weakref.ref[Any]] = {}
        self._next = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in tree_iter(results):
            if isinstance(result, torch.Tensor):
                self._note(result.untyped_storage())
        if self._cpu and (inside := _inside(func, args)):
            self.events += [Event(-1, inside), Event(-1, 0)]
        return results

    def _note(self, storage: torch.UntypedStorage) -> None:
        place = storage._cdata
        if place in self._known or not storage.nbytes():
            return
        key, self._next = self._next, self._next + 1

        def gone(_: object) -> None:
            del self._known[place]
            self.events.append(Event(key, 0))

        self._known[place] = weakref.ref(storage, gone)
        self.events.append(Event(key, storage.nbytes()))


def _inside(func: Any, args: tuple[Any, ...]) -> int:
    """Bytes that a CPU kernel allocates and frees inside one operation, as found by measurement.

    Batch norm's backward pass makes a copy of its input. A bf16 convolution's makes, per thread, transposed copies
    of one sample's input and gradient with channels padded to 16, and sums the weights' gradient in float32.
    """
    if func is torch.ops.aten.native_batch_norm_backward.default:
        return int(args[1].nbytes)
    if func is torch.ops.aten.convolution_backward.default and args[0].dtype == torch.bfloat16:
        samples = min(torch.get_num_threads(), args[0].shape[0])
        padded = sum(-(-t.shape[1] // 16) * 16 * t[0, 0].numel() * t.element_size() for t in args[:2])
        return int(samples * padded + 4 * args[2].numel())
    return 0


def _profiled_peak(profiler: Any) -> int:
    memory = (e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]")
    now = peak = 0
    for event in sorted(memory, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def _measure_gpu(job: Job, device: torch.device) -> StepMemory:
    with _emptied(device):
        before = torch.accelerator.memory_reserved(device)
        _run(job, device, whole=True, steps=2)
        live = torch.accelerator.max_memory_allocated(device)
        reserved = torch.accelerator.max_memory_reserved(device)
    return StepMemory(live, reserved - before, 0, 0)


@contextmanager
def _emptied(device: torch.device) -> Iterator[None]:
    torch.accelerator.empty_cache()
    torch.accelerator.reset_peak_memory_stats(device)
    yield
    torch.accelerator.empty_cache()
