"""Commands on model bundles: model show."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from medseg.cli.terms import OK, complain, show

_HELP = "Look at model bundles.\n\nExample: medseg model show RUN/bundle"
model = App(name="model", help=_HELP, help_format="plaintext", result_action="return_value")


@model.command(name="show")
def show_model(bundle: Path, /, *, json: Annotated[bool, Parameter(negative="")] = False) -> int:
    """Verify a bundle of any origin and say what it holds; nothing in it is run, unpickled or unpacked.

    Example: medseg model show RUN/bundle

    Parameters
    ----------
    bundle
        Model bundle, or the run folder that holds it.
    json
        Print everything as JSON.
    """
    from medseg.io.records import format_record
    from medseg.workflow import show_model as job

    card = job.show_model(bundle)
    for warning in card.warnings:
        complain(f"warning: {warning}", OK)
    show(format_record(card).rstrip() if json else job.format_card(card))
    return OK
