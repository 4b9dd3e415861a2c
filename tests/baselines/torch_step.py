"""Does our distillation step in PyTorch + PEFT + bitsandbytes on the CPU: the peer that speed, memory and quality are compared with.

    python torch_step.py --teacher DIR --student BNB_DIR --train train.txt --heldout heldout.txt --out report.json [--steps 100 --seq-len 256 --threads 2]

Two processes, as in the product, so that time and peak memory are told apart: `teacher` runs the teacher over the training and held-out windows and keeps top-k logits
with logsumexp (the same windows: consecutive, seq_len tokens, in the file's order); `student` trains LoRA adapters (PEFT's initialisation) over the 4-bit base with
CE + KL (top-k and one tail bucket, tau 1) + OT (`kl` cost, entropic, position prior), gradient checkpointing, AdamW, warm-up and cosine, clipping: the defaults are the product's.

--base says how the 4-bit base computes:
    bnb         bitsandbytes' own Linear4bit, set to --compute-dtype (its checkpoint says bf16, which a CPU without AMX is slow at)
    dequantize  weights dequantised to --compute-dtype once, while loading: more memory, no dequantisation per step
The report holds loss parts per step, seconds per step (median and mean without the first), teacher seconds per window, peak RSS of both processes (over all, and
while stepping), held-out CE and KL before and after.
"""

import argparse
import json
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from safetensors.torch import load_file, save_file

import ot
from common import load_student, memory_bytes, mib, reset_peak, tokenizer_size, windows

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def teacher_stage(options, folder):
    """Top-k logits and logsumexp at tau 1 of every target row, over the effective vocabulary."""
    from transformers import AutoModelForCausalLM

    effective = tokenizer_size(options.teacher)
    model = AutoModelForCausalLM.from_pretrained(options.teacher, dtype=getattr(torch, options.teacher_dtype)).eval()
    loaded, seconds = memory_bytes("VmRSS"), []
    reset_peak()
    for split, ids in all_windows(options).items():
        kept_ids, kept_logits, logsumexp = [], [], []
        for window in ids:
            started = time.perf_counter()
            with torch.no_grad():
                logits = model(window[None]).logits[0, :-1, :effective].float()
                top = logits.topk(options.top_k, dim=-1)
                kept_ids.append(top.indices)
                kept_logits.append(top.values)
                logsumexp.append(logits.logsumexp(-1))
            seconds.append(time.perf_counter() - started)
        save_file({"ids": torch.stack(kept_ids), "logits": torch.stack(kept_logits), "logsumexp": torch.stack(logsumexp)}, folder / f"{split}.safetensors")
    return {"seconds_per_window": statistics.median(seconds), "windows": len(seconds), "rss_loaded_mib": mib(loaded), "peak_rss_steps_mib": mib(memory_bytes("VmHWM"))}


def all_windows(options):
    """Windows of both splits, i64 [count, seq_len]; steps take `accumulation` windows each."""
    return {
        "train": windows(options.student, options.train, options.seq_len, options.steps * options.accumulation),
        "heldout": windows(options.student, options.heldout, options.seq_len, options.heldout_windows),
    }


def with_adapters(options):
    """The 4-bit base with LoRA adapters on every linear, checkpointing on."""
    from peft import LoraConfig, get_peft_model

    dtype = getattr(torch, options.compute_dtype)
    model = load_student(options.student, dtype)
    if options.base == "dequantize":
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if type(child).__name__ == "Linear4bit":
                    setattr(parent, name, dense(child, dtype))
        model.is_loaded_in_4bit = model.is_quantized = False
    model.activation_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(options.seed)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"), autocast_adapter_dtype=True)
    return model.train()


def dense(layer, dtype):
    """A Linear4bit as an ordinary frozen linear."""
    import bitsandbytes.functional

    weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(dtype)
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None, dtype=dtype, device="meta")
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        linear.bias = torch.nn.Parameter(layer.bias.data.to(dtype), requires_grad=False)
    return linear


def losses(model, window, rows, options, effective):
    """(CE, KL, OT) of one window; OT is None when its weight is 0."""
    base = model.get_base_model()
    hidden = base.model(window[None]).last_hidden_state[0, :-1]
    head = base.lm_head.weight[:effective]
    log_q = (hidden.to(head.dtype) @ head.T).float().log_softmax(-1)
    ce = -log_q.gather(-1, window[1:, None]).mean()
    log_p = rows["logits"] - rows["logsumexp"][:, None]
    p = log_p.exp()
    tail_p = (1 - p.sum(-1)).clamp(min=0)
    kept_q = log_q.gather(-1, rows["ids"])
    tail_q = log_q.scatter(-1, rows["ids"], -math.inf).logsumexp(-1)
    kl = ((p * (log_p - kept_q)).sum(-1) + torch.xlogy(tail_p, tail_p) - tail_p * tail_q).mean()
    if options.ot_weight == 0 or not torch.is_grad_enabled():
        return ce, kl, None
    # C_ij = KL(p_j || q_i) / kappa, p renormalised over its kept ids: sum_v p_jv log q_iv = h_i . e_j - logsumexp_i with e_j = sum_v p_jv W_v, so no [N, M, K] gather is needed.
    normalised = rows["logits"].log_softmax(-1)
    weights = normalised.exp()
    e = torch.einsum("mk,mkd->md", weights, head[rows["ids"]].float())
    logsumexp = (hidden.float() * head[window[1:]].float()).sum(-1) - log_q.gather(-1, window[1:, None])[:, 0]  # z_label - log q_label
    cost = ((weights * normalised).sum(-1)[None, :] - hidden.float() @ e.T + logsumexp[:, None]) / options.kappa
    return ce, kl, ot.transport(cost, options.epsilon, options.position_prior)[0]


