"""The members of a bundle, and their joint scores for a prepared image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from medseg.errors import BundleError, ImageError, PlanError
from medseg.inference.sliding_window import Forward, averaged, flips, mirrored, sliding_window
from medseg.networks.build import build_network
from medseg.networks.precision import run
from medseg.types.geometry import Size3
from medseg.types.image import Image, Slab
from medseg.types.plan import Plan, Precision
from medseg.types.progress import Report, silent
from medseg.types.result import Member, ModelBundle
from medseg.types.sides import channel_swap
from medseg.types.tensors import NetworkOutput


@dataclass(frozen=True, eq=False)
class NetworkForward:
    """A network as a function from windows (b, c, z, y, x) to logits (b, k, z, y, x), or to all that it returns.

    A 2D network sees (b, c, y, x). In bf16 and fp16 it runs under autocast and returns such logits; whoever sums them
    does so in float32. `rater` is the number of whose annotation it is to imitate, None for the mean of all.
    """

    network: nn.Module
    flat: bool
    device: torch.device
    precision: Precision = "fp32"
    rater: int | None = None

    def __call__(self, image: Tensor) -> Tensor:
        logits = self.whole(image).logits[0]
        return logits.unsqueeze(2) if self.flat else logits

    def whole(self, image: Tensor) -> NetworkOutput:
        """Everything the network returns, with the axes that it has."""
        raters = None if self.rater is None else torch.full((len(image),), self.rater, device=image.device)
        with torch.inference_mode():
            return run(self.network, image.squeeze(2) if self.flat else image, raters, self.precision)


def load_members(
    bundle: ModelBundle,
    *,
    device: torch.device,
    folds: Sequence[int | str] | None = None,
    precision: Precision = "fp32",
    rater: str | None = None,
) -> tuple[NetworkForward, ...]:
    """The bundle's networks (those of `folds`, or all) in eval mode on `device`, to annotate as `rater` would.

    Weights are read as plain tensors, never unpickled. Raises as `chosen`, and BundleError for weights that do not fit
    the plan's network.
    """
    members, number = chosen(bundle, folds, rater)
    loaded = [_load(bundle, member, device) for member in members]
    return tuple(
        replace(network_forward(network, bundle.plan, device, precision=precision), rater=number) for network in loaded
    )


def chosen(
    bundle: ModelBundle, folds: Sequence[int | str] | None, rater: str | None
) -> tuple[list[Member], int | None]:
    """The members of `folds`, or all, and the number of a rater by name.

    Raises BundleError for a fold that the bundle lacks, PlanError for a rater that its plan does not name.
    """
    names = bundle.plan.raters
    if rater is not None and rater not in names:
        hint = f"known are {', '.join(names)}" if names else "this model has learnt no rater's way"
        raise PlanError(f'there is no rater "{rater}"', where="rater", hint=hint)
    known = dict.fromkeys(str(member.fold) for member in bundle.members)
    wanted = [str(fold) for fold in folds] if folds is not None else list(known)
    missing = [fold for fold in wanted if fold not in known]
    if missing or not wanted:
        raise BundleError(f"has no fold {', '.join(missing)}", where=bundle.root, hint=f"folds are {', '.join(known)}")
    members = [member for fold in wanted for member in bundle.members if str(member.fold) == fold]
    return members, None if rater is None else names.index(rater)


def network_forward(
    network: nn.Module, plan: Plan, device: torch.device, *, precision: Precision = "fp32"
) -> NetworkForward:
    """A network, which must lie on `device` and is put in eval mode, as a function of windows."""
    return NetworkForward(network.eval(), plan.network.topology.ndim == 2, device, precision)


def predict_scores(
    members: Sequence[Forward],
    image: Image,
    plan: Plan,
    *,
    device: torch.device,
    patch: Size3 | None = None,
    report: Report = silent,
) -> Iterator[Slab]:
    """Mean logits over members, mirrors and windows on the grid of a prepared image, slab after slab along z.

    Windows are as large as `patch`, by default the plan's. Raises ImageError if the image has other channels than the
    plan.
    """
    if image.array.shape[0] != len(plan.channels):
        raise ImageError(
            f"has {image.array.shape[0]} channels",
            hint=f"the model needs {len(plan.channels)}: {', '.join(plan.channels)}",
        )
    inference, patch = plan.inference, patch or plan.sampling.patch
    swap = channel_swap(plan.labels, inference.swap_axis, inference.swap_labels)
    return sliding_window(
        mirrored(averaged(members), flips(inference, patch), swap),
        np.asarray(image.array),
        patch,
        replace(inference, mirror_axes=()),
        outputs=plan.labels.outputs(),
        device=device,
        batch=plan.sampling.batch if plan.network.topology.ndim == 2 else 1,
        report=report,
    )


def _load(bundle: ModelBundle, member: Member, device: torch.device) -> nn.Module:
    plan = bundle.plan
    network = build_network(
        plan.network,
        channels=len(plan.channels),
        outputs=plan.labels.outputs(),
        deep_supervision=plan.training.deep_supervision,
    )
    path = bundle.root / member.weights
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BundleError(
            f"weights do not fit the plan ({reason})", where=path, hint="copy the whole bundle again"
        ) from error
    return network.to(device).eval()
