"""The `medseg` command. Exit 0: all well; 1: faults or failed cases; 2: usage or an error that has a remedy."""

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from cyclopts import App, CycloptsError, MissingArgumentError

from medseg import __version__
from medseg.cli import catalogue, convert, models, network, prediction, scans, training
from medseg.cli.terms import INTERRUPTED, OK, TERMINATED, USAGE, complain, print_any_text
from medseg.errors import Interrupted, MedsegError, memory_errors
from medseg.io.quiet import quiet_libraries

app = App(
    name="medseg",
    help="Plan, train and run medical image segmentation models under a budget of memory and time.\n\n"
    "Three commands do the main job:\n\n"
    "medseg plan DATA --vram 8 -o RUN\n\n"
    "medseg train RUN/plan-3d_fullres.json DATA -o RUN\n\n"
    "medseg predict RUN/bundle SCANS -o OUT",
    help_format="plaintext",
    version=__version__,
    version_flags=("--version", "-v"),
    result_action="return_value",
)

for command in (
    training.check,
    training.plan,
    training.train,
    prediction.predict,
    prediction.evaluate,
    scans.inspect,
    convert.convert,
    network.listen,
    training.report,
    catalogue.networks,
):
    app.command(command)
app.command(models.model)


_SHORT = "close other programs, or use another device"


class _Terminated(BaseException):
    """SIGTERM arrived."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors with a remedy are one line on stderr, never a traceback."""
    print_any_text()
    try:
        with _terminable(), quiet_libraries(), memory_errors(MedsegError, "out of memory", hint=_SHORT):
            code = app(None if argv is None else list(argv), exit_on_error=False)
        return code if isinstance(code, int) else OK
    except CycloptsError as error:  # cyclopts has printed it
        _complain_of_order(error, sys.argv[1:] if argv is None else argv)
        return USAGE
    except Interrupted as error:
        return complain(str(error), 128 + error.signum)
    except (MedsegError, OSError) as error:
        return complain(f"error: {error}", USAGE)
    except KeyboardInterrupt:
        return complain("interrupted", INTERRUPTED)
    except _Terminated:
        return complain("terminated", TERMINATED)


def _complain_of_order(error: CycloptsError, words: Sequence[str]) -> None:
    """Say why files are missing where an option of several words has taken them."""
    if not isinstance(error, MissingArgumentError):
        return
    command = app
    for word in error.command_chain or ():
        command = command[word]
    several = [a.names for a in command.assemble_argument_collection() if a.parameter.consume_multiple]
    taking = [word for word in words if any(word in names for names in several)]
    if taking:
        hint = "put files and folders before it, or another option between them"
        complain(f"{taking[0]} takes all words after it: {hint}", USAGE)


@contextmanager
def _terminable() -> Iterator[None]:
    """Unwind on SIGTERM as on Ctrl-C, so that files and child processes are left in order."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
