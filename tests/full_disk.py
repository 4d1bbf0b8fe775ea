"""A disk without room: no file of this process may grow beyond a limit while a block runs."""

import resource
import signal
from contextlib import contextmanager


@contextmanager
def full_disk(limit_bytes):
    """Writes beyond `limit_bytes` fail with EFBIG, as they do with ENOSPC on a full disk."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
