"""Commands on model bundles: model show, model export."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from medseg.cli.terms import OK, Out, Words, complain, show

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


@model.command(name="export")
def export_model(
    bundle: Path,
    /,
    *,
    out: Out,
    folds: Annotated[tuple[str, ...], Words] = (),
    batch: int | None = None,
    trust: Annotated[tuple[str, ...], Words] = (),
) -> int:
    """Write the network of a bundle as one file that runs without medseg, and compare its numbers.

    Example: medseg model export RUN/bundle -o model.onnx

    Parameters
    ----------
    bundle
        Model bundle, or the run folder that holds it.
    out
        File to write: .pt2 for torch.export.load, or .onnx (needs medseg[export]).
    folds
        Folds whose networks' mean is written, by default all.
    batch
        Number of images per call; by default any.
    trust
        Modules of foreign code that the bundle may import.
    """
    from medseg.workflow import export as job

    show(job.format_export(job.export_model(bundle, out, folds=folds, batch=batch, trust=trust)))
    return OK
