#!/usr/bin/env python3
"""Provides the ablation of the losses: trains one student with every arm from one teacher, with the real programs, and evaluates each on held-out text.

Arms differ in the trainer's loss flags and in what the server captures; everything else (corpus, order, steps, learning rate, adapters) is the same, and every seed starts
all arms from the same adapter. The teacher's total weight beside cross-entropy is 1 in every arm: under the `kl` cost a weight of kappa is worth a weight of 1 of KL.

    cargo build --release -p teacher-server -p student-trainer
    python3 tests/baselines/ablation.py --teacher DIR --student DIR --corpus FILE --held-out FILE --out DIR [--arms losses|estimators|NAME,NAME] [--seeds 1,2,3]
"""

import argparse
import json
import math
import signal
import subprocess
import time
from pathlib import Path

KAPPA = 10
ONLY_KL = "--ot-weight 0"
COSINE = "--cost softmax-similarity --similarity cosine"
HIDDEN = "--cost softmax-similarity --similarity hidden-cosine"

# Name: (server flags, trainer flags).
LOSSES = {
    "CE": ("", "--kl-weight 0 --ot-weight 0"),
    "CE + KL": ("", ONLY_KL),
    "CE + reverse KL": ("--estimator top-k", f"{ONLY_KL} --kl-weight 0 --reverse-kl-weight 1"),
    "CE + JSD": ("--estimator top-k", f"{ONLY_KL} --kl-weight 0 --jsd-weight 1"),
    "CE + OT (kl)": ("", f"--kl-weight 0 --ot-weight {KAPPA}"),
    "CE + OT (kl; prior 10)": ("", f"--kl-weight 0 --ot-weight {KAPPA} --position-prior 10"),
    "CE + KL + OT (kl)/20": ("", f"--ot-weight {KAPPA / 20}"),
    "CE + KL/2 + OT (kl)/2": ("", f"--kl-weight 0.5 --ot-weight {KAPPA / 2}"),
    "CE + OT (cosine)": ("--state exact", f"--kl-weight 0 --ot-weight 1 {COSINE}"),
    "CE + OT (centered-dot)": ("--state exact", "--kl-weight 0 --ot-weight 1 --cost softmax-similarity --similarity centered-dot"),
    "CE + OT (scaled-dot)": ("--state exact", "--kl-weight 0 --ot-weight 1 --cost softmax-similarity --similarity scaled-dot"),
    "CE + OT (bhattacharyya)": ("", "--kl-weight 0 --ot-weight 1 --cost softmax-similarity --similarity bhattacharyya"),
    "CE + OT (literal)": ("--state exact", "--preset literal --kl-weight 0"),
    "CE + KL + OT (cosine)/10": ("--state exact", f"--ot-weight 0.1 {COSINE}"),
    "CE + KL + hidden OT/10": ("--state exact", f"--ot-weight 0.1 {HIDDEN}"),
    "CE + hidden OT": ("--state exact", f"--kl-weight 0 --ot-weight 1 {HIDDEN}"),
    "CE + OT (cosine; sketch 128)": ("--state sketch:128", f"--kl-weight 0 --ot-weight 1 {COSINE}"),
}
DENSE = "--state none --top-k {dense}"
ESTIMATORS = {
    "CE": (DENSE, "--kl-weight 0 --ot-weight 0"),
    "full KL": (DENSE, ONLY_KL),
    **{f"top {k}": (f"--state none --top-k {k}", ONLY_KL) for k in (8, 16, 32, 64, 128, 256)},
    **{f"{n} draws": (f"--state none --estimator sampled --draws {n}", ONLY_KL) for n in (8, 16, 32, 64)},
    **{
        f"top {k} + {n} draws": (f"--state none --estimator head+sampled --top-k {k} --draws {n}", ONLY_KL)
        for k, n in ((4, 8), (8, 16), (16, 32))
    },
}


