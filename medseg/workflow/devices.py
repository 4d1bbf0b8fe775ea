"""The one place that turns a device name into a device, and a wish for precision into what the device is fast at."""

import logging

import torch

from medseg.errors import PlanError
from medseg.types.plan import Precision

_LOG = logging.getLogger("medseg")


def resolve_device(name: str = "auto") -> torch.device:
    """The device called `name` ("cpu", "cuda:0", ...); "auto" is the first GPU, or the CPU where there is none.

    Raises PlanError if there is no such device here.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise PlanError(f'no device is called "{name}"', where="device", hint="use auto, cpu or cuda:0") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise PlanError(f'"{name}" is not here: {count} GPUs found', where="device", hint="use auto or cpu")
        return torch.device("cuda", device.index or 0)
    if device.type != "cpu":
        raise PlanError(f'devices of type "{device.type}" are not supported', where="device", hint="use auto or cpu")
    return torch.device("cpu")


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """The precision to compute with: bf16 only where the device multiplies it fast, fp16 only on GPUs.

    bf16 becomes fp16 on older GPUs and fp32 on CPUs without AVX512-BF16 or AMX; a change is logged as a warning.
    """
    chosen = _fast(precision, device)
    if chosen != precision:
        _LOG.warning("%s is not fast on this %s: computing in %s", precision, device.type, chosen)
    return chosen


def _fast(precision: Precision, device: torch.device) -> Precision:
    if precision == "fp32":
        return "fp32"
    if device.type == "cuda":
        if precision == "bf16" and torch.cuda.get_device_capability(device) < (8, 0):
            return "fp16"
        return precision
    return "bf16" if precision == "bf16" and _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    checks = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(bool(check()) for check in checks if check is not None)
