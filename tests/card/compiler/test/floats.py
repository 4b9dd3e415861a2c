"""Proves the small floats of tests/card/include against torch: every one of them both ways, and awkward numbers between them.

python floats.py LIBRARY   (floats.cpp as a shared library; test.sh builds it)
"""

import ctypes
import sys

import numpy as np
import torch

library = ctypes.CDLL(sys.argv[1])
NAMES = {"half": torch.float16, "bf16": torch.bfloat16, "e4m3": torch.float8_e4m3fn}
checked = 0


def call(name, out, *inputs):
    result = np.empty(inputs[0].size, out)
    pointers = [np.ascontiguousarray(x).ctypes.data_as(ctypes.c_void_p) for x in inputs]
    function = getattr(library, name)
    function(*pointers, result.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(result.size))
    return result


def agree(what, ours, theirs, bits):
    """Bit for bit, but that NaN is NaN."""
    global checked
    checked += ours.size
    kind = next(k for n, k in NAMES.items() if n == bits)
    integer = torch.uint8 if kind.itemsize == 1 else torch.int16
    a = torch.from_numpy(ours.view(np.uint8 if kind.itemsize == 1 else np.int16)).view(kind)
    b = theirs.view(integer).view(kind)
    same = (a.view(integer) == b.view(integer)) | (a.float().isnan() & b.float().isnan())
    assert same.all(), (what, int((~same).sum()), int((~same).nonzero()[0]))


def awkward(kind):
    """Every number of the type, the middles between neighbours, and what lies just beside those."""
    bits = torch.arange(256 if kind.itemsize == 1 else 65536)
    numbers = bits.to(torch.uint8).view(kind) if kind.itemsize == 1 else bits.to(torch.int32).to(torch.int16).view(kind)
    wide = np.unique(numbers.float().numpy().astype(np.float64))
    wide = wide[np.isfinite(wide)]
    middle = (wide[1:] + wide[:-1]) / 2
    edge = np.concatenate([wide, middle, [3.5e38, -3.5e38, 65519.99, 65520.0, 1e-45, -1e-45, 0.0, -0.0]])
    return np.concatenate([edge, np.nextafter(edge, np.inf), np.nextafter(edge, -np.inf)])


for name, kind in NAMES.items():
    out = np.uint8 if kind.itemsize == 1 else np.uint16
    every = np.arange(256 if kind.itemsize == 1 else 65536).astype(out)
    wide = call(f"{name}_wide", np.float32, every)
    theirs = torch.from_numpy(every.view(np.int8 if kind.itemsize == 1 else np.int16)).view(kind).float().numpy()
    assert ((wide.view(np.uint32) == theirs.view(np.uint32)) | (np.isnan(wide) & np.isnan(theirs))).all(), name
    doubles = awkward(kind)
    if name == "e4m3":
        # What is too large becomes the largest, as on a card; torch makes it NaN.
        doubles = np.clip(doubles, -448, 448)
    # Doubles go through numpy where it rounds once, and torch rounds twice.
    once = torch.from_numpy(doubles.astype(np.float16)) if name == "half" else None
    singles = doubles.astype(np.float32)
    agree(f"f32 to {name}", call(f"f32_{name}", out, singles), torch.from_numpy(singles).to(kind), name)
    if once is not None:
        agree(f"f64 to {name}", call(f"f64_{name}", out, doubles), once, name)
    else:
        # To odd in f32, then rounded: right for any narrower type.
        near = doubles.astype(np.float32)
        bits = near.view(np.uint32).copy()
        inexact = near.astype(np.float64) != doubles
        outward = np.abs(near.astype(np.float64)) > np.abs(doubles)
        bits = np.where(inexact, (bits - outward.astype(np.uint32)) | 1, bits).astype(np.uint32)
        agree(f"f64 to {name}", call(f"f64_{name}", out, doubles), torch.from_numpy(bits.view(np.float32)).to(kind), name)
    if kind.itemsize == 1:
        assert (call("f32_e4m3", out, np.array([449, 1e9, np.inf, -np.inf], np.float32)) == [0x7E, 0x7E, 0x7E, 0xFE]).all()
        continue
    generator = np.random.default_rng(1)
    integers = np.concatenate([np.arange(-70000, 70000), generator.integers(-(2**63), 2**63 - 1, 100000), [2**63 - 1, -(2**63), 2**53 + 1]])
    # Python's integers round to f64 to odd by hand: shift, and keep whether anything was lost.
    def to_odd(value):
        shift = max(abs(value).bit_length() - 40, 0)
        kept = abs(value) >> shift
        lost = kept << shift != abs(value)
        return float((kept | lost) << shift) * (1 if value >= 0 else -1)

    exact = np.array([to_odd(int(v)) for v in integers])
    with np.errstate(over="ignore"):
        reference = call(f"f64_{name}", out, exact)
    assert (call(f"i64_{name}", out, integers.astype(np.int64)) == reference).all(), name
    small = integers[(integers >= 0) & (integers < 2**32)]
    assert (call(f"u32_{name}", out, small.astype(np.uint32)) == reference[(integers >= 0) & (integers < 2**32)]).all(), name
    finite = np.nan_to_num(wide.astype(np.float64), nan=0.0, posinf=1e300, neginf=-1e300)
    cut = np.array([max(-(2**63), min(2**63 - 1, int(v))) for v in finite])
    assert (call(f"{name}_i64", np.int64, every) == cut).all(), name
    assert (call(f"{name}_u8", np.uint8, every) == np.clip(finite, 0, 255).astype(np.uint8)).all(), name
    a, b = (generator.integers(0, 65536, 1 << 21).astype(np.uint16) for _ in range(2))
    ta, tb = (torch.from_numpy(x.view(np.int16)).view(kind) for x in (a, b))
    for operation, theirs in (("sum", ta + tb), ("product", ta * tb), ("quotient", ta / tb)):
        agree(f"{name} {operation}", call(f"{name}_{operation}", np.uint16, a, b), theirs, name)
print(f"{checked} conversions and operations agree with torch")
