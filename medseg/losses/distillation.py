"""Learn from a teacher's scores as well as from labels."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from medseg.errors import PlanError
from medseg.losses.dice import dice_ce
from medseg.losses.target import WHERE, are_regions, logits_and_target
from medseg.types.tensors import Batch, NetworkOutput


def distil(
    output: NetworkOutput,
    batch: Batch,
    *,
    alpha: float = 0.5,
    temperature: float = 4.0,
    easy_background: float | None = None,
    batch_dice: bool = False,
) -> Tensor:
    """`distillation` from the logits of the batch's teacher (Hinton 2015); PlanError where the batch has none."""
    if batch.teacher is None:
        raise PlanError("there is no teacher to learn from", where=WHERE, hint="name its bundle: --teacher")
    return distillation(
        output.logits[0],
        batch.teacher,
        batch.target,
        alpha=alpha,
        temperature=temperature,
        easy_background=easy_background,
        batch_dice=batch_dice,
    )


def distillation(
    student: Float[Tensor, "b k *s"],
    teacher: Float[Tensor, "b k *s"],
    target: Int[Tensor, "b r *s"],
    *,
    alpha: float = 0.5,
    temperature: float = 4.0,
    easy_background: float | None = None,
    batch_dice: bool = False,
) -> Tensor:
    """alpha * T^2 * KL(teacher at T || student at T) + (1 - alpha) * (Dice + CE with the labels) (Hinton 2015).

    Scores at T are softmax(logits / T), or for regions sigmoid(logits / T) of each. The divergence is a mean over the
    voxels that count, see `divergence`. The teacher gets no gradient.
    """
    if not 0 <= alpha <= 1:
        raise PlanError(f"alpha {alpha}", where=WHERE, hint="from 0 (labels only) to 1 (the teacher only)")
    soft = divergence(student, teacher, target, temperature=temperature, easy_background=easy_background)
    # Of the batch only the target is looked at.
    labelled = dice_ce(NetworkOutput((student,)), Batch(student.detach(), target), batch_dice=batch_dice)
    return alpha * temperature**2 * soft + (1 - alpha) * labelled


def divergence(
    student: Float[Tensor, "b k *s"],
    teacher: Float[Tensor, "b k *s"],
    target: Int[Tensor, "b r *s"],
    *,
    temperature: float = 1.0,
    easy_background: float | None = None,
) -> Tensor:
    """Mean Kullback-Leibler divergence in nats of the student's scores from the teacher's, both at `temperature`.

    A voxel with target -1 does not count, nor, with `easy_background`, one of the background where the teacher gives
    the background more than that (at temperature 1).
    """
    if temperature <= 0:
        raise PlanError(f"temperature {temperature}", where=WHERE, hint="above 0; 4 is usual")
    logits, target = logits_and_target(NetworkOutput((student,)), Batch(student.detach(), target))
    truth = teacher.detach().float()
    counts = target >= 0
    if are_regions(logits, target):
        background = (-truth).sigmoid()
        values = _bernoulli(logits / temperature, truth / temperature)
    else:
        background = truth.softmax(1)[:, :1]
        log_t, log_s = (truth / temperature).log_softmax(1), (logits / temperature).log_softmax(1)
        values = F.kl_div(log_s, log_t, log_target=True, reduction="none").sum(1, keepdim=True)
    if easy_background is not None:
        counts = counts & ~((target == 0) & (background > easy_background))
    return values.masked_fill(~counts, 0.0).sum() / counts.count_nonzero().clamp_min(1)


def _bernoulli(student: Tensor, teacher: Tensor) -> Tensor:
    """The divergence of every channel by itself."""
    p = teacher.sigmoid()
    inside = p * (F.logsigmoid(teacher) - F.logsigmoid(student))
    return inside + (1 - p) * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
