"""Options of a plan's network, and fields beside it, that would do nothing; see `switches.py`."""

from collections.abc import Iterator, Mapping

from medseg.types.plan import Inference, Plan, Sampling
from medseg.workflow.loss_switches import Fight, resolved

# Backbones with blocks that no option names, and encoders with norm, activation and no dropout of their own.
_ALWAYS: Mapping[str, tuple[str, ...]] = {"mel_net": ("aspp",), "gg_net": ("aspp",)}
_OWN_STYLE: Mapping[str, str] = {"convnext": "layer norm and GELU", "poolformer": "a norm over all channels and GELU"}
_ONE_FEATURE = frozenset({"fcn", "object_boundary", "direction_fused", "segresnet", "swin_unetr", "unetr"})
_DOUBLING = ("segresnet", "mednext")


def block_options_without_block(plan: Plan) -> Iterator[Fight]:
    """The option of a block that the network does not have."""
    from medseg.networks.blocks.options import BlockOptions, options_of

    options = plan.network.options
    given = [name for name in options if name in BlockOptions.__annotations__]
    if not given or ":" in plan.network.use:
        return
    blocks = [*attention_of(plan), str(_of_network(plan, "encoder")), *_ALWAYS.get(plan.network.use, ())]
    for name in given:
        if not any(options_of(block, {name: 0}) for block in blocks):  # type: ignore[misc]
            what = f"{name} is the option of a block that the network does not have"
            hint = f"name the block as attention or encoder, or leave {name} out"
            yield Fight(f"network.options.{name}", what, hint)


def cascade_that_nothing_teaches(plan: Plan) -> Iterator[Fight]:
    """First networks of a cascade that get neither a gradient nor a loss."""
    losses = [term.use for term in plan.training.losses if term.weight > 0]
    own = any(":" in use for use in losses)  # a loss of the user's own may look at anything
    if plan.network.use == "cascade" and _of_network(plan, "stop_gradient") and "side" not in losses and not own:
        what = (
            "the first networks of the cascade would never learn: their gradient is stopped, and no loss looks at them"
        )
        yield Fight("network.options.stop_gradient", what, 'add the loss "side", or let the gradient through')


def style_that_encoders_ignore(plan: Plan) -> Iterator[Fight]:
    """Norm, activation or dropout for blocks that have their own."""
    options, encoder = plan.network.options, str(_of_network(plan, "encoder"))
    given = [name for name in ("norm", "act", "dropout") if options.get(name)]
    if encoder in _OWN_STYLE and given:
        what = f"the encoder {encoder} has {_OWN_STYLE[encoder]} and no dropout, whatever {', '.join(given)} says"
        yield Fight(f"network.options.{given[0]}", what, "it is that of the decoder only")


def deep_supervision_of_one_scale(plan: Plan) -> Iterator[Fight]:
    """A decoder in which no scale but the finest counts."""
    use = plan.network.use
    if not plan.training.deep_supervision or ":" in use or use == "bisenet":
        return
    scales = 1 if use in _ONE_FEATURE else max(len(plan.network.topology.channels) - 1, 1)
    boundary = any(step.use == "boundary" for step in plan.network.heads)
    if scales < (2 if boundary else 3):
        counts = "one decoder scale" if scales == 1 else "two decoder scales, of which the coarsest counts nothing"
        what = f"deep supervision finds no coarser scale: the network {use} has {counts}"
        yield Fight("training.deep_supervision", what, "nothing is lost; add a stage if it is wanted")


def boundary_of_one_scale(plan: Plan) -> Iterator[Fight]:
    """GG-Net's modules, of which only the finest is left."""
    if not plan.training.deep_supervision and any(step.use == "boundary" for step in plan.network.heads):
        what = "without deep supervision only the finest boundary module is left"
        yield Fight("training.deep_supervision", what, "true has a module at every decoder scale, as published")


def topology_that_monai_ignores(plan: Plan) -> Iterator[Fight]:
    """Channels that MONAI's networks do not take."""
    topology, use = plan.network.topology, plan.network.use
    if use not in _DOUBLING:
        return
    doubled = tuple(topology.channels[0] << k for k in range(len(topology.channels)))
    if topology.channels != doubled:
        what = f"the network {use} doubles its channels per stage: {list(doubled)}, not {list(topology.channels)}"
        yield Fight("network.topology.channels", what, "only the first number is used; the memory counted is the real")


def raters_without_their_codes(plan: Plan) -> Iterator[Fight]:
    """Codes of another number of raters than the plan names, and mixed raters."""
    if ":" in plan.network.use:
        return  # a network of the user's own may have codes
    coded = "rater_code" in attention_of(plan)
    count = plan.network.options.get("rater_code_raters", 1) if coded else 0
    if count != len(plan.raters):
        what = f"the network has codes for {count} raters, and the plan names {len(plan.raters)}"
        hint = 'attention "rater_code" with rater_code_raters goes with as many names in raters'
        yield Fight("network.options.rater_code_raters" if coded else "raters", what, hint)
    if coded and any(step.use == "mixup" for step in plan.training.augment):
        yield Fight("training.augment", "mixup mixes the annotations of two raters", "leave it out")


def windows_of_landmark_plans(plan: Plan) -> Iterator[Fight]:
    """How windows overlap, or show foreground, where one covers the whole scan."""
    if not plan.landmarks:
        return
    sampling, inference = Sampling(plan.sampling.patch, plan.sampling.batch), Inference()
    pairs = (
        ("inference.overlap", plan.inference.overlap, inference.overlap),
        ("inference.blend", plan.inference.blend, inference.blend),
        ("sampling.foreground_fraction", plan.sampling.foreground_fraction, sampling.foreground_fraction),
    )
    for where, value, default in pairs:
        if value not in (default, 0):
            what = f"landmarks are looked for in whole scans, where {where.rpartition('.')[2]} {value} does nothing"
            yield Fight(where, what, "leave it out")


def attention_of(plan: Plan) -> tuple[str, ...]:
    """The kinds of attention that the network has."""
    return tuple(str(_of_network(plan, "attention")).split("+"))


def _of_network(plan: Plan, name: str) -> object:
    """An option as the backbone gets it."""
    from medseg.networks.build import BACKBONES

    return resolved(plan.network.options, BACKBONES.get(plan.network.use), name)
