"""The prior of raters' codes."""

from torch import Tensor

from medseg.errors import PlanError
from medseg.types.tensors import Batch, NetworkOutput


def rater_prior(output: NetworkOutput, batch: Batch, *, cases: int = 1, sigma: float = 1.0) -> Tensor:
    """The sum of squares of all codes / (2 sigma^2 cases): a Gaussian prior beside a loss that is a mean over cases.

    With it training finds the most probable codes (Li 2021, whose loss is the sum over all samples). `cases` are those
    that the codes are learnt from. Raises PlanError for a network without codes, and numbers that are not above 0.
    """
    if cases < 1 or not sigma > 0:
        what = f"{cases} cases and a sigma of {sigma:g}"
        raise PlanError(what, where="training.losses", hint="both are above 0")
    if output.rater_codes is None:
        hint = 'add attention "rater_code" to network.options, or leave the loss out'
        raise PlanError("the loss rater_prior needs raters' codes", where="training.losses", hint=hint)
    return output.rater_codes.float().square().sum() / (2 * sigma**2 * cases)
