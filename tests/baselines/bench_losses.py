"""Measures what the loss benchmark of student-trainer (`cargo bench -p student-trainer --bench loss`) measures, in PyTorch, POT and OTT-JAX.

    python bench_losses.py                                    everything; `sinkhorn` or `whole` runs that part only
    python bench_losses.py sinkhorn [--positions 64 512 2048] [--variants NAME ...] [--cost FILE.safetensors]
    python bench_losses.py whole [--rows 512 2048] [--vocab 151936 --width 1536 --kept 64]
                           [--threads 1 --repeats 3 --limit 300 --smoke]

`sinkhorn` solves the problems of the Rust benchmark: cosines s of paired unit vectors in 64 dimensions (noise 1.5), costs 1 - s and 1 - softmax(s / 0.05), epsilon
0.1, until the L1 error of both marginals, summed in f64 over the returned plan, is at most 1e-6. Each peer's methods and precisions are all tried, each with the
loosest stopping threshold that reaches the error; the plan is part of the time, compilation and copies are not. --cost takes every matrix of a file that is named
`cost` or `*.cost` instead.

`whole` is CE + KL (kept ids and one tail bucket, tau 1) + 0.5 OT (cost `kl` over the kept ids, kappa 10, epsilon 0.1, position prior 10, entropic), value and gradient with
respect to hidden states under a frozen head:

    dense      logits [N, V] and autograd
    chunked    128 rows of logits at a time, the gradient written by hand; what a careful engineer would train with
    ot-only    OT alone, cosine of dense centred logits at temperature 0.05, logits [N, V] and autograd

`dense` and `chunked` build OT's cost from -H E^T, E = p W, and share a solver, so that neither loses time where the other has a trick.

Every measurement runs in a process of its own on --threads cores and prints one line of JSON; tables follow. `extra_mib` is the peak resident size over what was
resident before the first call, head and teacher included.
"""

import argparse
import json
import math
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
import warnings

EPSILON, TOLERANCE, ITERATIONS = 0.1, 1e-6, 10_000
KAPPA, POSITION_PRIOR, OT_WEIGHT, TEMPERATURE = 10.0, 10.0, 0.5, 0.05
CHUNK_ROWS = 128

POT_VARIANTS = [
    f"{method} {array} {dtype}"
    for array, methods in (("numpy", ("sinkhorn", "sinkhorn_log", "sinkhorn_stabilized")), ("torch", ("sinkhorn", "sinkhorn_log")))
    for method in methods
    for dtype in ("float64", "float32")
]
OTT_VARIANTS = [
    f"{mode} {speed} {dtype}"
    for dtype in ("float32", "float64")
    for mode, speeds in (("log", ("plain", "momentum", "late-momentum", "anderson")), ("scaling", ("plain", "momentum", "late-momentum")))
    for speed in speeds
]
WHOLE_VARIANTS = ["dense", "chunked", "ot-only"]


# The problems of `sinkhorn`


def cosines(n, width=64, noise=1.5):
    """Cosines of paired random vectors, student = teacher + noise."""
    import numpy as np

    rng = np.random.default_rng(7)

    def normal():
        return (rng.random((4, n, width)).sum(0) - 2) * 1.732

    y = normal()
    x = y + noise * normal()
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
    return x @ y.T


def cost_matrix(spec):
    """f32, as the trainer has it."""
    import numpy as np

    if spec["file"]:
        from safetensors.numpy import load_file

        return load_file(spec["file"])[spec["problem"]].astype(np.float32)
    s = cosines(spec["n"])
    if spec["problem"] == "1-cos":
        return (1 - s).astype(np.float32)
    p = np.exp(s / TEMPERATURE)
    return (1 - p / p.sum(1, keepdims=True)).astype(np.float32)


def marginal_error(plan):
    import numpy as np

    plan = np.asarray(plan, dtype=np.float64)
    return float(sum(np.abs(plan.sum(1 - axis) - 1 / length).sum() for axis, length in enumerate(plan.shape)))


