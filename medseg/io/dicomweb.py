"""Scans from a DICOMweb server and results back to it: QIDO-RS, WADO-RS, STOW-RS through dicomweb-client."""

import re
import time
import warnings as python_warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pydicom
from pydicom.errors import InvalidDicomError

from medseg.errors import MedsegError, NetworkError
from medseg.io.dicom_kinds import known_modality
from medseg.io.dicomweb_server import Server, redacted

T = TypeVar("T")
_NO_IMAGE = frozenset("SR SEG RTSTRUCT RTPLAN RTDOSE RTRECORD REG KO PR ECG HD EPS AU DOC PLAN FID RWV SMR".split())
_MODALITY, _SERIES, _INSTANCE = "00080060", "0020000E", "00080018"
_FAILED, _STORED = "FailedSOPSequence", "ReferencedSOPSequence"
_AGAIN_LATER = frozenset({408, 429, 500, 502, 503, 504})
_JSON_BYTES = 64 << 20
_MOST = 100_000  # series of a study, instances of a series
_TIMEOUT_S = (10.0, 120.0)  # to connect, between bytes


@dataclass(frozen=True)
class RemoteSeries:
    """One series of a study on a server."""

    uid: str
    modality: str


def find_image_series(server: Server, study: str, chosen: tuple[str, ...] = ()) -> tuple[RemoteSeries, ...]:
    """The series of a study that hold images, or of them the chosen ones.

    Raises NetworkError where the server knows no such study or series, or cannot be asked.
    """
    for uid in (study, *chosen):
        _check_uid(uid)
    found = _search(server, _SERIES, lambda web, offset: web.search_for_series(study, fields=["Modality"], **offset))
    if not found:
        raise NetworkError("knows no such study", where=redacted(server.url), hint="check the StudyInstanceUID")
    missing = [uid for uid in chosen if uid not in found]
    if missing:
        hint = f"it has {len(found)} series; check the SeriesInstanceUID"
        raise NetworkError("knows no such series in this study", where=redacted(server.url), hint=hint)
    series = [RemoteSeries(uid, _modality(item)) for uid, item in found.items() if not chosen or uid in chosen]
    images = tuple(one for one in series if one.modality not in _NO_IMAGE)
    if not images:
        kinds = ", ".join(sorted({one.modality for one in series}))
        raise NetworkError(
            f"has no images in this study, only {kinds}", where=redacted(server.url), hint="see --series"
        )
    return images


def fetch_series(server: Server, study: str, series: str, folder: Path) -> tuple[Path, ...]:
    """Every instance of a series as a file in `folder`, one instance in memory at a time.

    Files are 000001.dcm, 000002.dcm and so on. Raises NetworkError if the server sends more than it may, something
    that is no DICOM, or fewer instances than it lists.
    """
    asked = _search(server, _INSTANCE, lambda web, offset: web.search_for_instances(study, series, **offset))
    files: dict[str, Path] = {}

    def stream(web: Any) -> None:
        for dataset in web.iter_series(study, series, media_types=(("application/dicom", "*"),)):
            uid = str(dataset.SOPInstanceUID)
            if uid not in files:
                path = folder / f"{len(files) + 1:06d}.dcm"
                dataset.save_as(path, enforce_file_format=True)
                files[uid] = path

    _ask(server, stream)
    missing = len(set(asked) - set(files))
    if missing:
        what = f"sent {len(files)} instances of a series; {missing} of the {len(asked)} it lists are missing"
        raise NetworkError(what, where=redacted(server.url), hint="try again; else look for faults in its storage")
    return tuple(files.values())


def store_file(server: Server, study: str, path: Path) -> tuple[str, ...]:
    """Store one DICOM file in its study; returns warnings.

    Raises NetworkError unless the server says, in its answer or when asked again, that it has the instance.
    """
    dataset = pydicom.dcmread(path)
    uid = str(dataset.SOPInstanceUID)
    answer = _ask(server, lambda web: web.store_instances([dataset], study))
    for item in answer.get(_FAILED) or ():
        raise _refused(redacted(server.url), int(item.get("FailureReason") or 0))
    for item in answer.get(_STORED) or ():
        if str(item.get("ReferencedSOPInstanceUID")) == uid:
            reason = item.get("WarningReason")
            return () if reason is None else (f"stored with warning 0x{int(reason):04X}",)
    query = {"SOPInstanceUID": uid}
    if uid in _search(
        server, _INSTANCE, lambda web, offset: web.search_for_instances(study, search_filters=query, **offset)
    ):
        return ()
    raise NetworkError("did not keep the object and gave no reason", where=redacted(server.url), hint="see its log")


def _check_uid(uid: str) -> None:
    if len(uid) > 64 or not re.fullmatch(r"[0-9]+(\.[0-9]+)*", uid):
        raise NetworkError(f"{uid[:70]!r} is no UID", where="--study, --series", hint="digits and dots, 64 at most")


def _load() -> tuple[Any, Any]:
    """The modules of the extra; raises MedsegError with the command that installs them."""
    try:
        import requests
        from dicomweb_client import web
    except ImportError as error:
        raise MedsegError("dicomweb-client is not installed", hint='pip install "medseg[dicom]"') from error
    return requests, web


