import gc
import socket
import sys
from contextlib import suppress

import pydicom
import pytest
from pacs import free_port, write_ct
from pydicom.uid import BasicTextSRStorage, CTImageStorage, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.dsutils import encode

from medseg.errors import MedsegError, NetworkError
from medseg.io.dicom_node import NodeSettings, Peer, PeerRefused, check_title, parse_peer, running_node, send_files
from medseg.io.inbox import InboxFull

VERIFICATION = "1.2.840.10008.1.1"
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture(autouse=True)
def collected():
    """pynetdicom leaves sockets that the other side closed first to the garbage collector; that must be here."""
    yield
    gc.collect()


class Box:
    """What a node handed over; with `error`, it raises that instead."""

    def __init__(self):
        self.kept, self.error = [], None

    def __call__(self, study, series, instance, content):
        if self.error:
            raise self.error
        self.kept.append((study, series, instance, content))


def associate(port, *contexts, aet="CT1", called="MEDSEG"):
    entity = AE(aet)
    for sop_class in contexts or (CTImageStorage,):
        entity.add_requested_context(sop_class)
    return entity.associate("127.0.0.1", port, ae_title=called)


def store(port, dataset, **names):
    """Status of a C-STORE, None without an answer."""
    association = associate(port, dataset.SOPClassUID, **names)
    assert association.is_established
    status = association.send_c_store(dataset).get("Status")
    if association.is_established:
        association.release()
    return status


@pytest.fixture(scope="module")
def ct(tmp_path_factory):
    _, files = write_ct(tmp_path_factory.mktemp("ct"), slices=7)
    return files


@pytest.fixture(scope="module")
def node():
    """Port and box of a node with default settings."""
    box = Box()
    with running_node(NodeSettings(0), box) as port:
        yield port, box


@pytest.fixture
def port(node):
    return node[0]


@pytest.fixture
def box(node):
    node[1].__init__()
    return node[1]


@pytest.fixture
def slice_(ct):
    return pydicom.dcmread(ct[3])


def test_it_answers_an_echo_and_has_handed_over_an_image_when_it_says_so(port, box, slice_):
    association = associate(port, VERIFICATION)
    assert association.send_c_echo().Status == 0x0000
    association.release()
    assert store(port, slice_) == 0x0000
    ((study, series, instance, content),) = box.kept
    assert (study, series, instance) == (slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.SOPInstanceUID)
    kept = pydicom.dcmread(pydicom.filebase.DicomBytesIO(content))
    assert kept.PixelData == slice_.PixelData
    assert kept == slice_


@pytest.mark.parametrize("error", [InboxFull("full"), OSError(28, "No space left on device")])
def test_without_room_it_says_out_of_resources(port, box, slice_, error):
    box.error = error
    assert store(port, slice_) == 0xA700


def test_what_is_no_image_is_taken_and_dropped(port, box, slice_):
    slice_.SOPClassUID = slice_.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage
    assert store(port, slice_) == 0x0000
    assert box.kept == []


@pytest.mark.parametrize(
    ("keyword", "value"), [("StudyInstanceUID", ""), ("SeriesInstanceUID", ""), ("StudyInstanceUID", "../../etc")]
)
def test_an_image_without_proper_uids_is_refused(port, box, slice_, keyword, value):
    with pydicom.config.disable_value_validation():
        setattr(slice_, keyword, value)
        assert store(port, slice_) == 0xA900
    assert box.kept == []


def test_an_image_under_another_name_than_announced_is_refused(port, box, slice_, monkeypatch):
    other = pydicom.dcmread(slice_.filename)
    other.SOPInstanceUID = pydicom.uid.generate_uid()
    monkeypatch.setattr("pynetdicom.association.encode", lambda dataset, *args: encode(other, *args))
    assert store(port, slice_) == 0xA900
    assert box.kept == []


