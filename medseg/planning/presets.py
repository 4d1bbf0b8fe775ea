"""Starting points a user can name, and every constant of training in one place."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from medseg.planning.decisions import Decision
from medseg.types.plan import Adversary, LossTerm, Option, Options, Step

LONG_EPOCHS, LONG_STEPS_PER_EPOCH = 1000, 250  # without a time budget (Isensee 2021)
LONG_STEPS = 20_000  # fewer optimiser steps than this count as a short run
MAX_STEPS = LONG_EPOCHS * LONG_STEPS_PER_EPOCH
TIME_SHARE = 0.95  # of the hours go to steps; the rest is validation and files
EPOCHS_AT_LEAST = 20
VRAM_SHARE = 0.95  # the estimate is exact in live bytes; drivers, other processes and fragmentation take the rest
RAM_SHARE = 0.9
FOREGROUND_FRACTION = 0.33
BATCH_AT_LEAST = 2
BATCH_AT_MOST = 64  # more samples per step make steps slow without making them better
PROBED_BATCH = 8  # largest batch whose memory is estimated; an estimate takes time per sample
BATCH_OF_DATASET = 0.05  # a batch holds at most this share of the voxels of all cases (Isensee 2021)
CONTEXT = 0.25  # a patch below this share of the median scan calls for a coarser plan (Isensee 2021)
WHOLE_STEPS = 2000  # below which whole scans are made coarser, in which landmarks are looked for
ENOUGH_STEPS = 1000  # before a run has fewer, its patch shrinks to a quarter of the scan
USEFUL_CHANNELS = 16  # first-stage channels for which 2D images are made coarser where time is short
COARSER_2D = (1.5, 2.0, 3.0)  # times the pixel
BASE_CHANNELS = (8, 16, 32)  # first-stage channels a time budget chooses from; others waste vector lanes
SHORT_LR, SHORT_WEIGHT_DECAY, SHORT_WARMUP = 2e-3, 1e-2, 0.05
LONG_LR, LONG_WEIGHT_DECAY, MOMENTUM = 1e-2, 3e-5, 0.99


@dataclass(frozen=True)
class Preset:
    """A network family: `blocks` per encoder stage, the last number repeated; channels double up to the cap.

    `bases`: first-stage channels a time budget chooses from, the last where there is none. `stages`: the most there
    may be. `rigid`: exactly that many, and every one but the first halves every axis, because the network knows no
    others. `dimensions` the network has. `options` are its own; `heads` and `losses` are added to those that the data
    call for. `adversary` is the critic that learns beside it, `weighting` how the losses are weighed,
    `members` how many networks are trained for a fold.
    """

    backbone: str
    blocks: tuple[int, ...] = (2,)
    bases: tuple[int, ...] = BASE_CHANNELS
    max_channels_2d: int = 512
    max_channels_3d: int = 320
    stages: int | None = None
    rigid: bool = False
    dimensions: tuple[int, ...] = (2, 3)
    options: Options = field(default_factory=dict)
    heads: tuple[Step, ...] = ()
    losses: tuple[LossTerm, ...] = ()
    adversary: Adversary | None = None
    weighting: Literal["fixed", "uncertainty"] = "fixed"
    members: int = 1

    @property
    def base_channels(self) -> int:
        """First-stage channels of the full-size network."""
        return self.bases[-1]

    def stage_blocks(self, stages: int) -> tuple[int, ...]:
        """Blocks of each of `stages` stages."""
        return (self.blocks + self.blocks[-1:] * stages)[:stages]

    def stage_channels(self, stages: int, *, ndim: Literal[2, 3], base: int) -> tuple[int, ...]:
        """Channels of each stage, doubling from `base`; the cap shrinks with the base.

        >>> PRESETS["unet"].stage_channels(6, ndim=3, base=32)
        (32, 64, 128, 256, 320, 320)
        """
        cap = (self.max_channels_2d if ndim == 2 else self.max_channels_3d) * base // self.base_channels
        return tuple(min(cap, base * 2**stage) for stage in range(stages))

    def limit(self, ndim: int) -> str:
        """What beside the network is not for these dimensions; "" if nothing."""
        if ndim == 2 and self.adversary is not None and self.adversary.use == "projective":
            return "the critic projective"
        if ndim == 3 and any(term.options.get("edge") == "canny" for term in self.losses):
            return "the edges canny"
        return ""


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "unet": Preset("unet"),
        "resenc": Preset("resenc_unet", blocks=(1, 3, 4, 6)),
        "attention_unet": Preset("attention_unet"),
        "bisenet": Preset("bisenet", stages=6, dimensions=(2,)),
        "cascade": Preset("cascade", losses=(LossTerm(1.0, "side"),)),
        "direction_fused": Preset("direction_fused", dimensions=(3,)),
        "fcn": Preset("fcn"),
        "gg_net": Preset("gg_net", blocks=(1, 3, 4, 6), heads=(Step("boundary"),)),
        "gra_unet": Preset("gra_unet"),
        "mednext": Preset("mednext", max_channels_3d=512, stages=5, rigid=True),
        "mel_net": Preset("mel_net", max_channels_2d=1024, stages=6),
        "multi_scale_unet": Preset("multi_scale_unet"),
        "object_boundary": Preset("object_boundary", losses=(LossTerm(1.0, "object_boundary"),)),
        "segresnet": Preset("segresnet", blocks=(1, 2, 2, 4), stages=4, rigid=True),
        "swin_unetr": Preset("swin_unetr", bases=(12, 24, 48), stages=6, rigid=True),
        "unetr": Preset("unetr", bases=(8, 16), stages=5, rigid=True),
        "unpool_unet": Preset("unpool_unet"),
        "vnet": Preset("vnet", blocks=(1, 2, 3), bases=(8, 16), max_channels_2d=256, max_channels_3d=256, stages=5),
    }
)


def steps_worth(base: int) -> int:
    """Optimiser steps below which a narrower network learns more in the same time: 1000 for 16 first channels.

    Goes with the number of weights, that is with the square of the channels.

    >>> [steps_worth(base) for base in BASE_CHANNELS]
    [250, 1000, 4000]
    """
    return round(1000 * (base / 16) ** 2)


def optimiser(steps: int) -> Decision[tuple[Step, Step, float | None]]:
    """Optimiser, schedule and decay of the averaged weights for a run of `steps`."""
    if steps >= LONG_STEPS:
        sgd = Step("sgd", {"lr": LONG_LR, "momentum": MOMENTUM, "weight_decay": LONG_WEIGHT_DECAY})
        return Decision((sgd, Step("poly", {"power": 0.9}), None), f"{steps} steps: SGD with polynomial decay")
    adamw = Step("adamw", {"lr": SHORT_LR, "weight_decay": SHORT_WEIGHT_DECAY})
    cosine = Step("cosine_restarts", {"cycles": 1, "warmup": SHORT_WARMUP})
    ema = averaging(steps)
    return Decision(
        (adamw, cosine, ema),
        f"{steps} steps (below {LONG_STEPS}): AdamW with one cosine, weights averaged with decay {ema}",
    )


def averaging(steps: int) -> float:
    """Decay per step of the averaged weights: a window of about 2 % of the run, within 0.99 to 0.999.

    >>> averaging(1500), averaging(200_000)
    (0.99, 0.999)
    """
    return round(min(0.999, max(0.99, 1 - 50 / max(steps, 1))), 4)


def epochs(steps: int) -> tuple[int, int]:
    """`steps` as (epochs, steps per epoch): 250 a piece, or fewer so that a run has at least 20 epochs.

    >>> epochs(250_000), epochs(2_340), epochs(300)
    ((1000, 250), (23, 100), (30, 10))
    """
    for size in (LONG_STEPS_PER_EPOCH, 100, 50, 20, 10, 5, 2):
        if steps >= EPOCHS_AT_LEAST * size:
            return steps // size, size
    return max(1, steps), 1


# What the machine does to its pictures, beyond what every scan gets; no chance was tuned on data.
MACHINES: Mapping[str, tuple[str, tuple[Step, ...]]] = MappingProxyType(
    {
        "us": (
            "speckle, time gain, attenuation and shadows of ultrasound",
            (
                Step("speckle"),
                Step("time_gain", {"p": 0.15}),
                Step("attenuation", {"p": 0.15}),
                Step("shadow", {"p": 0.1}),
            ),
        ),
        "cbct": (
            "metal streaks, cupping, rings, drifting values and a cut field of view of cone-beam CT",
            (
                Step("metal_streak", {"p": 0.1}),
                Step("cupping", {"p": 0.15}),
                Step("ring", {"p": 0.1}),
                Step("offset", {"p": 0.15}),
                Step("truncation", {"p": 0.05}),
            ),
        ),
    }
)


def augmentation(
    patch: tuple[int, int, int],
    mirror: Step | None,
    *,
    modality: str | None = None,
    pictures: bool = False,
    whole: bool = False,
) -> Decision[tuple[Step, ...]]:
    """Augmentation steps in order, with the published ranges (Isensee 2021).

    Where the patch is more than 3 times larger in plane than across, rotation and zoom stay in the plane. Long 2D
    patches (aspect above 1.5) rotate little, because turned ones would leave the scan. Ultrasound ("us") and cone-beam
    CT ("cbct") get what their machines do; ultrasound only speckle unless the data are `pictures`, because headers of
    volumes do not say which way the probe looked. A patch that is the `whole` scan, in which landmarks are looked
    for, keeps its way up and about its size.
    """
    ultrasound, (machine, own) = modality == "us", MACHINES.get(modality or "", ("", ()))
    if ultrasound and not pictures:
        machine, own = "speckle of ultrasound", (Step("speckle"),)
    in_plane = patch[0] > 1 and max(patch) / patch[0] > 3
    aspect = max(patch[1:]) / min(patch[1:])
    flat = patch[0] == 1
    upright = whole or (flat and (aspect > 1.5 or (ultrasound and pictures)))
    degrees = 15.0 if upright else 180.0 if flat or in_plane else 30.0
    zoom = {"scale_low": 0.85, "scale_high": 1.2} if whole else {"scale_low": 0.7, "scale_high": 1.4}
    plane = {"in_plane": True} if in_plane else {}
    affine: dict[str, Option] = {"p": 0.5 if whole else 0.2, "degrees": degrees, **zoom, **plane}
    steps = [Step("affine", affine), Step("noise"), Step("blur"), Step("brightness"), Step("contrast")]
    steps += [Step("low_resolution", plane), Step("gamma", {"p": 0.1, "invert": True}), Step("gamma", {"p": 0.3})]
    steps += own
    steps += [mirror] if mirror else []
    said = f"rotation up to {degrees:.0f} degrees" + (" in plane" if in_plane else "")
    said += ", upright as the probe" if ultrasound and flat and pictures else ""
    said += ", whole scans keep their way up and their size" if whole else ""
    axes = mirror.options["axes"] if mirror else None
    said += (
        f", mirrored along {', '.join('zyx'[int(axis)] for axis in axes)}"
        if isinstance(axes, list)
        else ", never mirrored"
    )
    return Decision(tuple(steps), said + (f", {machine}" if machine else ""))
