#!/usr/bin/env python3
"""Provides the run of every kernel's tests: each line of tests.txt is a program of tests and the names that it is to run.

    python3 gpu-check/kernel_tests.py --bin DIR --logs DIR      on the card, in the emulator's place; fails where a test does
"""

import argparse
import pathlib
import re
import subprocess
import sys
import time

import programs
from programs import Failed, tail

LIST = pathlib.Path(__file__).resolve().parent / "tests.txt"
# Tests read scratch memory back with the rest, which the card in software would refuse; kernels that do are found by the same tests in the emulator.
ON_CARD = {"OT_DISTILL_KERNELS": "cuda", "CARD_SHADOW": "0"}
# Of one program, on the card in software.
SECONDS = 1800


def run(directory, logs, seconds, on_card=True):
    """How many tests passed, what each that did not says, and seconds by program; raises Failed where not all passed."""
    passed, failed, took = 0, {}, {}
    for line in LIST.read_text().splitlines():
        name, *filters = line.split()
        started = time.monotonic()
        log = logs / f"{name}.log"
        command = [directory / name, "--test-threads=1", *filters]
        environment = programs.environment() | (ON_CARD if on_card else {})
        with open(log, "w") as out:
            status = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment, timeout=seconds).returncode
        took[name] = round(time.monotonic() - started, 1)
        text = log.read_text(errors="replace")
        ran = re.findall(r"^test (\S+) \.\.\. ok$", text, re.M)
        broken = re.findall(r"^test (\S+) \.\.\. FAILED$", text, re.M)
        passed += len(ran)
        for test in broken:
            said = re.search(rf"---- {re.escape(test)} stdout ----\n(.*?)(?=\n----|\nfailures:|\Z)", text, re.S)
            failed[test] = (said.group(1) if said else "")[:600]
        if status != 0 and not broken:
            raise Failed(f"{name} ended with status {status}: {tail(log)}")
        unknown = [word for word in filters if not any(word in test for test in ran + broken)]
        if unknown:
            raise Failed(f"{name} has no test with {', '.join(unknown)} in its name: correct gpu-check/{LIST.name}")
    result = {"passed": passed, "failed": failed, "seconds": took}
    if failed:
        raise Failed("\n".join(f"{test}: {said}" for test, said in failed.items()))
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", type=pathlib.Path, required=True, help="where the programs of tests are, by the names of their crates")
    parser.add_argument("--logs", type=pathlib.Path, required=True)
    options = parser.parse_args()
    options.logs.mkdir(parents=True, exist_ok=True)
    try:
        result = run(options.bin, options.logs, SECONDS)
    except Failed as failure:
        sys.exit(str(failure))
    print(f"{result['passed']} kernel tests passed: {result['seconds']} s")


if __name__ == "__main__":
    main()