def test_garbage_is_refused_and_the_node_goes_on(port, box, slice_, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("pynetdicom.association.encode", lambda *args: b"\x08\x00\x18\x00UI\xff\xff" + b"z" * 50)
        assert store(port, slice_) in (0xA900, 0xC000)
    assert box.kept == []
    assert store(port, slice_) == 0x0000


@pytest.mark.parametrize("names", [{"aet": "STRANGER"}, {"aet": "CT1", "called": "OTHER"}])
def test_strangers_and_wrong_titles_are_rejected(names):
    with running_node(NodeSettings(0, allowed=("CT1", "CT2")), Box()) as port:
        assert associate(port, **names).is_rejected
        known = associate(port, aet="CT2")
        assert known.is_established
        known.release()


def test_an_object_beyond_the_limit_ends_its_association_and_nothing_else(slice_):
    box = Box()
    big = pydicom.dcmread(slice_.filename)
    big.add_new(0x00091001, "OB", bytes(200_000))
    with running_node(NodeSettings(0, object_bytes=50_000), box) as port:
        assert store(port, big) is None
        assert store(port, slice_) == 0x0000
    assert len(box.kept) == 1


def test_many_objects_may_exceed_the_limit_of_one(ct):
    box = Box()
    with running_node(NodeSettings(0, object_bytes=5_000), box) as port:
        association = associate(port)
        assert [association.send_c_store(path).Status for path in ct * 3] == [0x0000] * 3 * len(ct)
        association.release()
    assert len(box.kept) == 3 * len(ct)


@pytest.mark.parametrize("start", [b"\x04\x00\xff\xff\xff\xff" + bytes(5000), b"\x01\x00\x00"])
def test_endless_and_unfinished_messages_end_their_connection(port, box, slice_, start, monkeypatch):
    monkeypatch.setattr("medseg.io.dicom_node._WAIT_S", 0.3)
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(start)
        stranger.settimeout(20)
        with suppress(ConnectionResetError):
            while stranger.recv(4096):
                pass
    assert store(port, slice_) == 0x0000


def test_a_port_that_is_taken_is_an_error():
    with running_node(NodeSettings(0), Box()) as port:
        with pytest.raises(NetworkError, match="cannot listen"), running_node(NodeSettings(port), Box()):
            pass


@pytest.fixture(scope="module")
def pacs():
    entity, got, answer = AE("PACS"), [], {"status": 0x0000}
    entity.add_supported_context(CTImageStorage)

    def handle(event):
        got.append(event.dataset.SOPInstanceUID)
        return answer["status"]

    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, handle)])
    yield Peer("PACS", "127.0.0.1", server.socket.getsockname()[1]), got, answer
    server.shutdown()


@pytest.fixture
def peer(pacs):
    """A peer, what it got, and the status it answers, which the test sets."""
    pacs[1].clear()
    return pacs


@pytest.mark.parametrize("status", [0x0000, 0xB000, 0x0111])
def test_sending_ends_when_every_file_is_answered(peer, ct, status):
    address, got, answer = peer
    answer["status"] = status
    send_files(ct[:3], address, aet="MEDSEG")
    assert got == [pydicom.dcmread(path).SOPInstanceUID for path in ct[:3]]


@pytest.mark.parametrize(("status", "final"), [(0xA700, False), (0xA900, True), (0xC123, True), (0x0122, True)])
def test_sending_tells_refusal_from_lack_of_room(peer, ct, status, final):
    address, _, answer = peer
    answer["status"] = status
    with pytest.raises(NetworkError, match=f"0x{status:04X}") as caught:
        send_files(ct[:1], address, aet="MEDSEG")
    assert isinstance(caught.value, PeerRefused) == final


def test_a_peer_that_is_away_may_come_back_and_one_that_knows_no_such_class_will_not(peer, ct, tmp_path):
    with pytest.raises(NetworkError, match="cannot be reached") as caught:
        send_files(ct[:1], Peer("PACS", "127.0.0.1", free_port()), aet="MEDSEG")
    assert not isinstance(caught.value, PeerRefused)
    other = pydicom.dcmread(ct[0])
    other.SOPClassUID = other.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    other.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    other.save_as(tmp_path / "seg.dcm", implicit_vr=True, little_endian=True)
    with pytest.raises(PeerRefused, match="does not take such objects"):
        send_files([tmp_path / "seg.dcm"], peer[0], aet="MEDSEG")


@pytest.mark.parametrize(
    "text", ["PACS", "PACS@host", "PACS@host:0", "PACS@host:70000", "@host:104", "A" * 17 + "@h:1"]
)
def test_a_peer_is_title_host_and_port(text):
    with pytest.raises(NetworkError, match="--peer"):
        parse_peer(text)


def test_peers_with_numbers_of_ip_version_6():
    assert parse_peer("PACS@[::1]:104") == Peer("PACS", "::1", 104)


@pytest.mark.parametrize("title", ["", "   ", "A\\B", "Ä", "A\nB"])
def test_titles_follow_the_standard(title):
    with pytest.raises(NetworkError, match="is no AE title"):
        check_title(title, "--aet")


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynetdicom", None)
    with pytest.raises(MedsegError, match=r"pip install \"medseg\[dicom\]\""), running_node(NodeSettings(0), Box()):
        pass