def evaluate(model, ids, rows, options, effective):
    """Held-out CE and KL, means over windows of equal length."""
    model.eval()
    with torch.no_grad():
        parts = [losses(model, window, {key: value[i] for key, value in rows.items()}, options, effective)[:2] for i, window in enumerate(ids)]
    model.train()
    return {"ce": float(torch.stack([p[0] for p in parts]).mean()), "kl": float(torch.stack([p[1] for p in parts]).mean())}


def learning_rate(step, options):
    """Linear warm-up over W steps, then half a cosine from lr to a tenth of it."""
    warmup = options.warmup_steps if options.warmup_steps is not None else math.ceil(0.03 * options.steps)
    if step < warmup:
        return options.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, options.steps - warmup)
    floor = 0.1 * options.lr
    return floor + (options.lr - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def student_stage(options, folder):
    """Training and held-out evaluation over the stored teacher rows."""
    effective = tokenizer_size(options.student)
    data = all_windows(options)
    model = with_adapters(options)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=options.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    loaded = memory_bytes("VmRSS")
    heldout = load_file(folder / "heldout.safetensors")
    train = load_file(folder / "train.safetensors")
    report = {"trainable_parameters": sum(p.numel() for p in parameters), "rss_loaded_mib": mib(loaded), "steps": []}
    if options.heldout_windows:
        report["heldout_before"] = evaluate(model, data["heldout"], heldout, options, effective)
    reset_peak()
    for step in range(options.steps):
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options)
        optimizer.zero_grad(set_to_none=True)
        entry = {"step": step + 1, "ce": 0.0, "kl": 0.0, "ot": 0.0, "lr": learning_rate(step, options)}
        for index in range(step * options.accumulation, (step + 1) * options.accumulation):
            ce, kl, transport = losses(model, data["train"][index], {key: value[index] for key, value in train.items()}, options, effective)
            total = options.ce_weight * ce + options.kl_weight * kl + (options.ot_weight * transport if transport is not None else 0)
            (total / options.accumulation).backward()
            for name, part in (("ce", ce), ("kl", kl), ("ot", transport)):
                entry[name] += float(part.detach()) / options.accumulation if part is not None else 0.0
        entry["loss"] = options.ce_weight * entry["ce"] + options.kl_weight * entry["kl"] + options.ot_weight * entry["ot"]
        entry["grad_norm"] = float(torch.nn.utils.clip_grad_norm_(parameters, options.max_grad_norm or math.inf))
        optimizer.step()
        entry["seconds"] = time.perf_counter() - started
        report["steps"].append(entry)
        print(f"step {step + 1}/{options.steps} " + " ".join(f"{k} {entry[k]:.4g}" for k in ("loss", "ce", "kl", "ot", "grad_norm", "seconds")), file=sys.stderr, flush=True)
    report["peak_rss_steps_mib"] = mib(memory_bytes("VmHWM"))
    steady = [entry["seconds"] for entry in report["steps"]][1:] or [report["steps"][0]["seconds"]]
    report["seconds_per_step"] = {"median": statistics.median(steady), "mean": statistics.fmean(steady)}
    if options.heldout_windows:
        report["heldout_after"] = evaluate(model, data["heldout"], heldout, options, effective)
    return report


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for flag in ("--teacher", "--student", "--train", "--heldout"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--base", choices=("bnb", "dequantize"), default="bnb")
    parser.add_argument("--compute-dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--teacher-dtype", choices=("float32", "bfloat16"), default="float32")
    for flag, default in (("--steps", 100), ("--seq-len", 256), ("--threads", 2), ("--top-k", 64), ("--heldout-windows", 16), ("--accumulation", 1), ("--seed", 42)):
        parser.add_argument(flag, type=int, default=default)
    parser.add_argument("--warmup-steps", type=int, help="3 %% of all steps unless given")
    for flag, default in (("--ce-weight", 1.0), ("--kl-weight", 1.0), ("--ot-weight", 0.5), ("--kappa", 10.0), ("--epsilon", 0.1), ("--position-prior", 10.0), ("--lr", 2e-4), ("--max-grad-norm", 1.0)):
        parser.add_argument(flag, type=float, default=default)
    parser.add_argument("--stage", choices=("teacher", "student"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    options = parse()
    torch.set_num_threads(options.threads)
    if options.stage:
        stage = teacher_stage if options.stage == "teacher" else student_stage
        (options.folder / f"{options.stage}.json").write_text(json.dumps(stage(options, options.folder)))
        return
    if tokenizer_size(options.teacher) != tokenizer_size(options.student):
        sys.exit("teacher and student have different tokenizers; this baseline needs one on both sides")
    settings = {key: str(value) if isinstance(value, pathlib.Path) else value for key, value in vars(options).items() if key not in ("stage", "folder")}
    report = {"settings": settings, "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as folder:
        for stage in ("teacher", "student"):
            subprocess.run([sys.executable, *sys.argv, "--stage", stage, "--folder", folder], check=True)
            report[stage] = json.loads((pathlib.Path(folder) / f"{stage}.json").read_text())
    text = json.dumps(report, indent=1)
    if options.out:
        options.out.write_text(text + "\n")
    brief = {key: {k: v for k, v in value.items() if k != "steps"} if isinstance(value, dict) else value for key, value in report.items() if key != "settings"}
    print(json.dumps(brief, indent=1))


if __name__ == "__main__":
    main()
