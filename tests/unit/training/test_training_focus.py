"""Samplers: frequencies against their shares, formulas against loops, and runs that resume bit for bit."""

import math
import os
import signal
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_run import fill_cache, tiny_plan

from medseg.errors import Interrupted, PlanError
from medseg.io.cache import open_case, write_case
from medseg.losses.build import build_loss
from medseg.training import focus, loop
from medseg.training.batches import batches, drawn_cases
from medseg.training.focus import (
    build_sampler,
    class_shares,
    dice_driven,
    dynamic,
    gathered,
    keep_chance,
    listening,
    margins,
    uniform_classes,
)
from medseg.training.loop import fit
from medseg.training.session import find_checkpoint, identity
from medseg.types.geometry import Geometry
from medseg.types.image import Image, LabelMap
from medseg.types.labels import Label, Labels
from medseg.types.plan import LossTerm, Plan, Step
from medseg.types.tensors import Batch, NetworkOutput

CPU = torch.device("cpu")
THREE = Labels((Label("a", (1,)), Label("b", (2,)), Label("c", (3,))))
REGIONS = Labels((Label("whole", (1, 2)), Label("core", (2,))))
SIZES = {1: 400, 2: 40, 3: 4}  # voxels of each class


def _case(folder, name, values):
    """A scan with lines of some classes, of very different lengths."""
    shape = (10, 10, 50)
    truth = np.zeros(shape, np.uint8)
    flat = truth.reshape(-1)
    for value in values:
        flat[500 * value : 500 * value + SIZES[value]] = value
    grid = Geometry(shape, (1.0, 1.0, 1.0))
    image = Image(np.zeros((1, *shape), np.float32), grid, ("MR",))
    write_case(folder, name, image, LabelMap(truth, grid, THREE), patch=(8, 8, 8))
    return open_case(folder, name)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    return [_case(folder, name, values) for name, values in (("x", (1, 2, 3)), ("y", (1, 2)), ("z", (1,)))]


def _class_of(case, voxel):
    return next(value for value, voxels in case.foreground.items() if (voxels == voxel).all(1).any())


def _drawn(sampler, number, known=focus.NOTHING, *, forced=True):
    found = []
    for seed in range(number):
        case, voxel, _ = sampler.choose(np.random.default_rng(seed), forced, known)
        found.append((case.case_id, None if voxel is None else _class_of(case, voxel)))
    return Counter(found)


def _within(count, number, chance, sigmas=3.0):
    return abs(count - number * chance) <= sigmas * math.sqrt(number * chance * (1 - chance)) + 1e-9


def test_centres_are_uniform_over_the_classes_present(cases):
    number = 3000
    counts = _drawn(uniform_classes(cases[:1], THREE), number)
    assert all(_within(counts["x", value], number, 1 / 3) for value in (1, 2, 3))
    counts = _drawn(uniform_classes(cases, THREE), number)
    for name, present in (("x", 3), ("y", 2), ("z", 1)):
        for value in range(1, present + 1):
            assert _within(counts[name, value], number, 1 / 3 / present)
    assert all(voxel is None for _, voxel in _drawn(uniform_classes(cases, THREE), 20, forced=False))


def test_shares_are_the_papers_formula_and_sum_to_one():
    dice = [0.9, 0.5, 0.75]
    lacks = [1 - d for d in dice]
    assert class_shares(dice) == pytest.approx([lack / sum(lacks) for lack in lacks])
    assert sum(class_shares(dice)) == pytest.approx(1)
    assert max(range(3), key=class_shares(dice).__getitem__) == 1  # the worst class gets most
    assert class_shares([1.0, 1.0]) == [0.5, 0.5]  # all perfect: uniform
    assert class_shares([0.6, math.nan, 0.8]) == pytest.approx([0.4 / 0.9, 0.3 / 0.9, 0.2 / 0.9])
    assert class_shares([math.nan, math.nan]) == [0.5, 0.5]


def test_dice_driven_classes_come_with_their_shares_whatever_cases_have_them(cases):
    number = 3000
    known = {"shares": [0.1, 0.2, 0.7]}
    counts = _drawn(dice_driven(cases, THREE), number, known)
    by_class = {value: sum(n for (_, v), n in counts.items() if v == value) for value in (1, 2, 3)}
    assert all(_within(by_class[value], number, share) for value, share in zip((1, 2, 3), known["shares"], strict=True))
    assert _within(counts["y", 2], number, 0.1) and _within(counts["x", 3], number, 0.7)
    first = _drawn(dice_driven(cases, THREE), number)
    assert _within(first["x", 3], number, 1 / 3)
    free = _drawn(dice_driven(cases, THREE), number, known, forced=False)
    assert all(_within(free[name, None], number, 1 / 3) for name in "xyz")


