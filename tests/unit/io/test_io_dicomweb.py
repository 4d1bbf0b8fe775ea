"""Against a small server that plays its part well or badly; a real one is in tests/integration/test_pacs.py."""

import json
import shutil
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pydicom
import pytest
from pacs import write_ct

from medseg.errors import MedsegError, NetworkError
from medseg.io.dicomweb import fetch_series, find_image_series, store_file
from medseg.io.dicomweb_server import Server, open_server

DICOM_JSON = "application/dicom+json"


class Fake:
    """A DICOMweb server with one CT series and one report; tests change what it does."""

    def __init__(self, files):
        self.files = files
        self.first = pydicom.dcmread(files[0], stop_before_pixels=True)
        self.faults = []  # statuses to answer with before anything else
        self.requests = []  # (method, path, headers)
        self.stow = (200, b"")
        self.cut = 0  # bytes to leave out at the end of a series, once
        self.handler = None  # answers instead of everything else

    def url(self, scheme="http"):
        return f"{scheme}://127.0.0.1:{self.port}/dicom-web"

    def paths(self):
        return [path for _, path, _ in self.requests]

    def answer(self, method, path):
        """Status, content type and body."""
        study = f"/dicom-web/studies/{self.first.StudyInstanceUID}"
        series = f"{study}/series/{self.first.SeriesInstanceUID}"
        if self.handler:
            return self.handler(method, path)
        if method == "POST":
            return self.stow[0], DICOM_JSON, self.stow[1]
        if path == f"{study}/series":
            return 200, DICOM_JSON, listing("0020000E", [(self.first.SeriesInstanceUID, "CT"), ("1.2.3", "SR")])
        if path == f"{series}/instances" or path == f"{study}/instances":
            uids = [pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in self.files]
            return 200, DICOM_JSON, listing("00080018", [(uid, "CT") for uid in uids])
        if path == series:
            return 200, 'multipart/related; type="application/dicom"; boundary=xyz', multipart(self.files)
        return (200, DICOM_JSON, b"[]") if "/studies/" in path else (404, "text/html", b"<html>")


def listing(tag, pairs):
    items = [
        {tag: {"vr": "UI", "Value": [uid]}, "00080060": {"vr": "CS", "Value": [modality]}} for uid, modality in pairs
    ]
    return json.dumps(items).encode()


def multipart(files):
    parts = [b"\r\n--xyz\r\nContent-Type: application/dicom\r\n\r\n" + path.read_bytes() for path in files]
    return b"".join(parts) + b"\r\n--xyz--"


@pytest.fixture(scope="module")
def ct(tmp_path_factory):
    return write_ct(tmp_path_factory.mktemp("ct"), slices=7)[1]


