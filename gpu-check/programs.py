"""Provides the programs under measurement: where their libraries are, how they start and stop, and what they say on the way."""

import glob
import json
import os
import pathlib
import signal
import site
import subprocess
import sys
import threading
import time

# A program that does not end by itself after SIGTERM is ended after this long.
GRACE_SECONDS = 60
TAIL_CHARACTERS = 2000


def library_directories():
    """Where CUDA's libraries may be beside the loader's own places: toolkits, the driver's folder in containers, and Python's packages."""
    packages = [*site.getsitepackages(), site.getusersitepackages()]
    patterns = [f"{place}/{inside}" for place in packages for inside in ("nvidia/*/lib", "torch/lib")]
    patterns += ["/usr/local/cuda*/lib64", "/usr/local/nvidia/lib64", "/usr/lib/wsl/lib"]
    return [found for pattern in patterns for found in sorted(glob.glob(pattern), reverse=True)]


def environment():
    """This process' environment, with the libraries findable."""
    known = [part for part in os.environ.get("LD_LIBRARY_PATH", "").split(":") if part]
    return os.environ | {"LD_LIBRARY_PATH": ":".join(known + library_directories())}


def tail(path):
    """The end of a log."""
    try:
        return pathlib.Path(path).read_text(errors="replace")[-TAIL_CHARACTERS:]
    except OSError:
        return ""


class Failed(Exception):
    """A program that did not do what was asked, with the end of its log."""


class Program:
    """A running program: its standard error goes to a log, JSON lines on its standard output become `events`."""

    def __init__(self, command, log):
        self.command, self.log = [str(part) for part in command], log
        self.events, self.lock = [], threading.Lock()
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=open(log, "w"), text=True, env=environment())
        self.pid = self.process.pid
        self.thread = threading.Thread(target=self.listen, daemon=True)
        self.thread.start()

    def listen(self):
        for line in self.process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            with self.lock:
                self.events.append(event | {"at": time.time()})

    def said(self, name):
        """Events of this name so far."""
        with self.lock:
            return [event for event in self.events if event.get("event") == name]

    def wait_until(self, ready, seconds, what):
        """What `ready` gives once it gives something; fails when the program ends first or time is up."""
        deadline = time.monotonic() + seconds
        while True:
            found = ready()
            if found:
                return found
            if self.process.poll() is not None:
                raise Failed(f"{self.command[0]} ended (status {self.process.returncode}) before {what}: {tail(self.log)}")
            if time.monotonic() > deadline:
                raise Failed(f"{self.command[0]}: {what} took more than {seconds} s: {tail(self.log)}")
            time.sleep(0.05)

    def wait(self, seconds):
        """The exit status; None where it still runs after `seconds`."""
        try:
            status = self.process.wait(timeout=max(seconds, 0))
        except subprocess.TimeoutExpired:
            return None
        self.thread.join(timeout=10)
        return status

    def stop(self):
        """Asks it to end and waits; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.wait(GRACE_SECONDS)
        if status is None:
            self.process.kill()
            status = self.wait(GRACE_SECONDS)
        return status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def output(command, log, seconds, last_json=False):
    """The JSON object on the last line of a program's standard output; with `last_json` on the last line that looks like one."""
    with open(log, "w") as errors:
        try:
            done = subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment(), timeout=seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"{command[0]} took more than {seconds:.0f} s: {tail(log)}") from None
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        raise Failed(f"{command[0]} ended with status {done.returncode}: {tail(log)} {done.stdout[-TAIL_CHARACTERS:]}")
    if last_json:
        lines = [line for line in lines if line.startswith("{")] or lines
    try:
        return json.loads(lines[-1])
    except ValueError:
        raise Failed(f"{command[0]}: the last line is no JSON object: {lines[-1][-TAIL_CHARACTERS:]}") from None


def python():
    """The interpreter with PyTorch: GPU_CHECK_PYTHON, or this one."""
    return os.environ.get("GPU_CHECK_PYTHON", sys.executable)
