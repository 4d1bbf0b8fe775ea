"""Kill a short training at random moments and compare its final weights with those of the unbroken run.

    python benchmarks/kill_resume.py --kills 20 --seed 0 --out FOLDER

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

PAUSE_S = 0.2  # per step: stretches training, so that a busy machine does not end it before its kill


def launch(cache, run):
    return subprocess.Popen([sys.executable, str(TESTS / "tiny_run.py"), str(cache), str(run), str(PAUSE_S)])


def finish(cache, run):
    with launch(cache, run) as process:
        code = process.wait()
    if code:
        raise SystemExit(f"training ended with code {code}")
    return json.loads((run / "run.json").read_text(encoding="utf-8"))["trained_s"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    cache, rng = options.out / "cache", random.Random(options.seed)
    fill_cache(cache)
    whole = options.out / "whole"
    duration = finish(cache, whole)
    want = file_sha256(whole / "weights.safetensors")
    print(f"unbroken: {want[:16]} in {duration:.1f} s of training")
    equal = 0
    for number in range(options.kills):
        run, moment = options.out / f"killed_{number:02d}", rng.uniform(0.0, 1.0) * duration
        with launch(cache, run) as process:
            while not (run / "run.json").exists():
                time.sleep(0.005)
            time.sleep(moment)
            process.kill()
        epochs = len(journal.read(run / "metrics.jsonl"))
        done = "finished" if (run / "weights.safetensors").exists() else f"{epochs} epochs done"
        finish(cache, run)
        found = file_sha256(run / "weights.safetensors")
        equal += found == want
        print(f"killed after {moment:5.2f} s ({done}): {found[:16]} {'equal' if found == want else 'DIFFERENT'}")
    print(f"{equal} of {options.kills} equal")
    sys.exit(equal < options.kills)


if __name__ == "__main__":
    main()
