#!/usr/bin/env python3
"""Provides what was live on the card in software at the peak of a process, by size and by the operation that wrote it first.

    CARD_TRACE=trace.json student-trainer train ...
    python3 tests/card/live.py trace.json [--at N] [--pid P] [--top 40]

Of several processes in one trace, that with the highest peak. With --at N: what was live after line N of the trace, counted from 1.
"""

import argparse
import collections
import json
import sys

MIB = 1 << 20


def read(path):
    """The trace's lines, each with its number; the last may be cut off where a process was killed."""
    with open(path) as file:
        for number, line in enumerate(file, 1):
            if line.endswith("}\n"):
                yield number, json.loads(line)


def find_peak(path, pid):
    """The line after which most bytes were live, and its process."""
    best, found = -1, None
    for number, call in read(path):
        if call["kind"] == "allocate" and pid in (None, call["pid"]) and call["live"] > best:
            best, found = call["live"], (number, call["pid"])
    if not found:
        sys.exit(f"{path}: no allocation" + (f" of process {pid}" if pid else "") + "; was it written with CARD_TRACE?")
    return found


def live_after(path, last, pid):
    """What was live after line `last`: [bytes, first writer, line of the allocation]. What is written only later has that writer."""
    # The last allocation of each address stays known when it is freed: what a launch wrote through a table is told when it has run.
    live, known, kept = {}, {}, None
    for number, call in read(path):
        if call["pid"] != pid:
            continue
        if kept is None and number > last:
            kept = list(live.values())
        if call["kind"] == "allocate":
            live[call["at"]] = known[call["at"]] = [call["bytes"], None, number]
        elif call["kind"] == "free":
            live.pop(call["at"], None)
        for at in call.get("writes", ()):
            if at in known and known[at][1] is None:
                known[at][1] = call["name"]
    return list(live.values()) if kept is None else kept


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("trace")
    parser.add_argument("--at", type=int, metavar="N", help="after line N instead of at the peak")
    parser.add_argument("--pid", type=int)
    parser.add_argument("--top", type=int, default=40, help="how many groups are shown")
    options = parser.parse_args()
    peak, pid = find_peak(options.trace, options.pid)
    line = options.at or peak
    groups = collections.defaultdict(list)
    for size, writer, number in live_after(options.trace, line, pid):
        groups[size, writer or "nothing"].append(number)
    total, count = sum(size * len(numbers) for (size, _), numbers in groups.items()), sum(map(len, groups.values()))
    print(f"process {pid}, after line {line}: {total / MIB:.1f} MiB in {count} allocations")
    print("| MiB | count | bytes each | first written by | allocated at line |\n|---:|---:|---:|---|---:|")
    ranked = sorted(groups.items(), key=lambda group: -group[0][0] * len(group[1]))
    for (size, writer), numbers in ranked[: options.top]:
        print(f"| {size * len(numbers) / MIB:.1f} | {len(numbers)} | {size} | {writer} | {numbers[0]} |")
    others = sum(size * len(numbers) for (size, _), numbers in ranked[options.top :])
    if others:
        print(f"| {others / MIB:.1f} | | | all others | |")


if __name__ == "__main__":
    main()
