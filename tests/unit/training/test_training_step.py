import math
from dataclasses import replace

import pytest
import torch
from tiny_run import tiny_plan
from torch import nn

from medseg.errors import TrainingError
from medseg.losses.build import LossValue, build_loss
from medseg.networks.build import build_network
from medseg.networks.critics import judge
from medseg.training.adversary import open_opponent
from medseg.training.balance import open_balance
from medseg.training.step import (
    averaged,
    new_average,
    new_scaler,
    overlaps,
    train_step,
    update_average,
    validate,
)
from medseg.types.labels import Label, Labels
from medseg.types.plan import Adversary, LossTerm
from medseg.types.tensors import Batch, NetworkOutput

CPU = torch.device("cpu")
TWO = Labels((Label("a", (1,)), Label("b", (2,))))


def network_of(ndim):
    torch.manual_seed(0)
    plan = tiny_plan(ndim=ndim)
    return build_network(plan.network, channels=1, outputs=3), build_loss(plan.training.losses)


def batch_of(ndim, size=16):
    torch.manual_seed(1)
    target = torch.randint(0, 3, (2, 1, *[size] * ndim))
    return Batch(target.float() + 0.1 * torch.randn(target.shape), target)


def step(network, batch, loss, optimizer, **options):
    return train_step(network, batch, loss, optimizer, scaler=new_scaler("fp32", CPU), **options)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_steps_lower_the_loss(ndim, precision):
    network, loss = network_of(ndim)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    batch = batch_of(ndim, 8)
    losses = [step(network, batch, loss, optimizer, precision=precision).loss for _ in range(15)]
    assert losses[-1] < 0.8 * losses[0]


def test_logits_reach_the_loss_in_float32():
    network, plain = network_of(2)
    seen = []

    def loss(output, batch):
        seen.extend(output.logits)
        return plain(output, batch)

    step(network, batch_of(2), loss, torch.optim.SGD(network.parameters(), lr=0.1), precision="bf16")
    validate(network, [batch_of(2)], loss, TWO, "bf16")
    assert len(seen) == 2  # of the step, and of the validation
    assert all(logits.dtype == torch.float32 for logits in seen)
    assert all(torch.equal(logits, logits.bfloat16().float()) for logits in seen)  # computed in bf16


def test_a_critic_is_part_of_the_loss_and_takes_a_step_of_its_own_within_its_bounds():
    network, loss = network_of(2)
    plan = tiny_plan(ndim=2)
    plan = replace(plan, training=replace(plan.training, adversary=Adversary("segan", weight=0.25, lr=0.1)))
    opponent, batch = open_opponent(plan, CPU), batch_of(2)
    before = [weight.detach().clone() for weight in opponent.critic.parameters()]
    logits = network.train()(batch.image)
    verdict = float(judge(opponent.critic, batch.image, logits.logits[0], batch.target).detach())
    wanted = float(loss(logits, batch).total.detach()) + 0.25 * verdict
    found = step(network, batch, loss, torch.optim.SGD(network.parameters(), lr=0.1), opponent=opponent)
    assert found.loss == pytest.approx(wanted, rel=1e-5)
    assert found.terms["adversary"] == pytest.approx(verdict, rel=1e-5) and found.terms["critic"] < 0
    after = list(opponent.critic.parameters())
    assert all(not torch.equal(one, other) for one, other in zip(after, before, strict=True))
    assert all(weight.abs().max() <= 0.05 for weight in after)  # a step of 0.1 leaves the bounds


