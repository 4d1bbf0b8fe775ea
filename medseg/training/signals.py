"""Notice a request to stop without losing the current step."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_ASKED = tuple(s for s in (getattr(signal, "SIGTERM", None), getattr(signal, "SIGINT", None)) if s is not None)


@contextmanager
def stop_requests() -> Iterator[Callable[[], int | None]]:
    """Within the block SIGTERM and Ctrl-C only set what the yielded function returns; the second Ctrl-C interrupts.

    Outside the main thread, where signals cannot be caught, the function always returns None.
    """
    asked: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        if asked and signum == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(signum)

    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, note) for number in _ASKED} if here else {}
    try:
        yield lambda: asked[0] if asked else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
