"""Does the teacher's or the student's work in PyTorch on the same models, as the peer that gpu-check compares with. Prints one JSON object.

    python torch_peer.py teacher --model DIR --device cuda --seq-len 512 --batch-size 8 --tokens 151665 --seconds 20
    python torch_peer.py student --model NF4_DIR --device cuda --seq-len 512 --accumulation 4 --tokens 151665 --seconds 20

The teacher is transformers' model with torch.topk and logsumexp over the effective vocabulary. The student is transformers' model whose linears are NF4 with LoRA:
bitsandbytes dequantises where it is installed, plain PyTorch elsewhere; either way the weight is dequantised again in the backward pass instead of being kept. bf16
throughout, f32 adapters multiplied in bf16, gradient checkpointing by layer, AdamW; CE + KL over 64 kept logits and a tail bucket, as tests/baselines/torch_step.py has
them. Memory is PyTorch's own peak, without the context.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time
import types

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests/baselines"))
from torch_step import losses

try:
    import bitsandbytes.functional as bnb
except ImportError:
    bnb = None

WARM_ROUNDS = 3
TOP_K = 64
RANK, ALPHA = 16, 32.0
BLOCK = 64


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def peak_mib(device):
    return round(torch.cuda.max_memory_allocated() / 2**20) if device == "cuda" else None


def rounds(step, options):
    """Seconds of every round after the warm ones, until time is up."""
    seconds, deadline = [], None
    while deadline is None or time.perf_counter() < deadline or len(seconds) <= WARM_ROUNDS:
        synchronize(options.device)
        started = time.perf_counter()
        step()
        synchronize(options.device)
        seconds.append(time.perf_counter() - started)
        if len(seconds) == WARM_ROUNDS:
            deadline = time.perf_counter() + options.seconds
    return seconds[WARM_ROUNDS:]


def teacher(options):
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16).to(options.device).eval()
    ids = torch.randint(options.tokens, (options.batch_size, options.seq_len), device=options.device)

    @torch.no_grad()
    def step():
        logits = model(ids, use_cache=False).logits[:, :-1, : options.tokens].float()
        top = logits.topk(min(TOP_K, options.tokens), dim=-1)
        return top.values.cpu(), top.indices.cpu(), logits.logsumexp(-1).cpu()

    seconds = rounds(step, options)
    tokens = options.batch_size * options.seq_len
    return {"batch_size": options.batch_size, "tokens_per_second": tokens / statistics.median(seconds)}


class Nf4Matrix:
    """A double-quantised NF4 matrix as bitsandbytes stores it."""

    def __init__(self, tensors, name, device):
        part = {suffix: tensors.get_tensor(f"{name}{suffix}").to(device) for suffix in ("", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".quant_state.bitsandbytes__nf4")}
        state = json.loads(bytes(part[".quant_state.bitsandbytes__nf4"].tolist()))
        self.shape, self.offset, self.nested = state["shape"], state["nested_offset"], state["nested_blocksize"]
        self.codes, self.absmax = part[""].flatten(), part[".absmax"]
        self.nested_absmax, self.nested_map, self.map = part[".nested_absmax"], part[".nested_quant_map"], part[".quant_map"]
        self.state = None
        if bnb is not None:
            packed = {key.removeprefix("."): value for key, value in part.items() if key}
            self.state = bnb.QuantState.from_dict(packed, device=torch.device(device))

    def dequantize(self):
        """bf16 [out, in]."""
        if self.state is not None:
            return bnb.dequantize_4bit(self.codes[:, None], self.state).to(torch.bfloat16)
        scales = self.nested_map[self.absmax.int()] * self.nested_absmax.repeat_interleave(self.nested)[: len(self.absmax)] + self.offset
        values = torch.stack([self.map[(self.codes >> 4).int()], self.map[(self.codes & 15).int()]], dim=1)
        return (values.view(-1, BLOCK) * scales[:, None]).view(self.shape).to(torch.bfloat16)


class FrozenProduct(torch.autograd.Function):
    """x W^T + bias with a weight that is dequantised in both directions."""

    @staticmethod
    def forward(context, x, matrix, bias):
        context.matrix = matrix
        return torch.nn.functional.linear(x, matrix.dequantize(), bias)

    @staticmethod
    def backward(context, gradient):
        return gradient @ context.matrix.dequantize(), None, None


class QloraLinear(torch.nn.Module):
    """A frozen NF4 linear with a LoRA adapter."""

    def __init__(self, matrix, bias, device):
        super().__init__()
        rows, columns = matrix.shape
        self.matrix, self.bias = matrix, bias
        self.lora_a = torch.nn.Parameter(torch.randn(RANK, columns, device=device) / columns**0.5)
        self.lora_b = torch.nn.Parameter(torch.zeros(rows, RANK, device=device))

    def forward(self, x):
        frozen = FrozenProduct.apply(x, self.matrix, self.bias)
        return frozen + (x @ self.lora_a.T.to(x.dtype)) @ self.lora_b.T.to(x.dtype) * (ALPHA / RANK)


def qlora(options):
    """The student with frozen NF4 linears and adapters on all of them."""
    config = AutoConfig.from_pretrained(options.model)
    del config.quantization_config
    with torch.device(options.device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.requires_grad_(False)
    with safe_open(pathlib.Path(options.model) / "model.safetensors", "pt") as tensors:
        for name, module in list(model.named_modules()):
            if not isinstance(module, torch.nn.Linear) or name == "lm_head":
                continue
            parent, leaf = name.rsplit(".", 1)
            bias = tensors.get_tensor(f"{name}.bias").to(options.device) if module.bias is not None else None
            setattr(model.get_submodule(parent), leaf, QloraLinear(Nf4Matrix(tensors, f"{name}.weight", options.device), bias, options.device))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not parameter.requires_grad and name in tensors.keys():
                    parameter.copy_(tensors.get_tensor(name))
    # Without it no gradient reaches a checkpointed layer's adapters: the embeddings are frozen.
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.config.use_cache = False
    return model.train()


def student(options):
    torch.manual_seed(0)
    model = qlora(options)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4)
    rows, kept = options.seq_len - 1, min(TOP_K, options.tokens // 2)
    window = torch.randint(options.tokens, (options.seq_len,), device=options.device)
    logits = torch.linspace(18.0, 14.0, kept, device=options.device).repeat(rows, 1)
    ids = torch.stack([torch.randperm(options.tokens, device=options.device)[:kept] for _ in range(rows)])
    teacher_rows = {"ids": ids, "logits": logits, "logsumexp": torch.full((rows,), 22.0, device=options.device)}
    peer = types.SimpleNamespace(get_base_model=lambda: model)
    settings = types.SimpleNamespace(ot_weight=0.0)

    def step():
        optimizer.zero_grad(set_to_none=True)
        for _ in range(options.accumulation):
            ce, kl, _ = losses(peer, window, teacher_rows, settings, options.tokens)
            ((ce + kl) / options.accumulation).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    seconds = rounds(step, options)
    if any(parameter.grad is None for parameter in parameters):
        sys.exit("an adapter got no gradient: this is not the work to compare with")
    tokens = options.accumulation * options.seq_len
    median = statistics.median(seconds)
    return {"sequences_per_step": options.accumulation, "step_seconds": median, "tokens_per_second": tokens / median, "bitsandbytes": bnb is not None, "trainable": sum(p.numel() for p in parameters)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("side", choices=("teacher", "student"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    for flag, default in (("--seq-len", 512), ("--batch-size", 8), ("--accumulation", 4), ("--tokens", 151_665)):
        parser.add_argument(flag, type=int, default=default)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    measured = (teacher if options.side == "teacher" else student)(options)
    print(json.dumps({"torch": torch.__version__, "seq_len": options.seq_len} | measured | {"peak_mib": peak_mib(options.device)}))


if __name__ == "__main__":
    main()
