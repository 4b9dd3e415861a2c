"""Computes a cache on a Ray cluster: one task a share of the shards, each of them `teacher-server precompute --shard I/N`.

    python -m ot_distill.ray precompute --shards 256 --model M --corpus s3://b/train --out s3://b/cache

All tasks fill one cache in object storage, or at file:///FOLDER on a disk that all nodes share. A task whose node or worker is lost
runs again elsewhere; what it had sealed is there, and what it had not is computed again.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from .__main__ import path

# The exit code of a program that was asked to stop and kept what it had.
INTERRUPTED = 130
# How long a program that is asked to stop gets: it finishes its batch and seals what is whole.
GRACE_SECONDS = 30
PR_SET_PDEATHSIG = 1
BAR_WIDTH = 30


class Lost(RuntimeError):
    """A program that was ended from outside: its task runs again."""


@dataclass
class Done:
    """What became of a task that need not run again."""

    tokens: int
    failure: str | None = None


def end_with_parent() -> None:
    """A worker that is killed must not leave its program behind on the GPU."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def compute(index: int, count: int, arguments: list[str]) -> Done:
    """Runs the program for one share; gives the tokens that it computed, or what it says is wrong with what it was given."""
    command = [path("teacher-server"), "precompute", "--shard", f"{index}/{count}", "--json", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=end_with_parent)
    tokens, said = 0, []
    try:
        for line in process.stdout:
            event = parsed(line)
            if event is None:
                said = [*said[-9:], line.rstrip()]
            elif event.get("event") == "computed":
                tokens = event["tokens"]
        code = process.wait()
    except BaseException:
        process.terminate()
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    if code == 0:
        return Done(tokens)
    if code < 0 or code == INTERRUPTED:
        raise Lost(f"share {index}/{count} was ended from outside ({code})")
    return Done(tokens, failure=f"share {index}/{count} ended with code {code}:\n" + "\n".join(said))


def parsed(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


class Bar:
    """One line for the whole, on a terminal; a line now and then elsewhere."""

    def __init__(self, count: int) -> None:
        self.count, self.done, self.tokens = count, 0, 0
        self.begun = self.shown = time.monotonic()
        self.is_terminal = sys.stderr.isatty()

    def show(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if not (self.is_terminal or last) and now - self.shown < 10:
            return
        self.shown, seconds = now, max(now - self.begun, 1e-9)
        filled = BAR_WIDTH * self.done // self.count
        line = f"ray [{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {self.done}/{self.count} shares, {self.tokens} tokens"
        if self.done:
            line += f", {self.tokens / seconds:.0f} tokens/s"
            if not last:
                line += f", about {seconds / self.done * (self.count - self.done):.0f} s left"
        before, end = ("\r\x1b[K", "\n" if last else "") if self.is_terminal else ("", "\n")
        print(before + line, end=end, file=sys.stderr, flush=True)


def options(given: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="python -m ot_distill.ray", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="Every other flag is one of `teacher-server precompute`.", allow_abbrev=False)
    parser.add_argument("command", choices=["precompute"])
    parser.add_argument("--shards", type=int, required=True, metavar="N", help="shares that the shards are divided into, one task each: many more than nodes")
    parser.add_argument("--out", required=True, metavar="ADDRESS", help="the cache: s3://, gs://, az://, or file:///FOLDER on a disk that all nodes share")
    parser.add_argument("--gpus", type=float, default=1, metavar="G", help="GPUs of a task; 0 for the CPU (1)")
    parser.add_argument("--cpus", type=float, default=1, metavar="C", help="CPUs that Ray counts for a task (1)")
    parser.add_argument("--retries", type=int, default=16, metavar="R", help="times that a task is run again when it is lost (16)")
    parser.add_argument("--address", help="address of the cluster; RAY_ADDRESS or a local one unless it is given")
    found, others = parser.parse_known_args(given)
    if found.shards < 1:
        parser.error("--shards must be at least 1")
    if "://" not in found.out:
        parser.error(f"--out {found.out} is a directory of one machine; name an address, as s3://BUCKET/CACHE or file:///FOLDER")
    for own in ("--shard", "--json", "--dry-run"):
        if own in others:
            parser.error(f"{own} is given to each task by this program")
    return found, others


def precompute(found: argparse.Namespace, arguments: list[str]) -> int:
    try:
        import ray
    except ModuleNotFoundError:
        print("ot_distill.ray: Ray is not installed here; pip install ray", file=sys.stderr)
        return 2
    arguments = [*arguments, "--out", found.out]
    ray.init(address=found.address, log_to_driver=False, logging_level="warning")
    task = ray.remote(num_gpus=found.gpus, num_cpus=found.cpus, max_retries=found.retries, retry_exceptions=[Lost])(compute)
    bar = Bar(found.shards)
    waiting = [task.remote(index, found.shards, arguments) for index in range(found.shards)]
    try:
        while waiting:
            bar.show()
            ended, waiting = ray.wait(waiting, timeout=1)
            for done in ray.get(ended):
                if done.failure:
                    raise SystemExit(f"\not_distill.ray: {done.failure}")
                bar.done += 1
                bar.tokens += done.tokens
    except (Lost, ray.exceptions.RayError) as error:
        raise SystemExit(f"\not_distill.ray: {error}\nWhat was sealed is in {found.out}; the same command goes on.") from None
    except KeyboardInterrupt:
        print(f"\nstopping; what is sealed is in {found.out}, and the same command goes on", file=sys.stderr)
        return INTERRUPTED
    finally:
        for lost in waiting:
            ray.cancel(lost)
        if waiting:
            # Programs that are asked to stop keep what is whole.
            ray.wait(waiting, num_returns=len(waiting), timeout=GRACE_SECONDS)
    bar.show(last=True)
    return complete(found.out)


def complete(out: str) -> int:
    """Whether every shard is there, as the program counts."""
    report = json.loads(subprocess.run([path("teacher-server"), "inspect", out, "--json"], check=True, stdout=subprocess.PIPE).stdout)
    print(f"{out}: {report['done']} of {report['sequences']} sequences, {report['sealed_shards']} of {report['shards']} shards sealed")
    return 0 if report["sealed_shards"] == report["shards"] else 1


def main(given: list[str]) -> int:
    return precompute(*options(given))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
