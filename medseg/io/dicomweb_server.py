"""Which DICOMweb server to ask, and how to prove who asks."""

import base64
import stat
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from medseg.errors import NetworkError


@dataclass(frozen=True)
class Server:
    """A DICOMweb root, how to prove who asks, and what it may send.

    `authorization` is the header's text; `ca` a file of certificates to trust instead of the usual ones. A request
    that fails for a passing reason is repeated after each of `pauses_s`. One series may take up to `series_bytes`.
    """

    url: str
    authorization: str = field(default="", repr=False)
    ca: Path | None = None
    pauses_s: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    series_bytes: int = 8 << 30


def open_server(url: str, *, auth: Path | None = None, ca: Path | None = None) -> tuple[Server, tuple[str, ...]]:
    """A server from its root URL, and warnings; nothing is asked yet.

    `auth` is a file with one line, `user:password` or a bearer token. Raises NetworkError for a URL that is no
    http(s) URL or holds a password, and for files that cannot be used.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise NetworkError("is no DICOMweb URL", where=redacted(url), hint="write dicomweb:https://host/dicom-web")
    if "@" in parts.netloc:
        hint = "put user:password into a file only you can read and name it with --auth"
        raise NetworkError("holds a user or password, which other programs can see", where=redacted(url), hint=hint)
    if ca is not None and not ca.is_file():
        raise NetworkError("no such file of certificates", where=ca, hint="give a PEM file")
    authorization, warnings = _authorization(auth) if auth is not None else ("", ())
    if auth is not None and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        warnings = (*warnings, f"{redacted(url)}: the password travels unencrypted; use https")
    return Server(url.rstrip("/"), authorization, ca), warnings


def redacted(url: str) -> str:
    """The URL without user, password, query and fragment.

    >>> redacted("https://me:secret@pacs:8042/dicom-web?token=1")
    'https://pacs:8042/dicom-web'
    """
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _authorization(path: Path) -> tuple[str, tuple[str, ...]]:
    """The header's text from a file of credentials, and a warning where others can read it."""
    try:
        text = path.read_text(encoding="utf-8").strip()
        shared = path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    except (OSError, UnicodeDecodeError) as error:
        raise NetworkError("credentials cannot be read", where=path, hint="check the path and its rights") from error
    if not text or "\n" in text or not text.isprintable():
        raise NetworkError("holds no credentials", where=path, hint="write one line: user:password or a bearer token")
    warnings = (f"{path}: other users can read this file; set its mode to 600",) if shared else ()
    if ":" in text:
        return "Basic " + base64.b64encode(text.encode("utf-8")).decode("ascii"), warnings
    return "Bearer " + text.removeprefix("Bearer ").strip(), warnings
