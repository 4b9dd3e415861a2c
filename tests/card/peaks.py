#!/usr/bin/env python3
"""Provides peaks of the reference pair, counted by the allocator's calls of the card in software, beside those that `plan` computes.

    tests/card/build.sh target/card && source target/card/env.sh
    cargo build --locked -p teacher-server -p student-trainer --features teacher-server/cuda,student-trainer/cuda
    python3 tests/card/peaks.py --out DIR [--bin target/debug] [--lengths 512,1024,2048,4096] [--modes resident,swap,cached] [--transport off,on]

Both programs run in their real shapes with the card in dry mode: every allocation, copy and launch is checked and counted, nothing is computed. The weights
are sparse files with true headers, so nothing of 16 GB lies on a disk. Prints a table in MiB and writes DIR/peaks.json. Fails where what a process allocates at
its peak is computed more than 3 % off. What the processes and the card hold is that with a context and what the pool, which is a model, cannot hand out again.
"""

import argparse
import array
import json
import os
import pathlib
import shutil
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "gpu-check"))

import models
from programs import Failed, Program, output, tail

MIB = 1 << 20
# The first makes what is kept, the others are alike.
STEPS = 3
START_SECONDS = 900
RUN_SECONDS = 1800
ALLOWED = 0.03
# Sequences of the corpus: more than the steps need, few enough for a cache.
SEQUENCES = 6
WINDOW = 2
BLOCK, NESTED_BLOCK = 64, 256
# QLoRA's NormalFloat: quantiles of the normal distribution, scaled to 1 (Dettmers et al. 2023, appendix E).
NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0]
NF4 += [0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]


def floats(numbers):
    return array.array("f", numbers).tobytes()


def packed(name, shape):
    """The six tensors that bitsandbytes keeps of a matrix in four bits: name, type, shape, and bytes where they matter."""
    count = models.elements(shape)
    blocks = count // BLOCK
    nested = -(-blocks // NESTED_BLOCK)
    state = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": "bfloat16", "shape": shape, "nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": 0.05}
    state = json.dumps(state).encode()
    yield name, "U8", [count // 2, 1], None
    yield name + ".absmax", "U8", [blocks], None
    yield name + ".nested_absmax", "F32", [nested], floats([0.01] * nested)
    yield name + ".nested_quant_map", "F32", [256], floats([(i - 127.5) / 127.5 for i in range(256)])
    yield name + ".quant_map", "F32", [16], floats(NF4)
    yield name + ".quant_state.bitsandbytes__nf4", "U8", [len(state)], state


def tensors(config, four_bits):
    for name, shape in models.shapes(config):
        if four_bits and name.endswith("proj.weight"):
            yield from packed(name, shape)
        else:
            yield name, "BF16", shape, models.ONE * shape[0] if name.endswith("norm.weight") else None


def write_sparse(path, config, four_bits):
    """A checkpoint whose header is true and whose large tensors are holes."""
    described = list(tensors(config, four_bits))
    head, size = models.file_head((name, dtype, shape) for name, dtype, shape, _ in described)
    with open(path, "wb") as file:
        file.write(head)
        at = file.tell()
        file.truncate(at + size)
        for _, dtype, shape, content in described:
            if content is not None:
                file.seek(at)
                file.write(content)
            at += models.WIDTHS[dtype] * models.elements(shape)


def make_models(directory, tiny):
    tokenizer = json.dumps(models.tokenizer_json(models.TINY_TOKENS if tiny else models.TOKENS), ensure_ascii=False)
    student = models.TINY_STUDENT if tiny else models.STUDENT
    four_bits = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "uint8"}}
    for name, config in (("teacher", models.TINY_TEACHER if tiny else models.TEACHER), ("student", student | four_bits)):
        folder = directory / name
        models.make_folder(folder, config, tokenizer)
        write_sparse(folder / "model.safetensors", config, name == "student")


