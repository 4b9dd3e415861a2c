#!/usr/bin/env python3
"""Provides the check that several ranks train what one process trains, with the real mpirun.

    tests/mpi.sh [--speed]

One process is the reference. Two and four ranks come to its losses and its adapter to rounding, and with a pass a rank to the bit; the same run twice is the same
bytes; a rank that is killed ends all by its name, and --resume with another number of ranks goes on to the same end; a signal to one rank stops all after the same step.
--speed measures instead. Nothing but the standard library is used.
"""

import argparse
import json
import os
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Ranks add the same numbers in another order: f32 has 6e-8 of relative precision, and AdamW divides small gradients by themselves.
LOSS_TOLERANCE = 1e-5
WEIGHT_TOLERANCE = 1e-4
SECONDS_MAX = 120


def fail(message):
    sys.exit(f"mpi.py: {message}")


class Server:
    """A teacher-server on a free port of the loopback, over a cache that it computes first."""

    def __init__(self, options, folder, documents, characters):
        teacher = options.bin / "teacher-server"
        corpus, cache, port = folder / "corpus.jsonl", folder / "cache", folder / "port"
        corpus.write_text("".join(json.dumps({"text": text(i, characters)}) + "\n" for i in range(documents)))
        made = [teacher, "precompute", "--device", "cpu", "--model", ROOT / "assets/teacher", "--corpus", corpus, "--seq-len", 512, "--out", cache, "--batch-size", 4]
        finish(made)
        with open(folder / "teacher.log", "w") as log:
            command = [teacher, "serve", "--device", "cpu", "--cache", cache, "--bind", "127.0.0.1:0", "--port-file", port, "--metrics-addr", "127.0.0.1:0"]
            self.process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log)
        deadline = time.monotonic() + SECONDS_MAX
        while not (port.exists() and port.read_text().strip()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                fail((folder / "teacher.log").read_text()[-2000:])
            time.sleep(0.05)
        self.address = f"http://127.0.0.1:{port.read_text().strip()}"

        self.metrics = re.search(r"http://\S+/metrics", (folder / "teacher.log").read_text())[0]

    def frames_sent(self):
        """Frames that went to trainers so far."""
        with urllib.request.urlopen(self.metrics, timeout=SECONDS_MAX) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("ot_distill_teacher_frames_sent_total"))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=SECONDS_MAX)


def text(seed, length):
    """Sums in words and digits, another for every seed."""
    draw, parts = random.Random(seed), []
    while sum(map(len, parts)) < length:
        a, b = draw.randrange(1000), draw.randrange(1000)
        parts.append(draw.choice([f"{a} + {b} = {a + b}. ", f"The sum of {a} and {b} is {a + b}. ", f"If {b} is taken from {a + b}, {a} is left. "]))
    return "".join(parts)[:length]


def finish(command, status=0, **more):
    """What a command that ends with this status says; any but 0 where it is None."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=SECONDS_MAX, **more)
    said = done.stdout + done.stderr
    if done.returncode != status if status is not None else done.returncode == 0:
        fail(f"{' '.join(map(str, command))}\nended with {done.returncode}:\n{said[-4000:]}")
    return said


def mpirun(ranks):
    """The beginning of a command for so many ranks."""
    if ranks == 1:
        return []
    # In a container: the root user, fewer cores than ranks, and no right to read another process's memory.
    flags = ["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--mca", "btl_vader_single_copy_mechanism", "none"]
    return ["mpirun", *flags, "-n", ranks]


def environment():
    return {**os.environ, "RAYON_NUM_THREADS": "1"}


class Runs:
    """Runs of one setting with different numbers of ranks."""

    def __init__(self, options, folder, address, flags):
        self.trainer, self.folder = options.bin / "student-trainer", folder
        self.flags = ["--teacher", address, "--student", ROOT / "assets/student", "--device", "cpu", "--sample-answers", "0", *flags]

    def new(self, name, ranks):
        return [*mpirun(ranks), self.trainer, "train", *self.flags, "--out", self.folder / name]

    def resumed(self, name, ranks):
        return [*mpirun(ranks), self.trainer, "train", "--resume", self.folder / name]

    def train(self, name, ranks):
        return finish(self.new(name, ranks), env=environment())

    def lines(self, name, file="metrics.jsonl"):
        path = self.folder / name / file
        whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
        return [json.loads(line) for line in whole.splitlines()]

    def weights(self, name, result):
        """Every number of the result, and its file's bytes."""
        data = (self.folder / name / result).read_bytes()
        header = int.from_bytes(data[:8], "little")
        names = json.loads(data[8 : 8 + header])
        body = data[8 + header :]
        numbers = {}
        for key, entry in names.items():
            if key != "__metadata__":
                begin, end = entry["data_offsets"]
                if entry["dtype"] != "F32":
                    fail(f"{result}: {key} is {entry['dtype']}")
                numbers[key] = struct.unpack(f"<{(end - begin) // 4}f", body[begin:end])
        return numbers, data


