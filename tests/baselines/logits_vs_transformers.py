"""Checks our decoder against transformers on real weights, at every position of one text.

    python logits_vs_transformers.py --model DIR --text FILE --binary target/release/examples/logits [--tokens 1024] [--float64]

The binary is `cargo build --release -p distill-model --example logits`, called as
    BINARY --model DIR --ids F --dtype f32|bf16 --out F
where the ids file holds little-endian u32 and the out file is safetensors with a tensor `logits` f32 [T, V] (or the raw f32 values).

Prints, as JSON: the largest f32 logit difference and the share of positions above 1e-3, over all head rows; and per quarter of the text
KL(f32 transformers || our bf16) beside KL(f32 transformers || PyTorch's bf16), over the effective vocabulary, with their ratio. PyTorch's bf16 rounds the logits
themselves to bf16, ours need not: `torch_bf16_f32_head` is the stricter comparison with a head product in f32. --float64 adds how far both f32 runs are from a
float64 run of the same network, which tells rounding from mistakes. Logits exist for a chunk of positions at a time; memory stays below 10 GB for 0.5B models.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from common import memory_bytes, mib, tokenizer_size, windows

CHUNK = 64  # positions whose logits exist at once


def run_ours(binary, model, ids, dtype, folder):
    """Our logits, memory-mapped: a function from a slice of positions to f32 [n, V]."""
    ids_file, out = folder / "ids.bin", folder / f"{dtype}.safetensors"
    ids.numpy().astype("<u4").tofile(ids_file)
    command = [binary, "--model", model, "--ids", ids_file, "--dtype", dtype, "--out", out]
    finished = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed with {finished.returncode}:\n{finished.stderr}")
    try:
        opened = safe_open(out, "pt")
        tensor = opened.get_slice("logits")
        return lambda rows: tensor[rows].float().view(-1, tensor.get_shape()[-1])
    except Exception:  # raw f32
        values = np.memmap(out, "<f4", "r").reshape(len(ids), -1)
        return lambda rows: torch.from_numpy(values[rows].copy())


def hidden_and_head(model_dir, ids, dtype):
    """transformers' hidden states after the final norm [T, d] and the head [V, d], both in `dtype`."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32 if dtype == torch.float64 else dtype).eval()
    if dtype == torch.float64:
        model = model.double()
        for module in model.modules():  # transformers' RMSNorm computes in f32 whatever it is given
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = lambda x, m=module: m.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + m.variance_epsilon)
    with torch.no_grad():
        hidden = model.model(ids[None]).last_hidden_state[0]
    return hidden, model.lm_head.weight.detach()


def kl(reference, other):
    """KL(reference || other) per row, from logits, in f64."""
    reference, other = reference.double().log_softmax(-1), other.double().log_softmax(-1)
    return (reference.exp() * (reference - other)).sum(-1)


def quarters(values):
    return [float(part.mean()) for part in torch.cat(values).chunk(4)]


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--model", required=True)
    arguments.add_argument("--text", required=True)
    arguments.add_argument("--binary", help="our `logits` example; without it only transformers' own figures are printed")
    arguments.add_argument("--tokens", type=int, default=1024)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--float64", action="store_true")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    if options.binary and not pathlib.Path(options.binary).is_file():
        raise SystemExit(f"--binary {options.binary} is not there: build it with cargo build --release -p distill-model --example logits")
    ids = windows(options.model, options.text, options.tokens, 1)[0]
    effective = tokenizer_size(options.model)
    with tempfile.TemporaryDirectory() as folder:
        ours = {}
        if options.binary:
            ours = {dtype: run_ours(options.binary, options.model, ids, dtype, pathlib.Path(folder)) for dtype in ("f32", "bf16")}
        report = compare(options, ids, effective, ours)
    print(json.dumps(report, indent=1))


def compare(options, ids, effective, ours):
    """All figures, one chunk of positions at a time."""
    rounded, rounded_head = hidden_and_head(options.model, ids, torch.bfloat16)
    precise = None
    if options.float64:
        precise, _ = hidden_and_head(options.model, ids, torch.float64)
    exact, head = hidden_and_head(options.model, ids, torch.float32)
    difference, from_f64, torch_from_f64 = [], [], []
    kls = {"torch_bf16": [], "torch_bf16_f32_head": [], "ours_bf16": []}
    with torch.no_grad():
        for start in range(0, len(ids), CHUNK):
            rows = slice(start, min(start + CHUNK, len(ids)))
            reference = exact[rows] @ head.T
            cut = reference[:, :effective]
            kls["torch_bf16"].append(kl(cut, (rounded[rows] @ rounded_head.T)[:, :effective]))
            kls["torch_bf16_f32_head"].append(kl(cut, (rounded[rows].float() @ head.T)[:, :effective]))
            if precise is not None:
                truth = (precise[rows] @ head.double().T)
                torch_from_f64.append((reference - truth).abs().amax(-1))
            if ours:
                mine = ours["f32"](rows)
                if mine.shape != reference.shape:
                    raise SystemExit(f"our logits for positions {rows.start}..{rows.stop} are {tuple(mine.shape)}, transformers' are {tuple(reference.shape)}")
                difference.append((mine - reference).abs().amax(-1))
                kls["ours_bf16"].append(kl(cut, ours["bf16"](rows)[:, :effective]))
                if precise is not None:
                    from_f64.append((mine - truth).abs().amax(-1))
    report = {"model": str(options.model), "tokens": len(ids), "head_rows": head.shape[0], "effective_vocabulary": effective}
    if ours:
        worst = torch.cat(difference)
        report["f32"] = {
            "max_abs_difference": float(worst.max()),
            "share_of_positions_above_1e-3": float((worst > 1e-3).double().mean()),
            "median_position": float(worst.median()),
            "worst_position": int(worst.argmax()),
        }
    report["kl_by_quarter"] = {name: quarters(values) for name, values in kls.items() if values}
    if ours:
        for name in ("torch_bf16", "torch_bf16_f32_head"):
            report[f"ratio_to_{name}"] = [a / b for a, b in zip(report["kl_by_quarter"]["ours_bf16"], report["kl_by_quarter"][name])]
    if precise is not None:
        report["max_abs_distance_to_f64"] = {"torch_f32": float(torch.cat(torch_from_f64).max())} | ({"ours_f32": float(torch.cat(from_f64).max())} if from_f64 else {})
    report["peak_rss_mib"] = mib(memory_bytes("VmHWM"))
    return report


if __name__ == "__main__":
    main()