def test_a_class_that_no_case_has_and_a_perfect_one_are_not_drawn(cases):
    known = {"shares": [0.0, 0.5, 0.5]}
    assert set(_drawn(dice_driven(cases[1:2], THREE), 50, known)) == {("y", 2)}
    assert set(_drawn(dice_driven(cases[2:], THREE), 50, known)) == {("z", 1)}


def test_dice_comes_from_validation_or_from_the_training_patches():
    row = {"dice": 0.5, "dice a": 0.9, "dice b": 0.5, "dice c": 0.6}
    sampler = dice_driven([], THREE)
    assert sampler.learn({}, {}, row) == {"shares": class_shares([0.9, 0.5, 0.6])}
    seen = {"x": [2, 1, 0, 4, 2, 3, 4, 2, 0], "y": [1, 0, 0, 1, 0, 0, 1, 0, 0]}  # both, predicted, true of a, b, c
    assert sampler.learn({}, seen, {"loss": 1.0}) == {"shares": class_shares([6 / 10, 2 / 4, 0.0])}
    logits, target = torch.randn(2, 4, 5, 6), torch.randint(-1, 4, (2, 1, 5, 6))
    counts = sampler.look(logits, target)
    for i in range(2):
        said, true = logits[i].argmax(0), target[i, 0]
        for c in (1, 2, 3):
            kept = true >= 0
            expected = [(said == c) & (true == c), (said == c) & kept, true == c]
            assert counts[i, :, c - 1].tolist() == [int(part.sum()) for part in expected]


@pytest.mark.parametrize("size", [(4, 5), (2, 3, 4)])
def test_margins_are_those_of_single_voxels(size):
    rng = torch.Generator().manual_seed(len(size))
    logits = 2 * torch.randn(2, 3, *size, generator=rng)
    target = torch.randint(-1, 3, (2, 1, *size), generator=rng)
    regions = torch.randint(-1, 2, (2, 3, *size), generator=rng)
    p, q = logits.softmax(1), logits.sigmoid()
    sums, of_regions = np.zeros((2, 2, 3)), np.zeros((2, 2, 4))
    for i, *place in np.ndindex(2, *size):
        at = (i, slice(None), *place)
        true = int(target[(i, 0, *place)])
        if true >= 0:
            others = [x for c, x in enumerate(p[at].tolist()) if c != true]
            sums[i, :, true] += p[at][true].item() - max(others), 1
        inside = [c for c in range(3) if regions[at][c] == 1]
        for c in inside:
            of_regions[i, :, c + 1] += 2 * q[at][c].item() - 1, 1
        if (regions[at] == 0).all():
            of_regions[i, :, 0] += 1 - 2 * q[at].max().item(), 1
    np.testing.assert_allclose(margins(logits, target), sums, atol=1e-4)
    np.testing.assert_allclose(margins(logits, regions), of_regions, atol=1e-4)


def test_the_chance_to_keep_falls_with_the_margin_and_the_size_of_the_class():
    assert keep_chance(-0.01, 10, (10, 5), 0.05) == 1
    assert keep_chance(0.3, 10, (10, 5), 0.05) == pytest.approx(math.exp(-0.6))
    assert keep_chance(0.3, 5, (10, 5, 0), 0.05) == pytest.approx(math.exp(-0.3))
    assert keep_chance(1.0, 10, (10, 1), 0.05) == 0.05


def test_dynamic_learns_per_case_and_class_and_keeps_what_it_did_not_see(cases):
    sampler = dynamic(cases, THREE, floor=0.1)  # of 3 cases 3 have a, 2 have b, 1 has c
    seen = {"x": [40.0, -1.0, 3.0, 0.0, 100.0, 10.0, 10.0, 0.0]}
    known = sampler.learn({"x": [0.9, 0.8, 0.7, 0.6], "y": [0.5, 0.5, 0.5, 0.5]}, seen, {})
    assert known["x"] == pytest.approx([math.exp(-0.4 * 3), 1.0, math.exp(-0.3 * 2), 0.6])
    assert known["y"] == [0.5, 0.5, 0.5, 0.5]
    assert gathered({"x": [1.0, 2.0]}, ["x", "y", "x"], [[1, 1], [5, 5], [2, 2]]) == {"x": [4.0, 5.0], "y": [5, 5]}


