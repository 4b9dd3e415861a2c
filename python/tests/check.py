"""Checks an installed wheel: both programs, and what the module reads of a cache against `teacher-server inspect`. Takes the repository's path."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy

import ot_distill
import ot_distill.__main__ as launcher

REPOSITORY = pathlib.Path(sys.argv[1])
BIN = pathlib.Path(sys.executable).parent
MODULE = [sys.executable, "-m", "ot_distill"]
# Problems of the kind that the embedded teacher has learned, and texts that are new to it.
PROBLEMS = 6
CORPUS = [REPOSITORY / name for name in ("python/tests/problems.jsonl", "tests/fixtures/corpus/completions.jsonl", "tests/fixtures/corpus/text.jsonl")]


def run(*command: object) -> subprocess.CompletedProcess:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)


def succeed(*command: object) -> str:
    done = run(*command)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def fails(what, *parts: str) -> None:
    try:
        what()
    except (ot_distill.Error, ValueError, IndexError, SystemExit) as error:
        for part in parts:
            assert part in str(error), error
    else:
        raise AssertionError(f"nothing was raised: {parts}")


def precompute(out: str, *flags: str) -> pathlib.Path:
    model = REPOSITORY / "assets/teacher"
    succeed(BIN / "teacher-server", "precompute", "--model", model, "--corpus", *CORPUS, "--seq-len", "64", "--out", out, *flags)
    return pathlib.Path(out).absolute()


def check_programs() -> None:
    for program in launcher.PROGRAMS:
        version = succeed(BIN / program, "--version")
        assert version.startswith(program) and succeed(*MODULE, program, "--version") == version
    for command in launcher.TEACHER_COMMANDS:
        assert succeed(*MODULE, command, "--help") == succeed(BIN / "teacher-server", command, "--help")
    listed = succeed(BIN / "teacher-server", "--help").split("Commands:")[1].split("\n\n")[0].split("\n")
    commands = {line.split()[0] for line in listed if line.startswith("  ") and line[2] != " "}
    assert commands - {"help"} == set(launcher.TEACHER_COMMANDS), commands
    assert run(*MODULE, "train", "--no-such-flag").returncode == run(BIN / "student-trainer", "train", "--no-such-flag").returncode == 2
    fails(lambda: launcher.path("no-program"), "no-program", "pip install --force-reinstall")
    assert run(*MODULE).returncode == 2 and "train" in succeed(*MODULE, "--help")


def check_signals(cache: pathlib.Path) -> None:
    """The program takes the place of the interpreter, so it hears of signals itself, and its end is the command's."""
    server = subprocess.Popen([*MODULE, "serve", "--cache", cache, "--bind", "127.0.0.1:0", "--port-file", "port"])
    while not os.path.exists("port"):
        assert server.poll() is None
        time.sleep(0.05)
    assert os.path.basename(os.readlink(f"/proc/{server.pid}/exe")) == "teacher-server"
    # A reader does not keep the server's cache, nor the other way round.
    assert len(ot_distill.Cache(cache)) > 0
    server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 0


def check_against_inspect(path: pathlib.Path) -> "list[ot_distill.Frame]":
    cache = ot_distill.Cache(path)
    report = json.loads(succeed(BIN / "teacher-server", "inspect", path, "--json", "--sample", "1000"))
    frames = list(cache)
    assert len(cache) == len(frames) == report["done"] == report["sampled_sequences"] and cache.sequences == report["sequences"]
    assert (cache.model, cache.settings) == (report["model"], report["settings"]) and cache.path == path
    assert cache.plan_fingerprint == report["plan_fingerprint"] and cache.tokenizer_fingerprint == report["tokenizer_fingerprint"]
    assert sum(len(frame.tokens) for frame in frames) == report["tokens"]
    assert sum(len(frame.ids) for frame in frames) == report["targets"]
    assert max(frame.ids.shape[1] for frame in frames) == report["entries"]
    mass = numpy.concatenate([numpy.exp(frame.log_probs().astype(float)).sum(1) for frame in frames])
    assert abs(mass.mean() - report["covered_mass"]) < 1e-6, (mass.mean(), report["covered_mass"])
    for frame in frames:
        check_frame(frame, cache.vocab_size)
    return frames


