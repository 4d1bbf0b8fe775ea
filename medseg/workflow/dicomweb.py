"""medseg predict dicomweb:URL: fetch a study, segment it, store the result beside it."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from medseg.errors import DatasetError, MedsegError, NetworkError
from medseg.io.dicomweb import fetch_series, find_image_series, store_file
from medseg.io.dicomweb_server import Server, open_server
from medseg.io.inbox import hashed
from medseg.io.outputs import Format
from medseg.io.records import write_record
from medseg.training.lock import locked
from medseg.types.progress import Progress, Report, silent
from medseg.types.result import CaseReport, RunReport
from medseg.workflow.model import PredictOptions
from medseg.workflow.predict import REPORT, predict_folder

PREFIX = "dicomweb:"
_SEG: Format = "dicom-seg"
_DEFAULT = PredictOptions(format=(_SEG,))


@dataclass(frozen=True)
class StudyAddress:
    """A study on a DICOMweb server, or some of its series; `auth` and `ca` as in `io.dicomweb_server.open_server`."""

    url: str
    study: str
    series: tuple[str, ...] = ()
    auth: Path | None = None
    ca: Path | None = None


def study_address(
    inputs: Sequence[str],
    study: str | None,
    series: tuple[str, ...] = (),
    *,
    auth: Path | None = None,
    ca: Path | None = None,
) -> StudyAddress | None:
    """The study that `dicomweb:URL` and its options name; None if no input starts so.

    Raises DatasetError for a server beside other inputs, without a study, or options without a server.
    """
    urls = [text.removeprefix(PREFIX) for text in inputs if text.startswith(PREFIX)]
    if not urls:
        if study or series or auth or ca:
            what = "--study, --series, --auth and --ca need a server"
            raise DatasetError(what, hint="give dicomweb:URL instead of files")
        return None
    if len(inputs) > 1:
        raise DatasetError("give one server and no other inputs", hint="predict files by a command of their own")
    if study is None:
        raise DatasetError("no study given", where="--study", hint="add --study and the StudyInstanceUID")
    return StudyAddress(urls[0], study, series, auth, ca)


def predict_study(
    bundle: Path | str,
    address: StudyAddress,
    out: Path | str,
    *,
    options: PredictOptions = _DEFAULT,
    report: Report = silent,
) -> RunReport:
    """Segment every image series of a study and store the DICOM SEGs on the server it came from.

    Fetched files lie in a temporary folder in `out` until the end. Cases are named by a hash of the series UID. A
    case whose SEG was not stored is a failed line that says so; its files stay in `out`. Raises MedsegError for what
    concerns all of them: a server that cannot be used, no such study, a bad bundle.
    """
    server, warnings = open_server(address.url, auth=address.auth, ca=address.ca)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    formats = tuple(dict.fromkeys((_SEG, *options.format)))
    with _folder_for_scans(out) as folder:
        _fetch(server, address, folder, report)
        run = predict_folder(bundle, [folder], out, options=replace(options, format=formats), report=report)
    cases = []
    for number, case in enumerate(run.cases, start=1):
        cases.append(_stored(server, address.study, case, out))
        report(Progress("store", number, len(run.cases)))
    if cases:
        cases[0] = replace(cases[0], warnings=(*warnings, *cases[0].warnings))
    done = replace(run, cases=tuple(cases))
    write_record(done, out / REPORT)
    return done


@contextmanager
def _folder_for_scans(out: Path) -> Iterator[Path]:
    """A temporary folder in `out`; those of runs that were killed are deleted first."""
    for old in out.glob(".fetched-*"):
        with suppress(NetworkError), locked(old, error=NetworkError):
            shutil.rmtree(old)
    with tempfile.TemporaryDirectory(prefix=".fetched-", dir=out) as folder, locked(Path(folder), remove=True):
        scans = Path(folder) / "scans"
        scans.mkdir()
        yield scans


def _fetch(server: Server, address: StudyAddress, folder: Path, report: Report) -> None:
    """Every image series in a folder of its own."""
    series = find_image_series(server, address.study, address.series)
    for number, one in enumerate(series, start=1):
        target = folder / hashed(one.uid)
        target.mkdir()
        fetch_series(server, address.study, one.uid, target)
        report(Progress("fetch", number, len(series)))


def _stored(server: Server, study: str, case: CaseReport, out: Path) -> CaseReport:
    """The line of a case after its SEG went to the server; also that of a case an earlier run predicted."""
    files = [out / name for name in case.outputs if name.endswith(".seg.dcm")]
    if case.status == "failed" or not files:
        return case
    try:
        warnings = tuple(text for path in files for text in store_file(server, study, path))
    except (NetworkError, OSError) as error:
        what = str(error) if isinstance(error, MedsegError) else f"cannot be stored ({error})"
        return replace(case, status="failed", error=f"{what}. The result is in {out.name}")
    return replace(case, warnings=(*case.warnings, *warnings))