class Case:
    """One pair of runs on a card of its own."""

    def __init__(self, options, mode, tokens, transport):
        self.options, self.mode, self.tokens, self.transport = options, mode, tokens, transport
        self.directory = options.out / f"{mode}-{tokens}{'-transport' if transport else ''}"
        shutil.rmtree(self.directory, ignore_errors=True)
        self.card = self.directory / "card"
        self.card.mkdir(parents=True)
        self.corpus = self.directory / "corpus.txt"
        models.write_text(self.corpus, SEQUENCES * self.seq_len * 3)
        self.traced = False
        os.environ |= {"CARD_DIR": str(self.card), "CARD_DRY": "1"}

    @property
    def seq_len(self):
        return self.tokens // 16 if self.options.tiny else self.tokens

    def teacher(self, command, *flags):
        model = ["--model", self.options.out / "teacher", "--corpus", self.corpus, "--seq-len", self.seq_len, "--device", "cuda"]
        return [self.options.bin / "teacher-server", command, *model, "--json", *flags]

    def start(self, name, command):
        """A program on the card; its calls go to NAME.trace where the case is traced."""
        if self.traced:
            os.environ["CARD_TRACE"] = str(self.directory / f"{name}.trace")
        return Program(command, self.directory / f"{name}.log")

    def run(self):
        """Peaks of the card in MiB: of each process and of both."""
        port, run = self.directory / "port", self.directory / "run"
        bind = ["--bind", "127.0.0.1:0", "--port-file", port]
        pids = {}
        if self.mode == "cached":
            cache = self.directory / "cache"
            with self.start("precompute", self.teacher("precompute", "--out", cache)) as program:
                pids["teacher"] = program.pid
                if program.wait(RUN_SECONDS) != 0:
                    raise Failed(f"precompute: {tail(program.log)}")
            serve = [self.options.bin / "teacher-server", "serve", "--cache", cache, "--json", *bind]
        else:
            swap = ["--vram-mode", "swap", "--window", WINDOW] if self.mode == "swap" else []
            serve = self.teacher("serve", *bind, *swap)
        with self.start("teacher", serve) as teacher:
            teacher.wait_until(lambda: port.exists() and port.read_text().strip(), START_SECONDS, "listening")
            train = [self.options.bin / "student-trainer", "train", "--teacher", f"http://127.0.0.1:{port.read_text().strip()}", "--student", self.options.out / "student"]
            train += ["--out", run, "--device", "cuda", "--steps", STEPS, "--save-steps", 0] + (["--ot-weight", "0.5"] if self.transport else [])
            pids.setdefault("teacher", teacher.pid)
            with self.start("trainer", train) as trainer:
                pids["trainer"] = trainer.pid
                if trainer.wait(RUN_SECONDS) != 0:
                    raise Failed(f"train: {tail(trainer.log)}\n{tail(teacher.log)}")
        counts = {"teacher": self.counted(pids["teacher"])}
        counts["trainer"] = self.counted_of_turns(pids["teacher"]) if self.mode == "swap" else self.counted(pids["trainer"])
        card = max(count["card"]["peak_bytes"] for count in counts.values()) / MIB
        allocated = {name: count["memory"]["live_peak_bytes"] / MIB for name, count in counts.items()}
        reserved = {name: count["memory"]["reserved_peak_bytes"] / MIB for name, count in counts.items()}
        return {"allocated": allocated, "reserved": reserved, "card": reserved["trainer"] if self.mode == "cached" else card, "counts": counts}

    def counted(self, pid):
        return json.loads((self.card / f"counts-{pid}.json").read_text())

    def counted_of_turns(self, teacher):
        """Of the trainer's processes, each of which has its turn on the card, the one that took most."""
        turns = [path for path in self.card.glob("counts-*.json") if path.name != f"counts-{teacher}.json"]
        return max((json.loads(path.read_text()) for path in turns), key=lambda count: count["memory"]["live_peak_bytes"])

    def planned(self):
        """What `plan` says of the same run."""
        command = [self.options.bin / "student-trainer", "plan", "--teacher", self.options.out / "teacher", "--student", self.options.out / "student", "--seq-len", self.seq_len, "--device", "cuda", "--json"]
        command += ["--ot-weight", "0.5"] if self.transport else []
        plan = output(command, self.directory / "plan.log", 60)
        modes = {mode["sharing"]: mode["peak_bytes"] / MIB for mode in plan["modes"]}

        def allocated(process):
            beside = sum(part["bytes"] for part in process["parts"] if part["name"] in ("CUDA context", "allocator slack"))
            return (process["peak_bytes"] - beside) / MIB

        operations = {speed["process"]: speed["operations"] for speed in plan["speeds"]}
        return {"card": modes[self.mode], "allocated": {name: allocated(process) for name, process in plan["processes"].items()}, "operations": operations}


def add_arguments(parser):
    parser.add_argument("--out", type=lambda text: pathlib.Path(text).resolve(), required=True)
    parser.add_argument("--bin", type=lambda text: pathlib.Path(text).resolve(), default=ROOT / "target/debug")
    parser.add_argument("--tiny", action="store_true", help="tiny models, for a rehearsal: what differs means nothing")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_arguments(parser)
    parser.add_argument("--lengths", default="512,1024,2048,4096")
    parser.add_argument("--modes", default="resident,swap,cached")
    parser.add_argument("--transport", default="off,on")
    options = parser.parse_args()
    make_models(options.out, options.tiny)
    found = []
    print(HEAD, flush=True)
    for tokens in map(int, options.lengths.split(",")):
        for mode in options.modes.split(","):
            for transport in options.transport.split(","):
                found.append(compare(Case(options, mode, tokens, transport == "on")))
                (options.out / "peaks.json").write_text(json.dumps(found, indent=1))
    if not options.tiny:
        fail_where_off(found)


HEAD = """| mode | tokens | transport | teacher allocates | planned | trainer allocates | planned | off by | they hold | the card holds | planned |
|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|"""


def compare(case):
    """Runs a case and prints the row of its peaks, counted and computed."""
    counted, planned = case.run(), case.planned()
    pairs = {name: (counted["allocated"][name], planned["allocated"][name]) for name in ("teacher", "trainer")}
    difference = max((plan / count - 1 for count, plan in pairs.values()), key=abs)
    sides = [f"{count:.0f} | {plan:.0f}" for count, plan in pairs.values()]
    held = " + ".join(f"{counted['reserved'][name]:.0f}" for name in pairs)
    transport = "on" if case.transport else "off"
    print(f"| {case.mode} | {case.seq_len} | {transport} | {' | '.join(sides)} | {difference:+.1%} | {held} | {counted['card']:.0f} | {planned['card']:.0f} |", flush=True)
    return {"mode": case.mode, "tokens": case.seq_len, "transport": case.transport, "off by": difference, "counted": counted, "planned": planned}


def fail_where_off(found):
    off = sum(abs(one["off by"]) > ALLOWED for one in found)
    if off:
        sys.exit(f"{off} of {len(found)} computed peaks are off by more than {ALLOWED:.0%}")


if __name__ == "__main__":
    main()