TIMED = {"seconds", "wait_seconds", "tokens_per_second", "rss_bytes", "peak_rss_bytes"}


def untimed(lines):
    return [{key: value for key, value in line.items() if key not in TIMED} for line in lines]


def apart(runs, name, reference, result):
    """Checks a run against the reference, and says the largest differences: of losses and norms, relative, and of weights."""
    own, other = runs.lines(name), runs.lines(reference)
    if [line["step"] for line in own] != [line["step"] for line in other]:
        fail(f"{name} has {len(own)} steps, {reference} {len(other)}")
    losses = 0.0
    for a, b in zip(own, other):
        for key in ("loss", "ce", "kl", "grad_norm"):
            losses = max(losses, abs(a[key] - b[key]) / max(abs(b[key]), 1e-9))
        if any(a[key] != b[key] for key in ("tokens", "targets", "lr", "epoch")):
            fail(f"{name}: {a}\n{reference}: {b}")
    mine, data = runs.weights(name, result)
    theirs, reference_data = runs.weights(reference, result)
    if mine.keys() != theirs.keys():
        fail(f"{name} has other tensors than {reference}")
    size = max(abs(x) for numbers in theirs.values() for x in numbers)
    weights = max(abs(x - y) for key in mine for x, y in zip(mine[key], theirs[key])) / size
    is_same = data == reference_data and untimed(own) == untimed(other)
    found = "to the bit" if is_same else f"losses and norms to {losses:.1e}, weights to {weights:.1e} of the largest"
    print(f"{name} beside {reference}: {found}", flush=True)
    if losses > LOSS_TOLERANCE or weights > WEIGHT_TOLERANCE:
        fail(f"{name} differs from {reference} by more than {LOSS_TOLERANCE} and {WEIGHT_TOLERANCE}")
    return is_same


def process_of(rank, folder):
    """The process of a rank that trains into a folder."""
    for process in Path("/proc").iterdir():
        try:
            variables = (process / "environ").read_bytes().split(b"\0")
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if f"OMPI_COMM_WORLD_RANK={rank}".encode() in variables and str(folder).encode() in command and b"student-trainer" in command:
            return int(process.name)
    return fail(f"there is no rank {rank} of {folder}")


def signalled(runs, name, ranks, rank, after, number):
    """Starts a run and sends a signal to a rank after some steps; how it ended, and what it said."""
    command = [str(part) for part in runs.new(name, ranks)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment())
    deadline = time.monotonic() + SECONDS_MAX
    while len(runs.lines(name)) < after:
        if process.poll() is not None or time.monotonic() > deadline:
            fail(f"{name} never came to step {after}: {process.communicate()[0]}")
        time.sleep(0.01)
    os.kill(process_of(rank, runs.folder / name), number)
    said = process.communicate(timeout=SECONDS_MAX)[0]
    return process.returncode, said


