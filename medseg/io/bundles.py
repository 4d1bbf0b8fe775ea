"""Model bundles: plan.json, tensors-only weights per member, scores.json, and a manifest with hashes."""

import json
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

import medseg
from medseg.errors import BundleError, MedsegError
from medseg.io.files import file_sha256, sync_folder, write_text
from medseg.io.plain_json import read_json
from medseg.io.records import read_record, to_plain, write_record
from medseg.io.tensor_files import read_tensor_table
from medseg.types.plan import Plan
from medseg.types.result import Member, ModelBundle

MANIFEST = "manifest.json"
_LARGEST_FILE = 64 << 30  # bytes


@dataclass(frozen=True)
class FileEntry:
    """What a file of the bundle must be."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class MemberEntry:
    """Which file holds which fold."""

    fold: int | Literal["all"]
    weights: str


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`: every file of the bundle but itself, by path relative to it."""

    schema: Literal["medseg.bundle/1"]
    medseg: str
    torch: str
    members: tuple[MemberEntry, ...]
    code_refs: tuple[str, ...]
    files: Mapping[str, FileEntry]


def save_bundle(
    root: Path,
    plan: Plan,
    members: Mapping[int | Literal["all"], Path | Sequence[Path]],
    scores: Mapping[str, object],
    code_refs: Sequence[str] = (),
) -> ModelBundle:
    """Write a bundle to `root` from safetensors files, one or several per fold, beside it first and then renamed.

    An older bundle at `root` is replaced; any other folder that is not empty is left alone. NaN in `scores` becomes
    null. Raises BundleError for a member that is not a tensors-only file, or if `root` is taken.
    """
    _refuse_taken(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=root.parent))
    try:
        part.chmod(0o755)
        placed = _placed(members)
        entries = tuple(MemberEntry(fold, name) for name, (fold, _) in placed.items())
        write_record(plan, part / "plan.json")
        write_text(part / "scores.json", json.dumps(_numbers(scores), indent=2, allow_nan=False) + "\n")
        for entry in entries:
            _copy_weights(placed[entry.weights][1], part / entry.weights)
        names = ("plan.json", "scores.json", *(entry.weights for entry in entries))
        files = {name: FileEntry(file_sha256(part / name), (part / name).stat().st_size) for name in names}
        refs = tuple(sorted({*code_refs, *_code_refs(to_plain(plan))}))
        manifest = Manifest("medseg.bundle/1", medseg.__version__, version("torch"), entries, refs, files)
        write_record(manifest, part / MANIFEST)
        _swap(part, root)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return load_bundle(root, trust=refs)


