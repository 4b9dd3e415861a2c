#!/usr/bin/env python3
"""Provides what a student's step, a teacher's batch and a token of a student's answers do on a card, counted: launches, products, copies, synchronisations and allocations by phase.

    (environment and programs as for peaks.py)
    python3 tests/card/counts.py --out DIR [--bin target/debug] [--lengths 512,2048]

The reference pair runs in dry mode with a trace, which is cut at kernels that only one phase has. The first step and the first batch, which also make what is
kept, are left out. Prints tables and writes DIR/counts.json. Fails where a step or a token does something more often than it may, or a peak or the number of launches is computed more than 3 % off.
"""

import argparse
import json
import os
import pathlib
import shutil
import sys

import peaks

KINDS = {"launch": "launches", "gemm": "products", "host to device": "copies to the card", "device to host": "copies to the host", "device to device": "copies on it", "synchronize": "waits", "allocate": "allocations", "fill": "fills"}
# A pass begins with a look-up of embeddings; the loss is between the first and the last of its kernels; a step ends with the update of the parameters.
LOOK_UP = "is_u32_bf16"
LOSS = ("head_parts", "head_factors", "head_gradient")
UPDATE = ("squares", "sums_of_parts", "adamw", "adamw_8bit")
SELECTION = ("select_rows", "draw_rows")
CHOICE = ("sample_rows",)
# What is answered together, and how many tokens each.
PROMPTS = ["one two", "three", "four five six"]
ANSWER_TOKENS = 4
DRAWN = ["--temperature", "0.8", "--top-k", "50", "--top-p", "0.95", "--min-p", "0.01"]
TOKEN = "token of each answer"
# How often a student's step may do something, by tokens: operations are launches and products.
MOST = {512: {("in all", "operations"): 2500, ("update", "operations"): 10, ("in all", "waits"): 2}}
# And a token of so many answers: ids alone come to the host, of four bytes each.
MOST_OF_TOKEN = {"copies to the host": 1, "bytes to the host": 4 * len(PROMPTS), "waits": 1}
# What the plan's estimate may be off by, in launches and products.
PLANNED_OFF = 0.03


def lines(path):
    with open(path) as file:
        for line in file:
            yield json.loads(line)


def count(calls):
    found = {name: 0 for name in KINDS.values()} | {"bytes to the card": 0, "bytes to the host": 0, "flop": 0, "bytes of products": 0}
    for call in calls:
        kind = call["kind"]
        if kind in KINDS:
            found[KINDS[kind]] += 1
        if kind == "host to device":
            found["bytes to the card"] += call["bytes"]
        if kind == "device to host":
            found["bytes to the host"] += call["bytes"]
            # The host stands still until such a copy has ended.
            found["waits"] += not call["pinned"]
        if kind == "gemm":
            found["flop"] += call["flop"]
            found["bytes of products"] += call["bytes"]
    return found


def positions(calls, names):
    return [at for at, call in enumerate(calls) if call["kind"] == "launch" and call["name"] in names]


def rounds(calls, last):
    """A list of calls for each step or batch: from the look-up of embeddings before a pass to the one after the kernels named `last`."""
    starts, ended = [], True
    look = None
    for at, call in enumerate(calls):
        if call["kind"] != "launch":
            continue
        if call["name"] == LOOK_UP:
            look = at
        elif call["name"] in last:
            ended = True
        elif call["name"].startswith("attention") and ended:
            starts.append(look)
            ended = False
    return [calls[start:end] for start, end in zip(starts, starts[1:])]


def phases_of_step(calls):
    loss, updates = positions(calls, LOSS), positions(calls, UPDATE)
    cuts = [0, loss[0], loss[-1] + 1, updates[0], len(calls)]
    return {name: calls[start:end] for name, start, end in zip(("forward", "loss", "backward", "update"), cuts, cuts[1:])}


def phases_of_batch(calls):
    first = head(calls, SELECTION)
    return {"layers": calls[:first], "head and selection": calls[first:]}


def phases_of_token(calls):
    first = head(calls, CHOICE)
    return {"layers": calls[:first], "head and choice": calls[first:]}


def head(calls, after):
    """The head's product, which comes before the first of these kernels."""
    first = positions(calls, after)[0]
    while first > 0 and calls[first]["kind"] != "gemm":
        first -= 1
    return first


