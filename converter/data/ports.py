"""What a model takes: names, element types and shapes of its inputs, and arrays that fit them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from converter.errors import BatchError, DataError

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]
Dim = int | str | None
ANONYMOUS = frozenset({"", "?", "None", "none", "-1"})
"""Names that exporters give to dimensions of which they know nothing; they promise no equality."""
_KINDS = {"b": "bool", "i": "int", "u": "int", "f": "float", "c": "complex", "U": "string"}


@dataclass(frozen=True)
class Port:
    """One input of a model.

    Attributes:
        name: Name of the graph input.
        dtype: Element type for numpy; ``object`` for strings.
        shape: Size, name or None (unknown) per axis; None when not even the rank is known.
        optional: It has a default (an initializer of the same name).
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[Dim, ...] | None
    optional: bool = False

    @property
    def rank(self) -> int | None:
        """Number of axes, or None when unknown."""
        return None if self.shape is None else len(self.shape)

    @property
    def fixed(self) -> int | None:
        """Size of axis 0 when the model fixes it, else None."""
        if not self.shape or not isinstance(self.shape[0], int):
            return None
        return self.shape[0]

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype} of any shape"
        return f"{self.dtype} ({', '.join('?' if d is None else str(d) for d in self.shape)})"


def ports_of(model: ir.Model) -> dict[str, Port]:
    """Return the inputs of a model by name.

    Raises:
        DataError: An input without a default is no tensor (a sequence, a map, an optional).
    """
    ports = {}
    for value in model.graph.inputs:
        optional = value.is_initializer()
        dtype = value.dtype
        if not _is_tensor(value) or dtype is None:
            if optional:
                continue
            raise DataError(
                f"input {value.name!r} is no tensor but {value.type}",
                allowed="models whose inputs are tensors",
                hint="convert with --no-verify and without passes that need data",
            )
        kind = np.dtype(object) if dtype.name == "STRING" else np.dtype(dtype.numpy())
        ports[str(value.name)] = Port(str(value.name), kind, _dims(value.shape), optional)
    return ports


def _is_tensor(value: ir.Value) -> bool:
    import onnx_ir as ir

    return isinstance(value.type, ir.TensorType)


def _dims(shape: ir.Shape | None) -> tuple[Dim, ...] | None:
    if shape is None:
        return None
    return tuple(_dim(d) for d in shape)


