"""Write the tables of docs/networks.md: what each backbone is, its size, memory and time.

    python benchmarks/networks_table.py [--threads 2] [--only unet vnet] [--repeats 3]

Every preset is built as the planner does, with its own heads and losses and the fewest first-stage channels it has,
for 2D patches of 128 x 128 and 3D patches of 32 x 64 x 64 at 1 mm (or the next size its strides divide), batch 2,
float32. Memory is that of a training step: the estimate, and the peak of the CPU allocator's own account; seconds are
the median of a few steps. Rows of networks that are not measured now are kept; what was found with a network on real
data is taken from the column that is there.
"""

import argparse
import re
from pathlib import Path

import torch

import medseg
from medseg.networks.build import build_network
from medseg.planning.design import HEAD_LOSSES
from medseg.planning.memory import estimate_step, measure_step, time_step
from medseg.planning.presets import PRESETS
from medseg.planning.topology import topology_for
from medseg.types.plan import Network, Step, Training

PAGE = Path(__file__).resolve().parents[1] / "docs" / "networks.md"
PATCHES = {2: (1, 128, 128), 3: (32, 64, 64)}
CHANNELS, OUTPUTS, BATCH = 1, 3, 2
HEAD = (
    "| preset | paper | dims | parameters | estimated (MiB) | measured (MiB) | s per step | result |",
    "|---|---|---|---|---|---|---|---|",
)
BEGIN, END = "<!-- table of networks: benchmarks/networks_table.py -->", "<!-- end of the table -->"
MIB = 2**20


def row(name: str, ndim: int, paper: str, repeats: int, result: str) -> str:
    """One network in one dimension."""
    preset = PRESETS[name]
    topology, patch = topology_for(PATCHES[ndim], (1.0, 1.0, 1.0), ndim=ndim, preset=preset, base=preset.bases[0])
    heads = (Step("segmentation"), *preset.heads)
    network = Network(preset.backbone, topology, heads, preset.options)
    losses = (*(HEAD_LOSSES[head.use] for head in heads), *preset.losses)
    training = Training(losses, Step("sgd"), Step("poly"), (), epochs=1, precision="fp32")
    weights = sum(p.numel() for p in build_network(network, channels=CHANNELS, outputs=OUTPUTS).parameters())
    job = {"channels": CHANNELS, "outputs": OUTPUTS, "patch": patch, "batch": BATCH, "training": training}
    cpu = torch.device("cpu")
    estimate = estimate_step(network, **job, gpu=False).live_bytes / MIB
    measured = measure_step(network, **job, device=cpu).live_bytes / MIB
    seconds = time_step(network, **job, device=cpu, repeats=repeats)
    numbers = (
        f"{weights / 1e6:.2f} M | {estimate:.1f} | {measured:.1f} ({estimate / measured - 1:+.1%}) | {seconds:.2g}"
    )
    return f"| {name} | {paper} | {ndim}D | {numbers} | {result} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=sorted(PRESETS), default=sorted(PRESETS))
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    text = PAGE.read_text(encoding="utf-8")
    old = {tuple(cells[i] for i in (0, 2)): line for line in text.splitlines() if len(cells := split(line)) == 8}
    papers = {part.name: part.paper for part in medseg.list_networks("backbone")}
    rows = []
    for name in sorted(PRESETS):
        for ndim in PRESETS[name].dimensions:
            kept = old.get((name, f"{ndim}D"))
            result = split(kept)[-1] if kept else ""
            if name in wanted.only:
                kept = row(name, ndim, papers[PRESETS[name].backbone], wanted.repeats, result)
                print(kept, flush=True)
            rows += [kept] if kept else []
    table = "\n".join([BEGIN, "", *HEAD, *rows, "", END])
    PAGE.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: table, text, flags=re.DOTALL), encoding="utf-8")


def split(line: str) -> list[str]:
    """The cells of a row of a table."""
    return [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("| ") else []


if __name__ == "__main__":
    main()
