"""Critics of adversarial training: what they minimise, what gradients go where, what they refuse."""

import pytest
import torch
from torch import Tensor

from medseg.errors import PlanError
from medseg.networks.critics import CRITICS, build_critic, clamp_weights, judge, masks, project
from medseg.types.plan import Adversary, Topology

THICK = Topology(3, (4, 8, 8), ((1, 1, 1), (1, 2, 2), (2, 2, 2)), ((1, 3, 3), (3, 3, 3), (3, 3, 3)), (1, 1, 1))
FLAT = Topology(2, (4, 8), ((1, 1, 1), (1, 2, 2)), ((1, 3, 3), (1, 3, 3)), (1, 1))


def _scene(topology: Topology, *, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Image, logits and target of two samples; some voxels are ignored."""
    torch.manual_seed(0)
    size = (4, 8, 8)[3 - topology.ndim :]
    target = torch.randint(-1, classes, (2, 1, *size))
    return torch.randn(2, 2, *size), torch.randn(2, classes, *size, requires_grad=True), target


def _critic(use: str, topology: Topology, *, classes: int = 3) -> torch.nn.Module:
    torch.manual_seed(1)
    return build_critic(Adversary(use), topology, channels=2, outputs=classes, regions=False)


def _sure(target: Tensor, classes: int = 3) -> Tensor:
    """Logits that are certain of the target."""
    return 50.0 * torch.nn.functional.one_hot(target[:, 0].clamp_min(0), classes).movedim(-1, 1).float()


def test_masks_are_of_foreground_classes_and_empty_where_the_target_is_ignored() -> None:
    _, logits, target = _scene(FLAT)
    predicted, true = masks(logits, target)
    for (b, k, y, x), value in ((i, predicted[i]) for i in [(0, 0, 1, 2), (1, 1, 5, 7), (0, 1, 0, 0)]):
        wanted = logits[b, :, y, x].softmax(0)[k + 1] if target[b, 0, y, x] >= 0 else torch.tensor(0.0)
        torch.testing.assert_close(value, wanted)
        assert true[b, k, y, x] == float(target[b, 0, y, x] == k + 1)
    regions = torch.tensor([[[[1]], [[-1]], [[0]]]])
    predicted, true = masks(torch.zeros(1, 3, 1, 1), regions)
    assert predicted.flatten().tolist() == [0.5, 0.0, 0.5]
    assert true.flatten().tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("topology", [FLAT, THICK], ids=["2d", "3d"])
def test_segan_is_the_mean_feature_distance_with_opposite_signs(topology: Topology) -> None:
    image, logits, target = _scene(topology)
    critic = _critic("segan", topology)
    term = judge(critic, image, logits, target)
    predicted, true = masks(logits, target)
    seen = [
        torch.cat([image[:, [c]] * mask[:, [k]] for c in range(2) for k in range(2)], 1) for mask in (predicted, true)
    ]
    distances = [(seen[0] - seen[1]).abs().mean()]
    for layer in critic.layers:
        seen = [layer(part) for part in seen]
        distances.append((seen[0] - seen[1]).abs().mean())
    torch.testing.assert_close(term, sum(distances) / len(distances))
    torch.testing.assert_close(judge(critic, image, logits, target, own=True), -term)
    torch.testing.assert_close(judge(critic, image, _sure(target), target), torch.tensor(0.0), atol=1e-6, rtol=0)


def test_segan_levels_may_weigh_differently() -> None:
    image, logits, target = _scene(FLAT)
    plain = judge(_critic("segan", FLAT), image, logits, target)
    torch.manual_seed(1)
    only = Adversary("segan", options={"shares": [1.0, 0.0, 0.0, 0.0]})
    critic = build_critic(only, FLAT, channels=2, outputs=3, regions=False)
    predicted, true = masks(logits, target)
    first = torch.stack([(image[:, [c]] * (predicted - true)).abs().mean() for c in range(2)]).mean()
    torch.testing.assert_close(judge(critic, image, logits, target), first)
    assert not torch.isclose(plain, first)


def test_spectral_bounds_leave_no_direction_more_than_it_had() -> None:
    torch.manual_seed(1)
    bounded = Adversary("segan", options={"bound": "spectral"})
    critic = build_critic(bounded, FLAT, channels=2, outputs=3, regions=False).train()
    image, logits, target = _scene(FLAT)
    for _ in range(30):  # power iterations
        judge(critic, image, logits, target, own=True)
    for layer in critic.layers:
        assert torch.linalg.matrix_norm(layer.conv.weight.flatten(1), 2).item() == pytest.approx(1.0, abs=0.05)
    before = [p.clone() for p in critic.parameters()]
    clamp_weights(critic)
    assert all(torch.equal(a, b) for a, b in zip(before, critic.parameters(), strict=True))


def test_segan_weights_stay_within_their_limit() -> None:
    critic = _critic("segan", FLAT)
    assert max(p.abs().max().item() for p in critic.parameters()) > 0.05
    clamp_weights(critic)
    assert max(p.abs().max().item() for p in critic.parameters()) == pytest.approx(0.05)
    other = _critic("consistency", FLAT)
    before = [p.clone() for p in other.parameters()]
    clamp_weights(other)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


def test_a_projection_saturates_with_thickness() -> None:
    volume = torch.zeros(1, 1, 3, 4, 5)
    volume[0, 0, :, 1, 2] = 1.0
    for axis in range(3):
        wanted = 1 - torch.exp(-volume.sum(axis + 2))
        torch.testing.assert_close(project(volume, axis), wanted)
    assert project(volume, 0)[0, 0, 1, 2] > 0.95
    assert 0.6 < project(volume, 1)[0, 0, 0, 2] < 0.64


@pytest.mark.parametrize("own", [False, True])
def test_projective_critics_see_a_projection_each_and_every_slice_with_its_image(own: bool) -> None:
    image, logits, target = _scene(THICK)
    critic, seen = _critic("projective", THICK), []
    for part in (*critic.projections, critic.slices):
        part.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    found = judge(critic, image, logits, target, own=own)
    predicted, true = masks(logits.detach(), target)
    wanted = []
    for mask in (predicted, true) if own else (predicted,):
        wanted += [1 - torch.exp(-sum(mask.unbind(axis))) for axis in (2, 3, 4)]
        wanted.append(torch.cat([torch.cat([image[b], mask[b]])[None, :, z] for b in range(2) for z in range(4)]))
    assert len(seen) == len(wanted)
    for (given, _), expected in zip(seen, wanted, strict=True):
        torch.testing.assert_close(given, expected)
    terms = [
        -torch.sigmoid(said if number >= 4 or not own else -said).log().mean() for number, (_, said) in enumerate(seen)
    ]
    torch.testing.assert_close(found, sum(terms) / len(terms))


@pytest.mark.parametrize(("use", "topology"), [("consistency", FLAT), ("consistency", THICK), ("projective", THICK)])
def test_a_critic_that_says_true_or_false_learns_to_tell_them_apart(use: str, topology: Topology) -> None:
    image, logits, target = _scene(topology)
    critic = _critic(use, topology)
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.01)
    losses, terms = [], []
    for _ in range(40):
        optimizer.zero_grad()
        loss = judge(critic, image, logits, target, own=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        terms.append(judge(critic, image, logits, target).item())
    assert losses[-1] < 0.5 * losses[0]
    assert terms[-1] > terms[0]  # the better the critic, the worse for the segmentor


@pytest.mark.parametrize("use", sorted(CRITICS))
def test_gradients_of_one_never_reach_the_other(use: str) -> None:
    image, logits, target = _scene(THICK)
    critic = _critic(use, THICK)
    judge(critic, image, logits, target).backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0
    assert all(p.grad is None for p in critic.parameters())
    logits.grad = None
    judge(critic, image, logits, target, own=True).backward()
    assert logits.grad is None
    assert all(p.grad is not None for p in critic.parameters())


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(PlanError, match="3D masks"):
        _critic("projective", FLAT)
    with pytest.raises(PlanError, match="consistency, projective, segan"):
        _critic("judge", FLAT)
    for options, says in (({"bound": "none"}, "clamp or spectral"), ({"shares": [1.0]}, "give 4 numbers")):
        with pytest.raises(PlanError, match=says):
            build_critic(Adversary("segan", options=options), FLAT, channels=1, outputs=2, regions=False)
    with pytest.raises(PlanError, match="width and levels"):
        build_critic(Adversary("segan", options={"levels": 0}), FLAT, channels=1, outputs=2, regions=False)