# The peers of `sinkhorn`: each gives (solve(threshold) -> a function to (plan, iterations), thresholds to try, the loosest first)


def pot(variant, cost, epsilon):
    """POT stops on the L2 error of one marginal, looked at every 10 or 20 iterations."""
    import numpy as np
    import ot

    method, array, dtype = variant.split()
    arguments = [np.full(length, 1 / length, dtype=dtype) for length in cost.shape] + [cost.astype(dtype)]
    if array == "torch":
        import torch

        arguments = [torch.from_numpy(argument) for argument in arguments]

    def solve(threshold):
        def run():
            plan, log = ot.sinkhorn(*arguments, epsilon, method=method, stopThr=threshold, numItermax=ITERATIONS, log=True, warn=False)
            return plan, log.get("niter", log.get("n_iter"))

        return run

    return solve, [TOLERANCE / math.sqrt(cost.shape[1]) * loosening for loosening in (2, 1.4, 1, 0.7, 0.5, 0.25)]


def ott(variant, cost, epsilon):
    """OTT stops on the L1 error of one marginal, looked at every 10 iterations."""
    import jax

    mode, speed, dtype = variant.split()
    jax.config.update("jax_enable_x64", dtype == "float64")
    from ott.geometry.geometry import Geometry
    from ott.problems.linear.linear_problem import LinearProblem
    from ott.solvers.linear.acceleration import AndersonAcceleration, Momentum
    from ott.solvers.linear.sinkhorn import Sinkhorn

    cost = jax.numpy.asarray(cost.astype(dtype))
    faster = {
        "plain": {},
        "momentum": dict(momentum=Momentum(start=30)),  # adapts to the rate of convergence seen by then
        "late-momentum": dict(momentum=Momentum(start=100)),
        "anderson": dict(anderson=AndersonAcceleration(memory=5, refresh_every=1)),
    }[speed]

    def solve(threshold):
        sinkhorn = Sinkhorn(lse_mode=mode == "log", threshold=threshold, max_iterations=ITERATIONS, **faster)

        @jax.jit
        def plan(cost):
            solution = sinkhorn(LinearProblem(Geometry(cost_matrix=cost, epsilon=epsilon)))
            return solution.matrix, solution.n_iters

        def run():
            matrix, iterations = plan(cost)
            return matrix.block_until_ready(), iterations

        run()
        return run

    return solve, [TOLERANCE * loosening for loosening in (1, 0.7, 0.5, 0.25, 0.1)]


def measure_sinkhorn(spec):
    warnings.simplefilter("ignore")  # what did not converge is reported by its error
    cost = cost_matrix(spec)
    solve, thresholds = dict(POT=pot, OTT=ott)[spec["peer"]](spec["variant"], cost, spec["epsilon"])
    for threshold in thresholds:
        run = solve(threshold)
        plan, iterations = run()
        error = marginal_error(plan)
        if error <= TOLERANCE or int(iterations or 0) >= ITERATIONS - 1:
            break
    met = error <= TOLERANCE  # false for NaN
    found = dict(iterations=iterations and int(iterations), threshold=threshold, marginal_error=error if math.isfinite(error) else None, met=met)
    return dict(found, **seconds(run, spec["repeats"])) if met else found


def seconds(run, repeats):
    """The median over at least `repeats` runs; short ones are repeated for half a second."""
    taken = []
    while len(taken) < repeats or (sum(taken) < 0.5 and len(taken) < 200):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return dict(seconds=statistics.median(taken), runs=len(taken))


# `whole`


