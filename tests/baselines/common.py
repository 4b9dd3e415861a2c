"""Provides what the baseline scripts share: reading text as the product does, the effective vocabulary, and memory figures of this process."""

import json
import pathlib
import resource

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def tokenizer_size(directory):
    """The effective vocabulary: the largest id that tokenizer.json knows, plus one. Rows of the head beyond it are padding."""
    saved = json.loads((pathlib.Path(directory) / "tokenizer.json").read_text(encoding="utf-8"))
    known = list(saved["model"]["vocab"].values()) + [token["id"] for token in saved["added_tokens"]]
    return max(known) + 1


def windows(directory, text_file, seq_len, count, first=0):
    """`count` windows of seq_len ids from one plain-text file, starting at window `first`: consecutive, not overlapping, the short rest left out. i64 [count, seq_len]."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    text = pathlib.Path(text_file).read_text(encoding="utf-8")
    ids = []
    # Long files are tokenized up to a paragraph break a little beyond what is needed; ids before the break do not depend on what follows it.
    needed = (first + count) * seq_len
    limit = 8 * needed + 4096
    while True:
        cut = text.rfind("\n\n", 0, limit) if limit < len(text) else len(text)
        ids = tokenizer(text[: cut if cut > 0 else len(text)], add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) >= needed or limit >= len(text):
            break
        limit *= 2
    if len(ids) < needed:
        raise SystemExit(f"{text_file} holds {len(ids)} tokens; {needed} are needed for {first + count} windows of {seq_len}: give a longer file, fewer steps or a shorter --seq-len")
    return torch.tensor(ids[first * seq_len : needed], dtype=torch.long).view(count, seq_len)


def load_student(directory, dtype):
    """A 4-bit (or plain) checkpoint that computes in `dtype` throughout: transformers leaves what a 4-bit checkpoint stores beside the 4-bit weights in bf16."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, device_map="cpu")
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.compute_dtype, module.compute_type_is_set = dtype, True
            module.support_avx512bf16_for_cpu = False  # that packed layout is for inference: it has no backward
            # bitsandbytes 0.50's forward dequantises to the compute dtype, its backward to this one: left at the checkpoint's bf16, the gradient of an f32
            # run would be that of slightly other weights (0.2 % on a projection of SmolLM2).
            module.weight.quant_state.dtype = dtype
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return model


def memory_bytes(field):
    """VmRSS or VmHWM of this process, in bytes."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak():
    """Makes VmHWM count from now, so that loading a checkpoint does not hide what a step takes."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def mib(count):
    """Bytes as a rounded number of MiB."""
    return round(count / 2**20)
