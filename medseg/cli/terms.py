"""What all commands share: exit codes, options and the way they print."""

import io
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from medseg.errors import PlanError

OK, FAILED, USAGE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

Out = Annotated[Path, Parameter(name=("--out", "-o"))]
Device = Annotated[str, Parameter(help='"auto", "cpu", "cuda" or "cuda:1".')]
Words = Parameter(consume_multiple=True, negative="")


def pixel_spacing(values: tuple[float, ...]) -> tuple[float, float] | None:
    """`--spacing`, one number or y and x, as (y, x) in mm; None where it is not given."""
    if not values:
        return None
    if len(values) > 2 or not all(0 < value < 100 for value in values):
        raise PlanError(
            f"{' '.join(map(str, values))} is no pixel spacing", where="--spacing", hint="e.g. 0.2, or 0.2 0.3"
        )
    return values[0], values[-1]


def print_any_text() -> None:
    """What the terminal or a file behind ">" cannot hold is printed as an escape from now on, and is no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def show(text: str) -> None:
    """A result, on stdout."""
    sys.stdout.write(_printable(text) + "\n")


def complain(text: str, code: int) -> int:
    """An error or warning, on stderr; returns `code`."""
    sys.stderr.write(_printable(text) + "\n")
    return code


def _printable(text: str) -> str:
    """Text out of files must not steer the terminal: control characters become escapes."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)
