"""Predicted against real memory of a training step, eight networks; the allocator's own account is the judge.

    python benchmarks/memory_estimate.py [--device cpu] [--threads 2] [--only 3d-plain-fp32]

On a CPU the live bytes are compared with the peak of the allocator's profiler, and must agree within 2 %. On a GPU
the estimate's reserved bytes are compared with max_memory_reserved, and a second table plans `--fingerprint` for
five budgets and runs a step of every plan, which must stay within the budget; the share of it that is used is printed,
and should be 90 % where the data allow.
"""

import argparse
from pathlib import Path

import torch

from medseg.io.records import read_record
from medseg.planning.memory import StepMemory, estimate_step, measure_step
from medseg.planning.planner import make_plans
from medseg.types.fingerprint import Fingerprint
from medseg.types.plan import Budget, LossTerm, Network, Step, Topology, Training

MIB, GIB = 2**20, 2**30
BUDGETS_GIB = (4, 8, 16, 24, 40)
TOLERANCE = 0.02
FLAT = Topology(2, (32, 64, 128, 256), ((1, 1, 1),) + ((1, 2, 2),) * 3, ((1, 3, 3),) * 4, (2, 2, 2, 2))
THICK = Topology(3, (32, 64, 128), ((1, 1, 1),) + ((2, 2, 2),) * 2, ((3, 3, 3),) * 3, (2, 2, 2))
JOBS = {
    "2d-plain-fp32": ("unet", FLAT, (1, 160, 192), 1, "fp32", 2),
    "2d-plain-bf16": ("unet", FLAT, (1, 160, 192), 4, "bf16", 4),
    "2d-residual-fp32": ("resenc_unet", FLAT, (1, 160, 192), 3, "fp32", 2),
    "2d-residual-bf16": ("resenc_unet", FLAT, (1, 160, 192), 2, "bf16", 20),
    "3d-plain-fp32": ("unet", THICK, (32, 40, 40), 2, "fp32", 3),
    "3d-plain-bf16": ("unet", THICK, (32, 40, 40), 4, "bf16", 3),
    "3d-residual-fp32": ("resenc_unet", THICK, (32, 40, 40), 1, "fp32", 20),
    "3d-residual-bf16": ("resenc_unet", THICK, (32, 40, 40), 3, "bf16", 3),
}


def training(precision: str) -> Training:
    terms = (LossTerm(1.0, "dice_ce"),)
    return Training(terms, Step("sgd"), Step("poly"), (), epochs=1, precision=precision)


def compare(device: torch.device, names: list[str]) -> bool:
    print("| network | patch | batch | classes | estimate (bytes) | measured (bytes) | difference |")
    print("|---|---|---|---|---|---|---|")
    good = True
    for name in names:
        use, topology, patch, batch, precision, outputs = JOBS[name]
        job = {"channels": 1, "outputs": outputs, "patch": patch, "batch": batch, "training": training(precision)}
        network, gpu = Network(use, topology), device.type != "cpu"
        estimate = _of_interest(estimate_step(network, **job, gpu=gpu), gpu)
        measured = _of_interest(measure_step(network, **job, device=device), gpu)
        good &= abs(estimate / measured - 1) <= TOLERANCE
        size = "x".join(map(str, patch))
        print(f"| {name} | {size} | {batch} | {outputs} | {estimate} | {measured} | {estimate / measured - 1:+.2%} |")
    return good


def _of_interest(memory: StepMemory, gpu: bool) -> int:
    return memory.reserved_bytes if gpu else memory.live_bytes


def budgets(device: torch.device, fingerprint: Fingerprint) -> bool:
    print("\n| plan | budget (GiB) | estimate (GiB) | live | reserved | reserved + assumed context | share |")
    print("|---|---|---|---|---|---|---|")
    good = True
    for gib in BUDGETS_GIB:
        for plan in make_plans(fingerprint, Budget(float(gib)), "unet"):
            job = {"channels": len(plan.channels), "outputs": plan.labels.outputs(), "training": plan.training}
            job |= {"patch": plan.sampling.patch, "batch": plan.sampling.batch}
            estimate = estimate_step(plan.network, **job)
            real = measure_step(plan.network, **job, device=device)
            used = real.reserved_bytes + estimate.context_bytes
            good &= used <= gib * GIB
            row = [estimate.total_bytes(), real.live_bytes, real.reserved_bytes, used]
            print(
                f"| {plan.name} | {gib} | " + " | ".join(f"{n / GIB:.2f}" for n in row) + f" | {used / gib / GIB:.0%} |"
            )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=sorted(JOBS), nargs="*", default=list(JOBS))
    parser.add_argument(
        "--fingerprint", type=Path, default=Path(__file__).parent.parent / "plans/cbct/fingerprint.json"
    )
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    device = torch.device(wanted.device)
    good = compare(device, wanted.only)
    if device.type != "cpu":
        good &= budgets(device, read_record(wanted.fingerprint, Fingerprint))
    print("\nall within the limits" if good else "\nNOT all within the limits")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
