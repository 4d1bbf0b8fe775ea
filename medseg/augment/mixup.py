"""Mixing of samples: the one augmentation that needs more than a patch. It works on whole training batches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import torch

from medseg.errors import PlanError
from medseg.plugins import resolve
from medseg.types.plan import Step
from medseg.types.tensors import Batch, Mixed

BatchAugment = Callable[..., Batch]


def mixup(batch: Batch, rng: np.random.Generator, *, alpha: float = 0.2, p: float = 1.0) -> Batch:
    """Every image becomes lambda x + (1 - lambda) x' with another sample x' of the batch; so do labels (Zhang 2018).

    lambda is drawn from Beta(alpha, alpha) for each sample, and with chance 1 - `p` nothing is mixed. The labels are
    not blended into one map: the batch holds both and lambda (`Batch.mixed`), from which losses make soft labels. A
    voxel ignored in one of the two is ignored. Points of the other sample are not kept: mixing is for label maps.
    """
    if alpha <= 0 or not 0 <= p <= 1:
        raise PlanError(f"alpha {alpha}, p {p}", where="mixup", hint="alpha above 0, p from 0 to 1")
    samples = len(batch.image)
    coin, shift = rng.random(), int(rng.integers(1, max(samples, 2)))
    shares = rng.beta(alpha, alpha, size=samples)
    if samples < 2 or coin >= p:
        return batch
    share = torch.from_numpy(shares.astype(np.float32)).to(batch.image.device)
    each = share.reshape(-1, *(1,) * (batch.image.dim() - 1))
    image = each * batch.image + (1 - each) * batch.image.roll(shift, 0)
    other = batch.target.roll(shift, 0)
    ignored = (batch.target < 0) | (other < 0)
    mixed = Mixed(other.masked_fill(ignored, -1), share)
    return replace(batch, image=image, target=batch.target.masked_fill(ignored, -1), mixed=mixed)


def sample_pairing(batch: Batch, rng: np.random.Generator, *, p: float = 0.5) -> Batch:
    """With chance `p` every image becomes the mean of itself and another one; labels stay its own (Inoue 2018).

    The paper trains without it at the beginning, now and then, and at the end; here it is a chance per batch.
    """
    if not 0 <= p <= 1:
        raise PlanError(f"p {p}", where="sample_pairing", hint="from 0 to 1")
    coin, shift = rng.random(), int(rng.integers(1, max(len(batch.image), 2)))
    if len(batch.image) < 2 or coin >= p:
        return batch
    return replace(batch, image=(batch.image + batch.image.roll(shift, 0)) / 2)


MIXING: Mapping[str, BatchAugment] = MappingProxyType({"mixup": mixup, "sample_pairing": sample_pairing})


def build_mixing(steps: Sequence[Step]) -> Callable[[Batch, np.random.Generator], Batch]:
    """All steps of a plan's augmentation that mix samples, in order, as one function; raises PlanError for options."""
    chain = [
        resolve(step.use, MIXING, step.options, where=f"training.augment[{number}]")
        for number, step in enumerate(steps)
        if step.use in MIXING
    ]

    def mix(batch: Batch, rng: np.random.Generator) -> Batch:
        for function in chain:
            batch = function(batch, rng)
        return batch

    return mix
