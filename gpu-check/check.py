"""Provides the two calls of gpu-check on the machine with the card: each piece writes one JSON file and is skipped when that is there.

    python3 check.py run a|b|all DIR [--limit-s 240] [--rehearse] [--bin DIR]

    a   the machine; every kernel's tests and a whole student's bf16 gradients on the card against the CPU; the sanitizer's checks; microseconds of
        every part of a step; transport plans against the host's; what the card's matrix product reaches
    b   random-weight 7B and 1.5B in their real shapes: the 7B's `precompute` beside a ballast that leaves 24 GiB, the student from a cache at 512 and
        2048 tokens, both at once, the same work in PyTorch, and taking turns

DIR/results/PIECE.json holds what a piece measured; DIR/results.json all of them, to keep as docs/gpu/DEVICE-DATE.json; both are written as they come. A piece
that failed says why in its file and is tried again by the next call. The models (20 GB) go into memory (/dev/shm) where it has room. With --rehearse everything
runs in tiny shapes on the CPU, or on the card in software where its env.sh was sourced: the figures mean nothing, the scripts are the same.
"""

import argparse
import json
import os
import pathlib
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time

import card
import kernel_tests
import models
import programs
from card import Watch
from programs import Failed, Program, output, python, tail

HERE = pathlib.Path(__file__).resolve().parent
# The first steps compile kernels and fill pools.
WARM_STEPS = 3
ACCUMULATION = 4
# Sequences of a teacher's turn in swap: several steps, and several turns in a run.
WINDOW = 20
STEPS = 30
LOAD_SECONDS = 60
# Both models, and what the file system needs beside them.
MODEL_BYTES = 24 << 30
# Sequences of the cache that the student alone is measured from.
CACHED_SEQUENCES = 48
SANITIZER_SECONDS = 60


class Setup:
    """Where things are, how big, and on which device."""

    def __init__(self, options):
        self.directory = pathlib.Path(options.directory).resolve()
        self.bin = pathlib.Path(options.bin).resolve()
        self.tiny = options.rehearse
        # The card in software (tests/card) is one to rehearse on.
        self.device = "cpu" if self.tiny and "CARD_HOME" not in os.environ else "cuda"
        self.measure_seconds = 3 if self.tiny else 25
        # PyTorch needs NVIDIA's own libraries.
        self.torch_device = "cpu" if self.tiny else "cuda"
        # The card in software is many times slower.
        self.patience = 5 if self.tiny and self.device == "cuda" else 1
        self.train_seconds = 20 * self.patience
        self.batch_size = 2 if self.tiny else 8
        self.results = self.directory / "results"
        self.logs = self.directory / "logs"
        self.models = self.place() / "models"
        for folder in (self.results, self.logs, self.models):
            folder.mkdir(parents=True, exist_ok=True)
        # Kernels are compiled anew in a new directory, where the first piece measures how long that takes, and kept there.
        os.environ["XDG_CACHE_HOME"] = str(self.directory / "compiled")

    def place(self):
        """Where models lie: in memory where there is room, so that disks are not what is measured."""
        memory = pathlib.Path("/dev/shm")
        if self.tiny or not memory.is_dir() or shutil.disk_usage(memory).free < MODEL_BYTES:
            return self.directory
        return memory / "ot-distill-gpu-check"

    def program(self, name):
        return self.bin / name

    def seq_len(self, tokens):
        return tokens // 16 if self.tiny else tokens

    def result(self, piece):
        """What a finished piece measured; None where it has not."""
        path = self.results / f"{piece}.json"
        if not path.exists():
            return None
        result = json.loads(path.read_text())
        return result if result.get("ok") else None

    def need(self, piece):
        result = self.result(piece)
        if result is None:
            raise Failed(f"needs piece {piece}, which has not succeeded; run its stage first")
        return result

    def config(self, name):
        tiny = {"teacher": models.TINY_TEACHER, "student": models.TINY_STUDENT}
        real = {"teacher": models.TEACHER, "student": models.STUDENT}
        return (tiny if self.tiny else real)[name]