def test_the_update_is_plain_sgd_on_clipped_gradients():
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    network = nn.Linear(2, 1, bias=False)
    network.weight = weight

    class Output(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, image):
            return NetworkOutput((self.inner(image),))

    def loss(output, batch):
        total = (output.logits[0] * 5).sum()
        return type("Value", (), {"total": total, "terms": {"one": total.detach()}})

    before = weight.detach().clone()
    batch = Batch(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 1, dtype=torch.int64))
    result = step(Output(), batch, loss, torch.optim.SGD([weight], lr=0.1), clip_grad_norm=1.0)
    assert result.grad_norm == pytest.approx(25.0)
    assert torch.allclose(before - weight, torch.tensor([[0.06, 0.08]]), atol=1e-5)
    assert result.terms == {"one": 125.0}


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_numbers_that_are_not_finite_stop_before_the_update(where):
    network, loss = network_of(2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    batch = batch_of(2)
    before = [p.detach().clone() for p in network.parameters()]
    if where == "loss":
        batch.image[0, 0, 0, 0] = math.nan
    else:
        next(network.parameters()).register_hook(lambda grad: grad * math.inf)
    with pytest.raises(TrainingError, match=f"the {where}s? (is|are) not finite.*dice .*cross_entropy"):
        step(network, batch, loss, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def two_terms(values):
    """A loss of two terms that are the first weight times `values`, with learnt weights."""
    plan = tiny_plan(losses=(LossTerm(1.0, "dice"), LossTerm(1.0, "cross_entropy")), weighting="uncertainty")
    balance = open_balance(plan, CPU)
    return balance, two_terms_of(balance, *values)


def two_terms_of(balance, first, second=0.1):
    def loss(output, batch):
        parts = [output.logits[0].mean() * 0 + value for value in (first, second)]
        return LossValue(balance.weights(parts), {"one": parts[0].detach(), "two": parts[1].detach()})

    return loss


def test_learnt_weights_are_updated_beside_the_network():
    network, _ = network_of(2)
    balance, loss = two_terms((0.1, 8.0))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(20):
        step(network, batch_of(2, 8), loss, optimizer, balance=balance)
    small, large = balance.weights.weights()
    assert small > 1.05 > 0.95 > large
    assert balance.now() == {"weight dice": small, "weight cross_entropy": large}


def test_no_weight_is_learnt_for_a_negative_term():
    network, _ = network_of(2)
    balance, loss = two_terms((0.1, -0.001))
    step(network, batch_of(2, 8), loss, torch.optim.SGD(network.parameters(), lr=0.1), balance=balance)
    balance, loss = two_terms((0.1, -1.0))
    with pytest.raises(TrainingError, match="negative"):
        step(network, batch_of(2, 8), loss, torch.optim.SGD(network.parameters(), lr=0.1), balance=balance)


def test_a_term_that_is_negative_for_one_sample_of_several_is_found():
    network, _ = network_of(2)
    balance, of_values = two_terms((0.1, 0.1))

    def loss(output, batch):
        values = [two(output, batch) for two in (two_terms_of(balance, -1.0), two_terms_of(balance, 1.0))]
        return LossValue(values[0].total + values[1].total, values[0].terms)

    with pytest.raises(TrainingError, match="negative"):
        step(network, batch_of(2, 8), loss, torch.optim.SGD(network.parameters(), lr=0.1), balance=balance)
    step(network, batch_of(2, 8), of_values, torch.optim.SGD(network.parameters(), lr=0.1), balance=balance)


def test_the_average_follows_its_closed_form():
    network = nn.Linear(1, 1, bias=False)
    average = new_average(network)
    want, weights = float(network.weight.detach()), []
    for number in range(30):
        value = math.sin(number)
        with torch.no_grad():
            network.weight.fill_(value)
        update_average(average, network, 0.8, number)
        keep = min(0.8, (1 + number) / (10 + number))
        want = keep * want + (1 - keep) * value
        weights.append(keep)
    assert float(average["weight"]) == pytest.approx(want, abs=1e-6)
    assert max(weights) < 0.8 and weights[0] == 0.1


def test_the_average_is_in_place_only_within_the_block():
    network, _ = network_of(2)
    average = new_average(network)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1.5)
    own = {k: v.clone() for k, v in network.state_dict().items()}
    kept = {k: v.clone() for k, v in average.items()}
    with averaged(network, average):
        assert all(torch.equal(v, kept[k]) for k, v in network.state_dict().items())
    assert all(torch.equal(v, own[k]) for k, v in network.state_dict().items())
    assert all(torch.equal(v, kept[k]) for k, v in average.items())


def test_overlaps_count_voxels_and_leave_ignored_ones_out():
    target = torch.tensor([[[[0, 1, 1, 2, -1]]]])
    logits = torch.nn.functional.one_hot(torch.tensor([[[0, 1, 2, 2, 1]]]), 3).permute(0, 3, 1, 2).float()
    assert overlaps(logits, target).tolist() == [[1, 1], [1, 2], [2, 1]]
    regions = torch.tensor([[[[1, 1, -1]], [[0, 1, -1]]]])
    scores = torch.tensor([[[[1.0, -1, 1]], [[1.0, 1, 1]]]])
    assert overlaps(scores, regions).tolist() == [[1, 1], [1, 2], [2, 1]]


def test_validation_pools_voxels_over_batches():
    class Perfect(nn.Module):
        def forward(self, image):
            hot = torch.nn.functional.one_hot(image[:, 0].long(), 3).movedim(-1, 1)
            return NetworkOutput((hot.float() * 20,))

    _, loss = network_of(2)
    one = torch.tensor([[[[0, 1], [1, 1]]]])
    wrong = Batch(torch.zeros(1, 1, 2, 2), one)
    right = Batch(one.float(), one)
    found = validate(Perfect(), [right, wrong], loss, TWO, "fp32")
    assert found["dice a"] == pytest.approx(2 * 3 / 9)
    assert math.isnan(found["dice b"])
    assert found["dice"] == found["dice a"] and math.isfinite(found["val_loss"])


def test_validation_measures_landmarks_in_mm_and_survives_without_classes():
    class Finds(nn.Module):
        def forward(self, image):
            return NetworkOutput(heatmaps=image, points=torch.tensor([[[1.0, 2.0], [0.0, 0.0]]]))

    nan = math.nan
    batches = [
        Batch(torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4).long(), torch.tensor([points]), (3.0, 4.0))
        for points in ([[0.0, 1.0], [nan, nan]], [[1.0, 0.0], [nan, nan]])
    ]
    empty = Labels(())
    loss = lambda *_: LossValue(torch.tensor(2.0), {})  # noqa: E731
    found = validate(Finds(), batches, loss, empty, "fp32", landmarks=("a", "b"))
    assert found["radial_error_mm a"] == pytest.approx((5.0 + 8.0) / 2)
    assert math.isnan(found["radial_error_mm b"])
    assert found["radial_error_mm"] == found["radial_error_mm a"]
    assert found["val_loss"] == 2.0 and not any(name.startswith("dice") for name in found)
