"""Provides random models in real shapes: a tokenizer that knows every id, weights as safetensors, and text that the tokenizer encodes.

Speed and memory depend on shapes, not on what a model knows, so nothing needs to be fetched. Weights are bf16 with a deviation of 0.02, as Qwen2.5's
initialisation has them; matrices repeat a block of a prime length, so that no two rows are equal.
"""

import array
import json
import pathlib
import random

# Length of the repeated block in elements: prime, so that rows of any width start at every place of it before they come again.
BLOCK_ELEMENTS = 1_048_583
DEVIATION = 0.02
ONE = b"\x80\x3f"  # bf16, little-endian
WIDTHS = {"BF16": 2, "F32": 4, "U8": 1}

QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "torch_dtype": "bfloat16",
    "bos_token_id": None,
    "eos_token_id": None,
}
# Ids that Qwen2.5's tokenizer knows; the rest of the heads' rows is padding.
TOKENS = 151_665
TEACHER = QWEN | {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152_064,
    "tie_word_embeddings": False,
}
STUDENT = QWEN | {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
}
TINY_TOKENS = 384
TINY_TEACHER = TEACHER | {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 416,
}
TINY_STUDENT = STUDENT | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 400,
}


def shapes(config):
    """Every tensor of a Qwen2 checkpoint with its shape, in the order they are written."""
    d, ff = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    q, kv = d, d // heads * kv_heads
    rows = [config["vocab_size"], d]
    yield "model.embed_tokens.weight", rows
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", [d]
        for name, size in (("q", q), ("k", kv), ("v", kv)):
            yield prefix + f"self_attn.{name}_proj.weight", [size, d]
            yield prefix + f"self_attn.{name}_proj.bias", [size]
        yield prefix + "self_attn.o_proj.weight", [d, q]
        yield prefix + "post_attention_layernorm.weight", [d]
        yield prefix + "mlp.gate_proj.weight", [ff, d]
        yield prefix + "mlp.up_proj.weight", [ff, d]
        yield prefix + "mlp.down_proj.weight", [d, ff]
    yield "model.norm.weight", [d]
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", rows


def elements(shape):
    count = 1
    for size in shape:
        count *= size
    return count


def matrix_flops(config):
    """Floating-point operations of the matrix products a token: every linear and the head's rows inside the vocabulary, two each element."""
    linears = sum(elements(shape) for name, shape in shapes(config) if name.endswith("proj.weight"))
    return 2 * (linears + config["hidden_size"] * min(config["vocab_size"], TOKENS))


def random_block(seed):
    """Normal bf16 numbers as little-endian bytes, rounded towards zero."""
    numbers = random.Random(seed)
    floats = array.array("f", (numbers.gauss(0.0, DEVIATION) for _ in range(BLOCK_ELEMENTS)))
    wide = floats.tobytes()
    block = bytearray(2 * BLOCK_ELEMENTS)
    block[0::2] = wide[2::4]
    block[1::2] = wide[3::4]
    return bytes(block)


def file_head(tensors):
    """What a safetensors file begins with, for tensors of (name, type, shape); and the bytes that follow."""
    header, offset = {}, 0
    for name, dtype, shape in tensors:
        end = offset + WIDTHS[dtype] * elements(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offset


def write_weights(path, config, seed):
    """One safetensors file; `path` appears when it is whole."""
    head, size = file_head((name, "BF16", shape) for name, shape in shapes(config))
    block, starts = random_block(seed), random.Random(seed + 1)
    partial = path.with_suffix(".partial")
    with open(partial, "wb", buffering=0) as file:
        file.write(head)
        for name, shape in shapes(config):
            left = 2 * elements(shape)
            if name.endswith("norm.weight"):
                file.write(ONE * elements(shape))
                continue
            start = 2 * starts.randrange(BLOCK_ELEMENTS)
            while left:
                piece = block[start : start + left]
                written = file.write(piece)
                left -= written
                start = (start + written) % len(block)
    partial.rename(path)
    return size


def byte_symbols():
    """GPT-2's printable character for every byte, letters and the space first."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols, extra = {byte: chr(byte) for byte in plain}, 0
    for byte in range(256):
        if byte not in symbols:
            symbols[byte] = chr(256 + extra)
            extra += 1
    first = [ord(" "), *range(ord("a"), ord("z") + 1)]
    order = first + [byte for byte in range(256) if byte not in first]
    return [symbols[byte] for byte in order]


def tokenizer_json(tokens):
    """A byte-level BPE of `tokens` ids: bytes, pairs, then triples, as many as it takes, and an end of text."""
    symbols = byte_symbols()
    vocab, merges = {symbol: number for number, symbol in enumerate(symbols)}, []

    def merge(left, right):
        if len(vocab) < tokens - 1 and left + right not in vocab:
            vocab[left + right] = len(vocab)
            merges.append([left, right])

    pairs = [(a, b) for span in range(256) for a, b in around(symbols, span)]
    for a, b in pairs:
        merge(a, b)
    for a, b in pairs:
        if len(vocab) == tokens - 1:
            break
        for c in symbols:
            merge(a + b, c)
    end = {"id": tokens - 1, "content": "<|endoftext|>", "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": merges},
    }


def around(symbols, span):
    """Pairs whose later symbol is number `span`: frequent symbols meet before rare ones do."""
    last = symbols[span]
    for symbol in symbols[:span]:
        yield symbol, last
        yield last, symbol
    yield last, last


def write_text(path, size, seed=7):
    """About `size` bytes of random words, in paragraphs."""
    numbers = random.Random(seed)
    words = ["".join(numbers.choices("etaoinshrdlucmfw", k=numbers.randint(2, 9))) for _ in range(20_000)]
    with open(path, "w") as file:
        while file.tell() < size:
            file.write(" ".join(numbers.choices(words, k=400)) + ".\n\n")


def make_folder(folder, config, tokenizer):
    """A model's folder with all but its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}))


def make(directory, tiny=False, text_bytes=None):
    """`directory`/teacher, student (both dense bf16) and corpus.txt; what is there already stays. Bytes of both models' weights."""
    directory = pathlib.Path(directory)
    tokens = TINY_TOKENS if tiny else TOKENS
    configs = {"teacher": TINY_TEACHER if tiny else TEACHER, "student": TINY_STUDENT if tiny else STUDENT}
    sizes = {}
    tokenizer = json.dumps(tokenizer_json(tokens), ensure_ascii=False)
    for seed, (name, config) in enumerate(configs.items()):
        folder = directory / name
        make_folder(folder, config, tokenizer)
        path = folder / "model.safetensors"
        sizes[name] = 2 * sum(elements(shape) for _, shape in shapes(config))
        if not path.exists():
            write_weights(path, config, seed)
    corpus = directory / "corpus.txt"
    if not corpus.exists():
        write_text(corpus, text_bytes or (200_000 if tiny else 5_000_000))
    return sizes
