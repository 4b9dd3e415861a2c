#!/usr/bin/env python3
"""Provides tokens/s of a teacher on this CPU: the product beside PyTorch in f32 and bf16, on the same windows of the same text, and where the product's time goes.

    cargo build --release -p teacher-server --bins --examples
    python3 tests/baselines/teacher_speed.py --model DIR --text FILE [--seq-len 512 --windows 4 --rounds 2 --top-k 64 --chunk-rows 128]

Sides take turns, `--rounds` times. `hidden` counts the layers alone, `rows` also the head, top-k and three logsumexps of every target (for the product: the whole of
`precompute`, which also packs and writes). PyTorch gets as many threads as there are cores.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent


def torch_side(options):
    """One process of PyTorch; prints seconds of `hidden` and `rows` over all windows."""
    import torch
    from transformers import AutoModelForCausalLM

    from common import memory_bytes, mib, tokenizer_size, windows

    torch.set_num_threads(os.cpu_count())
    ids = windows(options.model, options.text, options.seq_len, options.windows)
    effective = tokenizer_size(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.side)).eval()
    head = model.lm_head.weight[:effective]

    def rows(hidden):
        # As many rows at a time as the product takes: dense logits of 512 rows are 311 MB.
        for part in hidden[:-1].split(options.chunk_rows):
            logits = (part @ head.T).float()
            logits.topk(options.top_k, dim=-1)
            for tau in (1.0, 2.0, 4.0):
                (logits / tau).logsumexp(-1)

    seconds = {"hidden": 0.0, "rows": 0.0}
    with torch.inference_mode():
        model.model(ids[:1])
        for window in ids:
            started = time.perf_counter()
            hidden = model.model(window[None]).last_hidden_state[0]
            between = time.perf_counter()
            rows(hidden)
            seconds["hidden"] += between - started
            seconds["rows"] += time.perf_counter() - started
    print(json.dumps({**seconds, "peak_mib": mib(memory_bytes("VmHWM"))}))


def peer(options, dtype):
    command = [sys.executable, __file__, "--model", options.model, "--text", options.text, "--seq-len", options.seq_len, "--windows", options.windows]
    command += ["--top-k", options.top_k, "--chunk-rows", options.chunk_rows, "--side", dtype]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr[-2000:])
    seconds = json.loads(done.stdout.splitlines()[-1])
    tokens = options.seq_len * options.windows
    return {"hidden": tokens / seconds["hidden"], "rows": tokens / seconds["rows"], "peak_mib": seconds["peak_mib"]}


def product(options, folder, name, dtype):
    """The whole of `precompute`: tokens/s as it reports them, and its peak memory."""
    command = [options.bin / "teacher-server", "precompute", "--json", "--model", options.model, "--corpus", folder / "text.txt", "--out", folder / name]
    command += ["--seq-len", options.seq_len, "--top-k", options.top_k, "--chunk-rows", options.chunk_rows, "--dtype", dtype]
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    events = [json.loads(line) for line in process.stdout]
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"precompute failed: {events[-1:]}")
    computed = [event for event in events if event["event"] == "computed"][-1]
    return {"rows": computed["tokens_per_second"], "peak_mib": usage.ru_maxrss / 1024, "bytes_per_token": computed["bytes_per_token"]}


def parts(options, folder):
    command = [options.bin / "examples" / "teacher_parts", options.model, folder / "ids", options.top_k, 2, options.chunk_rows]
    return json.loads(subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("--model", "--text"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--bin", type=pathlib.Path, default=HERE.parents[1] / "target/release")
    for flag, default in (("--seq-len", 512), ("--windows", 4), ("--rounds", 2), ("--top-k", 64), ("--chunk-rows", 128)):
        parser.add_argument(flag, type=int, default=default)
    parser.add_argument("--torch", default="float32,bfloat16", help="dtypes of the peer, comma-separated, may be empty")
    parser.add_argument("--dtypes", default="f32", help="dtypes of the product, comma-separated")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return torch_side(options)

    from common import windows

    ids = windows(options.model, options.text, options.seq_len, options.windows)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "ids").write_bytes(ids[0].numpy().astype("<u4").tobytes())
        # About as many tokens: the product cuts its own windows from the beginning of the same text.
        (folder / "text.txt").write_text(pathlib.Path(options.text).read_text(encoding="utf-8")[: 4 * options.seq_len * options.windows])
        for turn in range(options.rounds):
            for dtype in filter(None, options.torch.split(",")):
                results.setdefault(f"PyTorch {dtype}", []).append(peer(options, dtype))
            for dtype in options.dtypes.split(","):
                results.setdefault(f"product {dtype}, precompute", []).append(product(options, folder, f"{turn}-{dtype}", dtype))
            where = parts(options, folder)
            tokens = where["tokens"]
            entry = {"hidden": tokens / where["hidden"], "rows": tokens / (where["hidden"] + where["head"] + where["selection"]), "parts": where}
            results.setdefault("product f32, parts", []).append(entry)
    print(f"| {options.seq_len} tokens a sequence, {os.cpu_count()} threads | hidden tokens/s | with rows, tokens/s | peak MiB |\n|---|---:|---:|---:|")
    for name, runs in results.items():
        best = {key: max(run[key] for run in runs if key in run) for key in ("hidden", "rows", "peak_mib") if any(key in run for run in runs)}
        cells = [f"{best[key]:.0f}" if key in best else "" for key in ("hidden", "rows", "peak_mib")]
        print(f"| {name} | {' | '.join(cells)} |")
    for run in results["product f32, parts"]:
        print(json.dumps(run["parts"]))


if __name__ == "__main__":
    main()
