"""Computes the OT loss and its gradient from dense teacher logits, independently of the product, so that both can be compared on a real pair.

Two commands. `capture` writes what both sides read; it runs the two models through transformers:

    python ot_gradient.py capture --teacher DIR --student DIR --text FILE --out DIR [--seq-len 256] [--window 0]

    OUT/student.safetensors   logits [N, V], hidden [N, d], head [V, d] f32, labels i64 [N]       (N = seq_len - 1 target rows, V = effective vocabulary)
    OUT/teacher.safetensors   logits [N, V] f32

These are also the inputs of `student-trainer losses --student ... --teacher ... --grad-out G`. `gradient` prints value and gradient norms for each cost:

    python ot_gradient.py gradient --in DIR [--top-k 64] [--float32] [--temperature 0.05 --kappa 10 --epsilon 0.1 --position-prior 10 --scope row --block-size 64]
                                   [--compare G.safetensors --cost kl]

The gradient of F = <T, C> - epsilon H(T) with respect to X is T contracted with dC/dX (envelope theorem; T solved to 1e-10); dF/dH = dF/dX W.
--top-k compresses the teacher to its K largest logits first, as the block does; similarities of logits have no meaning then and are left out (the product reads them from
`state`). --compare reports the relative error and the cosine between a gradient file of the product (tensor `grad_ot`) and this one, for one cost.
"""

import argparse
import json
import pathlib

import torch
from safetensors.torch import load_file, save_file

import ot
from common import load_student, memory_bytes, mib, tokenizer_size, windows

COSTS = ("scaled-dot", "centered-dot", "cosine", "bhattacharyya", "kl")


def capture(options):
    """Runs both models over one window and keeps logits on targets, cut to the effective vocabulary."""
    sizes = {tokenizer_size(directory) for directory in (options.teacher, options.student)}
    if len(sizes) != 1:
        raise SystemExit(f"the tokenizers know {sorted(sizes)} ids: this comparison needs one tokenizer on both sides")
    effective = sizes.pop()
    ids = windows(options.student, options.text, options.seq_len, 1, options.window)
    options.out.mkdir(parents=True, exist_ok=True)
    for side, directory in (("teacher", options.teacher), ("student", options.student)):
        model = load_student(directory, torch.float32).eval()
        with torch.no_grad():
            hidden = model.model(ids).last_hidden_state[0, :-1].float()
            head = model.lm_head.weight[:effective].float()
            tensors = {"logits": hidden @ head.T}
            if side == "student":
                tensors |= {"hidden": hidden.contiguous(), "head": head.clone(), "labels": ids[0, 1:].contiguous()}
        save_file(tensors, options.out / f"{side}.safetensors")
        del model


def probabilities(logits, top_k):
    """(p over everything with zeros outside the kept ids, the same renormalised), both [M, V]."""
    p = logits.softmax(-1)
    if top_k:
        kept = torch.zeros_like(p).scatter_(-1, logits.topk(top_k, dim=-1).indices, 1)
        p = p * kept
    return p, p / p.sum(-1, keepdim=True)


def cost_matrix(name, student, teacher, options):
    """C [N, M] of student logits and (teacher logits, p, renormalised p)."""
    logits, p, normalised = teacher
    if name == "kl":
        return ot.kl_cost(student, normalised, options.kappa)
    similarity = ot.bhattacharyya(student, p) if name == "bhattacharyya" else ot.logit_similarity(student, logits, name)
    return ot.softmax_similarity(similarity, options.temperature)


def dense_ot_grad(student_logits, teacher_logits, name, options):
    """(F's <T, C>, the entropic value F, dF/dX [N, V], the most solver iterations, the largest marginal error)."""
    student = student_logits.clone().requires_grad_(True)
    p, normalised = probabilities(teacher_logits, options.top_k)
    size = options.block_size if options.scope == "block" else max(len(student_logits), len(teacher_logits))
    totals, iterations, error = [0.0, 0.0], 0, 0.0
    problems = [(i, j) for i in range(0, len(student), size) for j in range(0, len(teacher_logits), size)]
    share = 1 / len(problems) if options.reduction == "mean" else 1.0
    for i, j in problems:
        teacher = teacher_logits[j : j + size], p[j : j + size], normalised[j : j + size]
        cost = cost_matrix(name, student[i : i + size], teacher, options)
        value, plan, steps, miss = ot.transport(cost, options.epsilon, options.position_prior, tolerance=1e-10 if cost.dtype == torch.float64 else 1e-6)
        (value * share).backward()
        totals[0] += share * float(value.detach())
        totals[1] += share * float(value.detach() + options.epsilon * torch.xlogy(plan, plan).sum())
        iterations, error = max(iterations, steps), max(error, miss)
    return totals[0], totals[1], student.grad, iterations, error


def gradient(options):
    dtype = torch.float32 if options.float32 else torch.float64
    student = load_file(options.inputs / "student.safetensors")
    teacher = load_file(options.inputs / "teacher.safetensors")["logits"].to(dtype)
    logits = student["logits"].to(dtype)
    report = {"rows": list(logits.shape), "settings": {key: getattr(options, key) for key in ("top_k", "temperature", "kappa", "epsilon", "position_prior", "scope", "block_size", "reduction")}}
    for name in [options.cost] if options.cost else COSTS:
        if options.top_k and name in ("scaled-dot", "centered-dot", "cosine"):
            continue
        value, entropic, grad, iterations, error = dense_ot_grad(logits, teacher, name, options)
        report[name] = {"transport_cost": value, "entropic_value": entropic, "grad_x_norm": float(grad.norm()), "iterations": iterations, "marginal_error": error}
        if "head" in student:
            norm = grad.norm().clamp(min=torch.finfo(dtype).tiny)  # the product is formed in f32, where a dead cost's gradient would underflow
            report[name]["grad_h_norm"] = float((grad / norm).float().matmul(student["head"]).double().norm() * norm)
        if options.compare:
            other = load_file(options.compare)["grad_ot"].to(dtype)
            report[name]["compared"] = {
                "norm": float(other.norm()),
                "relative_error": float((other - grad).norm() / grad.norm()),
                "cosine": float((other * grad).sum() / (other.norm() * grad.norm())),
            }
    report["peak_rss_mib"] = mib(memory_bytes("VmHWM"))
    print(json.dumps(report, indent=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("capture")
    for flag in ("--teacher", "--student", "--text"):
        first.add_argument(flag, required=True)
    first.add_argument("--out", type=pathlib.Path, required=True)
    first.add_argument("--seq-len", type=int, default=256)
    first.add_argument("--window", type=int, default=0)
    second = commands.add_parser("gradient")
    second.add_argument("--in", dest="inputs", type=pathlib.Path, required=True)
    second.add_argument("--cost", choices=COSTS)
    second.add_argument("--compare", type=pathlib.Path)
    second.add_argument("--float32", action="store_true")
    second.add_argument("--top-k", type=int, default=0)
    second.add_argument("--scope", choices=("row", "block"), default="row")
    second.add_argument("--reduction", choices=("mean", "sum"), default="mean")
    second.add_argument("--block-size", type=int, default=64)
    for flag, default in (("--temperature", 0.05), ("--kappa", 10.0), ("--epsilon", 0.1), ("--position-prior", 10.0)):
        second.add_argument(flag, type=float, default=default)
    for command in (first, second):
        command.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    (capture if options.command == "capture" else gradient)(options)


if __name__ == "__main__":
    main()
