"""Provides Markdown tables of gpu-check's results.

    python3 table.py results.json [more.json ...]
"""

import json
import sys

SIDES = {"resident": "both resident", "swap": "taking turns"}


def number(value, digits=0):
    return "–" if value is None else f"{value:,.{digits}f}"


def peak(result, name):
    return number(result.get("peak_mib", {}).get(name))


def distillations(results):
    """One line a run of both programs, with PyTorch's step beside it where it was measured at the same length."""
    yield "| run | tokens | trainer tokens/s | PyTorch tokens/s | step s | wait s | teacher peak MiB | trainer peak MiB | card peak MiB | handover to teacher / trainer s |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for name, result in results.items():
        if "mode" not in result or not result["ok"]:
            continue
        peer = results.get(f"torch-student-{name.split('-')[1]}", {})
        beside = None if result["transport"] else peer.get("tokens_per_second")
        ways = result.get("handovers", {})
        sums = (("to_teacher_s",), ("to_trainer_s", "trainer_loading_s"))
        handover = " / ".join(number(sum(ways[way]["median"] for way in parts), 2) if ways else "–" for parts in sums)
        label = SIDES[result["mode"]] + (", with transport" if result["transport"] else "")
        yield (
            f"| {label} | {result['seq_len']} | {number(result['tokens_per_second'])} | {number(beside)} | {number(result['step_seconds'], 2)} | {number(result['wait_seconds'], 2)} "
            f"| {peak(result, 'teacher')} | {peak(result, 'student')} | {number(result.get('card_peak_mib'))} | {handover} |"
        )


def teacher(results):
    """The teacher alone, ours and PyTorch's."""
    ours, peer, ceiling = (results.get(name, {}) for name in ("precompute", "torch-teacher", "ceiling"))
    yield "| teacher | tokens | batch | tokens/s | of the matrix product's ceiling | peak MiB |"
    yield "|---|---:|---:|---:|---:|---:|"
    if ours.get("ok"):
        yield f"| teacher-server precompute | {ours['seq_len']} | {ours['batch_size']} | {number(ours['tokens_per_second'])} | {number(ours['share_of_ceiling'] and 100 * ours['share_of_ceiling'], 1)} % | {peak(ours, 'teacher')} |"
    if peer.get("ok"):
        share = None
        if ours.get("ok") and ceiling.get("ok"):
            share = 100 * peer["tokens_per_second"] * ours["matrix_flops_per_token"] / ceiling["best_flops"]
        yield f"| transformers + torch.topk | {peer['seq_len']} | {peer['batch_size']} | {number(peer['tokens_per_second'])} | {number(share, 1)} % | {number(peer.get('peak_mib'))} |"


def alone(results):
    """The student from a cache, beside PyTorch's."""
    yield "| student alone, tokens a pass | tokens/s | step s | PyTorch tokens/s | peak MiB |"
    yield "|---:|---:|---:|---:|---:|"
    for tokens in (512, 2048):
        ours, peer = results.get(f"student-{tokens}", {}), results.get(f"torch-student-{tokens}", {})
        if ours.get("ok"):
            yield f"| {ours['tokens_per_pass']} | {number(ours['tokens_per_second'])} | {number(ours['step_seconds'], 3)} | {number(peer.get('tokens_per_second'))} | {peak(ours, 'student')} |"


def parts(results):
    """Microseconds of each part."""
    result = results.get("parts", {})
    if not result.get("ok"):
        return
    yield "| part | us |"
    yield "|---|---:|"
    for name, microseconds in result["microseconds"].items():
        yield f"| {name} | {number(microseconds, 1)} |"


def plans(results):
    """Transport plans by the card beside the host's cores."""
    result = results.get("transport", {})
    if not result.get("ok"):
        return
    yield "| problems | positions | position prior | card ms | passes | host ms | host's passes | host / card | value off by |"
    yield "|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for row in result["shapes"]:
        card_ms = 1000 * row["seconds"] if "seconds" in row else None
        error = f"{row['value_error']:.0e}" if "value_error" in row else "–"
        yield (
            f"| {row['problems']} | {row['positions']} | {number(row['position_prior'])} | {number(card_ms, 2)} | {number(row.get('passes'))} | {number(1000 * row['host_seconds'], 2)} "
            f"| {number(row['host_passes'])} | {number(row.get('host_over_device'), 1)} | {error} |"
        )


def headline(results):
    """What it was measured on."""
    host, ceiling = results.get("host", {}), results.get("ceiling", {})
    card = (host.get("card") or {}).get("device", "CPU")
    yield f"{card}, {host.get('date', 'no date')}" + (f"; {ceiling['dtype']} matrix product {ceiling['best_flops'] / 1e12:.2f} TFLOP/s" if ceiling.get("ok") else "")
    if host.get("rehearsal"):
        yield "\nA rehearsal in tiny shapes: the figures mean nothing."
    gradients = results.get("gradients", {})
    if gradients.get("ok"):
        yield (
            f"\nWhole student in bf16 against f32 on the CPU: gradients off by at most {100 * gradients['worst_relative_error']:.2f} % of their norm, in bf16 on the CPU by "
            f"{100 * gradients['worst_relative_error_cpu_bf16']:.2f} %."
        )
    failed = [f"{name} ({result['error'].splitlines()[0][:160]})" for name, result in results.items() if not result["ok"]]
    if failed:
        yield "\nFailed: " + "; ".join(failed)


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for path in sys.argv[1:]:
        with open(path) as file:
            results = json.load(file)
        for part in (headline, teacher, alone, distillations, parts, plans):
            print("\n".join(part(results)), end="\n\n")


if __name__ == "__main__":
    main()
