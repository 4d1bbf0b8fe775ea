"""medseg listen: a DICOM node that segments the studies it receives and sends the results to a peer."""

import logging
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import BundleError, MedsegError, NetworkError
from medseg.io.bundles import bundle_folder, load_bundle
from medseg.io.dicom_node import NodeSettings, Peer, PeerRefused, running_node, send_files
from medseg.io.inbox import Inbox, Outcome, hashed
from medseg.training.lock import locked
from medseg.types.progress import Report, silent
from medseg.types.result import RunReport
from medseg.workflow.model import PredictOptions
from medseg.workflow.predict import predict_folder

_LOG = logging.getLogger(__name__)
_ATTEMPTS = 3
_POLL_S = 0.2
_DEFAULT = PredictOptions(format=("dicom-seg",))


@dataclass(frozen=True)
class ListenOptions:
    """When a study is complete (`quiet_s` without a further file), how much may wait, and how often to send again.

    `resend_s`: pause after the first failed sending; it doubles up to 100 times as long and never gives up.
    """

    quiet_s: float = 10.0
    max_studies: int = 32
    max_bytes: int = 50 << 30
    resend_s: float = 3.0


def listen(
    bundle: Path | str,
    out: Path | str,
    peer: Peer,
    *,
    node: NodeSettings,
    options: ListenOptions | None = None,
    predict: PredictOptions = _DEFAULT,
    stop: Callable[[], bool] = lambda: False,
    report: Report = silent,
) -> None:
    """Receive studies into `out` and segment them one at a time until `stop` says so or the process is ended.

    The folder `out` is the whole state (see `io.inbox`): the process may be killed at any moment and started again
    on the same folder. A study that fails lies in `out`/failed with the reason; the others go on. Raises MedsegError
    only for what concerns all: a bad bundle, a port that is taken, a missing extra.
    """
    loaded = load_bundle(bundle_folder(Path(bundle)), trust=predict.trust)
    if not loaded.plan.labels.items:
        hint = "use a model that segments: results go as SEG"
        raise BundleError("finds landmarks only", where=loaded.root, hint=hint)
    options = options or ListenOptions()
    waits: dict[str, _Wait] = {}
    with ExitStack() as held:
        Path(out).mkdir(mode=0o700, parents=True, exist_ok=True)
        held.enter_context(locked(Path(out), doing="listening", error=NetworkError))
        inbox = Inbox(Path(out), options.max_studies, options.max_bytes)
        port = held.enter_context(running_node(node, inbox.receive))
        _LOG.info("%s listens on %s:%d and sends to %s", node.aet, node.host, port, peer)
        while not stop():
            study = _next(inbox, waits, options.quiet_s)
            if study is None:
                time.sleep(_POLL_S)
                continue
            try:
                outcome = inbox.outcome(study) or _segment(inbox, study, Path(bundle), predict, report)
                _deliver(inbox, study, outcome, peer, node.aet)
                waits.pop(study, None)
            except PeerRefused as error:
                _fail(inbox, study, str(error))
            except (NetworkError, OSError) as error:
                waits[study] = _longer(waits.get(study), options.resend_s)
                _LOG.warning("study %s: %s; tried again in %.0f s", study, error, waits[study].pause_s)
            except MedsegError as error:
                _fail(inbox, study, str(error))


@dataclass(frozen=True)
class _Wait:
    """Until when (monotonic) a study is not sent again, and the pause that led there."""

    until: float
    pause_s: float


def _longer(before: _Wait | None, first_s: float) -> _Wait:
    pause_s = first_s if before is None else min(2 * before.pause_s, 100 * first_s)
    return _Wait(time.monotonic() + pause_s, pause_s)


def _next(inbox: Inbox, waits: dict[str, _Wait], quiet_s: float) -> str | None:
    """A study that was taken up and is not waiting for its peer, else the next complete one."""
    now = time.monotonic()
    due = [study for study in inbox.working() if study not in waits or waits[study].until <= now]
    return due[0] if due else inbox.take(quiet_s)


def _segment(inbox: Inbox, study: str, bundle: Path, options: PredictOptions, report: Report) -> Outcome:
    """Predict what is new in a study and note the outcome."""
    faults = inbox.leave_out_known(study)
    if faults:
        raise MedsegError("; ".join(faults))
    if inbox.is_empty(study):
        _LOG.info("study %s: nothing new", study)
        return Outcome((), ())
    if inbox.count_attempt(study) > _ATTEMPTS:
        what = f"prediction was begun {_ATTEMPTS} times and the process ended each time"
        raise MedsegError(what, hint="look for a lack of memory, then predict this folder by hand")
    shutil.rmtree(inbox.results(study), ignore_errors=True)
    series = inbox.series(study)
    _LOG.info("study %s: %d series, %d files", study, len(series), sum(map(len, series.values())))
    run = predict_folder(bundle, [inbox.scans(study)], inbox.results(study), options=options, report=report)
    outcome = _outcome(run, tuple(series))
    inbox.keep_outcome(study, outcome)
    return outcome


def _outcome(run: RunReport, series: tuple[str, ...]) -> Outcome:
    """What to send, which series are done, and what failed; a case tells its series by its UIDs or its id."""
    good = [case for case in run.cases if case.status == "ok"]
    outputs = tuple(name for case in good for name in case.outputs)
    uids = {uid for case in good for uid in case.series_uids}
    told = {hashed(uid) for uid in uids} | {uid.removeprefix("invalid-") for uid in uids}
    done = tuple(name for name in series if name in told or any(name in case.case_id for case in good))
    errors = tuple(f"{case.case_id}: {case.error}" for case in run.cases if case.status == "failed")
    for case in run.cases:
        for warning in case.warnings:
            _LOG.info("series %s: %s", case.case_id, warning)
    return Outcome(outputs, done, errors)


def _deliver(inbox: Inbox, study: str, outcome: Outcome, peer: Peer, aet: str) -> None:
    """Send the results, then close the study."""
    files = [inbox.results(study) / name for name in outcome.outputs if name.endswith(".dcm")]
    if files:
        send_files(files, peer, aet=aet)
        _LOG.info("study %s: %d objects sent", study, len(files))
    if outcome.errors:
        _LOG.warning("study %s: failed: %s", study, "; ".join(outcome.errors))
    inbox.finish(study, outcome)


def _fail(inbox: Inbox, study: str, reason: str) -> None:
    _LOG.warning("study %s: failed: %s", study, reason)
    inbox.fail(study, reason)
