"""Open a model bundle as the teacher of another network (Hinton 2015)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from medseg.errors import PlanError
from medseg.inference.ensemble import load_members
from medseg.io.bundles import bundle_folder, bundle_sha256, load_bundle
from medseg.training.teacher import Teacher
from medseg.types.plan import Plan
from medseg.types.result import ModelBundle
from medseg.workflow.devices import resolve_precision

LOSS = "distillation"
_SMALLEST = 1e-6  # of a mean score, so that its logarithm stays finite


def check_teacher(plan: Plan, folder: Path | None, *, trust: Sequence[str] = ()) -> ModelBundle | None:
    """The bundle in `folder` as teacher of the plan's network; None where neither is asked for.

    Raises PlanError where the plan's losses and the teacher do not go together, or where the teacher sees other
    channels, labels or preprocessing than the student.
    """
    asked = any(term.use == LOSS for term in plan.training.losses)
    if folder is None and not asked:
        return None
    if folder is None:
        raise PlanError(
            f'the loss "{LOSS}" needs a teacher', where="training.losses", hint="name its bundle: --teacher"
        )
    if not asked:
        hint = f'put the loss "{LOSS}" into the plan, in place of dice_ce'
        raise PlanError("a teacher, but no loss that learns from it", where="training.losses", hint=hint)
    bundle = load_bundle(bundle_folder(folder), trust=trust)
    _check_alike(plan, bundle.plan, folder)
    return bundle


def unseen_member(bundle: ModelBundle, fold: int | str, splits_sha256: str | None) -> str | None:
    """The member that never saw what the student's fold is validated on: of the same fold of the same splits.

    None where the bundle has no such member; then all of them teach, and have seen it.
    """
    same = splits_sha256 is not None and bundle.scores.get("splits_sha256") == splits_sha256
    return str(fold) if same and str(fold) in {str(member.fold) for member in bundle.members} else None


def open_teacher(bundle: ModelBundle, plan: Plan, device: torch.device, *, member: str | None = None) -> Teacher:
    """One member of a bundle as teacher, or all of them, who teach with the mean of their scores."""
    precision = resolve_precision(plan.training.precision, device)
    folds = None if member is None else [member]
    members = load_members(bundle, device=device, folds=folds, precision=precision)
    flat, regions = plan.network.topology.ndim == 2, plan.labels.are_regions()

    def scores(image: Tensor) -> Tensor:
        volume = image.unsqueeze(2) if flat else image
        with torch.no_grad():
            logits = mean_logits([member(volume) for member in members], regions=regions)
        return logits.squeeze(2) if flat else logits

    return Teacher(scores, f"{bundle_sha256(bundle)} {member or 'all'}")


def mean_logits(members: Sequence[Tensor], *, regions: bool) -> Tensor:
    """Logits (float32) whose scores are the mean of the members' scores.

    >>> mean_logits([torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]])], regions=False).softmax(1)
    tensor([[0.5000, 0.5000]])
    """
    if len(members) == 1:
        return members[0].to(torch.float32, copy=True)
    parts = [m.float().sigmoid() if regions else m.float().softmax(1) for m in members]
    mean = torch.stack(parts).mean(0)
    if regions:
        return mean.clamp(_SMALLEST, 1 - _SMALLEST).logit()
    return mean.clamp_min(_SMALLEST).log()


def _check_alike(plan: Plan, teacher: Plan, folder: Path) -> None:
    same = {
        "channels": plan.channels == teacher.channels,
        "labels": plan.labels == teacher.labels,
        "preprocess": plan.preprocess == teacher.preprocess,
        "network.topology.ndim": plan.network.topology.ndim == teacher.network.topology.ndim,
    }
    if other := [name for name, alike in same.items() if not alike]:
        hint = "plan the student from the same data set and spacing as the teacher"
        raise PlanError(f"the teacher has other {', '.join(other)} than the plan", where=folder, hint=hint)
    divisor = teacher.network.topology.divisor()
    if any(n % d for n, d in zip(plan.sampling.patch, divisor, strict=True)):
        what = f"patch {plan.sampling.patch} is not a multiple of the teacher's {divisor}"
        raise PlanError(what, where="sampling.patch", hint="change the patch of the student's plan")
