"""Kill a short training at random moments and compare its final weights with those of the unbroken run.

    python benchmarks/kill_resume.py --kills 20 --seed 0 --out FOLDER [--epochs 40] [--pause-s 0]

Each round starts the same command on a fresh folder, kills it (SIGKILL) at a random moment between the start and
the end of training, starts it again to the end, and prints the hash of weights.safetensors. Exit code 1 if one differs.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path.insert(0, str(TESTS))

from tiny_run import fill_cache  # noqa: E402

from medseg.io.files import file_sha256  # noqa: E402
from medseg.training import journal  # noqa: E402


def launch(run, options):
    command = [sys.executable, TESTS / "tiny_run.py", options.out / "cache", run, options.pause_s, options.epochs]
    return subprocess.Popen([str(part) for part in command])


def finish(run, options):
    with launch(run, options) as process:
        code = process.wait()
    if code:
        raise SystemExit(f"training ended with code {code}")
    return json.loads((run / "run.json").read_text(encoding="utf-8"))["trained_s"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=40, help="of 5 steps")
    parser.add_argument("--pause-s", type=float, default=0.0, help="after each step, to stretch training")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    fill_cache(options.out / "cache")
    whole = options.out / "whole"
    duration = finish(whole, options)
    want = file_sha256(whole / "weights.safetensors")
    print(f"unbroken: {want[:16]} in {duration:.1f} s of training")
    equal = 0
    for number in range(options.kills):
        run, moment = options.out / f"killed_{number:02d}", rng.uniform(0.0, 1.0) * duration
        with launch(run, options) as process:
            while not (run / "run.json").exists():
                time.sleep(0.005)
            time.sleep(moment)
            process.kill()
        epochs = len(journal.read(run / "metrics.jsonl"))
        done = "finished" if (run / "weights.safetensors").exists() else f"{epochs} epochs done"
        finish(run, options)
        found = file_sha256(run / "weights.safetensors")
        equal += found == want
        print(f"killed after {moment:5.2f} s ({done}): {found[:16]} {'equal' if found == want else 'DIFFERENT'}")
    print(f"{equal} of {options.kills} equal")
    sys.exit(equal < options.kills)


if __name__ == "__main__":
    main()