class Problem:
    """Hidden states H [N, d], a frozen head W [V, d], labels, and the teacher's kept logits as the Rust benchmark makes them."""

    def __init__(self, spec):
        import torch

        n, vocab, width, kept = (spec[key] for key in ("n", "vocab", "width", "kept"))
        generator = torch.Generator().manual_seed(7)
        self.head = torch.empty(vocab, width).normal_(0, 0.02, generator=generator)
        self.hidden = torch.empty(n, width).normal_(0, 3, generator=generator)
        self.labels = torch.arange(n) * 100 % vocab
        entry, row = torch.arange(kept)[None, :], torch.arange(n)[:, None]
        self.ids = entry * min(2000, (vocab - n) // kept) + row
        logits = 18 - ((row * kept + entry) * 7 % kept) * 0.2
        self.log_p = logits - torch.full((n, 1), 20.0)
        self.p = self.log_p.exp()
        self.tail = 1 - self.p.sum(1)
        self.log_kept = logits.log_softmax(1)  # renormalised, for OT
        self.teacher = None

    def add_teacher_logits(self):
        """Dense logits [M, V] of hidden states that resemble the student's."""
        import torch

        hidden = self.hidden + 1.5 * torch.empty_like(self.hidden).normal_(0, 3, generator=torch.Generator().manual_seed(8))
        self.teacher = hidden @ self.head.T

    def expected_rows(self):
        """E [M, d] = p W, and sum p ln p [M], of the renormalised kept ids."""
        import torch

        p = self.log_kept.exp()
        rows = torch.nn.functional.embedding_bag(self.ids, self.head, per_sample_weights=p, mode="sum")
        return rows, (p * self.log_kept).sum(1)


def solve_plan(cost):
    """The plan for cost + position prior, by Sinkhorn on exp(-C / epsilon) in f64; by Newton (ot.py) where that does not converge."""
    import ot  # the file beside this one
    import torch

    solved = (cost + ot.position_prior(*cost.shape, POSITION_PRIOR, cost)).double()
    kernel = ((solved.min() - solved) / EPSILON).exp_()
    a, b = 1 / cost.shape[0], 1 / cost.shape[1]
    v = torch.ones(cost.shape[1], dtype=torch.float64)
    for iteration in range(ITERATIONS):
        against = kernel @ v
        if iteration % 10 == 0 and iteration:
            error = float((u * against - a).abs().sum())
            if error <= TOLERANCE:
                return kernel.mul_(u[:, None]).mul_(v).to(cost.dtype), iteration, error
        u = a / against
        v = b / (kernel.T @ u)
        if not (torch.isfinite(u).all() and torch.isfinite(v).all()):
            break
    return ot.sinkhorn(solved.to(cost.dtype), EPSILON, TOLERANCE)


def dense(problem):
    """(value, dH, iterations) with [N, V] logits and autograd."""
    import torch

    hidden = problem.hidden.detach().requires_grad_()
    x = hidden @ problem.head.T
    logsumexp = x.logsumexp(1)
    ce = (logsumexp - x.gather(1, problem.labels[:, None])[:, 0]).mean()
    log_q = x.gather(1, problem.ids) - logsumexp[:, None]
    log_tail = x.scatter(1, problem.ids, -math.inf).logsumexp(1) - logsumexp
    kl = ((problem.p * (problem.log_p - log_q)).sum(1) + problem.tail * (problem.tail.log() - log_tail)).mean()
    rows, negative_entropy = problem.expected_rows()
    cost = (negative_entropy[None, :] + logsumexp[:, None] - hidden @ rows.T) / KAPPA
    with torch.no_grad():
        plan, iterations, _ = solve_plan(cost)
    total = ce + kl + OT_WEIGHT * (plan * cost).sum()
    total.backward()
    return float(total.detach()), hidden.grad, iterations


def chunked(problem):
    """The same, one pass over row chunks: OT's plan does not depend on a row's logsumexp, so it can be had before any logits."""
    import torch

    with torch.no_grad():
        hidden, n = problem.hidden, len(problem.hidden)
        rows, negative_entropy = problem.expected_rows()
        cost = (negative_entropy[None, :] - hidden @ rows.T) / KAPPA
        plan, iterations, _ = solve_plan(cost)
        mass = plan.sum(1)
        grad = (-OT_WEIGHT / KAPPA) * (plan @ rows)
        total = OT_WEIGHT * float((plan * cost).sum())
        buffer = torch.empty(min(CHUNK_ROWS, n), len(problem.head))
        for start in range(0, n, CHUNK_ROWS):
            here = slice(start, min(start + CHUNK_ROWS, n))
            total += chunk(problem, here, mass[here, None], buffer[: here.stop - start], grad)
        return total, grad, iterations


def chunk(problem, here, mass, x, grad):
    """Adds the rows' dH to `grad`; gives their part of the value. `x` is overwritten with logits, then with d value / d logits."""
    import torch

    n = len(problem.hidden)
    ids, labels, p, tail = problem.ids[here], problem.labels[here, None], problem.p[here], problem.tail[here, None]
    torch.mm(problem.hidden[here], problem.head.T, out=x)
    label = x.gather(1, labels)
    top = x.amax(1, keepdim=True)
    kept_logits = x.gather(1, ids)
    kept = (kept_logits - top).exp()
    x.sub_(top).exp_().scatter_(1, ids, 0)
    rest = x.sum(1, keepdim=True)
    total = rest + kept.sum(1, keepdim=True)
    logsumexp = top + total.log()
    log_tail = (rest / total).log()
    value = (logsumexp - label).sum() / n
    value += ((p * (problem.log_p[here] - kept_logits + logsumexp)).sum() + (tail * (tail.log() - log_tail)).sum()) / n
    value += OT_WEIGHT / KAPPA * (mass * logsumexp).sum()
    everywhere = 2 / n + OT_WEIGHT / KAPPA * mass  # of q: CE and KL (whose p sums to 1), and OT
    x.mul_((everywhere - tail * total / rest / n) / total)
    x.scatter_(1, ids, everywhere / total * kept - p / n)
    x.scatter_add_(1, labels, torch.full_like(label, -1 / n))
    grad[here].addmm_(x, problem.head)
    return float(value)


def ot_only(problem):
    import ot  # the file beside this one
    import torch

    hidden = problem.hidden.detach().requires_grad_()
    similarity = ot.logit_similarity(hidden @ problem.head.T, problem.teacher, "cosine")
    cost = ot.softmax_similarity(similarity, TEMPERATURE)
    with torch.no_grad():
        plan, iterations, _ = solve_plan(cost)
    total = (plan * cost).sum()
    total.backward()
    return float(total.detach()), hidden.grad, iterations


def measure_whole(spec):
    import torch

    torch.set_num_threads(spec["threads"])
    problem = Problem(spec)
    if spec["variant"] == "ot-only":
        problem.add_teacher_logits()
    loss = {"dense": dense, "chunked": chunked, "ot-only": ot_only}[spec["variant"]]
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = resident_mib()
    taken = []
    for _ in range(spec["repeats"]):
        start = time.perf_counter()
        value, grad, iterations = loss(problem)
        taken.append(time.perf_counter() - start)
    extra = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    return dict(
        seconds=statistics.median(taken), runs=len(taken), extra_mib=round(extra), before_mib=round(before), value=value,
        grad_norm=float(grad.double().norm()), iterations=iterations,
    )  # fmt: skip


def resident_mib():
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


# The parent: one process per measurement


def in_a_process(spec, limit):
    """The spec with what was measured, printed as one line."""
    threads = str(spec["threads"])
    environment = dict(os.environ, JAX_PLATFORMS="cpu", TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")
    environment |= {name: threads for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    # POT's module has the name of ot.py beside this file: -P keeps this folder out of its way.
    path = ["-P"] if spec["benchmark"] == "sinkhorn" else []
    command = [sys.executable, *path, os.path.abspath(__file__), "--one", json.dumps(spec)]
    try:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, timeout=limit, check=False)
        lines = done.stdout.decode().splitlines()
        found = json.loads(lines[-1]) if done.returncode == 0 and lines else dict(failed=f"exit status {done.returncode}")
    except subprocess.TimeoutExpired:
        found = dict(failed=f"over {limit} s")
    result = spec | found
    print(json.dumps(result), flush=True)
    return result


def one(spec):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: spec["threads"]])
    print(json.dumps((measure_sinkhorn if spec["benchmark"] == "sinkhorn" else measure_whole)(spec)))


