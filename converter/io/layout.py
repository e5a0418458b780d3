"""How a model is laid out in files: one or several, which container, with or without weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from converter.errors import UsageError

ExternalData = Literal["auto", "yes", "no"]
WeightsFormat = Literal["raw", "safetensors"]

MIN_SHARD_BYTES = 1 << 12
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", re.ASCII)
_UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
}  # fmt: skip
_SIZES = "a number of bytes such as 2GB, 500MB or 1GiB, from 4096 bytes"


def parse_size(text: str | int) -> int:
    """Return the bytes that a size such as ``"2GB"`` stands for.

    Raises:
        UsageError: It is no size, or too small for a file of weights.
    """
    match = _SIZE.fullmatch(str(text)) if not isinstance(text, bool) else None
    unit = None if match is None else _UNITS.get(match[2].lower())
    if match is None or unit is None or float(match[1]) * unit < MIN_SHARD_BYTES:
        raise UsageError(f"the shard size is {text!r}", allowed=_SIZES, hint="--shard-size 2GB")
    return int(float(match[1]) * unit)


@dataclass(frozen=True)
class Layout:
    """What is written, in how many files, of which kind.

    Attributes:
        external_data: ``"no"``: one file; ``"yes"``: weights beside it; ``"auto"``: one file unless
            it would pass 1.9 GB, the source had external data, or one of the next two asks for it.
        shard_size: No data file gets larger than so many bytes, unless one tensor alone is.
        weights_format: Container of the weights beside the model.
        strip_weights: Write the graph without its weights and without texts about its origin.
        sparse_initializers: Write tensors with many zeros as sparse ones, where that is smaller.
    """

    external_data: ExternalData = "auto"
    shard_size: int | None = None
    weights_format: WeightsFormat = "raw"
    strip_weights: bool = False
    sparse_initializers: bool = False

    def __post_init__(self) -> None:
        _check_word("external_data", self.external_data, get_args(ExternalData))
        _check_word("weights_format", self.weights_format, get_args(WeightsFormat))
        if self.shard_size is not None and self.shard_size < MIN_SHARD_BYTES:
            raise UsageError(f"the shard size is {self.shard_size}", allowed=_SIZES)
        asked = self._asked()
        if asked and self.external_data == "no":
            raise UsageError(
                f"{asked} puts weights beside the model, and external data is switched off",
                hint="leave out --external-data no, or the other option",
            )
        if self.strip_weights and (asked or self.external_data == "yes"):
            raise UsageError(
                "a model without weights has nothing to put beside it",
                hint=f"leave out {asked or '--external-data yes'}, or --strip-weights",
            )
        if self.sparse_initializers and (self.strip_weights or self.weights_format != "raw"):
            other = "--strip-weights" if self.strip_weights else "--weights-format safetensors"
            raise UsageError(
                "sparse initializers are weights, and they lie in the model file",
                hint=f"leave out {other}, or --sparse-initializers",
            )

    def _asked(self) -> str:
        """Return the option that asks for weights beside the model, if one does."""
        if self.shard_size is not None:
            return "--shard-size"
        return "--weights-format safetensors" if self.weights_format != "raw" else ""

    @property
    def beside(self) -> bool:
        """Whether weights are to lie beside the model, whatever their size."""
        return self.external_data == "yes" or bool(self._asked())

    def check_single(self, form: str) -> None:
        """Refuse weights beside a form that holds everything in one file.

        Raises:
            UsageError: They were asked for.
        """
        if self.beside:
            raise UsageError(
                f"{form} holds everything in one file",
                allowed="weights beside a .onnx file",
                hint=f"leave out {self._asked() or '--external-data yes'}, or write a .onnx file",
            )


def _check_word(name: str, word: str, words: tuple[str, ...]) -> None:
    if word not in words:
        raise UsageError(f"{name} is {word!r}", allowed=", ".join(repr(w) for w in words))
