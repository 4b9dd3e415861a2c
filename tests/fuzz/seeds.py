"""Puts small valid inputs, from the fixtures and written here, into the corpus of every target.

    python3 tests/fuzz/seeds.py
"""

import json
import pathlib
import shutil
import struct

TESTS = pathlib.Path(__file__).resolve().parent.parent
CORPUS = TESTS / "fuzz" / "corpus"
FIXTURES = {
    "frame": ["../proto/tests/golden/*.frame"],
    "safetensors": ["fixtures/models/wide-vocabulary.safetensors", "fixtures/peft/layers/adapter_model.safetensors"],
    "gguf": ["fixtures/gguf/llama/quantised.gguf"],
    "config": ["fixtures/families/*/config.json", "fixtures/models/*/config.json", "fixtures/bnb/nf4-double/config.json"],
    "tokenizer": ["fixtures/tokenizer/tokenizer.json", "fixtures/tokenizer-resaved/tokenizer.json"],
    "template": ["fixtures/tokenizer-resaved/chat_template.jinja"],
    "jsonl": ["fixtures/corpus/*.jsonl", "fixtures/corpus/parquet/*.jsonl"],
    "parquet": ["fixtures/corpus/parquet/*.parquet"],
    "adapter": ["fixtures/peft/*/adapter_config.json"],
}
TEMPLATES = {
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% else %}[{{ m.role }}]{{ m.content | trim }}{% endif %}{% endfor %}",
    "python": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + loop.index0 %}{{ m.content.split('</think>')[-1].lstrip('\\n') if m.content is string else m.content | tojson(indent=2) }}{{ '%05d' | format(ns.n) }}{% endfor %}{{ tools | tojson if tools }}{{ raise_exception('x') if not messages }}{{ [1.5, 2] + [none] }}{{ 'a' * 3 ~ messages | length }}",
    "macros": "{% macro turn(m, d=0) %}{{ m.role }}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson(sort_keys=true, separators=(',', ':')) }}{% endfor %}{% endmacro %}{% for m in messages[::-1] %}{{ turn(m) }}{% if loop.first %}{% continue %}{% endif %}{% endfor %}{{ strftime_now('%d %b %Y') }}",
}
ROWS = [
    {"messages": [{"role": "user", "content": "two?", "name": None}, {"role": "assistant", "content": "four", "weight": 0}, {"role": "user", "content": "?"}, {"role": "assistant", "content": "4", "train": True}], "tools": "[]"},
    {"prompt": [{"role": "user", "content": "two?"}], "completion": [{"role": "assistant", "content": "four"}], "chat_template_kwargs": {"enable_thinking": False}},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": None, "tools": [{"name": "f", "n": 123456789012345678901234567890}]},
    {"instruction": "a", "input": "", "output": "b", "text": None},
]
IDENTITY = "".join(f'{name} = "{"0123456789abcdef" * 4}"\n' for name in ("teacher", "tokenizer", "corpus", "plan", "student", "student_tokenizer"))
TOML = {
    # As the first release wrote it: without checksums, so that changed values reach what lies behind them.
    "checkpoint": 'format = 1\nstep = 5\ntotal_steps = 40\nsilent = ["a.b"]\n\n[data]\npass = 1\nnext_index = 7\ncursor = "00ff"\nsequence = "00000000000000ff"\nframes = 27\n\n[log]\nmetrics_bytes = 1000\neval_bytes = 0\n\n[evals]\nevaluated = 5\nwithout_best = 0\nbest = { step = 5, value = 1.5 }\n\n[identity]\n'
    + IDENTITY
    + '\n[files]\n"optimizer.safetensors" = "' + "0123456789abcdef" * 4 + '"\n',
    "trainer_toml": 'student = "models/s"\nout = "runs/o"\nlr = 1e-4\nlora_rank = 32\ntargets = ["q_proj"]\n[loss]\nkl_weight = 1.0\not_weight = 0.5\n[loss.align]\ncost = "kl"\nepsilon = 0.1\n',
    "server_toml": 'model = "models/t"\ncorpus = ["c.jsonl"]\nseq_len = 512\nestimator = "head+sampled"\ntop_k = 8\ndraws = 16\ntemperatures = [1.0, 2.0]\nbind = "127.0.0.1:0"\n',
}
# A request's number, then its bytes: FetchBlocks of two ids, ScoreTokens of one sequence, StreamBlocks after a cursor, a release,
# nothing, Generate of a text with a temperature and a stop.
REQUESTS = [bytes([4, 0x0A, 0x10]) + struct.pack("<QQ", 1, 2), bytes([5, 0x0A, 5, 0x0A, 3, 1, 2, 3]), bytes([1, 0x0A, 4]) + b"abcd", bytes([6, 0x08, 7, 0x12, 2]) + b"xy", bytes([0]), bytes([7, 0x0A, 2]) + b"ab" + bytes([0x18, 9, 0x21]) + struct.pack("<d", 0.7) + bytes([0x4A, 1]) + b"x"]


def shard(frames):
    """A shard's header with a table of `frames` lines; whoever reads it makes the checksum right."""
    table = b"".join(struct.pack("<QI", 7 * i, 100 + i) for i in range(frames))
    size = 64 + len(table) + 16 + sum(100 + i for i in range(frames))
    return b"DSTS" + struct.pack("<HHIIQQ", 1, 0, 3, frames, 5, size) + bytes(range(32)) + table + bytes(16)


def main():
    for target, patterns in FIXTURES.items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(path for pattern in patterns for path in TESTS.glob(pattern)):
            shutil.copy(path, folder / f"{path.parent.name}-{path.name}")
    written = {f"template/{name}": text.encode() for name, text in TEMPLATES.items()}
    written |= {f"jsonl/row-{i}": json.dumps(row).encode() + b"\n" for i, row in enumerate(ROWS)}
    written |= {f"{target}/small": text.encode() for target, text in TOML.items()}
    written |= {f"requests/{i}": request for i, request in enumerate(REQUESTS)}
    written |= {f"shard/{n}": shard(n) for n in (1, 5)}
    for name, content in written.items():
        path = CORPUS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


if __name__ == "__main__":
    main()