def _client(server: Server) -> Any:
    """A client that reads no settings of the environment, repeats nothing by itself and has a limit on every answer."""
    requests, dicomweb_client = _load()
    session = requests.Session()
    session.trust_env = False
    session.verify = True if server.ca is None else str(server.ca)
    headers = {"Accept": "application/dicom+json"}
    if server.authorization:
        headers["Authorization"] = server.authorization

    def limit(response: Any, *rest: object, **options: object) -> Any:
        top = _JSON_BYTES if "json" in response.headers.get("Content-Type", "") else server.series_bytes
        read = response.iter_content
        response.iter_content = lambda *args, **keys: _counted(read(*args, **keys), top, server)
        return response

    client = dicomweb_client.DICOMwebClient(
        server.url, session=session, headers=headers, callback=limit, timeout=_TIMEOUT_S
    )
    client.set_http_retry_params(retry=False)
    return client


def _counted(chunks: Iterator[bytes], top: int, server: Server) -> Iterator[bytes]:
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > top:
            hint = "fetch the study with another program"
            raise NetworkError(f"sends more than {top} bytes at once", where=redacted(server.url), hint=hint)
        yield chunk


def _search(server: Server, key: str, page: Callable[..., list[Any]]) -> dict[str, Mapping[str, Any]]:
    """All results of a query by their UID, page by page; a server that ignores the offset ends it too."""
    found: dict[str, Mapping[str, Any]] = {}

    def ask(web: Any) -> dict[str, Mapping[str, Any]]:
        return {_value(item, key): item for item in page(web, offset={"offset": len(found)} if found else {})}

    while len(found) < _MOST:
        new = {uid: item for uid, item in _ask(server, ask).items() if uid not in found}
        if not new:
            return found
        found |= new
    raise NetworkError(f"lists more than {_MOST} results", where=redacted(server.url), hint="ask for a series")


def _value(item: Any, tag: str) -> str:
    """The first value of an element in DICOM JSON; raises KeyError where there is none."""
    return str(item[tag]["Value"][0])


def _modality(item: Mapping[str, Any]) -> str:
    """Modality, "" where the server does not say."""
    return known_modality(str(next(iter(item.get(_MODALITY, {}).get("Value") or ()), "")))


def _ask(server: Server, action: Callable[[Any], T]) -> T:
    """The result of `action` with a client; repeated while the reason of a failure may pass."""
    requests, _ = _load()
    for pause_s in (*server.pauses_s, None):
        try:
            with python_warnings.catch_warnings():
                python_warnings.simplefilter("ignore")  # pydicom's quote what a patient's file says
                return action(_client(server))
        except requests.RequestException as error:
            fault = _fault(error, server)
            if pause_s is None or not _may_pass(error):
                raise fault from error
        except (ValueError, LookupError, TypeError, AttributeError, EOFError, InvalidDicomError) as error:
            raise _no_dicomweb(error, server) from error
        time.sleep(pause_s)
    raise AssertionError("unreachable")


def _may_pass(error: Exception) -> bool:
    from requests import exceptions

    if isinstance(error, exceptions.HTTPError):
        return error.response is not None and error.response.status_code in _AGAIN_LATER
    passing = (exceptions.ConnectionError, exceptions.Timeout, exceptions.ChunkedEncodingError)
    return isinstance(error, passing) and not isinstance(error, exceptions.SSLError)


def _fault(error: Exception, server: Server) -> NetworkError:
    """What a failed request means to a user; no text of the server is repeated, it could name a patient."""
    from requests import exceptions

    where = redacted(server.url)
    if isinstance(error, exceptions.InvalidJSONError):
        return _no_dicomweb(error, server)
    if isinstance(error, exceptions.HTTPError):
        return _http_fault(error.response, where)
    if isinstance(error, exceptions.SSLError):
        hint = "name the hospital's certificate authority with --ca FILE, or correct the host name"
        return NetworkError("its TLS certificate is not trusted", where=where, hint=hint)
    if isinstance(error, exceptions.Timeout):
        return NetworkError("did not answer in time", where=where, hint="try again later")
    if isinstance(error, (exceptions.ConnectionError, exceptions.ChunkedEncodingError)):
        return NetworkError("cannot be reached or broke off", where=where, hint="check the URL and that it runs")
    return NetworkError(f"request failed ({type(error).__name__})", where=where, hint="check the URL")


def _no_dicomweb(error: Exception, server: Server) -> NetworkError:
    what = f"does not answer as DICOMweb ({type(error).__name__})"
    return NetworkError(what, where=redacted(server.url), hint="give the root, e.g. https://host/dicom-web")


def _http_fault(response: Any, where: str) -> NetworkError:
    code = response.status_code
    if code in (401, 403):
        hint = "give a file with user:password or a token by --auth"
        return NetworkError(f"refuses the credentials (HTTP {code})", where=where, hint=hint)
    if code == 404:
        return NetworkError("has no such page or study (HTTP 404)", where=where, hint="check the URL and the UIDs")
    if code == 409:
        return _refused(where, _failure_reason(response))
    hint = "try again later" if code in _AGAIN_LATER else "see its log for the reason"
    return NetworkError(f"fails with HTTP {code}", where=where, hint=hint)


def _failure_reason(response: Any) -> int:
    """The reason in a STOW-RS answer, 0 where it gives none."""
    try:
        items = pydicom.Dataset.from_json(response.json()).get(_FAILED) or ()
        return next((int(item.FailureReason) for item in items), 0)
    except (ValueError, KeyError, TypeError, AttributeError):
        return 0


def _refused(where: str, reason: int) -> NetworkError:
    return NetworkError(f"did not store the object (reason 0x{reason:04X})", where=where, hint="see its log")