def sinkhorn_specs(options):
    from safetensors import safe_open

    base = dict(benchmark="sinkhorn", epsilon=options.epsilon, threads=options.threads, repeats=options.repeats, file=options.cost)
    if options.cost:
        with safe_open(options.cost, "numpy") as file:
            problems = [(name, file.get_slice(name).get_shape()[0]) for name in file.keys() if name.split(".")[-1] == "cost"]
    else:
        problems = [(name, n) for n in options.positions for name in ("1-cos", "1-softmax")]
    for problem, n in problems:
        for peer, variants in (("POT", POT_VARIANTS), ("OTT", OTT_VARIANTS)):
            for variant in variants:
                if options.variants and variant not in options.variants:
                    continue
                yield dict(base, problem=problem, n=n, peer=peer, variant=variant)


def whole_specs(options):
    sizes = dict(vocab=options.vocab, width=options.width, kept=options.kept, threads=options.threads, repeats=options.repeats)
    for n in options.rows:
        for variant in WHOLE_VARIANTS:
            yield dict(benchmark="whole", n=n, variant=variant, **sizes)


def print_sinkhorn_table(results):
    print("\n| cost | N | peer | best of its variants | ms | iterations | marginal error |\n|---|---:|---|---|---:|---:|---:|")
    for problem, n, peer in dict.fromkeys((r["problem"], r["n"], r["peer"]) for r in results):
        those = [r for r in results if (r["problem"], r["n"], r["peer"]) == (problem, n, peer) and r.get("met")]
        if not those:
            print(f"| {problem} | {n} | {peer} | none reached {TOLERANCE} | | | |")
            continue
        best = min(those, key=lambda r: r["seconds"])
        print(f"| {problem} | {n} | {peer} | {best['variant']} | {best['seconds'] * 1e3:.2f} | {best['iterations']} | {best['marginal_error']:.1e} |")


