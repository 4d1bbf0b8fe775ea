import copy
import itertools
import math

import pytest
import torch
from torch import nn

from medseg.errors import PlanError
from medseg.networks.blocks.rater_code import RaterCode
from medseg.networks.blocks.separable import WeightedPool
from medseg.training.optim import build_optimizer, cosine_restarts, poly, set_rate
from medseg.training.position import Position, advance, close_epoch, epoch_is_full, keep_time, pace, progress
from medseg.types.plan import Step


def test_poly_follows_its_formula():
    assert [poly(t) for t in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5**0.9, 0.0])
    assert poly(0.25, power=2) == pytest.approx(0.5625)


def test_cosine_warms_up_linearly_then_falls():
    values = [cosine_restarts(t, warmup=0.1) for t in (0.0, 0.05, 0.1, 0.55, 1.0)]
    assert values == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0], abs=1e-9)


def test_cosine_restarts_at_the_end_of_each_cycle():
    assert cosine_restarts(0.4999, cycles=2) == pytest.approx(0.0, abs=1e-4)
    assert cosine_restarts(0.5, cycles=2) == 1.0
    assert cosine_restarts(0.75, cycles=2) == pytest.approx(0.5)
    third = 1 / 3
    assert cosine_restarts(third + 1e-9, cycles=2, multiplier=2.0) == pytest.approx(1.0)
    assert cosine_restarts(2 * third, cycles=2, multiplier=2.0) == pytest.approx(0.5)


def test_sgd_is_nesterov_with_the_published_settings():
    network = nn.Linear(2, 2)
    optimizer, schedule = build_optimizer(network, Step("sgd"), Step("poly"))
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.01, 0.99, True, 3e-5)
    set_rate(optimizer, schedule(0.5))
    set_rate(optimizer, schedule(0.5))
    assert group["lr"] == pytest.approx(0.01 * 0.5**0.9)


