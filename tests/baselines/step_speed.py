#!/usr/bin/env python3
"""Provides seconds per training step and peak memory, the product beside PyTorch + PEFT + bitsandbytes, on the same student, teacher, text and losses.

    cargo build --release -p teacher-server -p student-trainer
    python3 tests/baselines/step_speed.py --teacher DIR --student BNB_DIR --train FILE [--seq-len 512 --steps 5 --rounds 2 --modes "on,off,every 4" --torch bnb,dequantize]

The teacher works first: the product trains from a cache with no teacher in memory, and the peer's teacher ends before its student starts.
Sides take turns, `--rounds` times, so that a machine whose speed drifts is fair to all. The first step of every run is left out.
Peak memory is that of the training process: the product's over its whole life, PyTorch's while it steps (its loading takes more).
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODES = {"on": "--checkpointing on", "off": "--checkpointing off"}


def flags(mode):
    every = mode.removeprefix("every ")
    return MODES.get(mode, f"--checkpointing on --checkpoint-every {every}").split()


def finish(command):
    """Runs a command to its end; gives the most memory that it had, in MiB."""
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    errors = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(errors[-2000:])
    return used.ru_maxrss / 1024


def precompute(options, folder, sequences, seq_len):
    """A cache of about so many sequences in `folder`; gives the teacher's peak in MiB."""
    text = folder / "train.txt"
    # Eight bytes a token are more than any text of natural language has.
    text.write_text(Path(options.train).read_text()[: 8 * seq_len * sequences])
    return finish([options.bin / "teacher-server", "precompute", "--model", options.teacher, "--corpus", text, "--seq-len", seq_len, "--out", folder / "cache"])


class Server:
    """A teacher-server on a free port of the loopback: with the given settings, or over the cache in a folder and so without a teacher."""

    def __init__(self, options, folder, settings=None):
        port = folder / "port"
        port.unlink(missing_ok=True)
        command = [options.bin / "teacher-server", "serve", "--bind", "127.0.0.1:0", "--port-file", port, *(settings or ["--cache", folder / "cache"])]
        log = open(folder / "teacher.log", "w")
        self.process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log)
        deadline = time.monotonic() + 300
        while not (port.exists() and port.read_text().strip()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                sys.exit((folder / "teacher.log").read_text()[-2000:])
            time.sleep(0.1)
        self.address = f"http://127.0.0.1:{port.read_text().strip()}"

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=120)


def product(options, folder, address, mode, name):
    """Seconds of every step but the first, and peak MiB, of one run."""
    out = folder / name
    command = [options.bin / "student-trainer", "train", "--teacher", address, "--student", options.student, "--out", out]
    command += ["--steps", options.steps, *flags(mode), *options.flags.split()]
    finish(command)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["seconds"] for line in lines if "seconds" in line][1:], lines[-1]["peak_rss_bytes"] / 2**20


def peer(options, folder, base):
    out = folder / "torch.json"
    command = [sys.executable, HERE / "torch_step.py", "--teacher", options.teacher, "--student", options.student, "--train", options.train, "--heldout", options.train]
    command += ["--heldout-windows", 1, "--steps", options.steps, "--seq-len", options.seq_len, "--base", base, "--out", out]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr[-2000:])
    student = json.loads(out.read_text())["student"]
    return [step["seconds"] for step in student["steps"]][1:], student["peak_rss_steps_mib"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for flag in ("--teacher", "--student", "--train"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--bin", type=Path, default=HERE.parents[1] / "target/release")
    for flag, default in (("--seq-len", 512), ("--steps", 5), ("--rounds", 2)):
        parser.add_argument(flag, type=int, default=default)
    parser.add_argument("--modes", default="on,off", help="checkpointing of the product: on, off, `every N`; comma-separated, may be empty")
    parser.add_argument("--torch", default="bnb", help="bases of the peer: bnb, dequantize; comma-separated, may be empty")
    parser.add_argument("--flags", default="", help="further flags of the trainer")
    options = parser.parse_args()
    modes, bases = ([part.strip() for part in text.split(",") if part.strip()] for text in (options.modes, options.torch))
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if modes:
            precompute(options, folder, options.steps + 2, options.seq_len)
        server = Server(options, folder) if modes else None
        for turn in range(options.rounds):
            for base in bases:
                results.setdefault(f"PyTorch, {base}", []).append(peer(options, folder, base))
            for mode in modes:
                name = f"{turn}-{mode.replace(' ', '-')}"
                results.setdefault(f"product, checkpointing {mode}", []).append(product(options, folder, server.address, mode, name))
        if server:
            server.stop()
    print(f"| {options.seq_len} tokens a step | median s | best s | peak MiB |\n|---|---:|---:|---:|")
    for name, runs in results.items():
        seconds = [second for run, _ in runs for second in run]
        print(f"| {name} | {statistics.median(seconds):.2f} | {min(seconds):.2f} | {max(peak for _, peak in runs):.0f} |")


if __name__ == "__main__":
    main()
