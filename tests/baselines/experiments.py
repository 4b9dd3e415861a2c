#!/usr/bin/env python3
"""Provides the experiments behind docs/losses.md, "Which one?": corpora, models from scratch, a cache, and `student-trainer ablate` over it.

    cargo build --release -p teacher-server -p student-trainer -p quickstart
    python3 tests/baselines/experiments.py few --work DIR       few examples of high-entropy text, soft labels
    python3 tests/baselines/experiments.py bitext --work DIR    the teacher reads English, the student must answer in Chinese; few labels

What is in DIR is not made again, so an interrupted run goes on. --corpora stops when the texts are written.
"""

import argparse
import json
import os
import random
import re
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Widths of the students and of the bitext's teacher, in the shape of the embedded student.
STUDENT = {"hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
ENGLISH_TEACHER = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}

FEW_ARMS = [
    ("CE", {"kl_weight": 0.0}),
    ("CE + KL", {}),
    ("KL alone", {"ce_weight": 0.0}),
    ("CE + KL/2 + reverse KL/2", {"kl_weight": 0.5, "reverse_kl_weight": 0.5}),
    ("CE + reverse KL", {"kl_weight": 0.0, "reverse_kl_weight": 1.0}),
    ("CE + OT (kl)", {"kl_weight": 0.0, "ot_weight": 1.0}),
]
STATES = {"cost": "hidden", "loss": "states", "layers": ["0:0", "1:1"], "epsilon": 0.05, "bytes": 0.5}
BITEXT_ARMS = [
    ("CE", {"kl_weight": 0.0}),
    ("CE + OT", {"kl_weight": 0.0, "ot_weight": 0.3, "align": STATES}),
]


class Bench:
    def __init__(self, work, bin):
        self.work, self.bin = work, bin
        work.mkdir(parents=True, exist_ok=True)

    def run(self, program, *args):
        subprocess.run([self.bin / program, *map(str, args)], check=True, stdout=subprocess.DEVNULL)

    def corpus(self, name, *args):
        """The files of `quickstart corpus`, as a function from a file's name to its rows."""
        if not (self.work / name).is_dir():
            self.run("quickstart", "corpus", "--out", self.work / name, *args)
        return lambda file: [json.loads(line) for line in (self.work / name / file).read_text().splitlines()]

    def write(self, name, rows):
        path = self.work / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return path

    def pretrain(self, name, data, steps, *start):
        if not (self.work / name / "model").is_dir():
            self.run("student-trainer", "pretrain", "--data", data, "--out", self.work / name, "--batch-size", 32, *steps, *start)
        return self.work / name / "model"

    def from_nothing(self, name, widths):
        config = json.loads((ROOT / "assets/student/config.json").read_text()) | widths
        path = self.work / f"{name}.json"
        path.write_text(json.dumps(config))
        return ["--model-config", path, "--tokenizer", ROOT / "assets/student"]

    def ablate(self, name, teacher, corpus, seq_len, capture, settings, base_loss, arms):
        cache, socket = self.work / f"{name}-cache", self.work / f"{name}.sock"
        self.run("teacher-server", "precompute", "--model", teacher, "--corpus", corpus, "--seq-len", seq_len, "--out", cache, *capture)
        lines = ["seeds = [1, 2, 3, 4, 5]", *(f"{key} = {toml(value)}" for key, value in settings.pop("file").items())]
        base = {"teacher": f"unix:{socket}", "quantize": "none", "tune": "full", "lr": 2e-3, "checkpointing": False, "save_steps": 0, "eval_kl": False} | settings
        lines += ["[base]", *(f"{key} = {toml(value)}" for key, value in base.items())]
        for arm, loss in arms:
            lines += ["[[arm]]", f"name = {toml(arm)}", f"loss = {toml(base_loss | loss)}"]
        file = self.work / f"{name}.toml"
        file.write_text("\n".join(lines) + "\n")
        server = subprocess.Popen([self.bin / "teacher-server", "serve", "--cache", cache, "--bind", f"unix:{socket}"])
        try:
            while not socket.exists():
                time.sleep(0.1)
            subprocess.run([self.bin / "student-trainer", "ablate", file, "--out", self.work / name], check=True)
        finally:
            server.terminate()
            server.wait()


