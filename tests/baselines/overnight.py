#!/usr/bin/env python3
"""Provides the overnight run with interruptions: the same capture once in peace and once killed, interrupted and out of room many times, compared byte for byte.

    cargo build --release -p teacher-server
    python3 tests/baselines/overnight.py --model DIR --corpus FILE --out DIR [--interruptions 20] [--seed 1] [-- FLAGS OF precompute]

Prints a JSON object: tokens/s, bytes a token, peak memory and seconds of the run in peace, interruptions by kind, and whether all sealed objects are the same.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

KINDS = ("SIGKILL", "SIGINT", "SIGTERM", "no room")


def command(options, out):
    base = [options.bin / "teacher-server", "precompute", "--json", "--model", options.model, "--out", out, "--corpus", *options.corpus]
    return [str(part) for part in base] + options.flags


def limit_file_size(limit):
    """Writes beyond `limit` bytes of a file fail, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


class Run:
    """One attempt, with what it says."""

    def __init__(self, options, out, limit=None):
        before = (lambda: limit_file_size(limit)) if limit else None
        self.log = open(options.out / "log", "a")
        self.process = subprocess.Popen(command(options, out), stdout=subprocess.PIPE, stderr=self.log, text=True, preexec_fn=before)
        self.events = []
        self.working = threading.Event()
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            event = json.loads(line)
            self.events.append(event)
            if event["event"] == "work":
                self.working.set()
        self.working.set()

    def wait(self):
        _, status, usage = os.wait4(self.process.pid, 0)
        self.reader.join()
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.peak_mb = usage.ru_maxrss / 1024
        return self.process.returncode

    def event(self, name):
        found = [event for event in self.events if event["event"] == name]
        return found[-1] if found else {}


def objects(cache):
    """Digests of everything that is sealed."""
    left_out = ("tmp", "partial", "damaged", "LOCK")
    paths = [path for path in sorted(cache.rglob("*")) if path.is_file() and path.relative_to(cache).parts[0] not in left_out]
    return {str(path.relative_to(cache)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def interrupted(options, out, seconds):
    """Attempts until the capture is complete. Each may work for a random part of what is left of the time, divided by the interruptions to come."""
    chance = random.Random(options.seed)
    counts = dict.fromkeys(KINDS, 0)
    attempts = 0
    while True:
        attempts += 1
        left = options.interruptions - sum(counts.values())
        kind = KINDS[attempts % len(KINDS)]
        limit = None
        if kind == "no room" and left > 0:
            partial = max([path.stat().st_size for path in (out / "partial").glob("*")] or [0])
            limit = max(partial + chance.randrange(1, 200_000), 65_536)
        run = Run(options, out, limit)
        run.working.wait()
        if left > 0 and kind != "no room":
            time.sleep(chance.random() * 1.0 * seconds / options.interruptions)
            if run.process.poll() is None:
                run.process.send_signal(getattr(signal, kind))
        status = run.wait()
        if status == 0:
            return counts, attempts
        counts[kind] += 1
        print(f"{sum(counts.values())}: {kind}, exit {status}", file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    path = dict(type=lambda text: Path(text).absolute())
    parser.add_argument("--model", required=True, **path)
    parser.add_argument("--corpus", required=True, nargs="+", **path)
    parser.add_argument("--out", required=True, **path)
    parser.add_argument("--bin", default="target/release", **path)
    parser.add_argument("--interruptions", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("flags", nargs="*", help="after --: flags of precompute")
    options = parser.parse_args()
    options.out.mkdir(parents=True)

    started = time.monotonic()
    peace = Run(options, options.out / "whole")
    if peace.wait() != 0:
        raise SystemExit((options.out / "log").read_text()[-2000:])
    seconds = time.monotonic() - started
    computed = peace.event("computed")
    counts, attempts = interrupted(options, options.out / "interrupted", seconds)
    whole, other = objects(options.out / "whole"), objects(options.out / "interrupted")
    result = {
        "tokens": computed["tokens"],
        "tokens_per_second": computed["tokens_per_second"],
        "bytes_per_token": computed["bytes_per_token"],
        "peak_mb": peace.peak_mb,
        "seconds": seconds,
        "interruptions": counts,
        "attempts": attempts,
        "objects": len(whole),
        "same_bytes": whole == other,
    }
    print(json.dumps(result, indent=1))
    if not result["same_bytes"] or sum(counts.values()) < options.interruptions:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
