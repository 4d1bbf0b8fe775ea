"""Convolutions whose kernel is wider than the feature."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medseg.networks.blocks.acmix import Acmix
from medseg.networks.blocks.aspp import FittedConv
from medseg.networks.blocks.conv import adopt, conv
from medseg.networks.blocks.wide_kernels import convolve, convolve_up

SIZES = [(1, 2, 2), (2, 4, 4), (3, 4, 5), (4, 4, 4), (7, 3, 2), (9, 8, 8)]


def random(*size):
    return torch.randn(size, generator=torch.Generator().manual_seed(0)).requires_grad_()


def same(one, other, leaves):
    """Results, and gradients with respect to leaves, are the same."""
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    weights = torch.randn_like(one)
    wanted = torch.autograd.grad((other * weights).sum(), leaves)
    for found, true in zip(torch.autograd.grad((one * weights).sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(found, true, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 5, 5), (5, 3, 1)], ids=str)
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("dilation", [1, 2])
def test_it_is_torchs_convolution(size, kernel, stride, dilation):
    x, weight, bias = random(2, 4, *size), random(6, 2, *kernel), random(6)
    steps = {"stride": stride, "padding": tuple(k // 2 * dilation for k in kernel), "dilation": (dilation,) * 3}
    found = convolve(x, weight, bias, **steps, groups=2)
    doubles = [t.double() for t in (x, weight, bias)]  # by torch's own loops, not oneDNN's kernels
    same(found.double(), F.conv3d(*doubles, **steps, groups=2), (x, weight, bias))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kernel", [(2, 2, 2), (3, 3, 3), (1, 5, 5)], ids=str)
@pytest.mark.parametrize("more", [0, 1])
def test_it_is_torchs_transposed_convolution(size, kernel, more):
    x, weight, bias = random(2, 4, *size), random(4, 3, *kernel), random(6)
    steps = {"stride": (2, 2, 2), "padding": tuple((k - 1) // 2 for k in kernel)}
    ends = {"output_padding": (more,) * 3, "dilation": (1, 1, 1), "groups": 2}
    found = convolve_up(x, weight, bias, **steps, **ends)
    doubles = [t.double() for t in (x, weight, bias)]
    same(found.double(), F.conv_transpose3d(*doubles, **steps, **ends), (x, weight, bias))


def dirty():
    """Leave numbers that are none in memory that is free."""
    sizes = [4**n for n in range(3, 11)]
    return [torch.full((size,), torch.nan, dtype=dtype) for size in sizes for dtype in (torch.float32, torch.bfloat16)]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("kernel", "size"),
    [((3,) * 3, (2, 4, 4)), ((5,) * 3, (4, 4, 4)), ((5,) * 3, (9, 1, 4)), ((3,) * 2, (2, 2))],
    ids=str,
)
def test_gradients_in_bf16_are_made_of_what_was_computed(kernel, size, channels_last):
    """On CPUs with instructions for bfloat16 torch 2.13 reads memory that nobody wrote."""
    torch.manual_seed(0)
    layer, x = conv(16, 16, kernel), torch.randn(2, 16, *size)
    if channels_last:
        order = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        layer, x = layer.to(memory_format=order), x.to(memory_format=order)
    for _ in range(3):
        grads = []
        for half in (True, False):
            layer.zero_grad()
            dirty()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                y = layer(x)
            dirty()
            y.float().square().mean().backward()
            grads.append(layer.weight.grad.clone())
        assert (grads[0] - grads[1]).norm() < 0.02 * grads[1].norm()


@pytest.mark.parametrize(
    "block", [lambda: Acmix(16, 3, (1.0,) * 3), lambda: FittedConv(16, 16, (6, 6, 6))], ids=["acmix", "aspp"]
)
def test_blocks_that_convolve_by_themselves_do_so_too(block):
    """Over two voxels, at which torch's own gradients are wrong."""
    torch.manual_seed(0)
    layer, x, grads = block().to(memory_format=torch.channels_last_3d), torch.randn(2, 16, 2, 4, 4), []
    weight = layer.shift if isinstance(layer, Acmix) else layer.conv.weight
    for half in (True, False):
        dirty()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            y = layer(x)
        dirty()
        grads += torch.autograd.grad(y.float().square().mean(), [weight])
    assert (grads[0] - grads[1]).norm() < 0.02 * grads[1].norm()


def test_transposed_convolutions_in_bf16_learn_right():
    """As those of MedNeXt with kernels of 5, over two voxels."""
    torch.manual_seed(0)
    network, x, grads = nn.Sequential(nn.ConvTranspose3d(16, 16, 5, 2, 2)), torch.randn(2, 16, 2, 1, 1), []
    adopt(network)
    for half in (True, False):
        dirty()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            y = network(x)
        dirty()
        grads += torch.autograd.grad(y.float().square().mean(), [network[0].weight])
    assert (grads[0] - grads[1]).norm() < 0.02 * grads[1].norm()


def test_foreign_convolutions_are_adopted_and_keep_their_weights():
    network = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.ConvTranspose3d(2, 2, 3, 2, 1), nn.Conv2d(1, 1, 1))
    own, x = [type(layer) for layer in network], torch.randn(1, 1, 2, 4, 4)
    names, wanted = list(network.state_dict()), network[1](network[0](x))
    adopt(network)
    assert all(isinstance(new, old) and type(new) is not old for new, old in zip(network, own, strict=True))
    assert list(network.state_dict()) == names
    torch.testing.assert_close(network[1](network[0](x)), wanted)


@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_other_paddings_stay(mode):
    layer, x = nn.Conv2d(1, 1, 3, padding=1, padding_mode=mode), torch.randn(1, 1, 3, 3)
    wanted = layer(x)
    network = nn.Sequential(layer)
    adopt(network)
    assert torch.equal(network(x), wanted)


def test_a_sample_without_a_batch_is_taken_as_torch_takes_it():
    layers = nn.Conv3d(2, 2, 3, padding=1), nn.ConvTranspose3d(2, 2, 3, 2, 1, 1)
    x = torch.randn(2, 2, 4, 4)
    wanted = [layer(x) for layer in layers]
    adopt(nn.ModuleList(layers))
    for layer, one in zip(layers, wanted, strict=True):
        torch.testing.assert_close(layer(x), one)


def test_padding_by_name_stays():
    network, x = nn.Sequential(nn.Conv2d(1, 1, 3, padding="same")), torch.randn(1, 1, 2, 2)
    wanted = network(x)
    adopt(network)
    assert torch.equal(network(x), wanted)
