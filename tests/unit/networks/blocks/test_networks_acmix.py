"""ACmix against loops over voxels, windows and taps."""

import math

import pytest
import torch

from medseg.networks.blocks.acmix import Acmix, AcmixBlock
from medseg.networks.blocks.conv import initialise

CASES = [((1.0, 1.0), (4, 5)), ((1.0, 1.0, 1.0), (2, 3, 4)), ((4.0, 1.0, 1.0), (2, 3, 3))]


def _shifted(x: torch.Tensor, tap: tuple[int, ...]) -> torch.Tensor:
    """x (c, *s) read at the neighbour that lies `tap` away, 0 outside."""
    out = torch.zeros_like(x)
    for place in torch.ones(x.shape[1:]).nonzero().tolist():
        at = [p + t for p, t in zip(place, tap, strict=True)]
        if all(0 <= a < n for a, n in zip(at, x.shape[1:], strict=True)):
            out[(slice(None), *place)] = x[(slice(None), *at)]
    return out


@pytest.mark.parametrize(("spacing", "size"), CASES)
def test_a_new_convolution_branch_sums_shifted_maps(spacing: tuple[float, ...], size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    block, ndim = Acmix(8, len(size), spacing), len(size)
    initialise(block)  # what a network does to its convolutions leaves the shifts alone
    q, k, v = (torch.randn(1, 4, 2, *size) for _ in range(3))
    assert block.kernel == ((1, 3, 3) if max(spacing) > 2 else (3,) * ndim)
    slow = torch.zeros(8, *size)
    for number, tap in enumerate(torch.ones(block.kernel).nonzero().tolist()):
        offset = tuple(t - n // 2 for t, n in zip(tap, block.kernel, strict=True))
        heads = torch.cat([q, k, v], 1)[0]  # (12, d, *s)
        mixed = sum(block.mix[number, h] * heads[h] for h in range(12))  # one map per channel of a head
        slow += _shifted(mixed, offset).repeat_interleave(4, 0)  # the same for every head of the group
    torch.testing.assert_close(block.convolution(q, k, v)[0], slow, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("spacing", "size"), CASES)
def test_the_attention_branch_sees_a_window_without_what_is_outside(
    spacing: tuple[float, ...], size: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    block = Acmix(2, len(size), spacing)
    assert block.heads == 2 and block.width == 1
    q, k, v = (torch.randn(1, 2, 1, *size) for _ in range(3))
    radius, places = [n // 2 for n in block.window], torch.ones(size).nonzero().tolist()
    slow = torch.zeros(2, *size)
    for head in range(2):
        for here in places:
            total = norm = 0.0
            for there in places:
                tap = [t - h for t, h in zip(there, here, strict=True)]
                if any(abs(t) > r for t, r in zip(tap, radius, strict=True)):
                    continue
                p = sum(w.item() * t / max(r, 1) for w, t, r in zip(block.position[0], tap, radius, strict=True))
                weight = math.exp(q[(0, head, 0, *here)].item() * (k[(0, head, 0, *there)].item() + p))
                total, norm = total + weight * v[(0, head, 0, *there)].item(), norm + weight
            slow[(head, *here)] = total / norm
    torch.testing.assert_close(block.attention(q, k, v)[0], slow, rtol=1e-4, atol=1e-5)


def test_the_window_is_7_in_2d_and_5_in_3d_and_flat_across_thick_slices() -> None:
    assert Acmix(4, 2, (1.0, 1.0)).window == (7, 7)
    assert Acmix(4, 3, (1.0, 1.0, 1.0)).window == (5, 5, 5)
    assert Acmix(4, 3, (5.0, 1.0, 1.0)).window == (1, 5, 5)


def test_both_branches_count_half_and_their_shares_are_learnt() -> None:
    block, x = Acmix(8, 2, (1.0, 1.0)), torch.randn(1, 8, 3, 4)
    q, k, v = (layer(x).reshape(1, 4, 2, 3, 4) for layer in (block.query, block.key, block.value))
    torch.testing.assert_close(block(x), (block.attention(q, k, v) + block.convolution(q, k, v)) / 2)
    block(x).sum().backward()
    assert block.shares.grad is not None and block.shares.grad.abs().min() > 0


def test_under_autocast_it_stays_near_float32() -> None:
    torch.manual_seed(0)
    block, x = Acmix(8, 2, (1.0, 1.0)), torch.randn(1, 8, 5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        rough = block(x)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, block(x), rtol=0.1, atol=0.2)


def test_a_new_block_passes_its_input() -> None:
    x = torch.randn(2, 8, 3, 4)
    torch.testing.assert_close(AcmixBlock(8, 2, (1.0, 1.0))(x), x)
