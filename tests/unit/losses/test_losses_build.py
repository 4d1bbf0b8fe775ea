"""The weighted sum of a plan over decoder scales."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from medseg.errors import PlanError
from medseg.losses import build
from medseg.losses.build import at_scale, build_loss, scale_weights
from medseg.losses.dice import cross_entropy, dice, dice_ce
from medseg.types.plan import LossTerm
from medseg.types.tensors import Batch, NetworkOutput


def _batch(*size: int) -> Batch:
    target = torch.randint(-1, 3, (2, 1, *size), generator=torch.Generator().manual_seed(0))
    return Batch(torch.zeros(2, 1, *size), target)


def _output(*sizes: tuple[int, ...]) -> NetworkOutput:
    rng = torch.Generator().manual_seed(1)
    return NetworkOutput(tuple(torch.randn(2, 3, *size, generator=rng) for size in sizes))


def test_scales_weigh_half_as_much_each_and_the_last_nothing() -> None:
    assert scale_weights(1) == (1.0,)
    assert scale_weights(4) == pytest.approx((4 / 7, 2 / 7, 1 / 7, 0.0))
    assert scale_weights(2) == (1.0, 0.0)


def test_the_total_is_the_weighted_sum_over_scales_and_terms() -> None:
    output, batch = _output((8, 8), (4, 4), (2, 2)), _batch(8, 8)
    value = build_loss([LossTerm(2.0, "dice"), LossTerm(0.5, "cross_entropy")])(output, batch)
    small = Batch(batch.image, batch.target[:, :, 1::2, 1::2])
    parts = [(2 / 3, NetworkOutput(output.logits[:1]), batch), (1 / 3, NetworkOutput(output.logits[1:2]), small)]
    sums = {name: sum(w * term(o, b) for w, o, b in parts) for name, term in (("d", dice), ("c", cross_entropy))}
    torch.testing.assert_close(value.terms["dice"], sums["d"])
    torch.testing.assert_close(value.terms["cross_entropy"], sums["c"])
    torch.testing.assert_close(value.total, 2.0 * sums["d"] + 0.5 * sums["c"])


@pytest.mark.parametrize(("size", "small"), [((8, 6), (4, 3)), ((4, 8, 8), (4, 4, 2)), ((9,), (3,))])
def test_targets_shrink_to_the_nearest_voxel_as_torch_does(size: tuple[int, ...], small: tuple[int, ...]) -> None:
    batch = _batch(*size)
    near = at_scale(batch, small).target
    oracle = torch.nn.functional.interpolate(batch.target.float(), size=small, mode="nearest-exact")
    assert near.dtype == batch.target.dtype
    assert torch.equal(near, oracle.long())
    assert at_scale(batch, size).target is batch.target


def test_only_the_total_carries_gradients() -> None:
    logits = torch.zeros(2, 3, 4, 4, requires_grad=True)
    value = build_loss([LossTerm(1.0, "dice_ce")])(NetworkOutput((logits,)), _batch(4, 4))
    assert value.total.requires_grad and not value.terms["dice"].requires_grad
    value.total.backward()
    assert logits.grad is not None and logits.grad.any()


def test_dice_and_cross_entropy_are_told_apart_and_add_up() -> None:
    output, batch = _output((8, 8), (4, 4), (2, 2)), _batch(8, 8)
    options = {"batch_dice": True, "dice_weight": 0.5, "ce_weight": 2.0, "smooth": 0.1}
    value = build_loss([LossTerm(3.0, "dice_ce", options)])(output, batch)
    apart = {"batch_dice": True, "smooth": 0.1}
    terms = [LossTerm(1.0, "dice", apart), LossTerm(1.0, "cross_entropy")]
    separate = build_loss(terms)(output, batch).terms
    assert dict(value.terms) == dict(separate)
    torch.testing.assert_close(value.total, 1.5 * separate["dice"] + 6.0 * separate["cross_entropy"])
    joint = sum(
        share * dice_ce(NetworkOutput((logits,)), at_scale(batch, logits.shape[2:]), **options)  # type: ignore[arg-type]
        for share, logits in zip(scale_weights(3), output.logits, strict=True)
    )
    torch.testing.assert_close(value.total, 3.0 * joint)
    alone = build_loss([LossTerm(1.0, "dice_ce", {"ce_weight": 0})])(output, batch)
    assert set(alone.terms) == {"dice"}
    with pytest.raises(PlanError, match="no option smoothing"):
        build_loss([LossTerm(1.0, "dice_ce", {"smoothing": 1.0})])


def test_losses_are_float32_even_under_autocast() -> None:
    output = NetworkOutput((torch.randn(2, 3, 4, 4).bfloat16(),))
    loss = build_loss([LossTerm(1.0, "dice_ce")])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(output, _batch(4, 4)).total
    torch.testing.assert_close(inside, loss(output, _batch(4, 4)).total)
    assert inside.dtype == torch.float32


def test_a_loss_of_the_users_own_sees_one_scale_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def own(output: NetworkOutput, batch: Batch, *, factor: float) -> Tensor:
        seen.append((len(output.logits), output.logits[0].shape[2:] == batch.target.shape[2:]))
        return factor * output.logits[0].mean()

    monkeypatch.setitem(__import__("sys").modules, "my_lab_losses", SimpleNamespace(own=own))
    output = _output((8, 8), (4, 4), (2, 2))
    value = build_loss([LossTerm(1.0, "my_lab_losses:own", {"factor": 3.0})])(output, _batch(8, 8))
    assert seen == [(1, True), (1, True)]
    wanted = 3 * (2 / 3 * output.logits[0].mean() + 1 / 3 * output.logits[1].mean())
    torch.testing.assert_close(value.total, wanted)
    assert set(value.terms) == {"own"}


def test_a_loss_of_the_users_own_may_see_everything_as_the_guide_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    guide = Path(__file__).parents[3] / "docs" / "guide" / "extension.md"
    code = guide.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    module = ModuleType("my_lab_points")
    exec(code, module.__dict__)
    monkeypatch.setitem(sys.modules, "my_lab_points", module)
    term = LossTerm(2.0, "my_lab_points:robust_points", {"width_mm": 4.0})
    known = torch.tensor([[[1.0, 2.0], [4.0, 0.0]], [[3.0, 3.0], [float("nan")] * 2]])
    found = torch.tensor([[[1.0, 3.0], [4.0, 5.0]], [[0.0, 3.0], [7.0, 7.0]]], requires_grad=True)
    batch = Batch(torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.int64), known, spacing=(1.0, 2.0))
    value = build_loss([term])(NetworkOutput(points=found), batch)  # 2, 10 and 3 mm away
    torch.testing.assert_close(value.terms["robust_points"], torch.tensor((4 / 8 + 8 + 9 / 8) / 3))
    value.total.backward()
    assert found.grad is not None and not found.grad[1, 1].any() and found.grad.isfinite().all()
    everything = []

    def all_scales(output: NetworkOutput, batch: Batch) -> Tensor:
        everything.append((len(output.logits), batch.target.shape))
        return sum((logits.mean() for logits in output.logits), torch.zeros(()))

    all_scales.whole_output = True  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_lab_points", SimpleNamespace(all_scales=all_scales))
    output = _output((8, 8), (4, 4))
    total = build_loss([LossTerm(1.0, "my_lab_points:all_scales")])(output, _batch(8, 8)).total
    torch.testing.assert_close(total, output.logits[0].mean() + output.logits[1].mean())
    assert everything == [(2, (2, 1, 8, 8))]


def test_a_term_used_twice_is_logged_twice() -> None:
    terms = [LossTerm(1.0, "dice"), LossTerm(1.0, "dice", {"batch_dice": True})]
    value = build_loss(terms)(_output((4, 4)), _batch(4, 4))
    assert set(value.terms) == {"dice_0", "dice_1"}
    assert value.total == sum(value.terms.values())


@pytest.mark.parametrize(
    ("terms", "says"),
    [
        ([], "no loss"),
        ([LossTerm(1.0, "dise")], "cross_entropy, dice, dice_ce"),
        ([LossTerm(1.0, "dice", {"gamma": 2.0})], "no option gamma"),
        ([LossTerm(1.0, "nowhere_at_all:loss")], "cannot import"),
    ],
)
def test_a_wrong_plan_is_refused_before_training(terms: list[LossTerm], says: str) -> None:
    with pytest.raises(PlanError, match=says) as error:
        build_loss(terms)
    assert error.value.where == "training.losses"


def test_terms_of_the_whole_output_are_called_once_and_need_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    def reach(output: NetworkOutput, batch: Batch) -> torch.Tensor:
        assert output.points is not None
        return output.points.square().sum()

    monkeypatch.setattr(build, "WHOLE_LOSSES", {"reach": reach})
    output = NetworkOutput(points=torch.full((1, 1, 2), 3.0))
    loss = build_loss([LossTerm(0.5, "reach")])
    assert float(loss(output, _batch(4, 4)).total) == 9.0
    with pytest.raises(PlanError, match="without the head segmentation"):
        build_loss([LossTerm(0.5, "reach"), LossTerm(1.0, "dice_ce")])(output, _batch(4, 4))


def test_spacing_follows_the_scale() -> None:
    batch = Batch(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.int64), spacing=(0.5, 2.0))
    assert at_scale(batch, (4, 8)).spacing == (1.0, 2.0)
