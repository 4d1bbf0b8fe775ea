"""Names of files and folders without what may identify a patient: people name folders after patients."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

_WORDS = "ct cta cbct mr mri us pt pet nm im img image images i s se ser serie series sl slice slices st study frame "
_WORDS += "file dcm dicom dicomdir ima raw in out input output data scan scans vol volume phase echo"
_NEUTRAL = re.compile(rf"(?:{'|'.join(_WORDS.split())})\d{{0,8}}|\d{{0,5}}", re.IGNORECASE)
_UID = re.compile(r"(?:[A-Za-z]{2}\.)?[012](?:\.\d+){4,}(?:\.dcm)?")
_SEPARATOR = r"[\\/]+"  # that of Windows is doubled in the texts of OSError
_NO_UTF8 = re.compile(r"[\ud800-\udfff]")


def is_neutral(name: str) -> bool:
    """Whether a name is made of common words, short numbers or a UID, so that it can name nobody.

    >>> [is_neutral(name) for name in ("IM0007.dcm", "CT 1", "1.2.840.113619.2.55.3", "DOE_JOHN", "19500131")]
    [True, True, True, False, False]
    """
    if _NO_UTF8.search(name):
        return False  # bytes of some other encoding may be a name
    if _UID.fullmatch(name):
        return True
    parts = re.split(r"[\W_]+", name)
    return all(_NEUTRAL.fullmatch(part) for part in parts) and sum(part.isdecimal() for part in parts) < 3  # no dates


def masked(path: Path, root: Path) -> str:
    """The path relative to `root` with "*" for every part that could name a patient; the suffix of a file stays.

    >>> masked(Path("/in/DOE^JOHN/CT 1/IM7.dcm"), Path("/in"))
    '*/CT 1/IM7.dcm'
    """
    parts = path.relative_to(root).parts if path.is_relative_to(root) else (path.name,)
    return "/".join(_masked_name(part) for part in parts) or "."


def masked_text(text: str, paths: Iterable[PurePath], root: PurePath, *, series: bool = False) -> str:
    """A message about `paths` below `root`: relative to `root`, with "*" for parts of them that could name a patient.

    Where the paths are the files of a `series`, a masked one is told by its number in the order of their names.

    >>> masked_text("/in/DOE/I7: lies where DOE/I6 lies", [Path("/in/DOE/I7"), Path("/in/DOE/I6")], Path("/in"))
    '*/I7: lies where */I6 lies'
    """
    if root.name:
        own = _SEPARATOR.join(re.escape(part) for part in re.split(r"[\\/]", str(root)))
        here = rf"(?<![\w./\\]){own}"
        end = r"(?![\w/\\])" if root.is_absolute() else "(?=:)"  # a relative one could be a word of the text
        text = re.sub(here + end, "scan", re.sub(here + _SEPARATOR, "", text))
    paths = sorted(set(paths))
    names = {part for path in paths if path.is_relative_to(root) for part in path.relative_to(root).parts}
    numbers = _file_numbers(paths) if series else {}
    for name in sorted((name for name in names if not is_neutral(name)), key=len, reverse=True):
        text = re.sub(_occurrences(name), _masked_name(name) + numbers.get(name, ""), text)
    home = "" if is_neutral(root.name) else rf"(?<!\w){re.escape(root.name)}(?=[\\/])"
    return re.sub(home, "*", text) if home and root.name else text


def writable(text: str) -> str:
    r"""A text about files as it can be written: a byte of a name that is no UTF-8 becomes %XX.

    >>> writable("sc\udce4n"), writable("scän")
    ('sc%E4n', 'scän')
    """
    return _NO_UTF8.sub(lambda found: f"%{ord(found[0]) & 0xFF:02X}", text)


def _file_numbers(paths: Sequence[PurePath]) -> dict[str, str]:
    """For every file name that occurs once, which of the files it is, if there are several."""
    often = Counter(path.name for path in paths)
    numbered = enumerate(paths, start=1)
    return {p.name: f" (file {i} of {len(paths)})" for i, p in numbered if often[p.name] == 1 and len(paths) > 1}


def _occurrences(name: str) -> str:
    """A pattern for a name in a text; one that could be a word of the text counts only as a part of a path."""
    word = rf"(?<!\w){re.escape(name)}"
    return rf"{word}(?=[\\/])|(?<=[\\/]){re.escape(name)}(?!\w)" if re.fullmatch(r"[a-z]+", name) else rf"{word}(?!\w)"


def series_id(modality: str, unique: str) -> str:
    """A short name for a series that is the same wherever its files lie and says nothing of the patient.

    >>> series_id("CT", "1.2.840.1")
    'CT-f9a13599155b'
    """
    kind = modality if re.fullmatch(r"[A-Z]{2,4}", modality) else "DICOM"
    digest = hashlib.sha256(unique.encode("utf-8", "backslashreplace")).hexdigest()
    return f"{kind}-{digest[:12]}"


def shown_uid(uid: str) -> str:
    """A UID as it is, and for any other text a hash of it: only digits and dots name nobody.

    >>> shown_uid("1.2.840.1"), shown_uid("DOE")
    ('1.2.840.1', 'invalid-c558ca848b23')
    """
    if not uid or re.fullmatch(r"[0-9.]{1,64}", uid):
        return uid
    return f"invalid-{hashlib.sha256(uid.encode()).hexdigest()[:12]}"


def shown_value(value: str) -> str:
    """Numbers and codes of a tag as they are, and for any other text a hash of it.

    >>> shown_value("4.6"), shown_value("ORIGINAL\\\\PRIMARY"), shown_value("Doe")
    ('4.6', 'ORIGINAL\\\\PRIMARY', 'text fd53ef')
    """
    parts = value.split("\\")
    if all(re.fullmatch(r"[A-Z0-9_ ]{0,16}|[-+0-9.eE:]{1,26}", part) for part in parts):
        return value
    return f"text {hashlib.sha256(value.encode()).hexdigest()[:6]}"


def _masked_name(name: str) -> str:
    if is_neutral(name):
        return name
    suffix = Path(name).suffix
    return "*" + (suffix if re.fullmatch(r"\.[a-z]{1,5}", suffix.lower()) else "")