def test_dynamic_draws_in_proportion_to_the_chances(cases):
    """Keeping with p after a uniform draw is drawing with p over the sum of all p."""
    number = 3000
    known = {"x": [0.2, 1.0, 0.5, 0.3], "y": [0.4, 0.1, 0.7, 1.0], "z": [1.0, 0.6, 1.0, 1.0]}
    sampler = dynamic(cases, THREE)
    free = _drawn(sampler, number, known, forced=False)
    assert all(_within(free[name, None], number, known[name][0] / 1.6) for name in "xyz")
    chances = {("x", v): known["x"][v] / 9 for v in (1, 2, 3)}
    chances |= {("y", v): known["y"][v] / 6 for v in (1, 2)} | {("z", 1): known["z"][1] / 3}
    forced = _drawn(sampler, number, known)
    assert all(_within(forced[key], number, chance / sum(chances.values())) for key, chance in chances.items())
    assert set(forced) == set(chances)


@pytest.mark.parametrize("forced", [True, False])
def test_reweighting_gives_the_expectation_of_uniform_sampling(cases, forced):
    known = {"x": [0.9, 0.2, 0.05, 1.0], "y": [0.1, 0.5, 0.3, 1.0]}  # nothing is known of z
    sampler, number = dynamic(cases, THREE, reweight=True), 6000
    drawn = [sampler.choose(np.random.default_rng(seed), forced, known) for seed in range(number)]
    weights = np.array([choice.weight for choice in drawn])
    assert weights.mean() == pytest.approx(1, abs=4 * weights.std() / math.sqrt(number))
    for name, present in (("x", 3), ("y", 2), ("z", 1)):
        for value in range(1, present + 1) if forced else [None]:
            shown = [(c.voxel is not None and _class_of(c.case, c.voxel)) or None for c in drawn]
            own = weights * [c.case.case_id == name and v == value for c, v in zip(drawn, shown, strict=True)]
            share = 1 / 3 / present if forced else 1 / 3
            assert own.mean() == pytest.approx(share, abs=4 * own.std() / math.sqrt(number))
    plain = dynamic(cases, THREE)
    assert all(plain.choose(np.random.default_rng(seed), forced, known).weight == 1 for seed in range(50))


def test_a_weighted_batch_has_the_mean_of_weighted_losses_of_its_samples():
    logits = torch.randn(3, 4, 5, 6, requires_grad=True)
    image, target = torch.zeros(3, 1, 5, 6), torch.randint(0, 4, (3, 1, 5, 6))
    loss = build_loss([LossTerm(1.0, "dice_ce"), LossTerm(0.5, "focal")])
    weight = torch.tensor([0.5, 2.0, 0.25])
    scales = (logits, logits[..., ::2])
    found = loss(NetworkOutput(scales), Batch(image, target, weight=weight))
    each = [
        loss(NetworkOutput(tuple(s[i : i + 1] for s in scales)), Batch(image[i : i + 1], target[i : i + 1]))
        for i in range(3)
    ]
    expected = sum(w * value.total for w, value in zip(weight, each, strict=True)) / 3
    torch.testing.assert_close(found.total, expected)
    assert found.terms.keys() == each[0].terms.keys()
    (gradient,) = torch.autograd.grad(found.total, logits)
    for i in range(3):
        (own,) = torch.autograd.grad(each[i].total, logits, retain_graph=True)
        torch.testing.assert_close(gradient[i], weight[i] * own[i] / 3)


def test_regions_have_margins_and_voxels_too(cases):
    sampler = dynamic(cases, REGIONS)
    case, voxel, _ = sampler.choose(np.random.default_rng(0), True, {})
    assert voxel is not None and _class_of(case, voxel) in (1, 2)
    assert sampler.learn({}, {"x": [1.0, 1, 1, 2, 2, 2]}, {})["x"][1] == pytest.approx(math.exp(-0.5 * 3 / 2))


