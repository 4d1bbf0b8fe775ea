"""What a network is made of: the preset's parts, those the data call for, and those the user wishes."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, TypeVar

import torch

from medseg.errors import PlanError
from medseg.losses.cross_entropy import balanced_weights
from medseg.networks.blocks.options import has_rater_code
from medseg.planning.decisions import Decision
from medseg.planning.presets import PRESETS, Preset
from medseg.types.fingerprint import Fingerprint
from medseg.types.plan import Adversary, LossTerm, Option, Options, Step

T = TypeVar("T", Step, LossTerm)
_LOSS = re.compile(r"loss\.(?P<use>(?:[\w.]+:)?\w+)(?:\.(?P<option>\w+))?")  # a name of ours or module:function
_CRITIC, _WEIGHTING, _MEMBERS = "adversary", "weighting", "members"
POINTS = ("dsnt", "heatmap")  # heads that find landmarks; a plan has one of them
HEAD_LOSSES: Mapping[str, LossTerm] = MappingProxyType(
    {
        "segmentation": LossTerm(1.0, "dice_ce"),
        "dsnt": LossTerm(1.0, "dsnt"),
        "heatmap": LossTerm(1.0, "heatmap"),
        "distance": LossTerm(1.0, "distance"),
        "boundary": LossTerm(1.0, "gg_net"),
    }
)


@dataclass(frozen=True)
class Wishes:
    """What a user asks for beyond the preset.

    `options` are those of the backbone, or of a head or loss where the name has its name and a dot before it;
    "loss.<loss>" itself is its weight: a loss that the plan does not have is added, one that weighs 0 left out.
    "adversary" names a critic, and "adversary.weight", "adversary.lr" and others are its own. "weighting" is "fixed" or
    "uncertainty", which learns the weights of loss terms; "members" is the number of networks of every fold.
    `heads` are added to those that the data call for; "heatmap" takes the place of "dsnt".
    """

    options: Options = field(default_factory=dict)
    heads: tuple[str, ...] = ()


def read_options(words: Sequence[str]) -> Options:
    """Options as typed, "name=value": numbers, true, false, null and JSON lists have their types, the rest is text.

    >>> read_options(["attention=cbam", "dropout=0.1", "loss.gg_net.edge=inner", "pool=[1, 2]"])
    {'attention': 'cbam', 'dropout': 0.1, 'loss.gg_net.edge': 'inner', 'pool': [1, 2]}
    """
    read: dict[str, Option] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name.strip() or name in read:
            what = f'"{word}" is given twice' if name in read else f'"{word}" is no option'
            raise PlanError(what, where="--option", hint="write name=value, e.g. attention=cbam")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value)):
            raise PlanError(f'"{word}" holds more than a list', where="--option", hint="write a value or a flat list")
        read[name] = value
    return read


def design(fingerprint: Fingerprint, preset: str, wishes: Wishes) -> Decision[Preset]:
    """The preset with the heads, losses and options of this data set and this user.

    Raises PlanError for an unknown preset, a head that the data have nothing for, and options of parts that the plan
    does not have; what options mean is found out where the network is built.
    """
    family = PRESETS.get(preset, next((one for one in PRESETS.values() if one.backbone == preset), None))
    if family is None:
        raise PlanError(f'unknown preset "{preset}"', where="preset", hint=f"use one of {', '.join(sorted(PRESETS))}")
    heads = {step.use: step for step in _heads(fingerprint, family, wishes.heads)}
    terms = [HEAD_LOSSES[name] for name in heads if name in HEAD_LOSSES]
    terms += family.losses if fingerprint.labels.items else ()
    coded = has_rater_code({**family.options, **wishes.options})
    terms += [LossTerm(1.0, "rater_prior", {"cases": len(fingerprint.cases)})] if coded else []
    losses = _weighed({term.use: term for term in terms}, wishes.options)
    options, critic = {**family.options, **_of_raters(fingerprint, coded)}, _critic(wishes.options)
    for name, value in _of_network_and_losses(wishes.options).items():
        loss, own = _LOSS.fullmatch(name), name.rpartition(".")
        if loss and loss["use"] in losses and loss["option"]:
            losses[loss["use"]] = _with(losses[loss["use"]], loss["option"], value)
        elif not own[0]:
            options[name] = value
        elif own[0] in heads:
            heads[own[0]] = _with(heads[own[0]], own[2], value)
        elif not loss or loss["option"]:
            known = ", ".join([*heads, *(f"loss.{use}" for use in losses)])
            hint = f"write option=value for the backbone, or one of {known} before the dot"
            raise PlanError(f'the plan has no "{own[0]}"', where=f"option {name}", hint=hint)
    terms = [_balanced(term, fingerprint) for term in losses.values()]
    made = replace(family, options=options, heads=tuple(heads.values()), losses=tuple(terms))
    weighting = _weighting(wishes.options, family.weighting)
    made = replace(made, weighting=weighting, members=_members(wishes.options, family.members))
    if critic is not None and not fingerprint.labels.items:
        what = "a critic judges label maps, and the data set has landmarks alone"
        raise PlanError(what, where=f"option {_CRITIC}", hint="leave it out")
    return Decision(_limited(replace(made, adversary=critic)), _said(fingerprint, family, wishes))


def _of_raters(fingerprint: Fingerprint, coded: bool) -> Options:
    """The option of raters' codes that the data set decides."""
    if coded and not fingerprint.raters:
        hint = 'say who annotated in dataset.json, "raters": {"case_1": "A"}, or leave rater_code out'
        raise PlanError("the data set names no raters", where="option attention", hint=hint)
    return {"rater_code_raters": len(fingerprint.raters)} if coded else {}


