"""The distance head beside the labels."""

import pytest
import torch

from medseg.errors import PlanError
from medseg.networks.build import build_network
from medseg.networks.distance_head import distance
from medseg.types.plan import Network, Step, Topology

FLAT = Topology(2, (4, 8), ((1, 1, 1), (1, 2, 2)), ((1, 3, 3), (1, 3, 3)), (1, 1))
THICK = Topology(3, (4, 8), ((1, 1, 1), (1, 2, 2)), ((1, 3, 3), (3, 3, 3)), (1, 1))


@pytest.mark.parametrize(("topology", "size"), [(FLAT, (8, 6)), (THICK, (3, 8, 6))])
def test_labels_and_distances_come_from_one_network(topology: Topology, size: tuple[int, ...]) -> None:
    heads = (Step("segmentation"), Step("distance"))
    network = build_network(Network("unet", topology, heads), channels=1, outputs=3)
    for mode in (True, False):
        output = network.train(mode)(torch.randn(2, 1, *size))
        assert output.logits[0].shape == (2, 3, *size) and output.distances is not None
        assert output.distances.shape == (2, 3, *size) and output.distances.abs().max() <= 1


def test_a_clipped_head_is_linear_in_training_and_bounded_otherwise() -> None:
    head = distance(FLAT, (4, 8), outputs=2, bound="clip")
    feature = 50 * torch.randn(1, 4, 6, 6)
    raw = head((feature,)).distances
    assert raw.abs().max() > 1 and raw.requires_grad
    torch.testing.assert_close(head.eval()((feature,)).distances, raw.clamp(-1, 1))


def test_it_needs_labels_and_a_known_bound() -> None:
    with pytest.raises(PlanError, match="no labels"):
        distance(FLAT, (4, 8), outputs=0)
    with pytest.raises(PlanError, match="tanh, clip"):
        distance(FLAT, (4, 8), outputs=2, bound="none")  # type: ignore[arg-type]