def print_whole_table(results):
    print("\n| N | V | d | variant | s | extra MiB | value | gradient norm |\n|---:|---:|---:|---|---:|---:|---:|---:|")
    for r in results:
        numbers = f"{r['seconds']:.2f} | {r['extra_mib']} | {r['value']:.5f} | {r['grad_norm']:.4e}" if "seconds" in r else f"{r['failed']} | | |"
        print(f"| {r['n']} | {r['vocab']} | {r['width']} | {r['variant']} | {numbers} |")
    for n in dict.fromkeys(r["n"] for r in results):
        pair = [r for r in results if r["n"] == n and r["variant"] in ("dense", "chunked") and "seconds" in r]
        for key in ("value", "grad_norm"):
            if len(pair) == 2 and abs(pair[0][key] / pair[1][key] - 1) > 1e-4:
                raise SystemExit(f"dense and chunked disagree at {n} rows: {key} {pair[0][key]} and {pair[1][key]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", nargs="?", choices=("sinkhorn", "whole"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=300, help="seconds that one measurement of sinkhorn may take")
    parser.add_argument("--variants", nargs="+", help="of the peers of sinkhorn, by name; all if not given")
    parser.add_argument("--positions", type=int, nargs="+", default=[64, 512, 2048])
    parser.add_argument("--epsilon", type=float, default=EPSILON, help="of sinkhorn")
    parser.add_argument("--cost", help="a .safetensors file with matrices named `cost` or `*.cost`")
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--kept", type=int, default=64)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes of everything")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return one(json.loads(options.one))
    if options.smoke:
        options.positions, options.rows = [24], [200]
        options.vocab, options.width, options.kept, options.repeats = 3000, 32, 8, 1
    if options.part != "whole":
        print_sinkhorn_table([in_a_process(spec, options.limit) for spec in sinkhorn_specs(options)])
    if options.part != "sinkhorn":
        print_whole_table([in_a_process(spec, None) for spec in whole_specs(options)])


if __name__ == "__main__":
    main()
