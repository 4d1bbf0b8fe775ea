"""A DICOM node: C-ECHO and C-STORE in, C-STORE out, through pynetdicom (extra "dicom")."""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from pydicom.uid import UID

from medseg.errors import MedsegError, NetworkError
from medseg.io.inbox import InboxFull

SUCCESS, OUT_OF_RESOURCES, MISMATCH, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000
_TAGS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_WAIT_S = 30.0
_ASSOCIATIONS = 5
_PDU_BYTES = 1 << 20  # a sender must keep to the 16 kB this node announces; negotiation may be longer
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")

Keep = Callable[[str, str, str, bytes], None]


@dataclass(frozen=True)
class Peer:
    """Another node: AE title, host and port."""

    aet: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.aet}@{self.host}:{self.port}"


@dataclass(frozen=True)
class NodeSettings:
    """How a node is called, where it listens, and whom it answers (`allowed` calling AE titles; empty = everyone).

    One received object may take up to `object_bytes`; a longer one ends its association.
    """

    port: int
    aet: str = "MEDSEG"
    host: str = "127.0.0.1"
    allowed: tuple[str, ...] = ()
    object_bytes: int = 1 << 30


def parse_peer(text: str) -> Peer:
    """A peer from "AET@host:port"; raises NetworkError for other texts.

    >>> parse_peer("PACS@127.0.0.1:4242").port
    4242
    """
    title, _, place = text.rpartition("@")
    host, _, port = place.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise NetworkError(f"{text!r} is no peer", where="--peer", hint="write AET@host:port, e.g. PACS@127.0.0.1:104")
    return Peer(check_title(title, "--peer"), host.strip("[]"), int(port))


def check_title(title: str, where: str) -> str:
    """The AE title itself; raises NetworkError unless it is 1 to 16 characters of ASCII without backslash."""
    bad = not title.strip() or len(title) > 16 or "\\" in title or not (title.isascii() and title.isprintable())
    if bad:
        raise NetworkError(f"{title!r} is no AE title", where=where, hint="use 1 to 16 letters, digits and _")
    return title.strip()


@contextmanager
def running_node(settings: NodeSettings, keep: Keep) -> Iterator[int]:
    """Listen while the block runs; gives the port, of the system's choice if `settings.port` is 0.

    Every image is handed to `keep` (study, series and instance UID, bytes of a DICOM file) before it is answered:
    0x0000 kept; 0xA700 refused by `keep` with InboxFull or OSError; 0xA900 UIDs contradict the request; 0xC000 not
    readable. Objects that are no image (reports, segmentations, presentation states) are answered with 0x0000 and
    dropped. Raises NetworkError if the port is taken.
    """
    network = load_pynetdicom()
    entity = network.AE(settings.aet)
    entity.require_called_aet = True
    entity.require_calling_aet = list(settings.allowed)
    entity.maximum_associations = _ASSOCIATIONS
    entity.network_timeout = entity.acse_timeout = entity.dimse_timeout = _WAIT_S
    for context in network.AllStoragePresentationContexts:
        entity.add_supported_context(context.abstract_syntax, network.ALL_TRANSFER_SYNTAXES)
    entity.add_supported_context("1.2.840.10008.1.1")  # Verification: C-ECHO
    guard = _SizeGuard(settings.object_bytes)
    handlers = [
        (network.evt.EVT_C_STORE, _answer, [keep, guard]),
        (network.evt.EVT_CONN_OPEN, _limit_pdu),
        (network.evt.EVT_DATA_RECV, guard.count),
        (network.evt.EVT_CONN_CLOSE, guard.forget),
    ]
    try:
        server = entity.start_server((settings.host, settings.port), block=False, evt_handlers=handlers)
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        raise NetworkError(f"cannot listen ({error.strerror or error})", where=where, hint="choose another") from error
    try:
        yield int(server.socket.getsockname()[1])
    finally:
        server.shutdown()


