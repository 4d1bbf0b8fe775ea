"""Weights of loss terms that are learnt beside the network."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_MOST = 10.0


class TermWeights(nn.Module):
    """One log variance s per term: a sum of exp(-s) * term + s / 2 (Kendall 2018).

    All start at 0, where the sum is that of the terms. A term that stays at L ends at the weight 1 / (2 L), so that
    terms of any unit count alike; what the plan weighs them by is then without effect. Terms are errors, from 0 on;
    `lowest` is the smallest since it was set to None.

    >>> import torch
    >>> TermWeights(2)([torch.tensor(0.25), torch.tensor(3.0)]).item()
    3.25
    """

    def __init__(self, terms: int) -> None:
        super().__init__()
        self.log_variances = nn.Parameter(torch.zeros(terms))
        self.lowest: Tensor | None = None

    def forward(self, terms: Sequence[Tensor]) -> Tensor:
        s, errors = self.log_variances, torch.stack(list(terms))
        least = errors.detach().min()
        self.lowest = least if self.lowest is None else torch.minimum(self.lowest, least)
        return (errors * torch.exp(-s) + s / 2).sum()

    @torch.no_grad()
    def hold(self) -> None:
        """Keep every s within 10 of 0: that of a term that vanishes would run away."""
        self.log_variances.clamp_(-_MOST, _MOST)

    def weights(self) -> list[float]:
        """What every term is multiplied with now."""
        return [float(weight) for weight in torch.exp(-self.log_variances.detach())]