def _weighed(losses: Mapping[str, LossTerm], options: Options) -> dict[str, LossTerm]:
    """The losses with the weights that were asked for, those that were added last."""
    weighed = dict(losses)
    for name, weight in options.items():
        loss = _LOSS.fullmatch(name)
        if loss is None or loss["option"]:
            continue
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
            hint = "write a number from 0, which leaves the loss out"
            raise PlanError(f"{weight!r} is no weight of a loss", where=f"option {name}", hint=hint)
        if weight == 0 and loss["use"] not in weighed:
            hint = f"its losses are {', '.join(weighed)}"
            raise PlanError(f'the plan has no loss "{loss["use"]}" to leave out', where=f"option {name}", hint=hint)
        known = weighed.get(loss["use"], LossTerm(1.0, loss["use"]))
        weighed[loss["use"]] = replace(known, weight=float(weight))
    return {use: term for use, term in weighed.items() if term.weight > 0}


def _of_network_and_losses(options: Options) -> Options:
    """Options of backbone, heads and losses."""
    return {
        name: value
        for name, value in options.items()
        if name not in (_WEIGHTING, _MEMBERS) and name.partition(".")[0] != _CRITIC
    }


def _weighting(options: Options, default: str) -> Literal["fixed", "uncertainty"]:
    """How the losses are weighed."""
    match options.get(_WEIGHTING, default):
        case "fixed":
            return "fixed"
        case "uncertainty":
            return "uncertainty"
        case other:
            hint = "use fixed, or uncertainty, which learns the weights of loss terms"
            raise PlanError(f"{other!r} is no weighting", where=f"option {_WEIGHTING}", hint=hint)


def _members(options: Options, default: int) -> int:
    """How many networks every fold has."""
    count = options.get(_MEMBERS, default)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise PlanError(f"{count!r} networks", where=f"option {_MEMBERS}", hint="write a whole number from 1")
    return count


def _limited(family: Preset) -> Preset:
    """The family without the dimensions that its critic or its losses do not know."""
    return replace(family, dimensions=tuple(ndim for ndim in family.dimensions if not family.limit(ndim)))


