"""Command that waits for studies: listen."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from medseg.cli.terms import OK, Device, Words


def listen(
    *,
    bundle: Path,
    port: Annotated[int, Parameter(validator=Number(gte=1, lte=65535))],
    peer: str,
    aet: str = "MEDSEG",
    out: Annotated[Path, Parameter(name=("--out", "-o"))] = Path("medseg-node"),
    host: str = "127.0.0.1",
    allow: Annotated[tuple[str, ...], Words] = (),
    quiet: Annotated[float, Parameter(validator=Number(gte=0))] = 10.0,
    queue: Annotated[int, Parameter(validator=Number(gte=1))] = 32,
    disk: Annotated[float, Parameter(validator=Number(gt=0))] = 50.0,
    device: Device = "auto",
    trust: Annotated[tuple[str, ...], Words] = (),
) -> int:
    """Be a DICOM node: segment every study that arrives by C-STORE and send the DICOM SEG to a peer.

    Example: medseg listen --port 11112 --bundle RUN/bundle --peer PACS@127.0.0.1:4242

    Parameters
    ----------
    bundle
        Model bundle, or the run folder that holds it.
    port
        TCP port to listen on.
    peer
        Who gets the results, AET@host:port.
    aet
        Own AE title.
    out
        Folder for studies and results; the same folder again goes on where the last process ended.
    host
        Address to listen on; 0.0.0.0 is every network the machine is in.
    allow
        Calling AE titles that may send; by default all.
    quiet
        Seconds without a further file after which a study is complete.
    queue
        Studies that may wait; further ones are refused with status A700.
    disk
        GiB that received files may take; further ones are refused with status A700.
    trust
        Modules outside medseg that the bundle may import.
    """
    from medseg.cli.progress import shown_progress
    from medseg.io.dicom_node import NodeSettings, check_title, parse_peer
    from medseg.workflow.listen import ListenOptions
    from medseg.workflow.listen import listen as job
    from medseg.workflow.model import PredictOptions

    node = NodeSettings(port, check_title(aet, "--aet"), host, tuple(check_title(one, "--allow") for one in allow))
    options = ListenOptions(quiet, queue, int(disk * 2**30))
    predict = PredictOptions(device=device, trust=trust, format=("dicom-seg",))
    with shown_progress(lines=False) as report:
        job(bundle, out, parse_peer(peer), node=node, options=options, predict=predict, report=report)
    return OK