def send_files(files: Sequence[Path], peer: Peer, *, aet: str) -> None:
    """Send DICOM files by C-STORE in one association; on return the peer has answered each with success or warning.

    Raises NetworkError: `PeerRefused` where sending again is of no use, else where the peer is away, busy or full.
    """
    network = load_pynetdicom()
    entity = network.AE(aet)
    entity.network_timeout = entity.acse_timeout = entity.dimse_timeout = entity.connection_timeout = _WAIT_S
    metas = {path: pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"]) for path in files}
    for sop_class, syntax in {(meta.SOPClassUID, meta.file_meta.TransferSyntaxUID) for meta in metas.values()}:
        entity.add_requested_context(sop_class, syntax)
    association = entity.associate(peer.host, peer.port, ae_title=peer.aet)
    if association.is_rejected:
        raise NetworkError("rejects the association", where=peer, hint=f"make it know the AE title {aet}")
    if not association.is_established and association.rejected_contexts:
        raise PeerRefused("does not take such objects", where=peer, hint="check the SOP classes it accepts")
    if not association.is_established:
        raise NetworkError("cannot be reached", where=peer, hint="check host, port and firewall, and that it runs")
    try:
        for path in files:
            _send(association, path, peer)
    finally:
        association.release() if association.is_established else association.abort()


class PeerRefused(NetworkError):
    """The peer does not take this object, now or later."""


def load_pynetdicom() -> Any:
    """The module; raises MedsegError with the command that installs it."""
    try:
        import pynetdicom as module
    except ImportError as error:
        raise MedsegError("pynetdicom is not installed", hint='pip install "medseg[dicom]"') from error
    return module


def _limit_pdu(event: Any) -> None:
    """Let the connection break where a sender announces a PDU of up to 4 GiB, or stops in the middle of one."""
    connection = event.assoc.dul.socket
    read = connection.recv

    def limited(count: int) -> Any:
        if count > _PDU_BYTES:
            raise OSError("PDU too long")
        return read(count)

    connection.recv = limited
    connection.socket.settimeout(_WAIT_S)


class _SizeGuard:
    """Counts the bytes of each association since its last finished object, and closes it beyond the limit."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._counts: dict[int, int] = {}
        self._lock = threading.Lock()

    def count(self, event: Any) -> None:
        with self._lock:
            total = self._counts.get(id(event.assoc), 0) + len(event.data)
            self._counts[id(event.assoc)] = total
        if total > self._limit and event.assoc.dul.socket is not None:
            event.assoc.dul.socket.close()

    def restart(self, event: Any) -> None:
        with self._lock:
            self._counts[id(event.assoc)] = 0

    def forget(self, event: Any) -> None:
        with self._lock:
            self._counts.pop(id(event.assoc), None)


def _answer(event: Any, keep: Keep, guard: _SizeGuard) -> int:
    """The status of one C-STORE request; nothing raised here may reach the log, it could name a patient."""
    guard.restart(event)
    if not _is_image(event.request.AffectedSOPClassUID):
        return SUCCESS
    try:
        uids = _uids(event)
        content = event.encoded_dataset()
    except Exception:  # pydicom raises many kinds on damaged data
        return NOT_UNDERSTOOD
    study, series, instance, sop_class = uids
    if (instance, sop_class) != (event.request.AffectedSOPInstanceUID, event.request.AffectedSOPClassUID):
        return MISMATCH
    if not all(len(uid) <= 64 and _UID.fullmatch(uid) for uid in (study, series, instance)):
        return MISMATCH
    try:
        keep(study, series, instance, content)
    except (InboxFull, OSError):
        return OUT_OF_RESOURCES
    return SUCCESS


def _uids(event: Any) -> tuple[str, str, str, str]:
    """Study, series, instance and class UID of the received object; its pixels are not looked at."""
    data = BytesIO(event.encoded_dataset())
    header = pydicom.dcmread(data, stop_before_pixels=True, specific_tags=list(_TAGS))
    study, series, instance, sop_class = (str(header.get(name) or "").strip() for name in _TAGS)
    return study, series, instance, sop_class


def _is_image(sop_class: str) -> bool:
    name = UID(sop_class).name
    return "Image Storage" in name or "Volume Storage" in name


def _send(association: Any, path: Path, peer: Peer) -> None:
    """C-STORE of one file."""
    try:
        answer = association.send_c_store(path)
    except ValueError as error:
        raise PeerRefused("does not take such objects", where=peer, hint="check the SOP classes it accepts") from error
    except RuntimeError as error:
        raise NetworkError("ended the association", where=peer, hint="try again later") from error
    status = answer.get("Status")
    if status is None:
        raise NetworkError("did not answer", where=peer, hint="try again later")
    code = int(status)
    if code in (0x0000, 0x0001, 0x0107, 0x0111, 0x0116) or 0xB000 <= code <= 0xBFFF:
        return
    if 0xA700 <= code <= 0xA7FF or code == 0x0110:
        raise NetworkError(f"is out of resources (status 0x{code:04X})", where=peer, hint="make room there")
    raise PeerRefused(f"refuses the object (status 0x{code:04X})", where=peer, hint="see its log for the reason")
