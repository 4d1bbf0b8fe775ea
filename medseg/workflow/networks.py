"""medseg networks: every backbone, block, head and loss that a plan can name, as it stands in the tables."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin

from medseg.errors import PlanError
from medseg.types.plan import Option

Kind = Literal["backbone", "block", "head", "loss"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_GIVEN = frozenset({"in_channels", "channels", "outputs", "scales"})  # by medseg when it builds, never by a plan
_SOURCE = re.compile(r"[A-Z][\w'-]+(?: (?:and|&) [A-Z][\w'-]+| et al\.)? (?:19|20)\d\d")
_BRACKET = re.compile(r" ?\([^()]*(?:19|20)\d\d[^()]*\)")
_SENTENCE = re.compile(r"(?<!\be)(?<!\bg)\.(?: |$)")
_ONLY: Mapping[str, tuple[int, ...]] = {"bisenet": (2,), "direction_fused": (3,), "projective": (3,)}
_SAID = {  # of parts that are torch's or have no text of their own
    ("norm", "group"): "Statistics per sample and group of 8 channels or more, at most 32 groups (Wu 2018).",
    ("norm", "global_layer"): "Statistics per sample over all channels and voxels (Ba 2016).",
    ("norm", "switchable_no_bn"): "A learnt mixture of instance and layer statistics, for small batches (Luo 2019).",
    ("norm", "none"): "No norm.",
    ("act", "leaky_relu"): "x, or 0.01 x below 0 (Maas 2013).",
    ("act", "relu"): "x, or 0 below 0 (Nair 2010).",
    ("act", "silu"): "x sigmoid(x) (Elfwing 2018).",
    ("act", "swish"): "x sigmoid(beta x), beta learnt per channel (Ramachandran 2017).",
    ("act", "mish"): "x tanh(softplus(x)) (Misra 2019).",
    ("act", "gelu"): "x times the normal distribution up to x (Hendrycks 2016).",
    ("act", "elu"): "x, or exp(x) - 1 below 0 (Clevert 2015).",
    ("act", "prelu"): "x, or a learnt share of it below 0 (He 2015).",
    ("act", "sigmoid"): "1 / (1 + exp(-x)).",
    ("act", "tanh"): "Hyperbolic tangent.",
    ("act", "softplus"): "log(1 + exp(x)) (Dugas 2000).",
    ("act", "maxout"): "The largest of two convolutions (Goodfellow 2013).",
}


@dataclass(frozen=True)
class PartOption:
    """One option of a part: its default, the values it may take where they are named, and whether it must be given."""

    name: str
    default: Option
    choices: tuple[str, ...] = ()
    required: bool = False


@dataclass(frozen=True)
class NetworkPart:
    """One name that a plan may use.

    `place` is where it stands: "network.use", "network.heads", "training.losses", or the option of a backbone that
    takes it. `paper` is empty where there is none. `dimensions` are those of the networks it fits.
    """

    name: str
    kind: Kind
    place: str
    paper: str
    dimensions: tuple[int, ...]
    options: tuple[PartOption, ...]
    says: str


def list_networks(kind: str | None = None) -> tuple[NetworkPart, ...]:
    """Everything the tables of networks and losses hold, backbones first, each kind by place and name.

    Papers, options and sentences are read from the functions themselves. Raises PlanError for an unknown kind.
    """
    if kind is not None and kind not in KINDS:
        raise PlanError(f'unknown kind "{kind}"', where="kind", hint=f"use one of {', '.join(KINDS)}")
    parts = [_part(row) for row in _rows() if kind in (None, row.kind)]
    return tuple(sorted(parts, key=lambda part: (KINDS.index(part.kind), part.place, part.name)))


def format_networks(parts: Sequence[NetworkPart]) -> str:
    """The parts as text for people: a line each, options below."""
    lines: list[str] = []
    seen = ""
    for part in parts:
        head = f"{part.kind}: {part.place}"
        if head != seen:
            lines += [*([""] if lines else []), head]
            seen = head
        dims = "/".join(f"{d}D" for d in part.dimensions)
        paper = f" ({part.paper})" if part.paper else ""
        lines.append(f"  {part.name}, {dims}: {part.says}{paper}")
        lines += [f"      {_option_text(option)}" for option in part.options]
    return "\n".join(lines)


def _option_text(option: PartOption) -> str:
    value = "must be given" if option.required else _plain(option.default)
    return f"{option.name} = {value}" + (f" ({', '.join(option.choices)})" if option.choices else "")


def _plain(value: Option) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class _Row:
    """One entry of a table, and where it is written about."""

    name: str
    kind: Kind
    place: str
    entry: Any


def _rows() -> Iterator[_Row]:
    from medseg.losses.build import LOSSES, WHOLE_LOSSES
    from medseg.networks.blocks.activations import ACTS
    from medseg.networks.blocks.attention import ATTENTION
    from medseg.networks.blocks.norms import NORMS
    from medseg.networks.build import BACKBONES, HEADS
    from medseg.networks.critics import CRITICS
    from medseg.networks.encoders import ENCODERS

    tables: tuple[tuple[Kind, str, Mapping[str, Any]], ...] = (
        ("backbone", "network.use", BACKBONES),
        ("block", "network.options.encoder", ENCODERS),
        ("block", "network.options.attention", ATTENTION),
        ("block", "network.options.norm", NORMS),
        ("block", "network.options.act", dict.fromkeys(ACTS)),
        ("head", "network.heads", HEADS),
        ("loss", "training.losses", {**LOSSES, **WHOLE_LOSSES}),
        ("loss", "training.adversary", CRITICS),
    )
    for kind, place, table in tables:
        yield from (_Row(name, kind, place, entry) for name, entry in table.items())


def _part(row: _Row) -> NetworkPart:
    function = getattr(row.entry, "build", row.entry)
    text = inspect.cleandoc(function.__doc__ or "") if callable(function) else ""
    text = _SAID.get((row.place.rpartition(".")[2], row.name), text).replace("\n", " ")
    papers = dict.fromkeys(_SOURCE.findall(text) or _SOURCE.findall(_of_file(row, function)))
    says = _BRACKET.sub("", _SENTENCE.split(text, maxsplit=1)[0]).rstrip(".:") + "."
    own = row.place != "training.adversary"
    options = _block_options(row, function) if row.kind == "block" else _options(function, classes=own)
    dimensions = _ONLY.get(row.name, (2, 3))
    return NetworkPart(row.name, row.kind, row.place, "; ".join(papers), dimensions, options, says)


def _of_file(row: _Row, function: Any) -> str:
    """What the file of a backbone says about all of it."""
    return inspect.getdoc(inspect.getmodule(function)) or "" if row.kind == "backbone" else ""


def _options(function: Callable[..., Any], *, classes: bool = True) -> tuple[PartOption, ...]:
    """The keywords that a plan may set; `classes` is one of them, but of a critic."""
    parameters = inspect.signature(function).parameters.values()
    given = _GIVEN if classes else {*_GIVEN, "classes"}
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in given]
    return tuple(_option(parameter) for parameter in keywords)


def _block_options(row: _Row, function: Any) -> tuple[PartOption, ...]:
    """The options of a backbone that reach this block."""
    from medseg.networks.blocks.options import BlockOptions

    own = _options(function) if callable(function) and row.place.endswith(("encoder", "attention")) else ()
    named = tuple(replace(option, name=f"{row.name}_{option.name}") for option in own)
    return tuple(option for option in named if option.name in BlockOptions.__annotations__)


def _option(parameter: inspect.Parameter) -> PartOption:
    required = parameter.default is parameter.empty
    default = None if required else parameter.default
    value = list(default) if isinstance(default, tuple) else default
    return PartOption(parameter.name, value, _choices(parameter.annotation) or _blocks(parameter.name), required)


def _blocks(option: str) -> tuple[str, ...]:
    """What an option names where its type says only that it is text."""
    place = f"network.options.{option}"
    named = [row.name for row in _rows() if row.place == place]
    return tuple(["none", *named] if option == "attention" else named)


def _choices(annotation: Any) -> tuple[str, ...]:
    """The values that a type names one by one."""
    if get_origin(annotation) is Literal:
        return tuple(str(choice) for choice in get_args(annotation))
    return tuple(choice for part in get_args(annotation) for choice in _choices(part) if get_origin(part) is Literal)