class Server:
    """A teacher-server on a free port of the loopback."""

    def __init__(self, options, name, flags, corpus):
        self.out = options.out / name
        self.out.mkdir(parents=True, exist_ok=True)
        port_file = self.out / "port"
        port_file.unlink(missing_ok=True)
        self.events = self.out / "events.jsonl"
        command = [options.bin / "teacher-server", "serve", "--json", "--bind", "127.0.0.1:0", "--model", options.teacher]
        command += ["--seq-len", options.seq_len, "--batch-size", options.teacher_batch_size, "--port-file", port_file]
        command += ["--corpus", *corpus, *flags.split()]
        with open(self.events, "w") as events, open(self.out / "log", "w") as log:
            self.process = subprocess.Popen([str(part) for part in command], stdout=events, stderr=log)
        deadline = time.monotonic() + 120
        while not (port_file.exists() and port_file.read_text().strip()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"teacher-server {flags}: {(self.out / 'log').read_text()[-2000:]}")
            time.sleep(0.05)
        self.address = f"http://127.0.0.1:{port_file.read_text().strip()}"

    def stop(self):
        """Ends the server; gives what it said that it computed."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=120)
        events = [json.loads(line) for line in self.events.read_text().splitlines() if line.startswith("{")]
        computed = [event for event in events if event.get("event") == "computed"]
        return computed[-1] if computed else {}


def run_json(command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    return done.stdout


def train(options, server, name, seed, flags):
    out = options.out / f"{name}-{seed}"
    command = [options.bin / "student-trainer", "train", "--teacher", server.address, "--student", options.student, "--out", out]
    command += ["--steps", options.steps, "--batch-size", options.batch_size, "--lr", options.lr, "--seed", seed]
    started = time.monotonic()
    run_json(command + flags.split())
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = sorted(line["seconds"] for line in lines)
    last = lines[-max(1, len(lines) // 3) :]
    return {
        # Over the last third, on text that is new in every step; 0 where it has no weight.
        "training_kl": sum(line["kl"] for line in last) / len(last),
        "adapter": out / "adapter",
        "seconds": time.monotonic() - started,
        "step_seconds": steps[len(steps) // 2],
        "ot_iterations": max((line["ot_iterations"] or 0 for line in lines), default=0),
        "ot_converged": all(line["ot_converged"] in (None, True) for line in lines),
    }


def evaluate(options, scorer, adapter):
    """Each held-out file by itself; targets weigh alike in the sums."""
    total = {"targets": 0, "ce": 0.0, "kl": 0.0, "top1_agreement": 0.0}
    exact = {}
    for path in options.held_out:
        command = [options.bin / "student-trainer", "eval", "--json", "--student", options.student, "--data", path]
        command += ["--seq-len", options.seq_len, "--max-sequences", options.sequences]
        if scorer:
            command += ["--teacher", scorer.address]
        if adapter:
            command += ["--adapter", adapter]
        if options.exact_match:
            command += ["--exact-match"]
        report = json.loads(run_json(command))
        for key in ("ce", "kl", "top1_agreement"):
            total[key] += report["targets"] * (report[key] or 0.0)
        total["targets"] += report["targets"]
        if options.exact_match:
            exact[f"exact {path.stem}"] = report["exact_match"]
    means = {key: total[key] / total["targets"] for key in ("ce", "kl", "top1_agreement")}
    return {**means, **exact}


def chosen_arms(options):
    everything = {**LOSSES, **ESTIMATORS}
    groups = {"losses": LOSSES, "estimators": ESTIMATORS}
    if options.arms in groups:
        return groups[options.arms]
    return {name: everything[name] for name in options.arms.split(",")}


def show(results):
    """A table of means over seeds, with the largest distance between two seeds."""
    columns = [key for key in results[0] if key in ("ce", "kl", "top1_agreement") or key.startswith("exact ")]
    print("| arm | " + " | ".join(columns) + " | bytes/token | s/step |")
    print("|---|" + "---:|" * (len(columns) + 2))
    for name in dict.fromkeys(result["arm"] for result in results):
        rows = [result for result in results if result["arm"] == name]
        cells = []
        for column in columns:
            values = [row[column] for row in rows]
            spread = max(values) - min(values)
            mean = sum(values) / len(values)
            cells.append(f"{mean:.4f}" + (f" ± {spread / 2:.4f}" if len(values) > 1 else ""))
        size = rows[0].get("bytes_per_token")
        step = rows[0].get("step_seconds")
        cells += [f"{size:.0f}" if size else "", f"{step:.2f}" if step else ""]
        print(f"| {name} | " + " | ".join(cells) + " |")


def closed_share(results):
    """How much of the way from CE to full KL every estimator goes, by held-out KL."""
    means = {}
    for result in results:
        means.setdefault(result["arm"], []).append(result["kl"])
    means = {name: sum(values) / len(values) for name, values in means.items()}
    if "CE" in means and "full KL" in means and not math.isclose(means["CE"], means["full KL"]):
        for name, kl in means.items():
            share = (means["CE"] - kl) / (means["CE"] - means["full KL"])
            print(f"{name:24} closes {100 * share:6.1f} %")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    path = dict(type=lambda text: Path(text).absolute())
    parser.add_argument("--teacher", required=True, **path)
    parser.add_argument("--student", required=True, **path)
    parser.add_argument("--corpus", required=True, nargs="+", **path)
    parser.add_argument("--held-out", required=True, nargs="+", **path)
    parser.add_argument("--out", required=True, **path)
    parser.add_argument("--bin", default="target/release", **path)
    parser.add_argument("--arms", default="losses", help="losses, estimators, or names separated by commas")
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--teacher-batch-size", type=int, default=1)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--sequences", type=int, default=12, help="held-out sequences of each file")
    parser.add_argument("--dense", type=int, default=4096, help="entries that stand for the whole distribution")
    parser.add_argument("--exact-match", action="store_true")
    parser.add_argument("--no-scorer", action="store_true", help="no KL on held-out text: the student has another vocabulary")
    options = parser.parse_args()
    options.out.mkdir(parents=True)

    arms = chosen_arms(options)
    scorer = None if options.no_scorer else Server(options, "scorer", f"--state none --top-k {options.dense}", options.held_out)
    results = [{"arm": "before", "seed": 0, **evaluate(options, scorer, None)}]
    print(json.dumps(results[0]), flush=True)
    by_server = {}
    for name, (server, trainer) in arms.items():
        by_server.setdefault(server.format(dense=options.dense), []).append((name, trainer))
    for number, (flags, group) in enumerate(by_server.items()):
        server = Server(options, f"teacher-{number}", flags, options.corpus)
        done = []
        for name, trainer in group:
            for seed in options.seeds.split(","):
                slug = "".join(c if c.isalnum() else "-" for c in name)
                run = train(options, server, slug, seed, trainer)
                adapter = run.pop("adapter")
                done.append({"arm": name, "seed": int(seed), **evaluate(options, scorer, adapter), **run})
                print(json.dumps(done[-1]), flush=True)
        computed = server.stop()
        for result in done:
            result["bytes_per_token"] = computed.get("bytes_per_token")
        results += done
        (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    if scorer:
        scorer.stop()
    show(results)
    closed_share(results)


if __name__ == "__main__":
    main()