def check_frame(frame: ot_distill.Frame, vocab_size: int) -> None:
    rows, k = frame.ids.shape
    assert frame.target_positions.shape == frame.max.shape == frame.mean.shape == frame.std.shape == (rows,)
    assert frame.logits.shape == frame.counts.shape == frame.padding.shape == (rows, k)
    assert frame.logsumexp.shape == (len(frame.temperatures), rows) and not frame.target_mask[0]
    assert (numpy.diff(frame.ids.astype(int)) > 0).all() and (frame.ids < vocab_size).all()
    assert (frame.logits <= frame.max[:, None] + 1e-3).all() and not frame.logits.flags.writeable
    text = frame.text.encode()
    pieces = [text[start:end] for start, end in frame.byte_offsets]
    assert len(pieces) == len(frame.tokens) and b"".join(pieces) == text
    # A sum over the vocabulary is at least that of what is kept, at every temperature.
    for temperature in frame.temperatures:
        assert (numpy.exp(frame.log_probs(temperature)).sum(1) < 1 + 1e-3).all()


def check_alignment(path: pathlib.Path) -> None:
    """A row is about the target in its place: what the teacher has learned is what it expects there, and nowhere else."""
    for frame in ot_distill.Cache(path)[:PROBLEMS]:
        expected = frame.ids[range(len(frame.ids)), frame.log_probs().argmax(1)]
        assert (expected == frame.tokens[frame.target_positions]).mean() > 0.9, frame.text
        assert (expected == frame.tokens[frame.target_positions - 1]).mean() < 0.2, frame.text


def check_exact(path: pathlib.Path) -> None:
    """With all of the vocabulary kept, the rows are the distribution itself."""
    for frame in check_against_inspect(path):
        assert frame.estimator == "top-k" and not frame.padding.any() and not frame.counts.any()
        assert abs(numpy.exp(frame.log_probs()).sum(1) - 1).max() < 1e-2
        assert abs(frame.logits.mean(1) - frame.mean).max() < 1e-2 and frame.state is not None
        assert frame.state.shape == (len(frame.ids), 128)
    fails(lambda: frame.log_probs(3.0), "3.0", "(1.0, 2.0, 4.0)")


def check_errors(whole: pathlib.Path) -> None:
    cache = ot_distill.Cache(whole)
    assert cache[-1].sequence_id == cache[len(cache) - 1].sequence_id and len(cache[:2]) == 2
    fails(lambda: cache[len(cache)], str(len(cache)))
    fails(lambda: ot_distill.Cache("nowhere"), "nowhere", "teacher-server precompute")
    # Of half of the shards, what is there.
    flags = ("--batch-size", "2", "--shard-bytes", "3000", "--shard", "0/2")
    half = precompute("half", *flags)
    part = ot_distill.Cache(half)
    assert 0 < len(part) < part.sequences == len(cache) and part[0].text == cache[0].text
    # A capture that was stopped in its first shard, and goes on under a reader.
    shard = half / "shards/0000000"
    content = shard.read_bytes()
    count, first_bytes = (int.from_bytes(content[at : at + 4], "little") for at in (12, 64 + 8))
    frames = 64 + 12 * count + 16
    (half / "partial").mkdir(exist_ok=True)
    (half / "partial/0000000").write_bytes(content[frames : frames + first_bytes])
    shard.unlink()
    stopped = ot_distill.Cache(half)
    assert len(stopped) == len(part) - count + 1 and stopped[0].text == cache[0].text
    precompute("half", *flags)
    assert shard.read_bytes() == content and len(ot_distill.Cache(half)) == len(part)
    fails(lambda: stopped[0], str(half), "open it again")
    # A frame that is not what was written.
    shard.chmod(0o644)
    shard.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    fails(lambda: list(part), str(shard), "verify --repair")


def check_documentation() -> None:
    """The example runs as it stands, on a cache in the place that it names."""
    page = (REPOSITORY / "docs/install.md").read_text()
    example = page.split("```python\n")[1].split("```")[0]
    shown = page.split("prints, on a cache of the tests,\n\n```text\n")[1].split("```")[0]
    printed = succeed(sys.executable, "-c", example)
    assert printed == shown, printed


if __name__ == "__main__":
    check_programs()
    os.mkdir("caches")
    whole = precompute("caches/train")
    check_against_inspect(whole)
    check_alignment(whole)
    check_exact(precompute("exact", "--top-k", "917", "--value-coding", "f16", "--state", "exact"))
    check_errors(whole)
    check_signals(whole)
    check_documentation()
    print("the wheel holds: both programs, and a module that reads what they wrote")
