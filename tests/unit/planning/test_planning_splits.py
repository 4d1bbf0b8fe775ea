"""Folds keep patients together, are balanced, and do not depend on the order of cases."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.errors import DatasetError
from medseg.planning.splits import extend_splits, make_splits, split_faults, take_turns
from medseg.types.dataset import Case, Dataset, Split
from medseg.types.labels import Label, Labels


def dataset_of(groups, splits=()) -> Dataset:
    cases = tuple(Case(f"c{i:03d}", (), None, group) for i, group in enumerate(groups))
    return Dataset("d", Path("d"), ("CT",), Labels((Label("a", (1,)),)), cases, splits)


@settings(max_examples=40, deadline=None)
@given(
    groups=st.lists(st.one_of(st.none(), st.integers(0, 12).map(str)), min_size=25, max_size=60),
    seed=st.integers(0, 5),
)
def test_folds_partition_cases_and_never_split_a_group(groups, seed):
    dataset = dataset_of([*groups, *"vwxyz"])
    splits = make_splits(dataset, seed=seed)
    ids = {case.id for case in dataset.cases}
    held = [set(split.val) for split in splits]
    assert len(splits) == 5
    assert set().union(*held) == ids
    assert sum(map(len, held)) == len(ids)
    for split in splits:
        assert set(split.train) == ids - set(split.val)
    for group in set(groups) - {None}:
        members = {case.id for case in dataset.cases if case.group == group}
        assert sum(bool(members & fold) for fold in held) == 1


def test_folds_are_balanced_and_large_groups_do_not_pile_up():
    sizes = [len(split.val) for split in make_splits(dataset_of([None] * 23))]
    assert sorted(sizes) == [4, 4, 5, 5, 5]
    groups = [str(g) for g in range(5) for _ in range(6)] + [None] * 10
    assert [len(split.val) for split in make_splits(dataset_of(groups))] == [8] * 5


def test_order_of_cases_does_not_matter_but_the_seed_does():
    dataset = dataset_of([None] * 40)
    mixed = list(dataset.cases)
    random.Random(1).shuffle(mixed)
    assert make_splits(replace(dataset, cases=tuple(mixed))) == make_splits(dataset)
    assert make_splits(dataset, seed=1) != make_splits(dataset)
    assert make_splits(dataset)[0].val != tuple(f"c{i:03d}" for i in range(8))


def test_a_group_named_like_a_case_is_not_that_case():
    dataset = dataset_of(["c001", None])
    assert [split.val for split in make_splits(dataset, folds=2)] in ([("c000",), ("c001",)], [("c001",), ("c000",)])


@pytest.mark.parametrize(("groups", "folds"), [(["p"] * 20, 5), ([None] * 4, 5), ([None] * 4, 1), ([], 5)])
def test_too_few_groups_say_what_to_do(groups, folds):
    with pytest.raises(DatasetError) as caught:
        make_splits(dataset_of(groups), folds=folds)
    assert caught.value.hint


def test_few_patients_have_a_fold_each():
    groups = ["p", "p", "q", None, "q"]
    assert sorted(len(split.val) for split in make_splits(dataset_of(groups))) == [1, 2, 2]
    with pytest.raises(DatasetError, match="--fold all"):
        make_splits(dataset_of(["p", "p"]))


def test_own_splits_win_if_they_are_sound():
    own = (Split(("c000",), ("c001", "c002")),)
    assert make_splits(dataset_of([None] * 3, own), folds=5) == own


@pytest.mark.parametrize(
    ("groups", "split", "word"),
    [
        (["p", "q", "p"], Split(("c000", "c001"), ("c002",)), '"p"'),
        ([None, None], Split(("c000", "zz"), ("c001",)), "zz"),
        ([None, None], Split(("c000",), ("c000", "c001")), '"c000"'),
        ([None, None], Split(("c000", "c001"), ()), "0 validation"),
    ],
)
def test_own_splits_that_leak_or_name_strangers_are_refused(groups, split, word):
    dataset = dataset_of(groups, (split,))
    assert any(word in fault.what for fault in split_faults(dataset) if fault.severity == "error")
    with pytest.raises(DatasetError, match="own splits"):
        make_splits(dataset)


def test_cases_in_no_fold_are_a_warning():
    (fault,) = split_faults(dataset_of([None] * 3, (Split(("c000",), ("c001",)),)))
    assert (fault.severity, "c002" in fault.what) == ("warning", True)


def test_added_cases_leave_old_ones_where_they_were():
    old = dataset_of([str(i // 2) for i in range(20)])
    before = make_splits(old)
    more = replace(
        old,
        cases=(
            *old.cases[1:],
            Case("n1", (), None, "3"),
            Case("n2", (), None, "new"),
            *(Case(f"m{i}", ()) for i in range(9)),
        ),
    )
    after = extend_splits(before, more)
    fold_of = {case: i for i, split in enumerate(after) for case in split.val}
    for i, split in enumerate(before):
        assert all(fold_of[case] == i for case in split.val if case != "c000")
    assert "c000" not in fold_of
    assert fold_of["n1"] == fold_of["c006"]
    assert set(fold_of) == {case.id for case in more.cases}
    assert max(len(s.val) for s in after) - min(len(s.val) for s in after) <= 1
    assert extend_splits(before, old) == before


def test_folds_that_cannot_be_extended_are_refused():
    dataset = dataset_of([None] * 4)
    twice = (Split(("c000",), ("c001",)), Split(("c000",), ("c001",)))
    with pytest.raises(DatasetError, match="once"):
        extend_splits(twice, dataset)
    apart = (Split(("c001",), ("c000",)), Split(("c000",), ("c001",)))
    with pytest.raises(DatasetError, match='group "p"'):
        extend_splits(apart, dataset_of(["p", "p"]))


HELD_OUT = (Split(("c000", "c001"), ("c002",)),)
FEWER_TO_LEARN_FROM = tuple(Split((f"c00{(i + 1) % 3}",), (f"c00{i}",)) for i in range(3))


@pytest.mark.parametrize("own", [HELD_OUT, FEWER_TO_LEARN_FROM, ()])
def test_folds_that_do_not_take_turns_are_never_dealt_to(own):
    assert not take_turns(own)
    with pytest.raises(DatasetError, match="every other fold"):
        extend_splits(own, dataset_of([None] * 4))


def test_folds_that_were_dealt_take_turns():
    assert take_turns(make_splits(dataset_of([None] * 12)))
    assert take_turns(make_splits(dataset_of(["p", "p", "q", None, "q"])))
