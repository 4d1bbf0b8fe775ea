"""medseg model show: what a bundle of any origin holds, read without running or unpickling anything of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medseg.io.bundles import MANIFEST, bundle_folder, bundle_sha256, check_bundle, read_manifest
from medseg.io.tensor_files import read_tensor_table
from medseg.types.plan import Plan

_PICKLES = (".pkl", ".pickle", ".pth", ".pt", ".ckpt", ".joblib", ".npy", ".npz", ".bin")


@dataclass(frozen=True)
class MemberCard:
    """One network of the ensemble; its hash was compared with its bytes."""

    fold: int | Literal["all"]
    file: str
    sha256: str
    bytes: int
    tensors: int
    parameters: int


@dataclass(frozen=True)
class ModelCard:
    """A verified bundle; `code_refs` are modules it would import, `unlisted` files that nothing vouches for."""

    schema: Literal["medseg.model/1"]
    bundle_sha256: str
    medseg: str
    torch: str
    plan: Plan
    members: tuple[MemberCard, ...]
    files: Mapping[str, int]
    scores: Mapping[str, object]
    code_refs: tuple[str, ...]
    unlisted: tuple[str, ...]
    warnings: tuple[str, ...]


def show_model(path: Path) -> ModelCard:
    """Verify the bundle at `path`, or in that run folder, and say what it holds.

    Raises BundleError as `check_bundle`; code it names is listed, never imported.
    """
    root = bundle_folder(path)
    bundle = check_bundle(root)
    manifest = read_manifest(root)
    members = []
    for member in bundle.members:
        table = read_tensor_table(root / member.weights)
        count = sum(tensor.size for tensor in table.values())
        size = manifest.files[member.weights].bytes
        members.append(MemberCard(member.fold, member.weights, member.sha256, size, len(table), count))
    unlisted = _unlisted(root, {MANIFEST, *manifest.files})
    pickles = [name for name in unlisted if name.lower().endswith(_PICKLES)]
    warnings = [f"{len(unlisted)} files are not listed in the manifest and are never read"] if unlisted else []
    warnings += [f"{name} may hold code; do not load it with other software" for name in pickles[:10]]
    if bundle.code_refs:
        warnings.append(f"imports code of {', '.join(bundle.code_refs)} when it predicts, if you trust it")
    sizes = {name: entry.bytes for name, entry in manifest.files.items()}
    return ModelCard(
        "medseg.model/1",
        bundle_sha256(bundle),
        manifest.medseg,
        manifest.torch,
        bundle.plan,
        tuple(members),
        sizes,
        bundle.scores,
        bundle.code_refs,
        unlisted,
        tuple(warnings),
    )


def _unlisted(root: Path, listed: set[str]) -> tuple[str, ...]:
    """Files and links in the folder, links not followed, that the manifest does not name."""
    found = [path for path in root.rglob("*") if path.is_symlink() or not path.is_dir()]
    return tuple(sorted({path.relative_to(root).as_posix() for path in found} - listed))


def format_card(card: ModelCard) -> str:
    """The card as text for people."""
    plan, topology = card.plan, card.plan.network.topology
    spacing = " x ".join("own" if s is None else f"{s:.4g}" for s in plan.preprocess.spacing_mm)
    patch = " x ".join(map(str, plan.sampling.patch))
    lines = [
        f"{plan.name}: {plan.network.use} {topology.ndim}D, patch {patch}, spacing {spacing} mm (z, y, x)",
        f"channels: {', '.join(plan.channels)}",
        "labels: " + (", ".join(f"{item.written} {item.name}" for item in plan.labels.items) or "none"),
        *([f"landmarks: {', '.join(plan.landmarks)}"] if plan.landmarks else []),
        *([f"raters: {', '.join(plan.raters)}"] if plan.raters else []),
        f"made with medseg {card.medseg}, torch {card.torch}",
        f"bundle sha256 {card.bundle_sha256}",
    ]
    for member in card.members:
        what = f"{member.tensors} tensors, {member.parameters} numbers, {member.bytes} bytes"
        lines.append(f"member {member.fold}, {member.file}: {what}, sha256 {member.sha256} verified")
    lines.append(f"{len(card.files)} files verified, {sum(card.files.values())} bytes")
    dice = card.scores.get("mean_dice")
    if isinstance(dice, float):
        lines.append(f"validation: mean Dice {dice:.3f} on {card.scores.get('cases')} cases")
    lines += _landmark_lines(card)
    return "\n".join(lines)


def _landmark_lines(card: ModelCard) -> list[str]:
    """The mean distance of validation, if the scores have one; they are whatever the bundle holds."""
    part: object = card.scores.get("landmarks")
    summary = part.get("summary") if isinstance(part, Mapping) else None
    every = summary.get("all") if isinstance(summary, Mapping) else None
    mean = every.get("mean_mm") if isinstance(every, Mapping) else None
    if not isinstance(mean, float) or not isinstance(summary, Mapping):
        return []
    return [f"validation: landmarks {mean:.2f} {summary.get('unit', 'mm')} away on average"]