def _dim(dim: Any) -> Dim:
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    text = dim.value
    return None if text is None or str(text) in ANONYMOUS else str(text)


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known names are near, as a hint; empty when none is."""
    names = {each.lower(): each for each in known}
    found = [names[n] for n in difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)]
    return f"did you mean {' or '.join(map(repr, found))}?" if found else ""


def check_names(given: Iterable[str], ports: Mapping[str, Port], where: str) -> None:
    """Refuse names that are no inputs, and inputs without an array.

    Raises:
        BatchError: Names the wrong ones and what is near.
    """
    names = list(given)
    inputs = f"arrays named after the model's inputs: {', '.join(ports) or '(it has none)'}"
    for name in names:
        if name not in ports:
            raise BatchError(
                f"array {name!r} is no input of the model",
                where=where,
                allowed=inputs,
                hint=nearest(name, ports) or "rename the array, or leave it out",
            )
    missing = [p.name for p in ports.values() if not p.optional and p.name not in names]
    if missing:
        raise BatchError(
            f"no array for {'input' if len(missing) == 1 else 'inputs'} "
            + ", ".join(map(repr, missing)),
            where=where,
            allowed=inputs,
            hint="add the missing arrays",
        )


def check_dtype(given: np.dtype[Any], port: Port, where: str) -> None:
    """Refuse element types that cannot be turned into the port's without guessing.

    Raises:
        BatchError: The kinds (bool, int, float, string) differ.
    """
    if given == port.dtype or kind_of(given) == kind_of(port.dtype):
        return
    if _is_raw(given) and _is_small(port.dtype) and given.itemsize == port.dtype.itemsize:
        return
    raise BatchError(
        f"array {port.name!r} has elements of type {given}, the input takes {port.dtype}",
        where=where,
        allowed=f"{kind_of(port.dtype) or port.dtype} elements",
        hint="save it with the input's element type, scaled as the model expects"
        if kind_of(port.dtype) == "float"
        else f"save it with .astype({str(port.dtype)!r})",
    )


def _is_raw(dtype: np.dtype[Any]) -> bool:
    """Tell whether numpy stored a type that it does not know, such as bfloat16, as raw bytes."""
    return dtype.kind == "V" and dtype.names is None and not _is_small(dtype)


def _is_small(dtype: np.dtype[Any]) -> bool:
    return dtype.type.__module__ == "ml_dtypes"


def kind_of(dtype: np.dtype[Any]) -> str:
    """Return bool, int, float, complex, string, or empty for anything else."""
    if dtype.kind in {"O", "S"}:
        return "string"
    if dtype.type.__module__ == "ml_dtypes":
        return "int" if "int" in dtype.name else "float"
    return _KINDS.get(dtype.kind, "")


def fit(array: Array, port: Port, where: str) -> Array:
    """Return the array with the port's element type; values must survive that.

    Raises:
        BatchError: NaN, infinity, or a value that the element type cannot hold.
    """
    check_dtype(array.dtype, port, where)
    if port.dtype == object:
        return _strings(array, port, where)
    if _is_raw(array.dtype):
        array = array.view(port.dtype)
    kind = kind_of(port.dtype)
    if kind == "int" and array.dtype != port.dtype:
        _check_range(array, port, where)
    with np.errstate(over="ignore", invalid="ignore"):
        out = np.ascontiguousarray(array).reshape(array.shape).astype(port.dtype, copy=False)
    if kind in {"float", "complex"}:
        _check_finite(array, out, port, where)
    return out


def _strings(array: Array, port: Port, where: str) -> Array:
    try:
        flat = [v.decode() if isinstance(v, bytes) else v for v in array.reshape(-1).tolist()]
    except UnicodeDecodeError as error:
        raise BatchError(
            f"array {port.name!r} holds text that is not UTF-8", where=where
        ) from error
    if not all(isinstance(v, str) for v in flat):
        raise BatchError(
            f"array {port.name!r} holds other objects than text", where=where, allowed="strings"
        )
    out = np.empty(len(flat), object)
    out[:] = flat
    return out.reshape(array.shape)


def _check_range(array: Array, port: Port, where: str) -> None:
    import ml_dtypes

    if not array.size:
        return
    plain = array.astype(np.int64) if array.dtype.type.__module__ == "ml_dtypes" else array
    low, high = int(plain.min()), int(plain.max())
    info: Any = ml_dtypes.iinfo(port.dtype)  # type: ignore[no-untyped-call]
    if low < info.min or high > info.max:
        raise BatchError(
            f"array {port.name!r} holds values from {low} to {high}, more than {port.dtype} can",
            where=where,
            allowed=f"{info.min} to {info.max}",
            hint=f"save it with .astype({str(port.dtype)!r}) after bringing it into range",
        )


def _check_finite(array: Array, out: Array, port: Port, where: str) -> None:
    if out.dtype.itemsize < 2 and out.dtype.type.__module__ == "ml_dtypes":
        out = out.astype(np.float32)
    bad = ~np.isfinite(out)
    if not bad.any():
        return
    at = tuple(int(i) for i in np.argwhere(np.atleast_1d(bad))[0])
    value = np.atleast_1d(array)[at]
    lost = bool(np.isfinite(value))
    raise BatchError(
        f"array {port.name!r} holds {value} at {list(at)}"
        + (f", which {port.dtype} cannot hold" if lost else ""),
        where=where,
        allowed="finite numbers",
        hint="remove or repair the samples with NaN or infinity",
    )


def check_shapes(
    shapes: Mapping[str, Sequence[int]], ports: Mapping[str, Port], where: str
) -> None:
    """Hold the shapes of one feed against the model: ranks, fixed sizes, equal names.

    Raises:
        BatchError: Says which array does not fit, what was expected and what it has.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for name, shape in shapes.items():
        port = ports[name]
        if port.shape is None:
            continue
        wrong = len(shape) != len(port.shape) or any(
            isinstance(want, int) and want != have
            for want, have in zip(port.shape, shape, strict=False)
        )
        if wrong:
            raise BatchError(
                f"array {name!r} gives the input shape {tuple(shape)}",
                where=where,
                allowed=str(port),
                hint="bring the array into the input's shape; an array with one axis more holds "
                "complete inputs",
            )
        for want, have in zip(port.shape, shape, strict=True):
            if isinstance(want, str):
                _same_size(sizes, want, have, name, where)


def _same_size(
    sizes: dict[str, tuple[int, str]], dim: str, size: int, name: str, where: str
) -> None:
    first, owner = sizes.setdefault(dim, (size, name))
    if first != size:
        raise BatchError(
            f"dimension {dim!r} is {first} in array {owner!r} and {size} in array {name!r}",
            where=where,
            allowed="one size for dimensions of one name",
        )


def fit_feed(feed: Mapping[str, Any], ports: Mapping[str, Port], where: str) -> dict[str, Array]:
    """Check one complete feed and return it with the inputs' element types.

    Raises:
        BatchError: A name, type, shape or value is wrong.
    """
    check_names(feed, ports, where)
    arrays = {name: np.asarray(value) for name, value in feed.items()}
    made = {name: fit(array, ports[name], where) for name, array in arrays.items()}
    check_shapes({name: array.shape for name, array in made.items()}, ports, where)
    return made