def check_adapters(options, folder, server):
    evals = folder / "held-out.jsonl"
    evals.write_text("".join(json.dumps({"text": text(1000 + i, 300)}) + "\n" for i in range(3)))
    flags = ["--steps", 60, "--grad-accumulation", 4, "--lr", "1e-3", "--lora-rank", 4, "--save-steps", 10, "--shuffle-buffer", 8]
    runs = Runs(options, folder, server.address, [*flags, "--eval-data", evals, "--eval-steps", 20])
    adapter = "adapter/adapter_model.safetensors"
    before = server.frames_sent()
    runs.train("one", 1)
    alone = server.frames_sent() - before
    sequences = json.loads((folder / "one/teacher.json").read_text())["sequences"]
    if sequences % 4 in (0, 3) or sequences > 120:
        fail(f"{sequences} sequences: the last step over them has to leave some of four ranks idle, and 60 steps have to see them twice")
    said = runs.train("two", 2)
    together = server.frames_sent() - before - alone
    print(f"frames sent: {alone:.0f} to one process, {together:.0f} to two ranks", flush=True)
    # Each holds some ready when the run ends.
    if together > 1.3 * alone:
        fail("ranks were sent each other's frames")
    # One speaks for all.
    if said.count("done after 60 steps") != 1 or len(runs.lines("two")) != 60:
        fail(f"two ranks said: {said}")
    runs.train("two-again", 2)
    runs.train("four", 4)
    apart(runs, "two", "one", adapter)
    if not apart(runs, "two-again", "two", adapter):
        fail("the same run of two ranks came to other bytes")
    # A pass a rank, added in the order of the ranks, is what one process adds.
    if not apart(runs, "four", "one", adapter):
        fail("four ranks with a pass each came to other bits than one process")
    for other in ("two", "four"):
        for a, b in zip(runs.lines(other, "eval.jsonl"), runs.lines("one", "eval.jsonl"), strict=True):
            if abs(a["ce"] - b["ce"]) > LOSS_TOLERANCE * b["ce"]:
                fail(f"evaluation of {other}: {a}, of one process: {b}")

    status, said = signalled(runs, "killed", 4, 1, 25, signal.SIGKILL)
    named = re.search(r"^.*rank 1\b.*$", said, re.MULTILINE)
    if status == 0 or not named:
        fail(f"a killed rank 1 ended the run with {status}, and said: {said}")
    print(f"rank 1 of 4 killed: exit status {status}, `{named[0].strip()}`", flush=True)
    finish(runs.resumed("killed", 2), env=environment())
    apart(runs, "killed", "one", adapter)

    status, said = signalled(runs, "stopped", 4, 2, 15, signal.SIGTERM)
    steps = len(runs.lines("stopped"))
    checkpoint = runs.folder / f"stopped/checkpoints/step-{steps:06}/state.toml"
    if status == 0 or not checkpoint.exists() or steps >= 60:
        fail(f"SIGTERM to rank 2 ended the run with {status} after {steps} steps, and said: {said}")
    print(f"SIGTERM to rank 2 of 4: all stopped after step {steps}, exit status {status}", flush=True)
    finish(runs.resumed("stopped", 1), env=environment())
    apart(runs, "stopped", "one", adapter)


def check_whole_models(options, folder, server):
    flags = ["--tune", "full", "--steps", 6, "--grad-accumulation", 3, "--lr", "1e-4", "--batch-size", 2, "--pack-tokens", 90]
    runs = Runs(options, folder, server.address, flags)
    runs.train("whole-one", 1)
    runs.train("whole-three", 3)
    apart(runs, "whole-three", "whole-one", "model/model.safetensors")


def check_refusals(options, folder, server):
    runs = Runs(options, folder, server.address, ["--steps", 2, "--grad-accumulation", 2])
    said = finish(runs.new("refused", 4), status=None, env=environment())
    if said.count("error: rank") != 1 or "rank 0 of 4: grad_accumulation: " not in said or (folder / "refused").exists():
        fail(f"four ranks for two passes said: {said}")
    first = runs.new("other", 2)
    one = first.index(runs.trainer)
    first[one - 1] = 1
    other = [*first, "--lr", "1e-3", ":", "-n", 1, *first[one:], "--lr", "2e-3"]
    said = finish(other, status=None, env=environment())
    if "rank 1 was started with other settings than rank 0" not in said:
        fail(f"two ranks with other settings said: {said}")
    print("fewer passes than ranks, and ranks of other settings: refused by name", flush=True)


def measure(options, folder):
    """Seconds a step and of the processor, of one rank and of two, side by side and several times."""
    server = Server(options, folder, 24, 600)
    flags = ["--steps", 12, "--grad-accumulation", 8, "--save-steps", 0]
    runs = Runs(options, folder, server.address, flags)
    seconds = {1: [], 2: []}
    for turn in range(options.turns):
        for ranks in seconds:
            name = f"speed-{ranks}-{turn}"
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            runs.train(name, ranks)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            own = sorted(line["seconds"] + line["wait_seconds"] for line in runs.lines(name)[2:])
            seconds[ranks].append(own[len(own) // 2])
            user = after.ru_utime - before.ru_utime
            system = after.ru_stime - before.ru_stime
            print(f"{ranks} ranks: {own[len(own) // 2]:.3f} s a step (least {own[0]:.3f}), processor {user:.1f} s, system {system:.1f} s", flush=True)
    server.stop()
    best = {ranks: min(found) for ranks, found in seconds.items()}
    print(f"two ranks are {best[1] / best[2]:.2f} times as fast as one, by the best of {options.turns} runs")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", type=Path, required=True, help="directory of both programs")
    parser.add_argument("--speed", action="store_true", help="measure instead")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    options.bin = options.bin.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.speed:
            measure(options, folder)
            return
        started = time.monotonic()
        server = Server(options, folder, 46, 80)
        for check in (check_adapters, check_whole_models, check_refusals):
            check(options, folder, server)
        server.stop()
        print(f"all as it should be, after {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
