"""Provides the test programs that cargo built, a line each: the crate's name and the path. Reads cargo's JSON messages."""

import json
import sys

for line in sys.stdin:
    message = json.loads(line) if line.startswith("{") else {}
    if message.get("executable") and message.get("profile", {}).get("test"):
        print(message["target"]["name"], message["executable"])
