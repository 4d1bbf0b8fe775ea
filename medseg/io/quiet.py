"""What libraries say about a file stays off the terminal: their warnings quote the values of its tags."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_OWN_HANDLERS = ("nibabel.global",)  # loggers that write to stderr by themselves


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Drop Python warnings and the log records of libraries; medseg's own logger is shown by `cli.progress` as before.

    For a whole process: warning filters are no matter of one thread.
    """
    root, nobody = logging.getLogger(), logging.NullHandler()
    loud = [logger for logger in map(logging.getLogger, _OWN_HANDLERS) if not logger.disabled]
    root.addHandler(nobody)  # without any handler, Python writes warnings to stderr
    for logger in loud:
        logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeHandler(nobody)
        for logger in loud:
            logger.disabled = False
