"""Which dimensions of a model's inputs are dynamic, and which of them a user means."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from converter.core.values import nearest
from converter.data.ports import ANONYMOUS
from converter.errors import PreconditionError

if TYPE_CHECKING:
    import onnx_ir as ir

_LARGEST = (1 << 31) - 1
_SHOWN = 12


@dataclass(frozen=True)
class Wanted:
    """What a user asked for, in terms of one model.

    Attributes:
        names: Sizes by dimension name.
        axes: Sizes by input and axis, for dimensions without a name.
    """

    names: dict[str, int]
    axes: dict[tuple[str, int], int]


def dynamic_dims(graph: ir.Graph) -> tuple[str, ...]:
    """List the dynamic dimensions of the inputs, as a user would write them."""
    found: dict[str, None] = {}
    for value in graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            name = name_of(dim)
            if name is not None:
                found[name] = None
            elif is_dynamic(dim):
                found[f"{value.name}.{axis}"] = None
    return tuple(found)


def is_dynamic(dim: int | ir.SymbolicDim) -> bool:
    """Tell whether any size is accepted; some exporters write -1 for that."""
    return not isinstance(dim, int) or dim < 0


def name_of(dim: int | ir.SymbolicDim) -> str | None:
    """Return the name of a dynamic dimension, None for a fixed or nameless one."""
    if isinstance(dim, int) or dim.value is None or dim.value in ANONYMOUS:
        return None
    return str(dim.value)


def resolve(graph: ir.Graph, pairs: Iterable[tuple[str, int]], pass_name: str) -> Wanted:
    """Find out what each key means.

    Raises:
        PreconditionError: A key is neither the name of a dynamic dimension of an input nor an input
            and one of its axes, or contradicts what the model fixes.
    """
    known = {name_of(dim) for value in graph.inputs for dim in value.shape or ()} - {None}
    wanted = Wanted({}, {})
    for key, size in pairs:
        if size > _LARGEST:
            raise PreconditionError(
                f"dimension {key} cannot be {size}", pass_name=pass_name, allowed=f"1 to {_LARGEST}"
            )
        if key in known:
            wanted.names[key] = size
        else:
            wanted.axes[_axis(graph, key, size, pass_name)] = size
    _spread(graph, wanted)
    return wanted


def _spread(graph: ir.Graph, wanted: Wanted) -> None:
    """An axis that has a name means all of that name, unless other axes of it get other sizes."""
    sizes: dict[str, set[int]] = {}
    values = {value.name: value for value in graph.inputs}
    for (name, axis), size in wanted.axes.items():
        dim = name_of((values[name].shape or ())[axis])
        if dim is not None:
            sizes.setdefault(dim, set()).add(size)
    for dim, given in sizes.items():
        if len(given) == 1:
            wanted.names.setdefault(dim, *given)


def _axis(graph: ir.Graph, key: str, size: int, pass_name: str) -> tuple[str, int]:
    name, dot, text = key.rpartition(".")
    value = next((v for v in graph.inputs if v.name == name), None) if dot else None
    if value is None or not text.removeprefix("-").isdecimal():
        raise _unknown(graph, key, pass_name)
    if value.shape is None:
        raise PreconditionError(
            f"input {name!r} declares no shape, so axis {text} cannot be fixed",
            pass_name=pass_name,
            hint="export the model with the rank of its inputs",
        )
    rank, axis = len(value.shape), int(text)
    if not -rank <= axis < rank:
        raise PreconditionError(
            f"input {name!r} has no axis {text}", pass_name=pass_name, allowed=f"0 to {rank - 1}"
        )
    dim = value.shape[axis]
    if not is_dynamic(dim) and dim != size:
        raise PreconditionError(
            f"axis {text} of input {name!r} is {dim} and cannot become {size}",
            pass_name=pass_name,
            allowed=f"one of the dynamic dimensions: {_listed(graph)}",
        )
    return name, axis % rank


def _unknown(graph: ir.Graph, key: str, pass_name: str) -> PreconditionError:
    inputs = {value.name for value in graph.inputs}
    outputs = {name_of(d) for v in graph.outputs for d in v.shape or ()}
    what = f"the inputs have no dynamic dimension {key!r}"
    hint = nearest(key, dynamic_dims(graph))
    if key in outputs:
        what = f"dimension {key!r} is of outputs only, so it follows from the inputs"
    elif key in inputs:
        hint = f"say which axis: {key}.0=..."
    return PreconditionError(what, pass_name=pass_name, allowed=_listed(graph), hint=hint)


def _listed(graph: ir.Graph) -> str:
    dims = dynamic_dims(graph)
    if not dims:
        return "none, because every dimension of the inputs is fixed"
    rest = f" and {len(dims) - _SHOWN} more" if len(dims) > _SHOWN else ""
    return ", ".join(dims[:_SHOWN]) + rest
