"""The plan: one record that fixes preprocessing, network, training, inference and postprocessing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from medseg.errors import PlanError
from medseg.types.geometry import Size3, Vec3
from medseg.types.labels import Labels

Scalar = bool | int | float | str
Option = Scalar | None | list[Scalar]
Options = Mapping[str, Option]
Precision = Literal["bf16", "fp16", "fp32"]
Direction = Literal["z", "y", "x"]
SCHEMA = "medseg.plan/1"


@dataclass(frozen=True)
class Step:
    """One replaceable function, built in or "module:function", and its keyword arguments."""

    use: str
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class Topology:
    """Shape of an encoder-decoder; index 0 is full resolution; for ndim 2 the z entries are 1.

    `spacing_mm` is (z, y, x) at full resolution; dilations and edge kernels are derived from it. Null: isotropic.
    """

    ndim: Literal[2, 3]
    channels: tuple[int, ...]
    strides: tuple[Size3, ...]
    kernels: tuple[Size3, ...]
    blocks: tuple[int, ...]
    spacing_mm: Vec3 | None = None

    def __post_init__(self) -> None:
        stages = {len(self.channels), len(self.strides), len(self.kernels), len(self.blocks)}
        if len(stages) != 1 or not self.channels:
            raise PlanError(
                f"channels, strides, kernels and blocks have {sorted(stages)} entries",
                where="network.topology",
                hint="give each one entry per stage",
            )
        numbers = (*self.channels, *self.blocks, *(n for row in (*self.strides, *self.kernels) for n in row))
        if min(numbers) < 1:
            raise PlanError("every number must be 1 or more", where="network.topology", hint="see plan.schema.json")
        if self.ndim == 2 and any(row[0] != 1 for row in (*self.strides, *self.kernels)):
            raise PlanError("a 2D network has stride and kernel 1 along z", where="network.topology", hint="set to 1")

    def divisor(self) -> Size3:
        """What a patch must be a multiple of, per axis (z, y, x)."""
        z = y = x = 1
        for stride in self.strides:
            z, y, x = z * stride[0], y * stride[1], x * stride[2]
        return z, y, x

    def spacings(self) -> tuple[tuple[float, ...], ...]:
        """Spacing of every stage, finest first, along the axes that the network has; 1 where it is not known.

        >>> Topology(2, (4, 8), ((1, 1, 1), (1, 2, 2)), ((1, 3, 3), (1, 3, 3)), (1, 1)).spacings()
        ((1.0, 1.0), (2.0, 2.0))
        """
        now, found = [float(s) for s in self.spacing_mm or (1.0, 1.0, 1.0)], []
        for stride in self.strides:
            now = [s * n for s, n in zip(now, stride, strict=True)]
            found.append(tuple(now[3 - self.ndim :]))
        return tuple(found)


@dataclass(frozen=True)
class Preprocess:
    """Native scan to network grid.

    `orientation`: patient direction of the array axes x, y, z ("LPS", ...), or "stored" to leave axes alone.
    `spacing_mm`: (z, y, x) in that orientation; null keeps a scan's own spacing along the axis.
    `intensity`: one rule per channel. `unit`: of the spacing; "px" where the pictures state none, so that a spacing of
    2 takes every second pixel.
    """

    spacing_mm: tuple[float | None, float | None, float | None]
    intensity: tuple[Step, ...]
    orientation: str = "LPS"
    crop: Literal["none", "nonzero"] = "none"
    image_order: Literal[0, 1, 3] = 3
    label_order: Literal[0, 1] = 1
    unit: Literal["mm", "px"] = "mm"


@dataclass(frozen=True)
class Network:
    """What is built: a backbone, its topology and the heads on its decoder features."""

    use: str
    topology: Topology
    heads: tuple[Step, ...] = (Step("segmentation"),)
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class Sampling:
    """What one optimiser step sees; patch is (z, y, x) voxels of the network grid.

    `focus` chooses the case of a patch, and the class of one that must show foreground. `directions` are the axes
    across which a 2D network sees slices, in training and prediction; none stands for z.
    """

    patch: Size3
    batch: int
    foreground_fraction: float = 0.33
    focus: Step = Step("uniform_classes")
    directions: tuple[Direction, ...] = ()


@dataclass(frozen=True)
class LossTerm:
    """A weighted term of the loss."""

    weight: float
    use: str
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class Adversary:
    """A critic that learns beside the network and is thrown away; `weight` is its share in the network's loss."""

    use: str
    weight: float = 0.1
    lr: float = 2e-4
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """How it learns; `ema` is the decay per step of the averaged weights that are kept, null for none.

    `weighting` "uncertainty" learns a factor for every loss term beside the weight it has here. `members` networks are
    trained one after another for every fold, with the seeds `seed`, `seed` + 1, ..., and predict together.
    """

    losses: tuple[LossTerm, ...]
    optimizer: Step
    schedule: Step
    augment: tuple[Step, ...]
    epochs: int
    steps_per_epoch: int = 250
    precision: Precision = "bf16"
    deep_supervision: bool = True
    clip_grad_norm: float | None = 12.0
    ema: float | None = None
    seed: int = 0
    adversary: Adversary | None = None
    weighting: Literal["fixed", "uncertainty"] = "fixed"
    members: int = 1


