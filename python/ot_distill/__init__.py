"""Reads what a teacher said about a corpus: the caches that `teacher-server precompute` fills.

    for frame in ot_distill.Cache("caches/train"):
        print(frame.text, frame.tokens, frame.ids, frame.log_probs())

Nothing is written and no lock is taken: a server or a capture may go on beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, overload

import numpy
from numpy.typing import NDArray

from . import _native
from ._native import Error

__all__ = ["Cache", "Error", "Frame"]

Bools = NDArray[numpy.bool_]
Floats = NDArray[numpy.float32]
Ids = NDArray[numpy.uint32]


_KINDS: dict[str, Any] = {
    **dict.fromkeys(("tokens", "byte_offsets", "ids", "counts"), numpy.uint32),
    **dict.fromkeys(("target_mask", "padding"), numpy.bool_),
    **dict.fromkeys(("logits", "max", "mean", "std", "logsumexp"), numpy.float32),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """One sequence of T tokens, R of them targets, with K entries that the teacher's row for each target keeps.

    Row i describes the distribution of the token at `target_positions[i]`, that is the teacher's output one position before it.
    Arrays cannot be written to; copy those that are to be changed.
    """

    sequence_id: int
    """Derived from the sequence, unique in a cache."""
    index: int
    """Place in the order of the capture."""
    text: str
    student_record: str | None
    """JSON of what the student reads, where that is another text."""
    tokens: Ids
    """[T]"""
    byte_offsets: Ids
    """[T, 2]: where a token begins and ends in `text.encode()`."""
    target_mask: Bools
    """[T]"""
    estimator: str
    """`top-k`: the largest logits; `sampled`: draws; `head+sampled`: both."""
    ids: Ids
    """[R, K], increasing in a row."""
    logits: Floats
    """[R, K]"""
    counts: Ids
    """[R, K]: draws of an id, 0 where it is kept as one of the largest."""
    padding: Bools
    """[R, K]: entries that only fill their row up."""
    max: Floats
    """[R], over the whole vocabulary, as the next three."""
    mean: Floats
    std: Floats
    temperatures: tuple[float, ...]
    logsumexp: Floats
    """[temperatures, R], of the logits divided by each of them."""
    state: Floats | None
    """[R, D], where `--state` was given."""

    @property
    def target_positions(self) -> NDArray[numpy.intp]:
        """[R]"""
        return numpy.flatnonzero(self.target_mask)

    def log_probs(self, temperature: float = 1.0) -> Floats:
        """[R, K], normalised over the whole vocabulary; -inf in padding."""
        if temperature not in self.temperatures:
            raise ValueError(f"temperature {temperature} is not among those that this cache was captured with: {self.temperatures}")
        logsumexp = self.logsumexp[self.temperatures.index(temperature)]
        log_probs: Floats = self.logits / numpy.float32(temperature) - logsumexp[:, None]
        log_probs[self.padding] = -numpy.inf
        return log_probs


class Cache(_native.Cache):
    """The frames of a cache that are there, in the order in which they are served."""

    def __iter__(self) -> Iterator[Frame]:
        return (self[position] for position in range(len(self)))

    @overload
    def __getitem__(self, position: int) -> Frame: ...
    @overload
    def __getitem__(self, position: slice) -> list[Frame]: ...
    def __getitem__(self, position: int | slice) -> Frame | list[Frame]:
        if isinstance(position, slice):
            return [self[at] for at in range(*position.indices(len(self)))]
        at = position + len(self) if position < 0 else position
        if not 0 <= at < len(self):
            raise IndexError(f"frame {position} of a cache with {len(self)} of them")
        return _frame(self.fields(at))


def _frame(fields: dict[str, Any]) -> Frame:
    """Gives the numbers of a frame their shapes."""
    numbers = {name: numpy.frombuffer(fields[name], kind) for name, kind in _KINDS.items()}
    rows, k = int(numbers["target_mask"].sum()), fields.pop("k")
    for name in ("ids", "logits", "counts", "padding"):
        numbers[name] = numbers[name].reshape(rows, k)
    numbers["byte_offsets"] = numbers["byte_offsets"].reshape(-1, 2)
    temperatures = tuple(fields["temperatures"])
    numbers["logsumexp"] = numbers["logsumexp"].reshape(len(temperatures), rows)
    state = fields["state"]
    if state is not None:
        values, rank = state
        state = numpy.frombuffer(values, numpy.float32).reshape(rows, rank)
    return Frame(**{**fields, **numbers, "temperatures": temperatures, "state": state})
