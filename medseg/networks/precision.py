"""Networks run in the precision of a plan."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from medseg.types.plan import Precision
from medseg.types.tensors import NetworkOutput

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def run(
    network: nn.Module, image: Float[Tensor, "b c *s"], raters: Int[Tensor, " b"] | None, precision: Precision
) -> NetworkOutput:
    """What the network returns for images, computed under autocast; `raters` as in `Batch`."""
    dtype = _AUTOCAST.get(precision)
    with torch.autocast(image.device.type, dtype=dtype, enabled=dtype is not None):
        output: NetworkOutput = network(image) if raters is None else network(image, raters)
    return output