def _placed(
    members: Mapping[int | Literal["all"], Path | Sequence[Path]],
) -> dict[str, tuple[int | Literal["all"], Path]]:
    """Fold and source of every file of weights, by its place in the bundle."""
    placed = {}
    for fold, files in members.items():
        for number, path in enumerate([files] if isinstance(files, Path) else files):
            more = f"_{number}" if number else ""
            placed[f"members/fold_{fold}{more}.safetensors"] = (fold, path)
    return placed


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed while it saved a bundle left in `folder`; nobody may be saving there."""
    for left in (*folder.glob(".part-*"), *folder.glob(".old-*")):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)


def remove_parts(folder: Path, name: str = "") -> None:
    """Remove the temporary files, of `name` or of any file, that killed processes left in `folder` (see `whole_file`).

    Nobody may be writing there.
    """
    for left in folder.glob(f".part-*-{name}" if name else ".part-*"):
        if left.is_file():
            left.unlink(missing_ok=True)


def load_bundle(root: Path, *, trust: Sequence[str] = ()) -> ModelBundle:
    """Read a bundle after checking every file's size and hash; nothing in it is executed or unpickled.

    Raises BundleError as `check_bundle`, and if the plan names code of modules that are not in, or below, `trust`.
    """
    bundle = check_bundle(root)
    foreign = [ref for ref in bundle.code_refs if not any(ref == top or ref.startswith(top + ".") for top in trust)]
    if foreign:
        raise BundleError(
            f"needs code of {', '.join(foreign)}", where=root, hint="read that code, then name the module as trusted"
        )
    return bundle


def check_bundle(root: Path) -> ModelBundle:
    """Read a bundle of any origin: every file's size and hash, the tables of its tensors, its plan and scores.

    Raises BundleError if a file is missing, changed, a link or outside the folder, if the schema is unknown, if
    members are no tensor files, or if JSON is oversized, too deep or holds numbers that are not finite.
    """
    manifest = read_manifest(root)
    needed = {"plan.json", "scores.json", *(entry.weights for entry in manifest.members)}
    unlisted = sorted(needed - set(manifest.files))
    if unlisted or not manifest.members:
        what = f"does not list {', '.join(unlisted)}" if unlisted else "lists no members"
        raise BundleError(what, where=root / MANIFEST, hint="copy the whole bundle again")
    pickles = [m.weights for m in manifest.members if not m.weights.endswith(".safetensors")]
    if pickles:
        raise BundleError("is not tensors only", where=root / pickles[0], hint="do not use this bundle")
    for name, entry in manifest.files.items():
        _check_file(root, name, entry)
    for member in manifest.members:
        read_tensor_table(root / member.weights)
    plan = _read(root / "plan.json", Plan, "the plan is of another version of medseg")
    scores = read_json(root / "scores.json")
    if not isinstance(scores, dict):
        raise BundleError("holds no scores by name", where=root / "scores.json", hint="copy the whole bundle again")
    refs = tuple(sorted({*manifest.code_refs, *_code_refs(to_plain(plan))}))
    members = tuple(
        Member(entry.fold, entry.weights, manifest.files[entry.weights].sha256) for entry in manifest.members
    )
    return ModelBundle(root, plan, members, scores, refs)


def bundle_folder(path: Path) -> Path:
    """The bundle itself, or that in a run folder."""
    inner = path / "bundle"
    return inner if not (path / MANIFEST).is_file() and (inner / MANIFEST).is_file() else path


def read_manifest(root: Path) -> Manifest:
    """The manifest of a bundle. Raises BundleError where there is none."""
    if root.is_file():
        raise BundleError(
            "is a file and not opened; a bundle is a folder with a manifest.json",
            where=root,
            hint="unpack an archive first; a checkpoint with pickles cannot be used",
        )
    manifest: Manifest = _read(root / MANIFEST, Manifest, "this is no model bundle, or one of a newer medseg")
    return manifest


def bundle_sha256(bundle: ModelBundle) -> str:
    """Identity of a bundle: the hash of its manifest, which holds the hashes of all else."""
    return file_sha256(bundle.root / MANIFEST)


def _refuse_taken(root: Path) -> None:
    if root.is_symlink() or (root.exists() and not root.is_dir()):
        raise BundleError("is not a folder", where=root, hint="choose another path for the bundle")
    if root.is_dir() and any(root.iterdir()) and not (root / MANIFEST).is_file():
        raise BundleError("holds other files", where=root, hint="choose an empty folder for the bundle")


def _copy_weights(source: Path, target: Path) -> None:
    try:
        with safe_open(source, framework="numpy") as file:
            empty = not file.keys()
    except (OSError, SafetensorError) as error:
        raise BundleError(f"is no safetensors file ({error})", where=source, hint="train the member again") from error
    if empty:
        raise BundleError("holds no tensors", where=source, hint="train the member again")
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, target)


def _swap(part: Path, root: Path) -> None:
    """Put `part` in the place of `root`; between two renames the old bundle lies beside it, never half a one."""
    old = part.with_name(part.name.replace(".part-", ".old-", 1))
    if root.exists():
        root.rename(old)
    try:
        part.rename(root)
    except OSError:
        if old.exists():
            old.rename(root)
        raise
    sync_folder(root.parent)
    shutil.rmtree(old, ignore_errors=True)


def _read(path: Path, kind: type[Any], hint: str) -> Any:
    try:
        read_json(path)
        return read_record(path, kind)
    except (OSError, MedsegError) as error:
        what = error.what if isinstance(error, MedsegError) else f"cannot be read ({error.strerror})"
        where = error.where if isinstance(error, MedsegError) else path
        raise BundleError(what, where=where, hint=hint) from error


def _check_file(root: Path, name: str, entry: FileEntry) -> None:
    pure = PurePosixPath(name)
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name:
        raise BundleError(f'path "{name}" leaves the bundle', where=root / MANIFEST, hint="do not use this bundle")
    path = root / pure
    if any(part.is_symlink() for part in (path, *(root / p for p in pure.parents if p.parts))):
        raise BundleError("is a link", where=path, hint="copy the bundle with its files, not links")
    if not path.is_file():
        raise BundleError("is missing", where=path, hint="copy the whole bundle again")
    if entry.bytes > _LARGEST_FILE:
        raise BundleError(f"is {entry.bytes} bytes long", where=path, hint="no member is that large")
    if path.stat().st_size != entry.bytes or file_sha256(path) != entry.sha256:
        raise BundleError("is damaged or was changed", where=path, hint="copy the bundle again from its source")


def _code_refs(plain: Any) -> set[str]:
    """Modules of every "module:function" step below a plan in JSON form."""
    if isinstance(plain, dict):
        use = plain.get("use")
        own = {use.split(":", 1)[0]} if isinstance(use, str) and ":" in use else set()
        return own.union(*(_code_refs(value) for value in plain.values()))
    if isinstance(plain, list):
        return set().union(*(_code_refs(value) for value in plain))
    return set()


def _numbers(value: Any) -> Any:
    """Scores as JSON can hold them: NaN becomes null, infinity the text "inf" or "-inf"."""
    plain = to_plain(value)
    if isinstance(plain, dict):
        return {key: _numbers(item) for key, item in plain.items()}
    if isinstance(plain, list):
        return [_numbers(item) for item in plain]
    if isinstance(plain, float) and not math.isfinite(plain):
        return None if math.isnan(plain) else str(plain)
    return plain
