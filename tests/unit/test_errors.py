import errno

import pytest
import torch

from medseg.errors import PlanError, lacks_memory, memory_errors

SHORT = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", SHORT, ids=lambda error: type(error).__name__)
def test_memory_that_runs_out_is_an_error_with_a_hint(error):
    assert lacks_memory(error)
    with pytest.raises(PlanError) as found, memory_errors(PlanError, "out of memory", where="RUN", hint="less"):
        raise error
    assert str(found.value) == "RUN: out of memory. less" and found.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), OSError(errno.ENOSPC, "No space left"), ValueError("out of memory")]
)
def test_other_errors_stay_what_they_are(error):
    assert not lacks_memory(error)
    with pytest.raises(type(error)) as found, memory_errors(PlanError, "out of memory"):
        raise error
    assert found.value is error
