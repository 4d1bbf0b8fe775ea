"""The files in the folders of a data set."""

from pathlib import Path

from medseg.io.images import SUFFIXES
from medseg.io.named_labels import ENDINGS


def entries(folder: Path) -> list[Path]:
    """Files and folders that are not hidden, by name."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []


def only_file(path: Path) -> Path:
    """The one file in a folder; a file itself, and a folder that holds none or several."""
    inside = entries(path)
    return inside[0] if len(inside) == 1 else path


def belongs_to_header(path: Path) -> bool:
    """Whether `path` holds the voxels of a detached header beside it."""
    return path.suffix.lower() in {".raw", ".zraw"} and path.with_suffix(".mhd").is_file()


def relative_name(path: Path, folder: Path) -> str:
    """The path below `folder`, with slashes; the whole path where it lies elsewhere."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()


def known_ending(name: str) -> str:
    """The ending of an image or label map, "" if it has none of the known ones."""
    known = (*ENDINGS, *sorted(SUFFIXES, key=len, reverse=True))
    return next((suffix for suffix in known if name.lower().endswith(suffix)), "")
