"""Options of single blocks, which every backbone takes that lets a plan choose blocks."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from medseg.errors import PlanError


class BlockOptions(TypedDict, total=False):
    """Options of what `attention` and `encoder` name: the block's name, and that of its keyword in the two tables."""

    aspp_rates: Sequence[int]
    se_reduction: int
    scse_reduction: int
    cbam_reduction: int
    botnet_heads: int
    acmix_heads: int
    acmix_window: int | None
    rater_code_raters: int
    rater_code_size: int
    resnext_groups: int
    grouped_residual_groups: int
    dense_growth: int | None
    dense_theta: float
    mobilenet_expand: int
    convnext_expand: int
    convnext_scale: float
    poolformer_expand: int
    poolformer_scale: float


_OPTIONAL = ("acmix_window", "dense_growth")
_SHARES = ("dense_theta", "convnext_scale", "poolformer_scale")


def options_of(block: str, options: BlockOptions) -> dict[str, Any]:
    """The options of one block, by its own names for them.

    >>> options_of("se", {"se_reduction": 8, "aspp_rates": [1, 2]})
    {'reduction': 8}
    """
    start = f"{block}_"
    return {name.removeprefix(start): value for name, value in options.items() if name.startswith(start)}


def check_options(options: BlockOptions) -> None:
    """Raise PlanError for an unknown name, and for a value that is no count (of a share: none from 0 to 1)."""
    for name, value in options.items():
        if name not in BlockOptions.__annotations__:
            hint = f"options of blocks are {', '.join(BlockOptions.__annotations__)}"
            raise PlanError(f"no block has the option {name}", where="network.options", hint=hint)
        if name in _OPTIONAL and value is None:
            continue
        numbers = value if name == "aspp_rates" and isinstance(value, (list, tuple)) else [value]
        kinds, most = ((int, float), 1.0) if name in _SHARES else ((int,), float("inf"))
        good = [isinstance(n, kinds) and not isinstance(n, bool) and 0 < n <= most for n in numbers]
        if not good or not all(good):
            hint = "give a number above 0, up to 1" if name in _SHARES else "give whole numbers from 1"
            raise PlanError(f"{name} is {value}", where=f"network.options.{name}", hint=hint)


def has_rater_code(network: Mapping[str, object]) -> bool:
    """Whether a network of these options learns who annotated.

    >>> has_rater_code({"attention": "se+rater_code"}), has_rater_code({})
    (True, False)
    """
    return "rater_code" in str(network.get("attention", "none")).split("+")
