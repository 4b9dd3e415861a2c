"""Provides what cargo built that gpu-check runs: a line for each program, with the path. Tests have the names of their crates. Reads cargo's JSON messages."""

import json
import sys

PROGRAMS = {"teacher-server", "student-trainer", "gpu_probe"}

for line in sys.stdin:
    message = json.loads(line)
    if not message.get("executable"):
        continue
    name, kind, test = message["target"]["name"], message["target"]["kind"], message["profile"]["test"]
    if name in PROGRAMS and not test or "lib" in kind and test:
        print(name, message["executable"])