def toml(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(str(value) if isinstance(value, os.PathLike) else value)


def texts(rows):
    return [{"text": row["prompt"] + row["completion"]} for row in rows]


def of(language, rows):
    return [row for row in rows if row["language"] == language]


def few(bench, corpora_only):
    """The teacher has read the problems; the student knows English ones and 3000 Chinese questions, and sees 400 Chinese problems."""
    read = bench.write("read.jsonl", texts(bench.corpus("problems", "--train", 60000, "--held-out", 400, "--seed", 1)("train.jsonl")))
    short = bench.corpus("short", "--train", 120000, "--held-out", 400, "--steps-max", 2, "--seed", 3)("train.jsonl")
    known = texts(of("en", short)[:24000]) + [{"text": row["prompt"]} for row in of("zh", short)[:3000]]
    random.Random(1).shuffle(known)
    known = bench.write("known.jsonl", known)
    chinese = texts(of("zh", bench.corpus("few-problems", "--train", 2000, "--held-out", 300, "--seed", 11)("train.jsonl")))
    train, held = bench.write("few.jsonl", chinese[:400]), bench.write("few-held-out.jsonl", chinese[600:800])
    if corpora_only:
        return
    teacher = bench.pretrain("teacher", read, ["--steps", 1500], "--from", ROOT / "assets/teacher", "--seq-len", 192, "--lr", 1e-3, "--save-dtype", "bf16")
    student = bench.pretrain("student", known, ["--epochs", 2], *bench.from_nothing("student", STUDENT), "--seq-len", 160, "--lr", 4e-3)
    settings = {"file": {"metric": "ce"}, "student": student, "epochs": 8, "batch_size": 8, "eval_data": [held]}
    bench.ablate("few", teacher, train, 192, ["--top-k", 64], settings, {}, FEW_ARMS)


def equations(completion):
    """What is to be computed, without a result: a=45×5;b=a+19."""
    results, sums = {}, []
    for name, line in zip("abcdefgh", completion.split("\n")[:-1]):
        left, operation, right = re.match(r"(\d+)([+\-×÷])(\d+)=", line).groups()
        sums.append(f"{name}={results.get(left, left)}{operation}{results.get(right, right)}")
        results[line.split("=")[-1]] = name
    return ";".join(sums)


def bitext(bench, corpora_only):
    """The teacher and, on other problems, the student have read English ones with their equations, the student 3000 Chinese questions too. 100 Chinese problems have labels, 900 have none."""
    short = bench.corpus("short", "--train", 120000, "--held-out", 400, "--steps-max", 2, "--seed", 3)("train.jsonl")
    english = [{"prompt": row["prompt"], "completion": equations(row["completion"])} for row in of("en", short)]

    def mixed(rows, chinese, seed):
        rows = [texts([row])[0] if at % 2 else row for at, row in enumerate(rows)] + [{"text": row["prompt"]} for row in chinese]
        random.Random(seed).shuffle(rows)
        return rows

    student_reads = bench.write("student-reads.jsonl", mixed(english[:12000], of("zh", short)[:3000], 1))
    teacher_reads = bench.write("teacher-reads.jsonl", mixed(english[4000:24000], [], 2))
    pairs = bench.corpus("pairs", "--pairs", 8000, 9000, 2500, "--seed", 5)

    def short_pairs(file):
        for pair in pairs(file):
            if pair["teacher"]["completion"].count("\n") > 2:
                continue
            label = equations(pair["teacher"]["completion"])
            pair["teacher"]["completion"] = label
            if pair["student"]["completion"]:
                pair["student"]["completion"] = label
                del pair["shared"]
            yield pair

    labelled, unlabelled, held = map(list, map(short_pairs, ["pairs.jsonl", "pairs-without-labels.jsonl", "heldout-pairs.jsonl"]))
    # English texts that both read: the projections are fitted on them, and the student does not forget them.
    same = texts(english[24300:24600])
    tail = same[256:] + labelled[:100] + unlabelled[:900]
    random.Random(4).shuffle(tail)
    train = bench.write("bitext.jsonl", same[:256] + tail)
    held = bench.write("bitext-held-out.jsonl", [{"prompt": pair["student"]["prompt"], "completion": pair["teacher"]["completion"]} for pair in held[:500]])
    if corpora_only:
        return
    at = ["--seq-len", 160]
    first = bench.pretrain("english-first", teacher_reads, ["--epochs", 2], *bench.from_nothing("english", ENGLISH_TEACHER), *at, "--lr", 3e-3)
    teacher = bench.pretrain("english", teacher_reads, ["--epochs", 2], "--from", first, *at, "--lr", 2e-3, "--seed", 7)
    student = bench.pretrain("reader", student_reads, ["--epochs", 3], *bench.from_nothing("reader", STUDENT), *at, "--lr", 4e-3)
    settings = {"file": {"metric": "exact_match", "equal_gradients": False}, "student": student, "epochs": 6, "batch_size": 16, "eval_data": [held], "eval_exact_match": True}
    capture = ["--estimator", "top-k", "--top-k", 917, "--state", "hidden:0,1,2,last"]
    bench.ablate("bitext-runs", teacher, train, 160, capture, settings, {}, BITEXT_ARMS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=["few", "bitext"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--bin", type=Path, default=ROOT / "target/release")
    parser.add_argument("--corpora", action="store_true")
    options = parser.parse_args()
    {"few": few, "bitext": bitext}[options.experiment](Bench(options.work.resolve(), options.bin.resolve()), options.corpora)
