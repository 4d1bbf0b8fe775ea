"""Cross-validation folds that never split a patient."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from medseg.errors import DatasetError
from medseg.types.dataset import Case, Dataset, Fault, Split

FOLDS = 5  # as in nnU-Net (Isensee 2021)


def make_splits(dataset: Dataset, *, folds: int | None = None, seed: int = 0) -> tuple[Split, ...]:
    """Folds of nearly equal numbers of cases, grouped by `Case.group`; the dataset's own splits where it has some.

    A function of the set of (case id, group), `folds` and `seed`; the order of cases does not matter. The largest
    groups are dealt first, each to the fold with the fewest cases. Without `folds` there are 5, or one per group where
    there are fewer groups.
    Raises DatasetError if there are fewer groups than `folds` or than two, or if the dataset's own splits split one.
    """
    if dataset.splits:
        wrong = [fault for fault in split_faults(dataset) if fault.severity == "error"]
        if wrong:
            what = "\n  ".join(["the dataset's own splits cannot be used", *(fault.what for fault in wrong)])
            raise DatasetError(what, where=dataset.root, hint="; ".join(dict.fromkeys(fault.fix for fault in wrong)))
        return dataset.splits
    groups = group_cases(dataset.cases)
    folds = max(2, min(FOLDS, len(groups))) if folds is None else folds
    if folds < 2:
        raise DatasetError(f"{folds} folds leave nothing to validate on", where="folds", hint="give 2 or more")
    if len(groups) < folds:
        alone = "add cases of another patient, or train one network on all cases with --fold all"
        hint = f"use at most {len(groups)} folds, or add cases" if len(groups) > 1 else alone
        raise DatasetError(f"{len(groups)} patients or groups for {folds} folds", where=dataset.root, hint=hint)
    return _as_splits(_deal(groups, [set() for _ in range(folds)], seed))


def extend_splits(existing: Sequence[Split], dataset: Dataset, *, seed: int = 0) -> tuple[Split, ...]:
    """`existing` with the dataset's new cases added: every old case stays in the fold it was validated in.

    A new case joins the fold of its group; new groups are dealt as in `make_splits`. Cases no longer there are left
    out. Raises DatasetError unless the existing folds `take_turns`, or if a group lies in two of them.
    """
    if not take_turns(existing):
        what = "splits do not validate every case once and train on it in every other fold"
        raise DatasetError(what, where=dataset.root, hint="make new splits")
    present = {case.id for case in dataset.cases}
    held = [set(split.val) & present for split in existing]
    new: dict[str, tuple[str, ...]] = {}
    for group, members in group_cases(dataset.cases).items():
        homes = [fold for fold, ids in enumerate(held) if ids.intersection(members)]
        if len(homes) > 1:
            what = f"{_named(group)} lies in folds {', '.join(map(str, homes))}"
            raise DatasetError(what, where=dataset.root, hint="correct the groups or make new splits")
        if homes:
            held[homes[0]].update(members)
        else:
            new[group] = members
    return _as_splits(_deal(new, held, seed))


def take_turns(splits: Sequence[Split]) -> bool:
    """Whether folds are as `make_splits` deals them: every case is validated once and trained on in every other fold.

    Folds of one's own need not be so: they may hold one set out, or train on fewer cases.

    >>> take_turns((Split(("a",), ("b",)), Split(("b",), ("a",)))), take_turns((Split(("a",), ("b",)),))
    (True, False)
    """
    held = [name for split in splits for name in split.val]
    dealt = {name for split in splits for name in (*split.train, *split.val)}
    once = bool(held) and len(held) == len(dealt) and set(held) == dealt
    return once and all(set(split.train) == dealt - set(split.val) for split in splits)


def split_faults(dataset: Dataset) -> tuple[Fault, ...]:
    """What is wrong with the splits a dataset brings: unknown cases, and groups on both sides of a fold."""
    groups = {case.id: _key(case) for case in dataset.cases}
    faults: list[Fault] = []
    for fold, split in enumerate(dataset.splits):
        unknown = sorted({*split.train, *split.val} - set(groups))
        if unknown:
            what = f"fold {fold} names unknown cases {_some(unknown)}"
            faults.append(Fault("", "", "error", what, "remove them from the splits file or restore the cases"))
        if not split.train or not split.val:
            what = f"fold {fold} has {len(split.train)} training and {len(split.val)} validation cases"
            faults.append(Fault("", "", "error", what, "give each side at least one case"))
        shared = {groups[i] for i in split.train if i in groups} & {groups[i] for i in split.val if i in groups}
        for group in sorted(shared):
            what = f"{_named(group)} is on both sides of fold {fold}"
            fix = "move all its cases to one side, or remove the splits file"
            faults.append(Fault(_member(group), "", "error", what, fix))
    seen = {i for split in dataset.splits for i in (*split.train, *split.val)}
    unused = sorted(set(groups) - seen) if dataset.splits else []
    if unused:
        what = f"{len(unused)} cases are in no fold: {_some(unused)}"
        faults.append(Fault("", "", "warning", what, "add them to the splits file, or remove it"))
    return tuple(faults)


def group_cases(cases: Iterable[Case]) -> Mapping[str, tuple[str, ...]]:
    """Case ids by group key, both sorted; a case without a group is a group of its own."""
    groups: dict[str, list[str]] = {}
    for case in cases:
        groups.setdefault(_key(case), []).append(case.id)
    return {key: tuple(sorted(groups[key])) for key in sorted(groups)}


def _deal(groups: Mapping[str, tuple[str, ...]], held: list[set[str]], seed: int) -> list[set[str]]:
    for group in sorted(groups, key=lambda key: (-len(groups[key]), _shuffled(seed, key))):
        smallest = min(range(len(held)), key=lambda fold: (len(held[fold]), fold))
        held[smallest].update(groups[group])
    return held


def _as_splits(held: Sequence[set[str]]) -> tuple[Split, ...]:
    everything = set().union(*held)
    return tuple(Split(tuple(sorted(everything - ids)), tuple(sorted(ids))) for ids in held)


def _shuffled(seed: int, key: str) -> str:
    """A place in an order that looks random and is the same on every machine."""
    return hashlib.sha256(f"{seed}\n{key}".encode()).hexdigest()


def _key(case: Case) -> str:
    return f"case {case.id}" if case.group is None else f"group {case.group}"


def _named(key: str) -> str:
    kind, _, name = key.partition(" ")
    return f'{kind} "{name}"'


def _member(key: str) -> str:
    kind, _, name = key.partition(" ")
    return name if kind == "case" else ""


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