def measure(options, tokens):
    case = peaks.Case(options, "resident", tokens, False)
    case.traced = True
    print(peaks.HEAD)
    peak = peaks.compare(case)
    if not options.tiny:
        peaks.fail_where_off([peak])
    planned = peak["planned"]["operations"]
    trainer, teacher = ([call for call in lines(case.directory / f"{name}.trace")] for name in ("trainer", "teacher"))
    works = {"student's step": phases_of_step(rounds(trainer, UPDATE)[-1]), "teacher's batch": phases_of_batch(rounds(teacher, SELECTION)[-1])}
    return works, {"student's step": planned["trainer"], "teacher's batch": planned["teacher"]}


def measure_answers(options):
    """A token of each of some answers, drawn."""
    directory = options.out / "answers"
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "card").mkdir(parents=True)
    trace, log = directory / "generate.trace", directory / "generate.log"
    os.environ |= {"CARD_DIR": str(directory / "card"), "CARD_DRY": "1", "CARD_TRACE": str(trace)}
    command = [options.bin / "student-trainer", "generate", "--student", options.out / "student", "--device", "cuda"]
    command += ["--prompt", *PROMPTS, "--max-new-tokens", ANSWER_TOKENS, *DRAWN]
    with peaks.Program(command, log) as program:
        if program.wait(peaks.RUN_SECONDS) != 0:
            raise peaks.Failed(f"generate: {peaks.tail(log)}")
    return {TOKEN: phases_of_token(rounds(list(lines(trace)), CHOICE)[-1])}, {TOKEN: None}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    peaks.add_arguments(parser)
    parser.add_argument("--lengths", default="512,2048")
    options = parser.parse_args()
    peaks.make_models(options.out, options.tiny)
    found = []
    measured = {tokens: measure(options, tokens) for tokens in map(int, options.lengths.split(","))}
    measured[len(PROMPTS)] = measure_answers(options)
    print("\n| tokens | work | phase | launches | products | TFLOP | copies to the card | to the host | on it | waits | allocations |")
    print("|---:|---|---|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    for tokens, (works, planned) in measured.items():
        for work, phases in works.items():
            counted = {name: count(calls) for name, calls in phases.items()}
            counted["in all"] = {key: sum(phase[key] for phase in counted.values()) for key in next(iter(counted.values()))}
            found.append({"tokens": tokens, "work": work, "phases": counted, "planned operations": planned[work]})
            for name, c in counted.items():
                to_card, to_host = (f"{c[f'copies to the {side}']} ({c[f'bytes to the {side}'] / 1e3:.0f} kB)" for side in ("card", "host"))
                print(f"| {tokens} | {work} | {name} | {c['launches']} | {c['products']} | {c['flop'] / 1e12:.2f} | {to_card} | {to_host} | {c['copies on it']} | {c['waits']} | {c['allocations']} |", flush=True)
    (options.out / "counts.json").write_text(json.dumps(found, indent=1))
    too_many = [] if options.tiny else list(excesses(found))
    if too_many:
        sys.exit("\n".join(too_many))


def excesses(found):
    """What a student's step or a token does more often than it may, and what `plan` counts otherwise."""
    for one in found:
        total = one["phases"]["in all"]
        if one["work"] == TOKEN:
            over = (what for what, most in MOST_OF_TOKEN.items() if total[what] > most)
            yield from (f"a token of each of {len(PROMPTS)} answers: {total[what]} {what}, at most {MOST_OF_TOKEN[what]}" for what in over)
            continue
        operations, planned = total["launches"] + total["products"], one["planned operations"]
        if abs(planned / operations - 1) > PLANNED_OFF:
            yield f"a {one['work']} of {one['tokens']} tokens: {operations} launches and products, {planned} in the plan's estimate (student-trainer/src/plan/speed.rs)"
        if one["work"] != "student's step":
            continue
        bounds = MOST.get(one["tokens"], {})
        for (phase, what), most in bounds.items():
            counted = one["phases"][phase]
            number = counted["launches"] + counted["products"] if what == "operations" else counted[what]
            if number > most:
                yield f"a student's step of {one['tokens']} tokens, {phase}: {number} {what}, at most {most}"


if __name__ == "__main__":
    main()