@dataclass(frozen=True)
class Inference:
    """How a whole volume is covered; `mirror_axes` index (z, y, x).

    Mirroring `swap_axis`, the one between left and right, exchanges the labels and landmarks of these pairs of names.
    `directions` are the axes across which a scan is predicted in slices (a 3D network: windows thinnest along them),
    and the mean taken; none for those of sampling, or for the network's own windows where it has none.
    """

    overlap: float = 0.5
    blend: Literal["gaussian", "constant"] = "gaussian"
    mirror_axes: tuple[int, ...] = ()
    swap_axis: int | None = None
    swap_labels: tuple[tuple[str, str], ...] = ()
    swap_points: tuple[tuple[str, str], ...] = ()
    directions: tuple[Direction, ...] = ()


@dataclass(frozen=True)
class Budget:
    """What the user allows; `hours` is the time of a fold, with all its networks, `step_s` a measured training step."""

    vram_gib: float
    ram_gib: float | None = None
    hours: float | None = None
    precision: Precision = "bf16"
    device: str | None = None
    step_s: float | None = None


@dataclass(frozen=True)
class Origin:
    """Where the plan came from."""

    medseg: str
    fingerprint_sha256: str
    budget: Budget
    preset: str


@dataclass(frozen=True)
class Plan:
    """Everything a run needs besides the voxels.

    `landmarks` are the points a landmark head finds, in its order; `raters` those whose ways of annotating the network
    learns a code for, in the codes' order.
    """

    schema: Literal["medseg.plan/1"]
    name: str
    channels: tuple[str, ...]
    labels: Labels
    preprocess: Preprocess
    network: Network
    sampling: Sampling
    training: Training
    inference: Inference
    postprocess: tuple[Step, ...]
    origin: Origin
    reasons: Mapping[str, str]
    landmarks: tuple[str, ...] = ()
    raters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.preprocess.intensity) != len(self.channels):
            raise PlanError(
                f"{len(self.preprocess.intensity)} intensity rules for {len(self.channels)} channels",
                where="preprocess.intensity",
                hint="give one rule per channel",
            )
        bad = [p % d for p, d in zip(self.sampling.patch, self.network.topology.divisor(), strict=True)]
        if any(bad) or min(self.sampling.patch) < 1:
            raise PlanError(
                f"patch {self.sampling.patch} is not a multiple of {self.network.topology.divisor()}",
                where="sampling.patch",
                hint="change the patch or the strides",
            )
        if self.network.topology.ndim == 2 and self.sampling.patch[0] != 1:
            raise PlanError("a 2D network has a patch of one slice", where="sampling.patch", hint="set z to 1")
        if not self.labels.items and not self.landmarks:
            raise PlanError("neither labels nor landmarks", where="labels.items", hint="name at least one")
        if self.sampling.batch < 1 or not self.training.losses:
            raise PlanError("batch and losses must not be empty", where="sampling.batch", hint="at least 1 each")