def test_looking_leaves_the_loss_alone_and_keeps_the_order_of_samples():
    logits = torch.randn(3, 4, 5, 6, requires_grad=True)
    batch = Batch(torch.zeros(3, 1, 5, 6), torch.randint(0, 4, (3, 1, 5, 6)))
    heard, plain = [], build_loss([LossTerm(1.0, "dice")])
    value = listening(plain, dynamic([], THREE), heard)(NetworkOutput((logits,)), batch)
    assert torch.equal(value.total, plain(NetworkOutput((logits,)), batch).total) and value.total.requires_grad
    np.testing.assert_allclose(heard, margins(logits.detach(), batch.target).flatten(1), rtol=1e-6)
    assert listening(plain, uniform_classes([], THREE), heard) is plain


@pytest.mark.parametrize("floor", [0.0, -1.0, 1.5])
def test_a_floor_that_loses_samples_is_refused(floor):
    with pytest.raises(PlanError, match="floor"):
        build_sampler(Step("dynamic", {"floor": floor}), [], THREE)


def test_options_and_names_are_checked():
    with pytest.raises(PlanError, match="unknown name"):
        build_sampler(Step("hard"), [], THREE)
    with pytest.raises(PlanError, match="no option"):
        build_sampler(Step("dice_driven", {"floor": 0.1}), [], THREE)
    assert build_sampler(Step("dice_driven"), [], THREE).look is not None
    assert build_sampler(Step("dice_driven"), [], THREE, validated=True).look is None


def _plan(use, **training) -> Plan:
    plan = tiny_plan(epochs=2, steps_per_epoch=3, **training)
    return replace(plan, sampling=replace(plan.sampling, focus=Step(use)))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    fill_cache(folder)
    return folder


def test_streams_depend_on_what_is_known_and_on_nothing_else(cache):
    plan = _plan("dynamic")
    train = [open_case(cache, name) for name in ("a", "b", "c")]
    known = {name: [0.05, 0.05, 0.05] for name in ("a", "b")} | {"c": [1.0, 1.0, 1.0]}

    def first(count, **options):
        stream = batches(plan, train, device=CPU, **options)
        try:
            return [next(stream).image for _ in range(count)]
        finally:
            stream.close()

    plain, focused = first(6), first(6, known=known)
    assert not all(torch.equal(a, b) for a, b in zip(plain, focused, strict=True))
    again = [*first(3, known=known, workers=2), *first(3, known=known, start=3)]
    assert all(torch.equal(a, b) for a, b in zip(focused, again, strict=True))
    sampler = build_sampler(plan.sampling.focus, train, plan.labels)
    weighted = replace(plan, sampling=replace(plan.sampling, focus=Step("dynamic", {"reweight": True})))
    weights = [next(batches(weighted, train, device=CPU, known=known, start=step)).weight for step in range(8)]
    sampler = build_sampler(weighted.sampling.focus, train, plan.labels)
    for step, weight in enumerate(weights):  # a chance of 0.05 or 1 of what is drawn, with a mean of 1.1 / 3
        shown = drawn_cases(weighted, sampler, step, known)
        assert weight.tolist() == pytest.approx([1.1 / 3 / known[name][0] for name in shown])
    names = Counter(name for step in range(200) for name in drawn_cases(plan, sampler, step, known))
    assert names["c"] > 4 * (names["a"] + names["b"]) > 0


@pytest.mark.parametrize(("use", "val"), [("dynamic", ("c",)), ("dice_driven", ("c",)), ("dice_driven", ())])
def test_training_learns_and_resumes_to_the_same_bytes(cache, tmp_path, monkeypatch, use, val):
    monkeypatch.setattr(loop, "draw_curves", lambda *_: None)
    plan, train = _plan(use), ("a", "b")
    whole = fit(plan, train, val, cache, tmp_path / "whole", device=CPU)
    for step in (3, 5):  # at the end of an epoch and within one

        def ask(progress, step=step):
            if progress.done == step and progress.stage.startswith("train"):
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(Interrupted):
            fit(plan, train, val, cache, tmp_path / "broken", device=CPU, report=ask)
    resumed = fit(plan, train, val, cache, tmp_path / "broken", device=CPU, workers=2)
    assert resumed.read_bytes() == whole.read_bytes()
    known = find_checkpoint(tmp_path / "whole", identity(plan, train, val))[1]["position"]["known"]
    assert set(known) == ({"shares"} if use == "dice_driven" else {"a", "b"})
