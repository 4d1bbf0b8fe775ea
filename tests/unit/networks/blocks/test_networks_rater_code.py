"""Codes of raters: nothing at first, one per rater later, their mean for nobody in particular."""

import pytest
import torch

from medseg.errors import PlanError
from medseg.networks.blocks.rater_code import RaterCode
from medseg.networks.build import build_network
from medseg.types.plan import Network, Topology

KERNEL = ((1, 3, 3), (1, 3, 3))
FLAT = Topology(2, (4, 8), ((1, 1, 1), (1, 2, 2)), KERNEL, (1, 1))
SOLID = Topology(3, (4, 8), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3)), (1, 1))


def taught(block):
    """With a map that is not zero any more."""
    with torch.no_grad():
        torch.nn.init.normal_(block.spread_weight, generator=torch.Generator().manual_seed(1))
    return block


def activated(value):
    return value if value > 0 else 0.01 * value


def network_of(topology, use="unet", raters=3, **options):
    torch.manual_seed(0)
    plan = Network(use, topology, options={"attention": "rater_code", "rater_code_raters": raters, **options})
    network = build_network(plan, channels=1, outputs=2)
    for code in network.rater_codes:
        taught(code)
    return network.eval()


@pytest.mark.parametrize("size", [(5, 4), (2, 3, 4)])
def test_at_first_it_changes_nothing_for_anybody(size):
    block, x = RaterCode(6, raters=2, size=4), torch.randn(2, 6, *size)
    for raters in (None, torch.tensor([0, 1])):
        block.raters = raters
        assert torch.equal(block(x), x)


def test_a_channel_is_moved_under_an_activation_by_its_share_of_the_code():
    block, x = taught(RaterCode(3, raters=2, size=2)), torch.randn(2, 3, 4)
    block.raters = torch.tensor([1, 0])
    found = block(x).detach()
    for image, rater in ((0, 1), (1, 0)):
        for channel in range(3):
            moved = float((block.spread_weight[channel] * block.codes[rater]).sum().detach())
            for place in range(4):
                value = float(x[image, channel, place])
                slow = value + activated(value + moved) - activated(value)
                assert float(found[image, channel, place]) == pytest.approx(slow, abs=1e-5)


def test_nobody_and_an_unknown_rater_are_the_mean_of_all_codes():
    block, x = taught(RaterCode(3, raters=3, size=2)), torch.randn(2, 3, 4)
    block.raters = None
    consensus = block(x)
    block.raters = torch.tensor([-1, -1])
    torch.testing.assert_close(block(x), consensus)
    with torch.no_grad():
        block.codes.copy_(block.codes.mean(0, keepdim=True).expand(3, 2))
    block.raters = torch.tensor([0, 2])
    torch.testing.assert_close(block(x), consensus)


@pytest.mark.parametrize("topology", [FLAT, SOLID], ids=["2d", "3d"])
@pytest.mark.parametrize("norm", ["instance", "layer", "group"])
def test_raters_differ_in_a_whole_network_whatever_its_norm(topology, norm):
    network = network_of(topology, norm=norm)
    image = torch.randn(1, 1, *(8,) * topology.ndim).expand(3, -1, *(-1,) * topology.ndim)
    with torch.inference_mode():
        logits = network(image, torch.tensor([0, 1, 2])).logits[0]
        alone = network(image[:1], torch.tensor([1])).logits[0]
    inside = (slice(None), *(slice(3, 5),) * topology.ndim)  # not what a code leaves at padded borders
    assert (logits[0] - logits[1])[inside].abs().max() > 1e-2
    torch.testing.assert_close(logits[1:2], alone)


def test_slices_of_one_scan_have_its_rater():
    network = network_of(SOLID, "direction_fused", slices=1, slices_at_once=4)
    images = torch.randn(2, 1, 8, 8, 8)
    with torch.inference_mode():
        both = network(images, torch.tensor([2, 0])).logits[0]
        apart = [network(images[i : i + 1], torch.tensor([r])).logits[0] for i, r in ((0, 2), (1, 0))]
    torch.testing.assert_close(both, torch.cat(apart))
    assert not torch.allclose(both[1], network(images, torch.tensor([2, 2])).logits[0][1], atol=1e-3)


def test_codes_are_told_to_losses_and_have_no_decay():
    from medseg.training.optim import decays

    network = network_of(FLAT)
    image = torch.randn(1, 1, 8, 8)
    codes = network(image).rater_codes
    assert codes.shape == (3, 16) and codes.requires_grad
    parameters = dict(network.named_parameters())
    named = [name for name in parameters if name.endswith("codes")]
    assert named and not any(decays(name, parameters[name]) for name in named)


@pytest.mark.parametrize("wrong", [{"raters": 0, "size": 4}, {"raters": 2, "size": 0}])
def test_no_raters_or_no_numbers_are_refused(wrong):
    with pytest.raises(PlanError, match="codes of"):
        RaterCode(4, **wrong)


def test_raters_that_taught_nothing_get_the_mean_of_those_that_did():
    block = RaterCode(4, raters=3, size=2)
    torch.nn.init.normal_(block.spread_weight)
    block.taught([0, 2])
    x = torch.randn(1, 4, 5, 5)

    def of(rater):
        block.raters = None if rater is None else torch.tensor([rater])
        return block(x)

    with torch.no_grad():
        assert torch.equal(of(None), of(1)) and torch.equal(of(None), of(-1))
        assert not torch.equal(of(0), of(2)) and not torch.equal(of(0), of(1))
        block.codes[1] = 100.0
        before = of(None)
        block.codes[0] = block.codes[2]
        assert not torch.equal(of(None), before) and torch.equal(of(None), of(2))


@pytest.mark.parametrize("topology", [FLAT, SOLID], ids=["2d", "3d"])
def test_with_the_same_seed_a_network_starts_as_it_would_without_codes(topology):
    options = {"attention": "rater_code", "rater_code_raters": 3}
    torch.manual_seed(5)
    coded = build_network(Network("unet", topology, options=options), channels=1, outputs=2).eval()
    torch.manual_seed(5)
    plain = build_network(Network("unet", topology), channels=1, outputs=2).eval()
    codes, other = (RaterCode(4, raters=2, size=3).codes for seed in (5, 6) if torch.manual_seed(seed))
    assert not torch.equal(codes, other)
    image = torch.randn(2, 1, *(8,) * topology.ndim)
    with torch.inference_mode():
        for raters in (None, torch.tensor([0, 2])):
            assert torch.equal(coded(image, raters).logits[0], plain(image).logits[0])
