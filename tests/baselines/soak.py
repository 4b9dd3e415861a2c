#!/usr/bin/env python3
"""Provides the soak: a teacher, two trainers and a scorer for a long time, each killed at random, links cut, the disk full now and then.

    cargo build --release -p teacher-server -p student-trainer
    python3 tests/baselines/soak.py --out DIR [--minutes 60] [--seed 1] [--teacher assets/teacher] [--student assets/student] [--corpus FILE]

Before it begins, each trainer runs once in peace and the scorer scores once. Then, until time is up, every trainer runs again and again from the start and
must end with the same adapter to the bit however often it was interrupted, and the scorer must print the same figures. The cache must verify at the end and
hold the same sealed bytes as one computed in peace. Prints a JSON object: what was done how often, differences (none is right), and the server's resident
memory over time, of server processes that lived for more than 20 s.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TRAINERS = ("first", "second")
POLL_SECONDS = 0.2
START_SECONDS = 60
# A server's memory is looked at after it has lived for this long: before, it still fills its buffers.
SETTLED_SECONDS = 20


class Link:
    """A TCP proxy in front of the server that can be cut: connections end at once, new ones are refused until it is mended."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.target, self.cut_until, self.open, self.lock = None, 0.0, set(), threading.Lock()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            try:
                if time.monotonic() < self.cut_until or self.target is None:
                    raise OSError("cut")
                server = socket.create_connection(("127.0.0.1", self.target), timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            with self.lock:
                self.open |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self.pump, args=(source, sink), daemon=True).start()

    def pump(self, source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        self.close((source, sink))

    def close(self, sockets):
        for one in sockets:
            with self.lock:
                self.open.discard(one)
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()

    def cut(self, seconds):
        self.cut_until = time.monotonic() + seconds
        self.close(list(self.open))


def resident(pid):
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def limit_file_size(limit):
    """Writes beyond `limit` bytes of a file fail, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


class Server:
    """The teacher, started again whenever it ends."""

    def __init__(self, soak, cache):
        self.soak, self.cache, self.process, self.started, self.memory = soak, cache, None, 0.0, []

    def start(self, full_disk=False):
        options = self.soak.options
        port = options.out / "port"
        port.unlink(missing_ok=True)
        command = [options.bin / "teacher-server", "serve", "--model", options.teacher, "--corpus", options.corpus, "--cache", self.cache, "--seq-len", options.seq_len, "--shard-bytes", 200_000]
        command += ["--bind", "127.0.0.1:0", "--port-file", port]
        before = (lambda: limit_file_size(65_536)) if full_disk else None
        log = open(options.out / "server.log", "a")
        self.process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, preexec_fn=before)
        self.started = time.monotonic()
        deadline = self.started + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            if port.exists() and port.read_text().strip():
                self.soak.link.target = int(port.read_text())
                return
            time.sleep(0.05)

    def tend(self):
        """Starts it where it ended; notes its memory."""
        if self.process.poll() is not None:
            self.soak.counts["server restarts"] += 1
            self.start()
        age = time.monotonic() - self.started
        if age > SETTLED_SECONDS:
            self.memory.append((round(time.monotonic() - self.soak.begun), self.process.pid, round(resident(self.process.pid), 1)))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(timeout=60) != 0:
            self.soak.differences.append(f"the server ended with {self.process.returncode} when it was asked to")


class Trainer:
    """Runs of one configuration, one after another, each interrupted."""

    def __init__(self, soak, name, number):
        self.soak, self.name, self.number = soak, name, number
        self.out, self.process, self.expected = soak.options.out / f"run-{name}", None, None

    def command(self, resume):
        options = self.soak.options
        if resume:
            return [options.bin / "student-trainer", "train", "--resume", self.out]
        command = [options.bin / "student-trainer", "train", "--teacher", f"http://127.0.0.1:{self.soak.link.port}", "--student", options.student, "--out", self.out]
        return command + ["--steps", options.steps, "--save-steps", 5, "--keep-last", 2, "--batch-size", 1 + self.number, "--seed", self.number, "--ot-weight", 0.1 * self.number, "--epochs", 100]

    def start(self):
        resume = any((self.out / "checkpoints").glob("step-*")) if self.out.exists() else False
        if not resume:
            subprocess.run(["rm", "-rf", str(self.out)], check=True)
        log = open(self.soak.options.out / f"{self.name}.log", "a")
        self.process = subprocess.Popen([str(part) for part in self.command(resume)], stdout=log, stderr=log)

    def digest(self):
        return hashlib.sha256((self.out / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()

    def tend(self):
        status = self.process.poll()
        if status is None:
            return
        if status == 0:
            self.soak.counts[f"runs of the {self.name} trainer"] += 1
            if self.digest() != self.expected:
                self.soak.differences.append(f"the {self.name} trainer ended with another adapter")
            subprocess.run(["rm", "-rf", str(self.out)], check=True)
        else:
            self.soak.counts[f"exit {status} of a trainer"] = self.soak.counts.get(f"exit {status} of a trainer", 0) + 1
        self.start()


class Scorer:
    """Scores held-out text by the teacher, again and again."""

    def __init__(self, soak):
        self.soak, self.process, self.expected = soak, None, None

    def start(self):
        options = self.soak.options
        command = [options.bin / "student-trainer", "eval", "--student", options.student, "--data", options.held_out, "--teacher", f"http://127.0.0.1:{self.soak.link.port}", "--json", "--seq-len", options.seq_len]
        log = open(options.out / "scorer.log", "a")
        self.process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=log, text=True)

    def figures(self):
        last = json.loads(self.process.stdout.read().strip().splitlines()[-1])
        return {key: last[key] for key in ("ce", "kl", "tokens", "targets") if key in last}

    def tend(self):
        status = self.process.poll()
        if status is None:
            return
        if status == 0:
            self.soak.counts["scorings"] += 1
            found = self.figures()
            if found != self.expected:
                self.soak.differences.append(f"scored {found}, not {self.expected}")
        self.start()


def sealed(cache):
    """Digests of everything that is sealed."""
    left_out = ("tmp", "partial", "damaged", "LOCK")
    paths = [path for path in sorted(cache.rglob("*")) if path.is_file() and path.relative_to(cache).parts[0] not in left_out]
    return {str(path.relative_to(cache)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


class Soak:
    def __init__(self, options):
        self.options, self.link, self.begun = options, Link(), time.monotonic()
        self.chance = random.Random(options.seed)
        self.counts = {"server restarts": 0, "scorings": 0} | {f"runs of the {name} trainer": 0 for name in TRAINERS}
        self.differences = []

    def peace(self):
        """What everything ends in when nothing disturbs it."""
        options = self.options
        server = Server(self, options.out / "whole")
        server.start()
        trainers = [Trainer(self, name, number) for number, name in enumerate(TRAINERS)]
        for trainer in trainers:
            trainer.start()
            if trainer.process.wait() != 0:
                raise SystemExit((options.out / f"{trainer.name}.log").read_text()[-2000:])
            trainer.expected = trainer.digest()
            subprocess.run(["rm", "-rf", str(trainer.out)], check=True)
        scorer = Scorer(self)
        scorer.start()
        if scorer.process.wait() != 0:
            raise SystemExit((options.out / "scorer.log").read_text()[-2000:])
        scorer.expected = scorer.figures()
        server.stop()
        return trainers, scorer

    def disturb(self, server, trainers, scorer):
        """One random fault."""
        kind = self.chance.choice(["kill server", "stop server", "kill trainer", "stop trainer", "kill scorer", "cut", "full disk"])
        self.counts[kind] = self.counts.get(kind, 0) + 1
        trainer = self.chance.choice(trainers)
        if kind == "kill server":
            server.process.kill()
        elif kind == "stop server":
            server.process.send_signal(signal.SIGTERM)
        elif kind == "kill trainer":
            trainer.process.kill()
        elif kind == "stop trainer":
            trainer.process.send_signal(self.chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP]))
        elif kind == "kill scorer":
            scorer.process.kill()
        elif kind == "cut":
            self.link.cut(self.chance.uniform(0.2, 10))
        else:
            server.process.kill()
            server.process.wait()
            server.start(full_disk=True)

    def run(self):
        options = self.options
        trainers, scorer = self.peace()
        server = Server(self, options.out / "cache")
        server.start()
        for one in (*trainers, scorer):
            one.start()
        self.begun = time.monotonic()
        end = self.begun + 60 * options.minutes
        disturbed = time.monotonic() + self.chance.expovariate(1 / options.every)
        while time.monotonic() < end:
            for one in (server, *trainers, scorer):
                one.tend()
            if time.monotonic() > disturbed:
                self.disturb(server, trainers, scorer)
                disturbed = time.monotonic() + self.chance.expovariate(1 / options.every)
            time.sleep(POLL_SECONDS)
        for one in (*trainers, scorer):
            one.process.kill()
            one.process.wait()
        if server.process.poll() is None:
            server.stop()
        verified = subprocess.run([str(options.bin / "teacher-server"), "verify", str(options.out / "cache")], capture_output=True, text=True)
        if verified.returncode != 0:
            self.differences.append(f"verify: {verified.stdout[-500:]} {verified.stderr[-500:]}")
        whole = sealed(options.out / "whole")
        for name, digest in sealed(options.out / "cache").items():
            if whole.get(name, digest) != digest:
                self.differences.append(f"{name} of the cache has other bytes")
        memory = [megabytes for _, _, megabytes in server.memory]
        quarter = max(len(memory) // 4, 1)
        mean = lambda values: round(sum(values) / max(len(values), 1), 1)
        result = {
            "minutes": options.minutes,
            "seed": options.seed,
            "counts": self.counts,
            "differences": self.differences,
            "server_mb": {"first quarter": mean(memory[:quarter]), "last quarter": mean(memory[-quarter:]), "most": max(memory, default=0.0)},
        }
        print(json.dumps(result, indent=1))
        return 1 if self.differences else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    path = dict(type=lambda text: Path(text).absolute())
    parser.add_argument("--out", required=True, **path)
    parser.add_argument("--bin", default=ROOT / "target/release", **path)
    parser.add_argument("--teacher", default=ROOT / "assets/teacher", **path)
    parser.add_argument("--student", default=ROOT / "assets/student", **path)
    parser.add_argument("--corpus", default=None, **path)
    parser.add_argument("--held-out", default=None, **path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=8, help="seconds between two faults, on average")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    text = "".join((ROOT / "docs" / page).read_text() for page in ("losses.md", "which-loss.md", "gpu.md"))
    if options.corpus is None:
        options.corpus = options.out / "corpus.txt"
        options.corpus.write_text(text)
    if options.held_out is None:
        options.held_out = options.out / "held-out.txt"
        options.held_out.write_text((ROOT / "docs/memory.md").read_text())
    sys.exit(Soak(options).run())


if __name__ == "__main__":
    main()
