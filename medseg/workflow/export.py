"""medseg model export: the network of a bundle as one file that runs without medseg."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import medseg
from medseg.errors import MedsegError
from medseg.inference.ensemble import load_members
from medseg.io.bundles import bundle_folder, bundle_sha256, load_bundle
from medseg.io.files import whole_file
from medseg.io.records import to_plain
from medseg.networks.export import Exported, exported, named
from medseg.types.result import ModelBundle

SCHEMA = "medseg.export/1"
_TOLERANCE = 1e-4  # of the largest number that the network returns
_Run = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class ExportCard:
    """What was written: an input `image` (b, c, *size), outputs by name, how far its numbers are from the network's.

    `batch` is null where any number of images will do, `difference` where nothing is installed to run the file.
    """

    file: str
    outputs: tuple[str, ...]
    channels: tuple[str, ...]
    size: tuple[int, ...]
    batch: int | None
    difference: float | None


def export_model(
    path: Path, out: Path, *, folds: Sequence[str] = (), batch: int | None = None, trust: Sequence[str] = ()
) -> ExportCard:
    """Write the mean of a bundle's networks (those of `folds`, or all) to `out`, a .pt2 or .onnx file.

    .pt2 is a program for `torch.export.load`. Batch norms and RepVGG branches are part of the convolutions, dropout is
    off. The file holds, as text called "medseg.json", names and sizes of its input and outputs and the whole plan:
    what to do to a scan before and after. The input is an image prepared as the plan says, of the size of its patch.
    Before the file takes its name it is run and compared with the networks.

    Raises BundleError as `load_bundle`, PlanError for a network that torch cannot export, and MedsegError for another
    ending, where the extra `export` is missing, and where numbers differ by more than 1e-4 of the largest.
    """
    write = _WRITERS.get(out.suffix.lower())
    if write is None:
        raise MedsegError("has no ending of an exported network", where=out, hint="end the name in .pt2 or .onnx")
    if batch is not None and batch < 1:
        raise MedsegError(f"a batch of {batch} images", where="--batch", hint="use 1 or more")
    bundle = load_bundle(bundle_folder(path), trust=trust)
    members = load_members(bundle, device=torch.device("cpu"), folds=folds or None)
    plan = bundle.plan
    size = plan.sampling.patch[3 - plan.network.topology.ndim :]
    networks: list[Any] = [member.network for member in members]
    made = exported(networks, channels=len(plan.channels), size=size, batch=batch)
    image = torch.randn(batch or 2, len(plan.channels), *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = [tuple(named(network(image)).values()) for network in networks]
        expected = [torch.stack(parts).mean(0) for parts in zip(*found, strict=True)]
    with whole_file(out) as temporary:
        run = write(made, temporary, json.dumps(_description(bundle, made), indent=2))
        difference = None if run is None else _difference(run(image), expected, out)
    return ExportCard(str(out), made.outputs, plan.channels, made.size, batch, difference)


def format_export(card: ExportCard) -> str:
    """The card as text for people."""
    size = " x ".join(map(str, (card.batch or "any", len(card.channels), *card.size)))
    checked = "not run: onnxruntime is not installed" if card.difference is None else f"{card.difference:.1e}"
    return "\n".join(
        (
            f"wrote {card.file}",
            f"input image: {size} (images, channels, voxels); channels {', '.join(card.channels)}",
            f"outputs: {', '.join(card.outputs)}",
            f"largest difference from the network: {checked}",
        )
    )


def _description(bundle: ModelBundle, made: Exported) -> Mapping[str, Any]:
    flat = len(made.size) == 2
    return {
        "schema": SCHEMA,
        "medseg": medseg.__version__,
        "bundle_sha256": bundle_sha256(bundle),
        "inputs": {
            "image": {
                "axes": ["image", "channel", *("y", "x")] if flat else ["image", "channel", *("z", "y", "x")],
                "size": [made.batch, len(bundle.plan.channels), *made.size],
                "dtype": "float32",
            }
        },
        "outputs": list(made.outputs),
        "plan": to_plain(bundle.plan),
    }


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor], out: Path) -> float:
    """The largest difference, relative to the largest number; raises MedsegError where it is too large."""
    pairs = [(a.detach(), b.detach()) for a, b in zip(found, expected, strict=True)]
    worst = max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs)
    if not worst <= _TOLERANCE:
        raise MedsegError(
            f"would return numbers that differ by {worst:.1e} from the network's",
            where=out,
            hint="nothing was written; export in the other format",
        )
    return worst


def _write_program(made: Exported, path: Path, description: str) -> _Run:
    torch.export.save(made.program, path, extra_files={"medseg.json": description})
    return torch.export.load(path).module()


def _write_onnx(made: Exported, path: Path, description: str) -> _Run | None:
    try:
        import onnx
        import onnxscript  # noqa: F401  # torch writes with it
    except ImportError as error:
        raise MedsegError(
            f"needs {error.name}, which is not installed",
            where=path.suffix,
            hint="pip install medseg[export], or end the name in .pt2",
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = torch.onnx.export(
            made.program, (), input_names=["image"], output_names=list(made.outputs), dynamo=True, verbose=False
        )
    assert written is not None
    written.model.metadata_props["medseg.json"] = description
    written.save(path)
    onnx.checker.check_model(path)
    return _onnx_runtime(path, made.outputs)


def _onnx_runtime(path: Path, outputs: Sequence[str]) -> _Run | None:
    """The file in ONNX Runtime, or None where that is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: [torch.from_numpy(part) for part in session.run(list(outputs), {"image": image.numpy()})]


_WRITERS: Mapping[str, Callable[[Exported, Path, str], _Run | None]] = {".pt2": _write_program, ".onnx": _write_onnx}
