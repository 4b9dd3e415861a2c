#!/usr/bin/env python3
"""Provides real rows of a teacher for `cargo run --release -p distill-proto --example frames`: what is kept of its logits for windows of a text.

    python3 tests/baselines/dump_rows.py --model DIR --text FILE --out rows.safetensors [--windows 4 --length 512 --skip 0]

For W windows of T tokens: `tokens`, `starts`, `ends` [W, T] (byte ranges in the window's text), `text` and `text.ends` (bytes of all windows, and where each ends), and
row t of a window, the distribution after token t: `max`, `mean`, `std`, `logsumexp` [W, T]. Kept entries, ids ascending: `top.ids`, `top.logits` [W, T, 64];
`drawn_8.*`, `drawn_32.*` (softmax, with replacement) and `head_8_16.*` (8 largest, 16 draws from the rest) with `.counts`, a tensor for every window (`.0` and so on), filled up
as FORMAT.md says.
"""

import argparse

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

PADDING_COUNT = 2**32 - 1


def byte_of_character():
    """The bytes that byte-level BPE writes as characters (GPT-2's table): printable ones as they are, the others from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


def filled(logits, entries, padding):
    """Rows of {id: count} as ids, logits and counts of equal length; padding takes the smallest unused ids and the maximum."""
    width = max(len(row) for row in entries)
    ids, values, counts = [], [], []
    for row, kept in zip(logits, entries):
        free = (i for i in range(len(row)) if i not in kept)
        full = dict(kept) | {next(free): padding for _ in range(width - len(kept))}
        order = sorted(full)
        ids.append(order)
        top = row.max()
        values.append([row[i] if i in kept else top for i in order])
        counts.append([full[i] for i in order])
    return np.array(ids, np.uint32), np.array(values, np.float32), np.array(counts, np.uint32)


def draws(logits, count, head, generator):
    """{id: count} for every row: `head` largest with count 0, and draws from the others."""
    rows = []
    probability = torch.softmax(logits.double(), -1)
    top = logits.topk(head, -1).indices if head else torch.empty(len(logits), 0, dtype=torch.long)
    probability.scatter_(-1, top, 0)
    drawn = torch.multinomial(probability, count, replacement=True, generator=generator)
    for kept, ids in zip(top.tolist(), drawn.tolist()):
        row = {i: 0 for i in kept}
        for i in ids:
            row[i] = row.get(i, 0) + 1
        rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--skip", type=int, default=0, help="windows left out at the start of the text")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    vocabulary = len(tokenizer)
    text = open(args.text, encoding="utf-8").read()
    tokens = tokenizer(text, add_special_tokens=False).input_ids[args.skip * args.length :]
    table, generator = byte_of_character(), torch.Generator().manual_seed(0)

    out = {name: [] for name in ["tokens", "starts", "ends", "max", "mean", "std", "logsumexp", "top.ids", "top.logits"]}
    texts, text_ends = b"", []
    for window in range(args.windows):
        ids = tokens[window * args.length :][: args.length]
        assert len(ids) == args.length, "the text is too short"
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :, :vocabulary].float()
        pieces = [bytes(table[c] for c in piece) for piece in tokenizer.convert_ids_to_tokens(ids)]
        ends = np.cumsum([len(piece) for piece in pieces])
        texts += b"".join(pieces)
        text_ends.append(len(texts))
        out["tokens"].append(np.array(ids, np.uint32))
        out["starts"].append(np.concatenate([[0], ends[:-1]]).astype(np.uint32))
        out["ends"].append(ends.astype(np.uint32))
        out["max"].append(logits.max(-1).values.numpy())
        out["mean"].append(logits.double().mean(-1).float().numpy())
        out["std"].append(logits.double().std(-1, unbiased=False).float().numpy())
        out["logsumexp"].append(logits.double().logsumexp(-1).float().numpy())
        top = logits.topk(64, -1).indices.sort(-1).values
        out["top.ids"].append(top.numpy().astype(np.uint32))
        out["top.logits"].append(logits.gather(-1, top).numpy())
        dense = logits.numpy()
        for name, count, head, padding in [("drawn_8", 8, 0, 0), ("drawn_32", 32, 0, 0), ("head_8_16", 16, 8, PADDING_COUNT)]:
            kept = filled(dense, draws(logits, count, head, generator), padding)
            # The width of a frame is its own, so windows have tensors of their own.
            for part, array in zip(["ids", "logits", "counts"], kept):
                out[f"{name}.{part}.{window}"] = array
        print(f"window {window}", flush=True)

    arrays = {name: np.stack(value) if isinstance(value, list) else value for name, value in out.items()}
    arrays["text"] = np.frombuffer(texts, np.uint8)
    arrays["text.ends"] = np.array(text_ends, np.uint32)
    arrays["vocabulary"] = np.array([vocabulary], np.uint32)
    save_file(arrays, args.out)


if __name__ == "__main__":
    main()
