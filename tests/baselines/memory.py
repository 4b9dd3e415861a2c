#!/usr/bin/env python3
"""Provides predicted beside measured peak memory on the CPU: `student-trainer plan` against real runs of both programs.

    cargo build --release -p teacher-server -p student-trainer
    python3 tests/baselines/memory.py --teacher DIR --student DIR --train FILE [--lengths 256,512,1024 --settings "; --batch-size 2; --checkpointing off"]
    python3 tests/baselines/memory.py --teacher X.gguf --student DIR --train FILE --teacher-only

For every length the teacher fills a cache, and for every setting the trainer does a few steps from it, with no teacher in memory. Measured is what the system says of
each process after its end (ru_maxrss: resident memory at most, with program, libraries and mapped files). Ends with 1 where a prediction is off by more than --within.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from step_speed import HERE, Server, finish, precompute


def planned(options, seq_len, setting):
    """Peaks of teacher and trainer in MiB, by formula."""
    command = [options.bin / "student-trainer", "plan", "--json", "--device", "cpu", "--teacher", options.teacher, "--student", options.student]
    command += ["--seq-len", seq_len, *setting.split()]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr[-2000:])
    processes = json.loads(done.stdout)["processes"]
    return [processes[name]["peak_bytes"] / 2**20 for name in ("teacher", "trainer")]


def measurements(options):
    """Process, length, setting, planned MiB, measured MiB."""
    for seq_len in options.lengths:
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            needed = max(step_sequences(setting) for setting in options.settings) * options.steps
            measured = precompute(options, folder, needed + 2, seq_len)
            yield "teacher", seq_len, "", planned(options, seq_len, "")[0], measured
            if options.teacher_only:
                continue
            server = Server(options, folder)
            for index, setting in enumerate(options.settings):
                command = [options.bin / "student-trainer", "train", "--teacher", server.address, "--student", options.student, "--out", folder / str(index)]
                measured = finish([*command, "--device", "cpu", "--steps", options.steps, *setting.split()])
                yield "trainer", seq_len, setting, planned(options, seq_len, setting)[1], measured
            server.stop()


def step_sequences(setting):
    """Sequences of one step."""
    words, count = setting.split(), 1
    for flag in ("--batch-size", "--grad-accumulation"):
        if flag in words:
            count *= int(words[words.index(flag) + 1])
    return count


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for flag in ("--teacher", "--student", "--train"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--bin", type=Path, default=HERE.parents[1] / "target/release")
    parser.add_argument("--lengths", default="256,512,1024", type=lambda text: [int(part) for part in text.split(",")], help="tokens of a sequence; comma-separated")
    parser.add_argument("--settings", default="", type=lambda text: [part.strip() for part in text.split(";")], help="flags of the trainer, one set after another; separated by `;`")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--teacher-only", action="store_true", help="leave the trainer out: it takes the same whatever the teacher is")
    parser.add_argument("--within", type=float, default=0.1, help="share of the measured peak that a prediction may be off")
    options = parser.parse_args()
    print("| process | tokens | settings | planned MiB | measured MiB | ratio |\n|---|---:|---|---:|---:|---:|")
    worst = 0
    for process, seq_len, setting, plan, measured in measurements(options):
        print(f"| {process} | {seq_len} | {setting} | {plan:.0f} | {measured:.0f} | {plan / measured:.2f} |", flush=True)
        worst = max(worst, abs(plan / measured - 1))
    print(f"\nfurthest off: {100 * worst:.1f} %")
    sys.exit(worst > options.within)


if __name__ == "__main__":
    main()
