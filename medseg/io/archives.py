"""Zipped and tarred studies, unpacked within limits to a temporary folder that is removed again."""

import bz2
import gzip
import lzma
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, cast

from medseg.errors import ImageError, Interrupted, MedsegError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_BLOCK = 1 << 20
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError)


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may hold: members, bytes in all, and bytes for each of its own (checked above 100 MiB)."""

    members: int = 200_000
    total_bytes: int = 64 << 30
    ratio: float = 200.0
    ratio_from_bytes: int = 100 << 20


_DEFAULT = ArchiveLimits()


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    fault: str


def is_archive(path: Path) -> bool:
    """Whether the suffix is one of SUFFIXES, in any case.

    >>> is_archive(Path("study.ZIP")), is_archive(Path("scan.nii.gz"))
    (True, False)
    """
    return path.name.lower().endswith(SUFFIXES)


@contextmanager
def unpacked(path: Path, limits: ArchiveLimits = _DEFAULT) -> Iterator[Path]:
    """A temporary folder with the files of an archive, removed on leaving; any other path is handed on as it is.

    Every byte is counted while it is unpacked, whatever the archive says of its size. Raises ImageError for more than
    `limits` or the free disk allows, for members that are links, devices, encrypted, doubled or outside the folder,
    and for damaged archives; nothing of such an archive is used.
    """
    if not is_archive(path) or not path.is_file():
        yield path
        return
    folder = Path(tempfile.mkdtemp(prefix="medseg-"))
    try:
        _unpack(path, folder, limits)
        with _named_as(path, folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _named_as(path: Path, folder: Path) -> Iterator[None]:
    """Errors about what was unpacked name the archive and the member, not the temporary folder."""
    try:
        yield
    except MedsegError as error:
        if str(folder) not in str(error) or isinstance(error, Interrupted):
            raise
        what, where, hint = (text.replace(str(folder), str(path)) for text in (error.what, error.where, error.hint))
        raise type(error)(what, where=where, hint=hint) from error


def _unpack(path: Path, folder: Path, limits: ArchiveLimits) -> None:
    free = shutil.disk_usage(folder).free
    allowed = min(limits.total_bytes, int(0.9 * free), _by_ratio(path, limits))
    try:
        if path.name.lower().endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                infos = [info for info in archive.infolist() if not info.is_dir()]
                members = [_zip_member(info) for info in infos]
                _check(members, path, limits, allowed)
                for info in infos:
                    allowed -= _write(archive.open(info), folder / info.filename, allowed, path)
        else:
            _untar(path, folder, limits, allowed)
    except RuntimeError as error:  # zipfile's way to say that a password is needed
        raise ImageError("is encrypted", where=path, hint="unpack it and give the folder") from error
    except _DAMAGED as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
        raise ImageError(f"cannot be unpacked ({reason})", where=path, hint="export or copy it again") from error


def _untar(path: Path, folder: Path, limits: ArchiveLimits, allowed: int) -> None:
    """Members come one after another: a compressed archive has no table that could be read first."""
    with path.open("rb") as plain, _decompressed(plain, path.name.lower()) as stream:
        _untar_stream(stream, path, folder, limits, allowed)


def _decompressed(plain: BinaryIO, name: str) -> BinaryIO:
    if name.endswith("gz"):
        return cast(BinaryIO, gzip.open(plain))
    if name.endswith("bz2"):
        return cast(BinaryIO, bz2.open(plain))
    return cast(BinaryIO, lzma.open(plain)) if name.endswith("xz") else plain


def _untar_stream(stream: BinaryIO, path: Path, folder: Path, limits: ArchiveLimits, allowed: int) -> None:
    with tarfile.open(fileobj=cast(BinaryIO, _Bounded(stream)), mode="r:") as archive:
        members: list[_Member] = []
        for info in archive:
            if info.isdir():
                continue
            member = _tar_member(info)
            members.append(member)
            _check([member], path, limits, allowed)
            if len(members) > limits.members:
                _check(members, path, limits, allowed)
            source = archive.extractfile(info)
            assert source is not None
            allowed -= _write(source, folder / member.name, allowed, path)


class _Bounded:
    """A stream whose single reads are bounded, so that no tar header can ask for more memory than it deserves."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.seek, self.tell, self.close = stream.seek, stream.tell, stream.close

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= 16 * _BLOCK:
            raise tarfile.ReadError("a header is too large")
        return self.stream.read(size)


def _by_ratio(path: Path, limits: ArchiveLimits) -> int:
    return max(limits.ratio_from_bytes, int(limits.ratio * path.stat().st_size))


def _zip_member(info: zipfile.ZipInfo) -> _Member:
    mode = info.external_attr >> 16
    kind = stat.S_IFMT(mode)
    odd = kind not in (0, stat.S_IFREG, stat.S_IFDIR)
    return _Member(info.filename, info.file_size, "is a link or device" if odd else _name_fault(info.filename))


def _tar_member(info: tarfile.TarInfo) -> _Member:
    return _Member(info.name, info.size, _name_fault(info.name) if info.isreg() else "is a link or device")


def _name_fault(name: str) -> str:
    """Why a member name is not a plain relative path below the folder; empty if it is."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or "\\" in name or "\0" in name or ":" in parts[0]:
        return "has a name that is no plain relative path"
    return "leads outside the folder" if ".." in parts else ""


def _check(members: list[_Member], path: Path, limits: ArchiveLimits, allowed: int) -> None:
    """Refuse by what the archive says of itself; sizes are counted again while unpacking."""
    hint = "unpack it yourself and give the folder, if you trust it"
    for number, member in enumerate(members, start=1):
        if member.fault:
            raise ImageError(f"member {number} {member.fault}", where=path, hint=hint)
    if len(members) > limits.members:
        raise ImageError(f"holds more than {limits.members} members", where=path, hint=hint)
    if sum(member.size for member in members) > allowed:
        raise _too_large(path, allowed)
    names = {member.name for member in members}
    if len(names) < len(members):
        raise ImageError("holds two members of the same name", where=path, hint=hint)


def _too_large(path: Path, allowed: int) -> ImageError:
    return ImageError(
        "unpacks to more than its size, the limit or the free disk allows",
        where=path,
        hint=f"at most {allowed / 2**20:.0f} MiB were left; unpack it yourself and give the folder, if you trust it",
    )


def _write(source: IO[bytes], target: Path, allowed: int, path: Path) -> int:
    """Copy one member, counting; returns its real bytes."""
    count = 0
    with source:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            while block := source.read(_BLOCK):
                count += len(block)
                if count > allowed:
                    raise _too_large(path, allowed)
                file.write(block)
    return count
