"""Runs the programs that the package brings along, in this process: signals and exit codes are theirs."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import sys
from typing import NoReturn

USAGE = """\
usage: python -m ot_distill teacher-server|student-trainer ARGS...
       python -m ot_distill COMMAND ARGS...      a command of either program, as `serve` or `train`

`--help` behind the program or the command lists what it takes."""
PROGRAMS = ("teacher-server", "student-trainer")
TEACHER_COMMANDS = ("serve", "precompute", "inspect", "verify", "merge")


def path(program: str) -> str:
    """Where the program was installed."""
    for file in importlib.metadata.files("ot-distill") or ():
        if file.name == program:
            return os.path.realpath(os.fspath(file.locate()))
    sys.exit(f"ot_distill: {program} was not installed with this package; install the wheel again: pip install --force-reinstall ot_distill-*.whl")


def main(arguments: list[str]) -> NoReturn:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if arguments else sys.stderr)
        sys.exit(0 if arguments else 2)
    program = "teacher-server" if arguments[0] in TEACHER_COMMANDS else "student-trainer"
    if arguments[0] in PROGRAMS:
        program, *arguments = arguments
    # Python ignores these for itself, and what it starts in its place would go on to.
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)
    os.execv(path(program), [program, *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
