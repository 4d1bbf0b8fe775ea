"""Command that lists what plans can name: networks."""

from typing import Annotated, Literal

from cyclopts import Parameter

from medseg.cli.terms import OK, show


def networks(
    *,
    kind: Literal["backbone", "block", "head", "loss"] | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """List every backbone, block, head and loss that a plan can name, with paper, dimensions and options.

    Example: medseg networks --kind backbone

    Parameters
    ----------
    kind
        Only these.
    json
        Print everything as JSON.
    """
    from medseg.io.records import format_record
    from medseg.workflow import networks as job

    parts = job.list_networks(kind)
    show(format_record(parts).rstrip() if json else job.format_networks(parts))
    return OK
