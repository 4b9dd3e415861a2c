"""Provides entropic optimal transport over positions in plain PyTorch: the solver, the costs, and <T, C> with the exact gradient of the entropic objective.

Written for clarity and used as the independent other side: by torch_step.py with autograd in f32, by ot_gradient.py in f64.
"""

import math

import torch


def position_prior(rows, columns, gamma, like):
    """gamma (i/N - j/M)^2, [N, M]."""
    i = torch.arange(rows, dtype=like.dtype, device=like.device) / rows
    j = torch.arange(columns, dtype=like.dtype, device=like.device) / columns
    return gamma * (i[:, None] - j[None, :]) ** 2


def sinkhorn(cost, epsilon, tolerance=1e-6, warm_iterations=20, newton_iterations=100):
    """The plan of min <T, C> - epsilon H(T) over couplings of uniform marginals.

    A few Sinkhorn steps in the log domain, then Newton with a dense Hessian on the dual a f + b g - sum exp(-C/epsilon + f + g), backtracking until it rises; where
    no step rises, Sinkhorn goes on. Always f64: on matching-like costs Sinkhorn alone needs thousands of iterations, and the baseline should not lose time there.
    Returns (T [N, M] in the cost's dtype, iterations of both kinds, L1 error of both marginals).
    """
    rows, columns = cost.shape
    a, b = 1 / rows, 1 / columns
    kernel = -cost.double() / epsilon
    f, g = torch.zeros(rows, dtype=torch.float64), torch.zeros(columns, dtype=torch.float64)

    def plan_of(f, g):
        return (kernel + f[:, None] + g).exp()

    def dual(f, g):
        return float(a * f.sum() + b * g.sum() - plan_of(f, g).sum())

    def alternate(g):
        f = math.log(a) - torch.logsumexp(kernel + g, dim=1)
        return f, math.log(b) - torch.logsumexp(kernel + f[:, None], dim=0)

    for _ in range(warm_iterations):
        f, g = alternate(g)
    for iteration in range(newton_iterations + 1):
        plan = plan_of(f, g)
        miss = torch.cat([a - plan.sum(1), b - plan.sum(0)])
        error = float(miss.abs().sum())
        if error <= tolerance or iteration == newton_iterations:
            break
        # The last g is held at zero: adding to f what is taken from g changes nothing, so the full system is singular.
        hessian = torch.cat([torch.cat([plan.sum(1).diag(), plan], 1), torch.cat([plan.T, plan.sum(0).diag()], 1)], 0)[:-1, :-1]
        hessian.diagonal().add_(1e-14)
        step = torch.cat([torch.linalg.solve(hessian, miss[:-1]), torch.zeros(1, dtype=torch.float64)])
        here, slope, length = dual(f, g), float(miss @ step), 1.0
        while length > 1e-4 and not dual(f + length * step[:rows], g + length * step[rows:]) >= here + 1e-4 * length * slope - 1e-15:
            length /= 2
        if length > 1e-4:
            f, g = f + length * step[:rows], g + length * step[rows:]
        else:
            f, g = alternate(g)
    return plan.to(cost.dtype), warm_iterations + iteration, error


def softmax_similarity(similarity, temperature):
    """C = 1 - softmax_j(S_ij / temperature)."""
    return 1 - torch.softmax(similarity / temperature, dim=-1)


def logit_similarity(student, teacher, kind):
    """S [N, M] of student logits [N, V] and teacher logits [M, V]: scaled-dot, centered-dot or cosine."""
    if kind != "scaled-dot":
        student = student - student.mean(-1, keepdim=True)
        teacher = teacher - teacher.mean(-1, keepdim=True)
    if kind == "cosine":
        return torch.nn.functional.normalize(student, dim=-1) @ torch.nn.functional.normalize(teacher, dim=-1).T
    return student @ teacher.T / math.sqrt(student.shape[-1])


def bhattacharyya(student, p):
    """S_ij = sum_v sqrt(p_jv q_iv). `p` [M, V] holds the teacher's probabilities at the kept ids and zero elsewhere: the tail is dropped, not renormalised."""
    return (0.5 * student.log_softmax(-1)).exp() @ p.sqrt().T


def kl_cost(student, p, kappa):
    """C_ij = KL(p_j || q_i) / kappa for the rows of `p` [M, V], which sum to 1 (kept ids renormalised, zero elsewhere)."""
    negative_entropy = torch.xlogy(p, p).sum(-1)
    return (negative_entropy[None, :] - student.log_softmax(-1) @ p.T) / kappa


def transport(cost, epsilon, gamma, tolerance=1e-6):
    """<T, C>, where T is solved for C + prior without gradient. Differentiating it gives the exact gradient of the `entropic` objective (envelope theorem)."""
    with torch.no_grad():
        solved = cost if gamma == 0 else cost + position_prior(*cost.shape, gamma, cost)
        plan, iterations, error = sinkhorn(solved, epsilon, tolerance)
    return (plan * cost).sum(), plan, iterations, error
