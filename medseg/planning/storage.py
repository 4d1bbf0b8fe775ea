"""Every allocation and release of tensor storage in a piece of code, also where tensors hold no data."""

import math
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from medseg.planning.allocator import Event

_ops = torch.ops.aten
_Backend = torch._C._ConvBackend  # type: ignore[attr-defined]
_UNROLLED = (_Backend.Slow2d, _Backend.Slow3d, _Backend.SlowTranspose2d, _Backend.SlowTranspose3d)
_ARITHMETIC = {_ops.add.Tensor, _ops.sub.Tensor, _ops.mul.Tensor, _ops.div.Tensor}
_SUMS = {_ops.sum.default, _ops.sum.dim_IntList}
_WIDEST = 14  # kernel of the fast float32 convolutions


class StorageRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context that notes when a storage appears among the results of an operation, and when it is gone.

    Views share a storage, so each byte counts once. `cpu_kernels`: also count what the CPU's kernels allocate inside
    the operations where it matters (`kernel_bytes`).
    """

    def __init__(self, *, cpu_kernels: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.events: list[Event] = []
        self._cpu_kernels = cpu_kernels
        self._known: dict[int, weakref.ref[Any]] = {}
        self._next = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _ops.native_batch_norm.out:  # fills what is there; slow to imitate without data
            return kwargs["out"], kwargs["save_mean"], kwargs["save_invstd"]
        results = func(*args, **(kwargs or {}))
        for result in tree_iter(results):
            if isinstance(result, Tensor):
                self._note(result.untyped_storage())
        if self._cpu_kernels and (inside := kernel_bytes(func, args)):
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


def kernel_bytes(func: Any, args: tuple[Any, ...]) -> int:
    """Bytes that a CPU kernel allocates and frees inside one operation, as measured with the profiler.

    Batch norm's backward pass copies its input. A bf16 convolution's makes, per thread, transposed copies of one
    sample's input and gradient with channels padded to 16, and sums the weights' gradient in float32. Convolutions
    too small for the fast kernels (float32, batch 1) unroll one sample into columns. The fast ones copy what is not in
    their memory order. Arithmetic on two types copies what has not the type of the result, sums of whole numbers and
    masks what they sum.
    """
    if func in _ARITHMETIC or func in _SUMS:
        return _converted_bytes(func, args)
    if func is _ops.native_batch_norm_backward.default:
        return int(args[1].nbytes)
    if func is _ops.convolution.default:
        return _column_bytes(args[0], *args) or _reordered_bytes(args[0], args[1], None, *args[3:])
    if func is not _ops.convolution_backward.default:
        return 0
    grad, x, weight = args[:3]
    if grad.dtype != torch.bfloat16:
        columns = _column_bytes(grad, x, weight, None, *args[4:10])
        return columns or _reordered_bytes(x, weight, grad, *args[4:10])
    samples = min(torch.get_num_threads(), grad.shape[0])
    padded = sum(-(-t.shape[1] // 16) * 16 * t[0, 0].numel() * t.element_size() for t in (grad, x))
    return int(samples * padded + 4 * weight.numel())


def _converted_bytes(func: Any, args: tuple[Any, ...]) -> int:
    """Copies in the type in which an operation computes."""
    if func in _SUMS:
        return 0 if args[0].is_floating_point() else int(torch.int64.itemsize * args[0].numel())
    dtype = torch.result_type(*args[:2])
    others = (t for t in args[:2] if isinstance(t, Tensor) and t.dim() and t.dtype != dtype)
    return sum(dtype.itemsize * t.numel() for t in others)


def _column_bytes(copied: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> int:
    """Columns of one sample, and a copy of `copied` in plain order, where the slow kernel is chosen."""
    if torch._C._select_conv_backend(x, weight, bias, *how) not in _UNROLLED:
        return 0
    stride, transposed = how[0], how[3]
    voxels = math.prod(x.shape[2:])
    outside = voxels * math.prod(stride) if transposed else voxels // math.prod(stride)
    block = math.prod(weight.shape[2:])
    columns = weight.shape[1] * block * (voxels if transposed else outside) if block > 1 else 0
    return int(x.element_size() * columns + copied.nbytes)


def _reordered_bytes(x: Tensor, weight: Tensor, grad: Tensor | None, *how: Any) -> int:
    """Copies of the fast float32 kernels: into channels-last order where anything has it, else into blocks of channels.

    Blocks hold 16 channels; an input of up to 3 is read as it is. Weights are always put into blocks; their
    gradient is made in blocks, and in channels-last order copied twice. Where kernels are wide, four parts per thread
    are summed.
    """
    backend = torch._C._select_conv_backend(x, weight, None, *how)
    if x.dtype != torch.float32 or backend != _Backend.Mkldnn:
        return 0
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    stride, transposed, groups = how[0], how[3], how[5]
    block = math.prod(weight.shape[2:])
    parts = [x] if grad is None else [x, grad]
    if any(t.is_contiguous(memory_format=last) and not t.is_contiguous() for t in (x, weight)):
        copies = sum(t.nbytes for t in parts if not t.is_contiguous(memory_format=last))
        if grad is None:
            return int(copies + 4 * _blocks(weight.shape[0]) * weight.shape[1] * block)
        padded = _blocks(weight.shape[0]) * (_blocks(weight.shape[1]) if groups == 1 else weight.shape[1])
        return int(copies + 4 * padded * block + weight.nbytes)
    inside = x.shape[0] * math.prod(x.shape[2:])
    outside = inside * math.prod(stride) if transposed else inside // math.prod(stride)
    outputs = weight.shape[1] * groups if transposed else weight.shape[0]
    read = 0 if x.shape[1] <= 3 else _blocks(x.shape[1]) * inside
    written, plain = _blocks(outputs) * outside, outputs * outside
    if grad is not None:
        samples = min(torch.get_num_threads(), x.shape[0])
        summed = 4 * samples * weight.numel() if weight.shape[-1] > _WIDEST else 0
        return int(4 * max(max(read, 16 * inside) + written, weight.numel(), summed))
    return int(4 * (max(read + weight.numel() + written, written + plain) - plain))


def _blocks(channels: int) -> int:
    return -(-channels // 16) * 16
