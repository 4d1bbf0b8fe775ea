"""Instance norm and leaky ReLU that keep one tensor for the backward pass where torch keeps two.

A U-Net's memory is the tensors autograd keeps: per layer the convolution's result (for the norm) and the
activated one (as input of the next convolution). The second is cheap to compute again from the first, so
`instance_norm_act` tells its consumers how, and convolutions of `conv` keep that instead of the tensor
(Rota Bulo 2018 inverts the activation; recomputing also holds where the norm's weight is near 0).
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_norm = torch.ops.aten.native_batch_norm
_norm_backward = torch.ops.aten.native_batch_norm_backward
_leaky_backward = torch.ops.aten.leaky_relu_backward


def instance_norm_act(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5, slope: float = 1.0) -> Tensor:
    """`leaky_relu(instance_norm(x), slope)` of (b, c, *s) (Ulyanov 2016); slope 1 is the norm alone.

    Statistics are float32 whatever the dtype of `x`; any memory format, which the result shares. Compilers and
    exporters, which choose themselves what to compute again, get the definition.
    """
    if torch.compiler.is_compiling():
        return _definition(x, weight, bias, eps, slope)
    y, mean, inverse = _InstanceNormAct.apply(x, weight, bias, eps, slope)  # type: ignore[no-untyped-call]
    if torch.is_grad_enabled() and y.requires_grad:
        kept = (x.detach(), weight.detach(), bias.detach(), mean, inverse)
        recompute_with(y, lambda: _apply(*kept, eps, slope))
    return y  # type: ignore[no-any-return]


def _definition(x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Tensor:
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    size = (-1, *(1,) * (x.dim() - 2))
    var, mean = torch.var_mean(wide, tuple(range(2, x.dim())), correction=0, keepdim=True)
    y = (wide - mean) * torch.rsqrt(var + eps) * weight.view(size) + bias.view(size)
    return (F.leaky_relu(y, slope) if slope != 1.0 else y).to(x.dtype)


def concatenate(first: Tensor, second: Tensor) -> Tensor:
    """`torch.cat` over channels that can be recomputed from its parts."""
    joined = torch.cat([first, second], 1)
    if joined.requires_grad and (recomputed(first) or recomputed(second)):
        one, two = _recipe(first), _recipe(second)
        recompute_with(joined, lambda: torch.cat([one(), two()], 1))
    return joined


def compute_again(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function(x)` that its consumers compute again from `x` instead of keeping it; must not work in place."""
    y = function(x)
    if torch.is_grad_enabled() and y.requires_grad and not torch.compiler.is_compiling():
        kept, kind = x.detach(), x.device.type
        mixed, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

        def again() -> Tensor:
            with torch.no_grad(), torch.autocast(kind, dtype=dtype, enabled=mixed):
                return function(kept)

        recompute_with(y, again)
    return y


def _recipe(x: Tensor) -> Callable[[], Tensor]:
    kept = x.detach()
    return recomputed(x) or (lambda: kept)


def recompute_with(x: Tensor, again: Callable[[], Tensor]) -> None:
    """Note on `x` how to compute it again; `again` must not hold `x`."""
    x.medseg_again = again, x._version  # type: ignore[attr-defined]


def recomputed(x: Tensor) -> Callable[[], Tensor] | None:
    """How to compute `x` again, if anyone said so and nothing has been written into it since."""
    again, version = getattr(x, "medseg_again", (None, None))
    return again if again is None or version == x._version else None


def keep_recipe(x: Tensor) -> Any:
    """Context in which autograd keeps, wherever it would keep `x`, how to compute it again instead."""
    again = recomputed(x)
    if again is None:
        return nullcontext()
    storage, shape = x.untyped_storage()._cdata, x.shape  # `pack` lives on: it must not hold `x`

    def pack(saved: Tensor) -> Any:
        if saved.shape != shape or saved.untyped_storage()._cdata != storage:
            return saved
        dtype = saved.dtype  # autocast, which chose it, is not on when it is computed again
        return lambda: again().to(dtype)

    return torch.autograd.graph.saved_tensors_hooks(pack, _unpack)


def _unpack(kept: Any) -> Tensor:
    return kept if isinstance(kept, Tensor) else kept()


class _InstanceNormAct(torch.autograd.Function):
    """Batch norm kernels, which are fast in every dtype and memory order, on views in which a sample is a batch."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, views = torch.empty_like(x), _samples(x)
        size = len(views), views[0].shape[1]
        mean, inverse = weight.new_empty(size), weight.new_empty(size)
        scale, shift = _per_row(weight, size[1]), _per_row(bias, size[1])
        for i, (sample, out) in enumerate(zip(views, _samples(y), strict=True)):
            place = {"out": out, "save_mean": mean[i], "save_invstd": inverse[i]}
            _norm.out(sample, scale, shift, None, None, True, 0.0, eps, **place)
        if slope != 1.0:
            F.leaky_relu_(y, slope)
        ctx.save_for_backward(x, weight, bias, mean, inverse)
        ctx.eps, ctx.slope = eps, slope
        ctx.mark_non_differentiable(mean, inverse)
        return y, mean, inverse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, inverse = ctx.saved_tensors
        if ctx.slope != 1.0:
            y = _apply(x, weight, bias, mean, inverse, ctx.eps, ctx.slope)
            grad = _leaky_backward(grad, y, ctx.slope, True)
            del y
        grads = _samples(grad.contiguous()) if x.is_contiguous() else torch.split(grad, 1)
        views, rows = _samples(x), mean.shape[1]
        scale = _per_row(weight, rows)
        dweight, dbias = torch.zeros_like(weight), torch.zeros_like(weight)
        dx = torch.empty_like(x) if len(views) > 1 else x.new_empty(0)
        for i, (sample, given) in enumerate(zip(views, grads, strict=True)):
            part = _norm_backward(
                given, sample, scale, None, None, mean[i], inverse[i], True, ctx.eps, [True, True, True]
            )
            dweight += part[1].view(-1, weight.numel()).sum(0)
            dbias += part[2].view(-1, weight.numel()).sum(0)
            if len(views) == 1:
                return part[0].view(x.shape), dweight, dbias, None, None
            dx[i : i + 1] = part[0]
            del part
        return dx, dweight, dbias, None, None


def _apply(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor, eps: float, slope: float) -> Tensor:
    """The forward pass with known statistics: one pass over the voxels."""
    y = torch.empty_like(x)
    variance, nothing = inverse**-2 - eps, mean.new_empty(0)
    scale, shift = _per_row(weight, mean.shape[1]), _per_row(bias, mean.shape[1])
    for i, (sample, out) in enumerate(zip(_samples(x), _samples(y), strict=True)):
        place = {"out": out, "save_mean": nothing, "save_invstd": nothing}
        _norm.out(sample, scale, shift, mean[i], variance[i], False, 0.0, eps, **place)
    return F.leaky_relu_(y, slope) if slope != 1.0 else y


def _samples(x: Tensor) -> tuple[Tensor, ...]:
    """Views of (b, c, *s) whose statistics are one sample's: all rows at once where contiguous, else one by one."""
    if x.is_contiguous():
        return (x.view(1, -1, *x.shape[2:]),)
    return torch.split(x, 1)


def _per_row(weight: Tensor, rows: int) -> Tensor:
    return weight.repeat(rows // weight.numel())
