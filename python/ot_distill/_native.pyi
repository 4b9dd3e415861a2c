"""The extension module; `ot_distill` is what to import."""

from os import PathLike
from pathlib import Path
from typing import Any

from typing_extensions import Self

class Error(Exception):
    """A cache that cannot be read; the message names the file and what to do."""

class Cache:
    def __new__(cls, path: str | PathLike[str]) -> Self: ...
    def __len__(self) -> int: ...
    def fields(self, position: int) -> dict[str, Any]: ...
    @property
    def path(self) -> Path: ...
    @property
    def model(self) -> str: """Name of the teacher's directory."""
    @property
    def settings(self) -> str: """What it was captured with, TOML."""
    @property
    def sequences(self) -> int: """Sequences of the corpus, with those that are still to be computed."""
    @property
    def vocab_size(self) -> int: """Every id is below it."""
    @property
    def plan_fingerprint(self) -> str: ...
    @property
    def tokenizer_fingerprint(self) -> str: ...
