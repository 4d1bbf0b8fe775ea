"""How often torch's gradients of convolutions whose kernel is wider than the feature are wrong on this CPU.

    python benchmarks/wide_kernels.py

Convolutions of 16 channels over (n, 4, 4) voxels (kernels of 3 also with a dilation of 2), once by `torch.nn.Conv3d`
and once by medseg's, whose gradients of weights, inputs and biases are compared with those of float64. Before each pass
freed memory is full of NaN, so that reading what nobody wrote shows. Every convolution runs in a process of its own,
because some end it. Linux only.
"""

import itertools
import multiprocessing
from collections import Counter

import torch
from torch import nn

from medseg.networks.blocks.conv import conv

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}
KERNELS, STRIDES, SIZES, GROUPS = ((3, 1), (3, 2), (5, 1), (7, 1)), (1, 2), range(1, 9), (1, 16)  # with dilations
TOLERANCE = 0.1  # of the largest; half precision is right to a hundredth


def main() -> None:
    """Print a line per kernel, stride and precision that is ever wrong: the sizes, torch's and ours."""
    wrong: dict[tuple[object, ...], set[int]] = {}
    count: Counter[str] = Counter()
    for case in itertools.product(("torch", "medseg"), PRECISIONS, KERNELS, STRIDES, SIZES, GROUPS, (False, True)):
        whose, precision, kernel, stride, n, _, _ = case
        process = multiprocessing.get_context("fork").Process(target=judge, args=case)
        process.start()
        process.join()
        count[f"{whose}, all"] += 1
        if process.exitcode:
            count[f"{whose}, {'wrong' if process.exitcode == 1 else 'crashed'}"] += 1
            wrong.setdefault((whose, precision, kernel, stride), set()).add(n)
    for (whose, precision, kernel, stride), sizes in wrong.items():
        print(f"{whose} {precision}: kernel and dilation {kernel}, stride {stride}: wrong over {sorted(sizes)} voxels")
    print(dict(count))


def judge(
    whose: str, precision: str, taps: tuple[int, int], stride: int, n: int, groups: int, channels_last: bool
) -> None:
    """Exit with 1 where a gradient is wrong."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kernel, dilation = taps
    if whose == "torch":
        layer: nn.Module = nn.Conv3d(16, 16, kernel, stride, kernel // 2 * dilation, dilation, groups)
    else:
        layer = conv(16, 16, (kernel,) * 3, (stride,) * 3, groups=groups, dilation=(dilation,) * 3)
    x = torch.randn(2, 16, n, 4, 4)
    if channels_last:
        layer, x = layer.to(memory_format=torch.channels_last_3d), x.to(memory_format=torch.channels_last_3d)
    x.requires_grad_()
    leaves = (layer.weight, x, layer.bias)
    dtype = PRECISIONS[precision]
    dirty()
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        y = layer(x)
    dirty()
    weights = torch.randn_like(y, dtype=torch.float32)
    found = torch.autograd.grad((y.float() * weights).sum(), leaves)
    true = torch.autograd.grad((layer.double()(x.double()) * weights).sum(), (layer.weight, x, layer.bias))
    for one, other in zip(found, true, strict=True):
        if not (one - other).abs().max() < TOLERANCE * other.abs().max():
            raise SystemExit(1)


def dirty() -> None:
    """Fill memory with NaN and free it."""
    for dtype in (torch.float32, torch.bfloat16):
        [torch.full((4**n,), torch.nan, dtype=dtype) for n in range(3, 11)]


if __name__ == "__main__":
    main()
