#!/usr/bin/env python3
"""Provides one and the same trainer command against several real teachers: only what the server's `--model` names changes.

    cargo build --release -p teacher-server -p student-trainer
    python3 tests/baselines/swap_teachers.py --student DIR --text FILE --teachers DIR,DIR,FILE.gguf [--seq-len 128 --steps 4 --flags "--ot-weight 0.1 --cost kl"]

Each teacher computes live while the trainer takes its steps. The table has, of every teacher, the losses of the first and the last step, and the most memory that each
process had. Fails where a run fails, a loss is not finite, or two teachers say the same.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path

from step_speed import HERE, Server, finish

LOSSES = ("ce", "kl", "ot")


def peak_mib(process):
    """The most memory that a running process had."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1024


def run(options, folder, teacher):
    """The metrics of every step, seconds, and both peaks in MiB."""
    corpus = folder / "text.txt"
    # Eight bytes a token are more than any text of natural language has.
    corpus.write_text(Path(options.text).read_text(encoding="utf-8")[: 8 * options.seq_len * (options.steps + 2)])
    server = Server(options, folder, ["--model", teacher, "--corpus", corpus, "--seq-len", options.seq_len])
    command = [options.bin / "student-trainer", "train", "--teacher", server.address, "--student", options.student, "--out", folder / "run"]
    started = time.monotonic()
    trainer = finish([*command, "--steps", options.steps, *options.flags.split()])
    seconds, peak = time.monotonic() - started, peak_mib(server.process)
    server.stop()
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "ce" in line], seconds, peak, trainer


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for flag in ("--student", "--text", "--teachers"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--bin", type=Path, default=HERE.parents[1] / "target/release")
    for flag, default in (("--seq-len", 128), ("--steps", 4)):
        parser.add_argument(flag, type=int, default=default)
    parser.add_argument("--flags", default="--ot-weight 0.1 --cost kl", help="further flags of the trainer, the same for all")
    options = parser.parse_args()
    print("| teacher | CE first, last | KL first, last | OT first, last | seconds | server MiB | trainer MiB |\n|---|---|---|---|---:|---:|---:|")
    heard = {}
    for teacher in options.teachers.split(","):
        with tempfile.TemporaryDirectory() as folder:
            steps, seconds, *peaks = run(options, Path(folder), teacher)
        values = [step[loss] for step in (steps[0], steps[-1]) for loss in LOSSES]
        if len(steps) != options.steps or not all(math.isfinite(value) for value in values):
            sys.exit(f"{teacher}: {steps}")
        heard[teacher] = steps[0]["kl"]
        cells = [f"{steps[0][loss]:.4f}, {steps[-1][loss]:.4f}" for loss in LOSSES]
        print(f"| {Path(teacher).name} | {' | '.join(cells)} | {seconds:.1f} | {peaks[0]:.0f} | {peaks[1]:.0f} |", flush=True)
    if len(set(heard.values())) != len(heard):
        sys.exit(f"two teachers say the same: {heard}")


if __name__ == "__main__":
    main()