@pytest.fixture
def fake(ct):
    """A running server."""
    state = Fake(ct)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            path = urlsplit(self.path).path
            state.requests.append((self.command, path, dict(self.headers)))
            self._read()
            status, kind, body = (
                (state.faults.pop(0), "text/plain", b"x") if state.faults else state.answer(self.command, path)
            )
            self.send_response(status)
            self.send_header("Location" if 300 <= status < 400 else "Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            cut, state.cut = (state.cut, 0) if "multipart" in kind else (0, state.cut)
            self.wfile.write(body[: len(body) - cut])
            self.close_connection = bool(cut)

        do_POST = do_GET

        def _read(self):
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    self.rfile.read(size + 2)
                self.rfile.readline()
            else:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.server, state.port = server, server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def client(fake, **changes):
    return Server(fake.url(), pauses_s=(0.01, 0.01), **changes)


def fetch(fake, folder, **changes):
    return fetch_series(
        client(fake, **changes), str(fake.first.StudyInstanceUID), str(fake.first.SeriesInstanceUID), folder
    )


def store(fake):
    return store_file(client(fake), str(fake.first.StudyInstanceUID), fake.files[0])


def test_series_with_images_are_found_and_fetched_byte_for_byte(fake, tmp_path):
    (series,) = find_image_series(client(fake), str(fake.first.StudyInstanceUID))
    assert (series.uid, series.modality) == (fake.first.SeriesInstanceUID, "CT")
    got = [pydicom.dcmread(path) for path in fetch(fake, tmp_path)]
    assert got == [pydicom.dcmread(path) for path in fake.files]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_failures_are_asked_again_and_then_told(fake, tmp_path, status):
    fake.faults = [status, status]
    assert len(fetch(fake, tmp_path)) == 7
    fake.faults = [status] * 3
    with pytest.raises(NetworkError, match=f"HTTP {status}"):
        fetch(fake, tmp_path)
    assert fake.faults == []


@pytest.mark.parametrize(
    ("status", "text"), [(401, "--auth"), (403, "refuses"), (404, "check the URL"), (400, "HTTP 400")]
)
def test_lasting_failures_are_told_at_once(fake, tmp_path, status, text):
    fake.faults = [status]
    with pytest.raises(NetworkError, match=text):
        fetch(fake, tmp_path)
    assert len(fake.requests) == 1


def test_a_transfer_that_breaks_off_is_repeated(fake, tmp_path):
    fake.cut = 3000
    assert len(fetch(fake, tmp_path)) == 7
    assert sum(path.endswith(str(fake.first.SeriesInstanceUID)) for path in fake.paths()) == 2


def test_fewer_instances_than_listed_are_refused(fake, tmp_path):
    right = fake.answer

    def short(method, path):
        status, kind, body = right(method, path)
        return (status, kind, multipart(fake.files[:-2])) if "multipart" in kind else (status, kind, body)

    fake.answer = short
    with pytest.raises(NetworkError, match="2 of the 7 it lists are missing"):
        fetch(fake, tmp_path)


def test_more_bytes_than_allowed_are_refused(fake, tmp_path):
    with pytest.raises(NetworkError, match="more than 4000 bytes"):
        fetch(fake, tmp_path, series_bytes=4000)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 4000


@pytest.mark.parametrize(
    ("kind", "body"),
    [("text/html", b"<html>log in</html>"), (DICOM_JSON, b'{"a": 1}'), (DICOM_JSON, b"[3]"), (DICOM_JSON, b'["x"]')],
)
def test_a_page_that_is_no_dicomweb_is_told(fake, kind, body):
    fake.handler = lambda method, path: (200, kind, body)
    with pytest.raises(NetworkError, match="does not answer as DICOMweb"):
        find_image_series(client(fake), "1.2.3")


def test_unknown_studies_and_series_are_told(fake):
    with pytest.raises(NetworkError, match="knows no such study"):
        find_image_series(client(fake), "1.2.9")
    with pytest.raises(NetworkError, match="no such series"):
        find_image_series(client(fake), str(fake.first.StudyInstanceUID), ("1.2.4",))
    with pytest.raises(NetworkError, match="no images in this study, only SR"):
        find_image_series(client(fake), str(fake.first.StudyInstanceUID), ("1.2.3",))


@pytest.mark.parametrize("uid", ["../../admin", "1.2.3?limit=1", "", "1." * 40])
def test_what_is_no_uid_is_never_asked_for(fake, uid):
    with pytest.raises(NetworkError, match="is no UID"):
        find_image_series(client(fake), uid)
    assert fake.requests == []


def refused(uid, reason):
    item = {"00081155": {"vr": "UI", "Value": [uid]}, "00081197": {"vr": "US", "Value": [reason]}}
    return json.dumps({"00081198": {"vr": "SQ", "Value": [item]}}).encode()


def kept(uid, warning=None):
    item = {"00081155": {"vr": "UI", "Value": [uid]}}
    if warning:
        item["00081196"] = {"vr": "US", "Value": [warning]}
    return json.dumps({"00081199": {"vr": "SQ", "Value": [item]}}).encode()


def test_a_stored_object_is_confirmed_by_the_answer(fake):
    uid = str(fake.first.SOPInstanceUID)
    fake.stow = (200, kept(uid))
    assert store(fake) == ()
    fake.stow = (202, kept(uid, 0xB000))
    assert store(fake) == ("stored with warning 0xB000",)


@pytest.mark.parametrize("status", [200, 202, 409])
def test_a_failed_instance_is_an_error_whatever_the_status(fake, status):
    fake.stow = (status, refused(str(fake.first.SOPInstanceUID), 0xA700))
    with pytest.raises(NetworkError, match="reason 0xA700"):
        store(fake)


def test_an_empty_answer_is_checked_by_a_query(fake):
    fake.stow = (200, b"")
    assert store(fake) == ()
    fake.files = fake.files[1:]
    with pytest.raises(NetworkError, match="did not keep the object"):
        store_file(client(fake), str(fake.first.StudyInstanceUID), fake.files[0].with_name("IM0000.dcm"))


def test_storing_is_repeated_after_a_passing_failure_with_the_whole_object(fake):
    fake.stow = (200, kept(str(fake.first.SOPInstanceUID)))
    fake.faults = [503]
    store(fake)
    assert [method for method, _, _ in fake.requests] == ["POST", "POST"]


def test_credentials_reach_the_server_but_no_other_host_and_no_proxy(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    password = tmp_path / "password"
    password.write_text("me:secret:too\n")
    password.chmod(0o600)
    server, warnings = open_server(fake.url(), auth=password)
    assert warnings == ()
    find_image_series(server, str(fake.first.StudyInstanceUID))
    sent = {headers.get("Authorization") for _, _, headers in fake.requests}
    assert sent == {"Basic bWU6c2VjcmV0OnRvbw=="}
    assert "secret" not in repr(server) and "bWU6" not in repr(server)
    fake.requests.clear()
    elsewhere = f"http://localhost:{fake.port}/other"
    fake.handler = lambda method, path: (200, DICOM_JSON, b"[]") if "other" in path else (302, elsewhere, b"")
    with pytest.raises(NetworkError):
        find_image_series(server, "1.2.3")
    assert [headers.get("Authorization") for _, path, headers in fake.requests if "other" in path] == [None]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_an_unknown_certificate_is_refused_unless_named(fake, tmp_path):
    names = ["-subj", "/CN=pacs", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", *names]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "ca.pem")]
    subprocess.run([*command, *files, "-days", "2"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "ca.pem", tmp_path / "key.pem")
    fake.server.socket = context.wrap_socket(fake.server.socket, server_side=True)
    study = str(fake.first.StudyInstanceUID)
    server, _ = open_server(fake.url("https"))
    with pytest.raises(NetworkError, match=r"not trusted.*--ca"):
        find_image_series(server, study)
    trusting, _ = open_server(fake.url("https"), ca=tmp_path / "ca.pem")
    assert len(find_image_series(trusting, study)) == 1


def test_a_server_that_is_away_is_told(fake):
    fake.server.socket.close()
    with pytest.raises(NetworkError, match="cannot be reached"):
        find_image_series(Server("http://127.0.0.1:9/dicom-web", pauses_s=()), "1.2.3")


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dicomweb_client", None)
    with pytest.raises(MedsegError, match=r"pip install \"medseg\[dicom\]\""):
        find_image_series(Server("https://pacs/dicom-web"), "1.2.3")
