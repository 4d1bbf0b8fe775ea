"""Instance norm and leaky ReLU that keep one tensor for the backward pass where torch keeps two.

A U-Net's memory is the tensors autograd keeps: per layer the convolution's result (for the norm) and the
activated one (as input of the next convolution). The second is cheap to compute again from the first, so
`instance_norm_act` tells its consumers how, and `RecomputingConv` keeps that instead of the tensor
(Rota Bulo 2018 inverts the activation; recomputing also holds where the norm's weight is near 0).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_norm = torch.ops.aten.native_batch_norm
_norm_backward = torch.ops.aten.native_batch_norm_backward
_leaky_backward = torch.ops.aten.leaky_relu_backward


def instance_norm_act(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5, slope: float = 1.0) -> Tensor:
    """`leaky_relu(instance_norm(x), slope)` of (b, c, *s) (Ulyanov 2016); slope 1 is the norm alone.

    Statistics are float32 whatever the dtype of `x`; any memory format, which the result shares.
    """
    y, mean, inverse = _InstanceNormAct.apply(x, weight, bias, eps, slope)  # type: ignore[no-untyped-call]
    if torch.is_grad_enabled() and y.requires_grad:
        kept = (x.detach(), weight.detach(), bias.detach(), mean, inverse)
        recompute_with(y, lambda: _apply(*kept, eps, slope))
    return y  # type: ignore[no-any-return]


def concatenate(first: Tensor, second: Tensor) -> Tensor:
    """`torch.cat` over channels that can be recomputed from its parts."""
    joined = torch.cat([first, second], 1)
    if joined.requires_grad and (recomputed(first) or recomputed(second)):
        one, two = _recipe(first), _recipe(second)
        recompute_with(joined, lambda: torch.cat([one(), two()], 1))
    return joined


def _recipe(x: Tensor) -> Callable[[], Tensor]:
    kept = x.detach()
    return recomputed(x) or (lambda: kept)


def recompute_with(x: Tensor, again: Callable[[], Tensor]) -> None:
    """Note on `x` how to compute it again; `again` must not hold `x`."""
    x.medseg_again = again  # type: ignore[attr-defined]


def recomputed(x: Tensor) -> Callable[[], Tensor] | None:
    """How to compute `x` again, if anyone said so."""
    return getattr(x, "medseg_again", None)


def keep_recipe(x: Tensor) -> Any:
    """Context in which autograd keeps, wherever it would keep `x`, how to compute it again instead."""
    again, storage = recomputed(x), x.untyped_storage()._cdata

    def pack(saved: Tensor) -> Any:
        same = again is not None and saved.shape == x.shape and saved.untyped_storage()._cdata == storage
        return again if same else saved

    return torch.autograd.graph.saved_tensors_hooks(pack, _unpack)


def _unpack(kept: Any) -> Tensor:
    return kept if isinstance(kept, Tensor) else kept()


class _InstanceNormAct(torch.autograd.Function):
    """Batch norm kernels sample by sample: the only norm that is fast in channels-last bf16 on CPUs and GPUs."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        y = torch.empty_like(x)
        mean, inverse = weight.new_empty(x.shape[:2]), weight.new_empty(x.shape[:2])
        for i, sample in enumerate(torch.split(x, 1)):
            place = {"out": y[i : i + 1], "save_mean": mean[i], "save_invstd": inverse[i]}
            _norm.out(sample, weight, bias, None, None, True, 0.0, eps, **place)
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
        dx, dweight, dbias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(bias)
        for i, sample in enumerate(torch.split(x, 1)):
            part = _norm_backward(
                grad[i : i + 1], sample, weight, None, None, mean[i], inverse[i], True, ctx.eps, [True, True, True]
            )
            dx[i : i + 1] = part[0]
            dweight += part[1]
            dbias += part[2]
            del part
        return dx, dweight, dbias, None, None


def _apply(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor, eps: float, slope: float) -> Tensor:
    """The forward pass with known statistics: one pass over the voxels."""
    y = torch.empty_like(x)
    variance, nothing = inverse**-2 - eps, mean.new_empty(0)
    for i, sample in enumerate(torch.split(x, 1)):
        place = {"out": y[i : i + 1], "save_mean": nothing, "save_invstd": nothing}
        _norm.out(sample, weight, bias, mean[i], variance[i], False, 0.0, eps, **place)
    return F.leaky_relu_(y, slope) if slope != 1.0 else y
