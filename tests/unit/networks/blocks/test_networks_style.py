"""Adaptive instance norm: statistics that match, training as without it, scans of another contrast."""

import pytest
import torch
from torch import Tensor

from medseg.networks.blocks.style import AdaptiveInstanceNorm, adapt_style, style_statistics
from medseg.networks.build import build_network
from medseg.types.plan import Network, Topology

SIZES = [(5, 6), (3, 4, 5)]
FLAT = Topology(2, (4, 8), ((1, 1, 1), (1, 2, 2)), ((1, 3, 3), (1, 3, 3)), (1, 1))


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _trained(*batches: Tensor) -> AdaptiveInstanceNorm:
    """The block in eval after training with these."""
    block = AdaptiveInstanceNorm(batches[0].shape[1])
    for x in batches:
        assert block(x) is x
    return block.eval()


@pytest.mark.parametrize("size", SIZES)
def test_adapted_features_have_the_statistics_of_their_style(size: tuple[int, ...]) -> None:
    x, style = 4 * _random(2, 3, *size) + 2, 0.5 * _random(2, 3, 7, 8) - 3
    adapted = adapt_style(x, *style_statistics(style))
    for found, wanted in zip(style_statistics(adapted), style_statistics(style), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for i in range(2):
        for j in range(3):  # an affine map with a positive slope per channel: the order of voxels stays
            assert torch.equal(adapted[i, j].flatten().argsort(), x[i, j].flatten().argsort())


def test_what_hardly_varies_stays_near_the_mean_of_its_style() -> None:
    constant, noise = torch.full((1, 2, 4, 4), 7.0), 1e-4 * _random(1, 2, 4, 4)
    mean, std = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0])
    wanted = mean.view(1, 2, 1, 1).expand_as(constant)
    torch.testing.assert_close(adapt_style(constant, mean, std), wanted)
    torch.testing.assert_close(adapt_style(constant + noise, mean, std), wanted, rtol=0, atol=0.5)


def test_style_of_half_precision_is_measured_in_float32() -> None:
    x = (0.01 * _random(1, 2, 40, 50) + 100).half()
    mean, std = style_statistics(x)
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(mean, x.double().mean((2, 3)).float(), rtol=1e-6, atol=0)
    assert adapt_style(x, mean, std).dtype == torch.float16


@pytest.mark.parametrize("size", SIZES)
def test_features_of_other_scans_get_the_mean_style_of_all_samples_seen_in_training(size: tuple[int, ...]) -> None:
    batches = [3 * _random(2, 3, *size) - 2, _random(4, 3, *size) + 5, 0.5 * _random(2, 3, *size)]
    block, other = _trained(*batches), torch.cat([9 * _random(1, 3, *size) + 40, 0.2 * _random(2, 3, *size)])
    means = [[[float(c.double().mean()) for c in sample] for sample in x] for x in batches]
    variances = [[[float(c.double().var(correction=0)) for c in sample] for sample in x] for x in batches]
    mean, var = (torch.stack([torch.tensor(b).mean(0) for b in each]).mean(0) for each in (means, variances))
    for sample in block(other):
        torch.testing.assert_close(sample.flatten(1).mean(1), mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(sample.flatten(1).std(1, correction=0), var.sqrt(), rtol=1e-3, atol=1e-4)


def test_style_follows_the_last_hundred_batches() -> None:
    block = AdaptiveInstanceNorm(1)
    for step in range(3000):
        block(torch.full((1, 1, 2), float(step >= 2000)))
    assert 1 - 0.99**1000 == pytest.approx(float(block.mean), abs=1e-3) and float(block.seen) == 100


def test_nothing_changes_before_training_or_where_a_channel_is_one_voxel() -> None:
    x = 3 * _random(2, 3, 5, 6) + 1
    for scale in (1.0, 1e-4):
        assert torch.equal(AdaptiveInstanceNorm(3).eval()(scale * x), scale * x)
    pooled = x.mean((2, 3), keepdim=True)
    assert torch.equal(_trained(-x)(pooled), pooled)


def test_what_is_kept_is_saved_with_the_weights() -> None:
    block, x = _trained(3 * _random(2, 3, 5, 6) - 2), _random(1, 3, 4, 4)
    other = AdaptiveInstanceNorm(3).eval()
    other.load_state_dict(block.state_dict())
    assert torch.equal(other(x), block(x)) and not torch.allclose(block(x), x, atol=0.5)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_network_sees_scans_of_another_contrast_as_those_it_learnt_from(norm: str) -> None:
    """All further layers get the same statistics; without the block they get those of the other contrast."""
    gaps = {}
    for attention in ("none", "adain"):
        torch.manual_seed(0)
        network = build_network(
            Network("unet", FLAT, options={"attention": attention, "norm": norm}), channels=1, outputs=2
        )
        batches = [_random(4, 1, 16, 16 + 2 * step) for step in range(4)]
        for image in batches:
            network(image)
        network.eval()
        image = batches[0]
        gaps[attention] = float((network(3 * image).logits[0] - network(image).logits[0]).detach().std())
    assert gaps["adain"] < 0.5 * gaps["none"]


def test_learning_is_that_of_a_network_without_the_block() -> None:
    found = []
    for attention in ("none", "adain"):
        torch.manual_seed(0)
        network = build_network(Network("unet", FLAT, options={"attention": attention}), channels=1, outputs=2)
        sum(t.square().sum() for t in network(_random(2, 1, 16, 16)).logits).backward()
        found.append([p.grad for p in network.parameters()])
    assert len(found[0]) == len(found[1]) and all(torch.equal(a, b) for a, b in zip(*found, strict=True))