def host(setup):
    """The machine, the card and what is installed."""
    found = card.Card.open()
    facts = {"card": found.facts() if found else None, "cpu_cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version(), "date": time.strftime("%Y-%m-%d", time.gmtime())}
    query = [python(), "-c", "import json, torch; print(json.dumps({'torch': torch.__version__, 'cuda': torch.version.cuda}))"]
    done = subprocess.run(query, capture_output=True, text=True)
    facts["torch"] = json.loads(done.stdout) if done.returncode == 0 else None
    with Program([setup.program("teacher-server"), "--version"], setup.logs / "version.log") as program:
        if program.wait(60) != 0:
            raise Failed(f"teacher-server does not start: {tail(program.log)}. It needs the driver's libcuda.so.1 and cuBLAS, cuRAND and NVRTC of the CUDA version it was built with (docs/gpu.md)")
    if found is None and not setup.tiny:
        raise Failed("no NVIDIA card: libnvidia-ml.so.1 does not find one; --rehearse runs the scripts without")
    return facts


def probe(what, seconds):
    """One part of gpu_probe, which prints what it found."""

    def piece(setup):
        command = [setup.program("gpu_probe"), what, "--device", setup.device]
        return output(command + (["--tiny"] if setup.tiny else []), setup.logs / f"{what}.log", seconds * setup.patience)

    return piece


def all_kernel_tests(setup):
    """The tests of all kernels, with the card in the emulator's place; which of them passed."""
    return kernel_tests.run(setup.bin, setup.logs, LOAD_SECONDS * 2 * setup.patience, setup.device != "cpu")


def sanitizer(tool):
    """A tiny student's loss and gradients under compute-sanitizer, which ends with its own status where it finds a mistake."""

    def piece(setup):
        command = [setup.program("gpu_probe"), "gradients", "--tiny", "--device", setup.device]
        if setup.tiny:
            return output(command, setup.logs / f"{tool}.log", SANITIZER_SECONDS) | {"tool": None}
        found = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
        return output([found, "--tool", tool, "--error-exitcode", "9", *command], setup.logs / f"{tool}.log", SANITIZER_SECONDS, last_json=True) | {"tool": tool}

    return piece


def make_models(setup):
    """Both models on disk; the student in four bits by our own quantize."""
    start = time.monotonic()
    sizes = models.make(setup.models, setup.tiny)
    written = time.monotonic()
    student = setup.models / "student-nf4"
    if not student.exists():
        command = [setup.program("student-trainer"), "quantize", "--from", setup.models / "student", "--out", student]
        with Program(command, setup.logs / "quantize.log") as program:
            if program.wait(240) != 0:
                raise Failed(f"quantize: {tail(program.log)}")
    return {"weight_bytes": sizes, "write_seconds": written - start, "quantize_seconds": time.monotonic() - written}


def precompute(setup):
    """The teacher over the corpus for a minute, on a card with 24 GiB free."""
    setup.need("models")
    ceiling = setup.result("ceiling") or {}
    cache = setup.directory / "measured"
    shutil.rmtree(cache, ignore_errors=True)
    command = [setup.program("teacher-server"), "precompute", "--model", setup.models / "teacher", "--corpus", setup.models / "corpus.txt", "--out", cache]
    command += ["--seq-len", setup.seq_len(512), "--batch-size", setup.batch_size, "--device", setup.device, "--json"]
    with card.Ballast() as ballast, Program(command, setup.logs / "precompute.log") as program, Watch({"teacher": program}) as watch:
        started = time.monotonic()
        program.wait_until(lambda: program.said("work_time") or program.said("captured"), LOAD_SECONDS, "the first batch")
        load_seconds = time.monotonic() - started
        program.wait(setup.measure_seconds)
        status = program.stop()
        computed = program.said("computed")
    shutil.rmtree(cache, ignore_errors=True)
    if not computed:
        raise Failed(f"precompute ended with status {status} and no figures: {tail(program.log)}")
    rate = computed[-1]["tokens_per_second"]
    flops = models.matrix_flops(setup.config("teacher"))
    result = {
        "seq_len": setup.seq_len(512),
        "batch_size": setup.batch_size,
        "ballast": ballast.left,
        "seconds_to_first_batch": load_seconds,
        "tokens": computed[-1]["tokens"],
        "tokens_per_second": rate,
        "bytes_per_token": computed[-1]["bytes_per_token"],
        "matrix_flops_per_token": flops,
        "share_of_ceiling": rate * flops / ceiling["best_flops"] if ceiling else None,
    }
    return result | watch.report()


def fill_cache(setup):
    """A short corpus computed whole: what the student alone is measured from."""
    setup.need("models")
    cache, text = setup.directory / "cache", setup.directory / "short.txt"
    shutil.rmtree(cache, ignore_errors=True)
    # The tokenizer merges two or three letters.
    models.write_text(text, CACHED_SEQUENCES * setup.seq_len(512) * 2)
    command = [setup.program("teacher-server"), "precompute", "--model", setup.models / "teacher", "--corpus", text, "--out", cache]
    command += ["--seq-len", setup.seq_len(512), "--batch-size", setup.batch_size, "--device", setup.device, "--json"]
    with Program(command, setup.logs / "fill-cache.log") as program:
        if program.wait(LOAD_SECONDS) != 0:
            raise Failed(f"precompute: {tail(program.log)}")
        computed = program.said("computed")
    return {"tokens": computed[-1]["tokens"] if computed else None}


def student_alone(tokens):
    """The student from the cache, a step of 2048 tokens: four windows of 512 one after the other, or packed in one pass."""

    def piece(setup):
        setup.need("fill-cache")
        name = f"student-{tokens}"
        run, port = setup.directory / "runs" / name, setup.directory / f"{name}.port"
        shutil.rmtree(run, ignore_errors=True)
        run.parent.mkdir(exist_ok=True)
        port.unlink(missing_ok=True)
        serve = [setup.program("teacher-server"), "serve", "--cache", setup.directory / "cache", "--bind", "127.0.0.1:0", "--port-file", port, "--json"]
        with card.Ballast() as ballast, Program(serve, setup.logs / f"{name}-teacher.log") as teacher:
            teacher.wait_until(lambda: port.exists() and port.read_text().strip(), LOAD_SECONDS, "listening")
            packed = ["--batch-size", ACCUMULATION, "--pack-tokens", setup.seq_len(tokens)] if tokens > 512 else ["--grad-accumulation", ACCUMULATION]
            command = [setup.program("student-trainer"), "train", "--teacher", f"http://127.0.0.1:{port.read_text().strip()}", "--student", setup.models / "student-nf4"]
            command += ["--out", run, "--device", setup.device, "--steps", STEPS, "--epochs", 8, "--save-steps", 0, *packed]
            with Program(command, setup.logs / f"{name}-student.log") as student, Watch({"student": student}) as watch:
                steps, lines = trained(setup, student, run)
        return {"tokens_per_pass": setup.seq_len(tokens), "ballast": ballast.left, **speed(steps), "load_seconds": lines[0].get("load_seconds")} | watch.report()

    return piece


def trained(setup, student, run):
    """Runs the trainer for its time; lines of its metrics, those after the warm steps first."""
    metrics = run / "metrics.jsonl"
    student.wait_until(lambda: metrics.exists() and metrics.read_text(), LOAD_SECONDS, "the first step")
    student.wait(setup.train_seconds)
    status = student.stop()
    lines = [json.loads(line) for line in metrics.read_text().splitlines() if line.strip()]
    steps = [line for line in lines if "tokens_per_second" in line]
    if len(steps) <= WARM_STEPS:
        raise Failed(f"only {len(steps)} steps in {setup.train_seconds} s, trainer's status {status}: {tail(student.log)}")
    return steps[WARM_STEPS:], lines


def speed(steps):
    """Medians of some steps."""
    names = {"tokens_per_second": "tokens_per_second", "step_seconds": "seconds", "wait_seconds": "wait_seconds"}
    return {"steps": len(steps)} | {name: statistics.median(step[key] for step in steps) for name, key in names.items()}


def handovers(events):
    """Seconds of every way of the card: from asking the trainer until the teacher computes, the loading in it, and from the teacher's last batch until the trainer may load."""
    spans = {"to_teacher_s": ("yielding", "loaded"), "loading_s": ("loading", "loaded"), "to_trainer_s": ("leaving", "granted")}
    ways, since = {way: [] for way in spans}, {}
    for event in events:
        state, now = event["state"], event["unix_seconds"]
        for way, (begin, end) in spans.items():
            if state == end and begin in since:
                ways[way].append(now - since[begin])
        # What led to a turn says nothing about the next one.
        since = {} if state in ("loaded", "granted") else since | {state: now}
    return ways


def distil(mode, tokens, transport=False):
    """Both programs at once for some steps."""

    def piece(setup):
        setup.need("models")
        name = f"{mode}-{tokens}" + ("-transport" if transport else "")
        run, port = setup.directory / "runs" / name, setup.directory / f"{name}.port"
        shutil.rmtree(run, ignore_errors=True)
        run.parent.mkdir(exist_ok=True)
        port.unlink(missing_ok=True)
        serve = [setup.program("teacher-server"), "serve", "--model", setup.models / "teacher", "--corpus", setup.models / "corpus.txt", "--bind", "127.0.0.1:0"]
        serve += ["--port-file", port, "--seq-len", setup.seq_len(tokens), "--device", setup.device, "--json"]
        serve += ["--vram-mode", "swap", "--window", WINDOW] if mode == "swap" else []
        with card.Ballast() as ballast, Program(serve, setup.logs / f"{name}-teacher.log") as teacher:
            teacher.wait_until(lambda: port.exists() and port.read_text().strip(), LOAD_SECONDS, "listening")
            train = [setup.program("student-trainer"), "train", "--teacher", f"http://127.0.0.1:{port.read_text().strip()}", "--student", setup.models / "student-nf4"]
            train += ["--out", run, "--device", setup.device, "--grad-accumulation", ACCUMULATION, "--steps", STEPS, "--save-steps", 0]
            train += ["--ot-weight", 0.5] if transport else []
            with Program(train, setup.logs / f"{name}-student.log") as student, Watch({"teacher": teacher, "student": student}) as watch:
                steps, lines = trained(setup, student, run)
            events = teacher.said("device")
        result = {
            "mode": mode,
            "seq_len": setup.seq_len(tokens),
            "sequences_per_step": ACCUMULATION,
            "transport": transport,
            "ballast": ballast.left,
            **speed(steps),
            "loss_first": lines[0]["loss"],
            "loss_last": lines[-1]["loss"],
        }
        if mode == "swap":
            ways = handovers(events) | {"trainer_loading_s": [line["load_seconds"] for line in lines if "load_seconds" in line]}
            missing = [way for way, times in ways.items() if not times]
            if missing:
                raise Failed(f"no handover had {', '.join(missing)}")
            result["handovers"] = {way: {"count": len(times), "median": statistics.median(times), "worst": max(times)} for way, times in ways.items()}
            result["device_events"] = [{key: event[key] for key in ("state", "epoch", "unix_seconds")} for event in events]
        return result | watch.report()

    return piece


def torch_teacher(setup):
    """The teacher's forward with top-k in transformers, for a while."""
    setup.need("models")
    command = [python(), HERE / "torch_peer.py", "teacher", "--model", setup.models / "teacher", "--device", setup.torch_device, "--seq-len", setup.seq_len(512)]
    command += ["--batch-size", setup.batch_size, "--tokens", models.TINY_TOKENS if setup.tiny else models.TOKENS, "--seconds", setup.measure_seconds / 2.5]
    result = output(command, setup.logs / "torch-teacher.log", LOAD_SECONDS * setup.patience)
    ours = setup.result("precompute")
    if ours:
        result["ours_over_torch"] = ours["tokens_per_second"] / result["tokens_per_second"]
    return result


def torch_student(tokens):
    """The student's step in PyTorch at the same shapes."""

    def piece(setup):
        setup.need("models")
        command = [python(), HERE / "torch_peer.py", "student", "--model", setup.models / "student-nf4", "--device", setup.torch_device, "--seq-len", setup.seq_len(tokens)]
        command += ["--accumulation", ACCUMULATION, "--tokens", models.TINY_TOKENS if setup.tiny else models.TOKENS, "--seconds", setup.measure_seconds / 2.5]
        result = output(command, setup.logs / f"torch-student-{tokens}.log", LOAD_SECONDS * setup.patience)
        ours = setup.result(f"student-{tokens}")
        if ours:
            result["ours_over_torch"] = ours["tokens_per_second"] / result["tokens_per_second"]
        return result

    return piece


STAGES = {
    "a": {
        "host": host,
        "kernels": probe("kernels", 60),
        "kernel-tests": all_kernel_tests,
        "gradients": probe("gradients", 60),
        "parts": probe("parts", 60),
        "ceiling": probe("ceiling", 60),
        "memcheck": sanitizer("memcheck"),
        "racecheck": sanitizer("racecheck"),
        "transport": probe("transport", 90),
    },
    "b": {
        "models": make_models,
        "precompute": precompute,
        "fill-cache": fill_cache,
        "student-512": student_alone(512),
        "student-2048": student_alone(2048),
        "resident-512": distil("resident", 512),
        "torch-student-512": torch_student(512),
        "torch-teacher": torch_teacher,
        "swap-512": distil("swap", 512),
        "torch-student-2048": torch_student(2048),
        "resident-512-transport": distil("resident", 512, transport=True),
    },
}


def write(path, value):
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    partial.rename(path)


def run(setup, stages, limit_s):
    """Every piece of `stages` that has not succeeded, as long as there is time to begin one. Names of those that failed or were not begun."""
    started, left = time.monotonic(), []
    for stage in stages:
        for name, piece in STAGES[stage].items():
            if setup.result(name):
                print(f"{stage} {name}: done before", flush=True)
                continue
            if time.monotonic() - started > limit_s:
                print(f"{stage} {name}: no time left; the same command goes on", flush=True)
                left.append(name)
                continue
            begun = time.monotonic()
            try:
                result = {"piece": name, "stage": stage, "ok": True} | piece(setup)
            except (Failed, OSError, RuntimeError, KeyError, ValueError, subprocess.TimeoutExpired) as error:
                result = {"piece": name, "stage": stage, "ok": False, "error": f"{type(error).__name__}: {error}"}
                left.append(name)
            result |= {"piece_seconds": round(time.monotonic() - begun, 1), "rehearsal": setup.tiny}
            write(setup.results / f"{name}.json", result)
            gather(setup)
            print(f"{stage} {name}: {'ok' if result['ok'] else 'FAILED: ' + result['error']} ({result['piece_seconds']} s)", flush=True)
    return left


def gather(setup):
    """All that was measured so far, in one file."""
    paths = [setup.results / f"{name}.json" for stage in STAGES.values() for name in stage]
    write(setup.directory / "results.json", {path.stem: json.loads(path.read_text()) for path in paths if path.exists()})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("run",))
    parser.add_argument("stage", choices=(*STAGES, "all"))
    parser.add_argument("directory")
    parser.add_argument("--limit-s", type=float, default=240, help="no piece begins after so many seconds")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--bin", default=HERE.parent / "bin")
    options = parser.parse_args()
    # An exception, unlike the signal, ends the programs that are running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    stages = list(STAGES) if options.stage == "all" else [options.stage]
    left = run(Setup(options), stages, options.limit_s)
    print(f"results: {pathlib.Path(options.directory) / 'results.json'}")
    sys.exit(1 if left else 0)


if __name__ == "__main__":
    main()