def test_adamw_decays_weights_but_not_biases():
    optimizer, _ = build_optimizer(nn.Linear(2, 2), Step("adamw", {"lr": 0.1}), Step("cosine_restarts"))
    decays = {p.ndim: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {2: 1e-2, 1: 0.0}


@pytest.mark.parametrize(("use", "more"), [("sgd", {"momentum": 0.9}), ("adamw", {})])
def test_an_l1_penalty_switches_off_channels_that_do_nothing(use, more):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    with torch.no_grad():
        network[2].weight[0, 2:] = 0
    network[2].requires_grad_(False)  # so that the last two channels are never heard
    settings = {"lr": 0.01, "weight_decay": 0.0, "l1_norms": 0.05, **more}
    optimizer, _ = build_optimizer(network, Step(use, settings), Step("poly"))
    values = torch.linspace(-1, 1, 32)[:, None]
    for _ in range(300):
        optimizer.zero_grad()
        (network(values) - 3 * values).square().mean().backward()
        optimizer.step()
    gammas = network[1].weight.abs()
    assert (gammas[:2] > 0.3).all() and (gammas[2:] < 0.05).all()


def test_an_l1_penalty_needs_batch_norms():
    with pytest.raises(PlanError, match="needs batch norms"):
        build_optimizer(nn.Linear(2, 2), Step("sgd", {"l1_norms": 0.1}), Step("poly"))
    with pytest.raises(PlanError, match="is negative"):
        build_optimizer(nn.BatchNorm1d(2), Step("sgd", {"l1_norms": -0.1}), Step("poly"))


DECAYED = {"conv.weight", "linear.weight", "rater.spread_weight"}


class Scaled(nn.Module):
    """One of every kind of parameter that must not decay, and of those that must."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 4, 1)
        self.norm = nn.BatchNorm3d(4)
        self.act = nn.PReLU(4)
        self.linear = nn.Linear(4, 2)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.scale = nn.Parameter(torch.ones(4, 1, 1, 1))
        self.positions = nn.Parameter(torch.ones(5, 2))
        self.pool = WeightedPool(2, (3, 3))
        self.rater = RaterCode(4, raters=2, size=3)
        nn.init.ones_(self.rater.spread_weight)  # it starts at 0, which nothing decays


@pytest.mark.parametrize(("use", "default"), [("sgd", True), ("adamw", False)])
def test_norms_biases_and_gammas_do_not_decay_unless_asked_for(use, default):
    network = Scaled()
    names = {id(p): name for name, p in network.named_parameters()}

    def decayed(**options):
        optimizer, _ = build_optimizer(network, Step(use, {"weight_decay": 0.1, **options}), Step("poly"))
        groups = optimizer.param_groups
        assert sum(len(group["params"]) for group in groups) == len(names)
        return {names[id(p)] for group in groups if group["weight_decay"] == 0.1 for p in group["params"]}

    assert decayed(decay_norms=False) == DECAYED
    assert decayed(decay_norms=True) == set(names.values())
    assert decayed() == decayed(decay_norms=default)


@pytest.mark.parametrize("use", ["sgd", "adamw"])
def test_excluded_parameters_stay_where_they_are_without_gradients(use):
    network = Scaled()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    options = {"weight_decay": 0.1, "lr": 0.1, "decay_norms": False}
    optimizer, _ = build_optimizer(network, Step(use, options), Step("poly"))
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moved = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert moved == DECAYED
    if use == "adamw":
        torch.testing.assert_close(network.conv.weight, before["conv.weight"] * (1 - 0.1 * 0.1))


@pytest.mark.parametrize("decay_norms", [True, False])
def test_sgd_as_before_is_torchs_on_all_parameters(decay_norms):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2, affine=True), nn.Conv2d(2, 1, 1))
    twin = copy.deepcopy(network)
    options = {"lr": 0.1, "weight_decay": 0.3, "decay_norms": decay_norms}
    own, _ = build_optimizer(network, Step("sgd", options), Step("poly"))
    other = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.99, weight_decay=0.3, nesterov=True)
    image = torch.randn(2, 1, 8, 8)
    for _ in range(2):
        for net, optimizer in ((network, own), (twin, other)):
            optimizer.zero_grad()
            net(image).square().mean().backward()
            optimizer.step()
    same = all(torch.equal(a, b) for a, b in zip(network.parameters(), twin.parameters(), strict=True))
    assert same == decay_norms


def test_optimisers_of_ones_own_get_the_parameters_alone():
    network = nn.Linear(2, 2)
    optimizer, _ = build_optimizer(network, Step("torch.optim:Adagrad", {"lr": 0.1}), Step("poly"))
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in network.parameters()]


def test_unknown_names_are_refused():
    with pytest.raises(PlanError, match=r"training\.optimizer"):
        build_optimizer(nn.Linear(1, 1), Step("sdg"), Step("poly"))
    with pytest.raises(PlanError, match=r"training\.schedule.*no option powr"):
        build_optimizer(nn.Linear(1, 1), Step("sgd"), Step("poly", {"powr": 1}))


def test_progress_runs_from_zero_to_one():
    position = Position(total=4)
    seen = []
    while position.step < position.total:
        seen.append(progress(position))
        position = advance(position, {"loss": 1.0})
    assert seen == [0.0, 0.25, 0.5, 0.75] and progress(position) == 1.0


def test_keeping_time_is_smooth_monotone_and_ends_in_time():
    position, limit, step_s = Position(total=1000), 100.0, 0.5
    seen = [progress(position)]
    while position.step < position.total:
        position = advance(position, {})
        position = Position(**{**vars(position), "trained_s": position.trained_s + step_s})
        if position.step % 20 == 0:
            position = keep_time(position, planned=1000, limit_s=limit, step_s=step_s)
        seen.append(progress(position))
    assert position.trained_s <= limit and position.trained_s > 0.95 * limit
    jumps = torch.tensor(seen).diff()
    assert (jumps > 0).all() and jumps.max() < 3 * jumps.min() * 10
    assert seen[-1] == 1.0


def test_time_to_spare_never_goes_beyond_the_plan():
    position = Position(total=100, step=50)
    assert keep_time(position, planned=100, limit_s=1e6, step_s=0.1) is position
    spent = Position(total=100, step=50, trained_s=200.0)
    assert keep_time(spent, planned=100, limit_s=100.0, step_s=1.0).total == 50


def test_steps_lost_to_a_slow_while_come_back():
    """Steps of 10 s for a while, of 0.1 s after: the run ends with most of its steps and its schedule complete."""
    position, seen = Position(total=900), [0.0]
    marks = [(0, 0.0)]
    while position.step < position.total:
        position = advance(position, {})
        took = 10.0 if 20 < position.step <= 23 else 0.1
        position = Position(**{**vars(position), "trained_s": position.trained_s + took})
        if position.step % 5 == 0:
            marks.append((position.step, position.trained_s))
            position = keep_time(position, planned=900, limit_s=100.0, step_s=pace(marks[-13:]))
        seen.append(progress(position))
    assert 600 < position.step and position.trained_s <= 100.0
    assert seen[-1] == 1.0 and all(a <= b for a, b in itertools.pairwise(seen))


def test_an_epoch_is_full_after_its_steps_or_at_the_end():
    position = advance(advance(Position(total=3), {"loss": 2.0}), {"loss": 4.0})
    assert epoch_is_full(position, 2) and position.sums == {"loss": 6.0}
    position = close_epoch(position, {})
    assert (position.epochs, position.count, dict(position.sums)) == (1, 0, {})
    assert not epoch_is_full(position, 2)
    assert epoch_is_full(advance(position, {}), 2)


def test_pace_needs_two_marks():
    assert pace([]) is None and pace([(3, 1.0)]) is None and pace([(3, 1.0), (3, 2.0)]) is None
    assert pace([(0, 1.0), (5, 2.0), (10, 6.0), (15, 7.0)]) == pytest.approx(0.4)
    assert pace([(0, 1.0), (5, 2.0), (10, 60.0), (15, 61.0)]) == pytest.approx(0.2), "one stall"
    assert math.isclose(pace([(0, 0.0), (4, 1.0)]), 0.25)