def _critic(options: Options) -> Adversary | None:
    """The critic that was asked for, with its options."""
    given = {name.partition(".")[2]: value for name, value in options.items() if name.partition(".")[0] == _CRITIC}
    if not given:
        return None
    use = given.pop("", None)
    if not isinstance(use, str):
        hint = 'name it: adversary=segan, or another of "medseg networks --kind loss"'
        raise PlanError("there is no critic", where=f"option {_CRITIC}", hint=hint)
    numbers = {}
    for name in ("weight", "lr"):
        value = given.pop(name, getattr(Adversary, name))
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise PlanError(f"{value!r}", where=f"option {_CRITIC}.{name}", hint="write a number above 0")
        numbers[name] = float(value)
    return Adversary(use, **numbers, options=given)


def _balanced(term: LossTerm, fingerprint: Fingerprint) -> LossTerm:
    """Cross-entropy weighted by class or voxel with weights of classes by their volumes in all cases, unless given.

    Regions, which may overlap, are balanced in every batch.
    """
    if (
        term.use not in ("weighted_cross_entropy", "pixel_cross_entropy")
        or "weights" in term.options
        or fingerprint.labels.are_regions()
    ):
        return term
    sizes = [math.prod(case.spacing_mm) for case in fingerprint.cases]
    rows = [case.class_voxels for case in fingerprint.cases]
    classes = [sum(n * size for n, size in zip(column, sizes, strict=True)) for column in zip(*rows, strict=True)]
    whole = sum(
        (math.prod(case.cropped_shape) - case.ignored_voxels) * size
        for case, size in zip(fingerprint.cases, sizes, strict=True)
    )
    weights = balanced_weights(torch.tensor([max(0.0, whole - sum(classes)), *classes]))
    return _with(term, "weights", [round(weight, 4) for weight in weights.tolist()])


def _heads(fingerprint: Fingerprint, family: Preset, wished: Sequence[str]) -> list[Step]:
    """Labels are segmented and landmarks found, whatever else there is."""
    heads = [Step("segmentation")] if fingerprint.labels.items else []
    finders = [name for name in wished if name in POINTS]
    if fingerprint.landmarks:
        count = {"points": len(fingerprint.landmarks)}
        heads += [Step(name, dict(count)) for name in (finders[:1] or POINTS[:1])]
    elif finders:
        hint = "give the data set landmarks, or leave the head out"
        raise PlanError(f'the data set has no landmarks for the head "{finders[0]}"', where="head", hint=hint)
    if len(finders) > 1:
        raise PlanError(f"{' and '.join(finders)} find the same points", where="head", hint="give one of them")
    heads += family.heads if fingerprint.labels.items else ()
    return heads + [Step(name) for name in wished if name not in POINTS]


def _with(step: T, option: str, value: Option) -> T:
    return replace(step, options={**step.options, option: value})


def _said(fingerprint: Fingerprint, family: Preset, wishes: Wishes) -> str:
    labels, points = len(fingerprint.labels.items), len(fingerprint.landmarks)
    said = [f"{labels} {'class' if labels == 1 else 'classes'} to segment"] if labels else []
    said += [f"{points} landmarks to find by {_finder(wishes)}"] if points else []
    said += [f"{step.use} comes with the preset" for step in family.heads if labels]
    said += [f"{name} was asked for" for name in wishes.heads]
    raters = len(fingerprint.raters)
    if has_rater_code({**family.options, **wishes.options}):
        said += [f"a code for each of {raters} raters, and their mean where none is named"]
    elif raters > 1:
        said += [f"{raters} raters count as one; --option attention=rater_code learns a code for each"]
    count = _members(wishes.options, family.members)
    said += [f"{count} networks per fold, which predict together"] if count > 1 else []
    critic = wishes.options.get(_CRITIC)
    said += [f"the critic {critic} learns beside the network"] if critic is not None else []
    return ", ".join(said)


def _finder(wishes: Wishes) -> str:
    return "heat maps whose peak is taken" if "heatmap" in wishes.heads else "the mean of a probability map each"
