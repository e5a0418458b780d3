"""``fix_shapes``: dynamic dimensions of the inputs get one size, for runtimes that want it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import onnx_ir as ir

from converter.core.contract import Outcome, Pass, Skip
from converter.core.graph import graphs
from converter.core.params import Param
from converter.errors import ConverterError, PreconditionError
from passes.dimensions.expression import evaluate
from passes.dimensions.wanted import Wanted, dynamic_dims, is_dynamic, name_of, resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from converter.core.context import Context
    from converter.data.ports import Port


@dataclass(frozen=True)
class FixShapes(Pass):
    """Give dynamic dimensions of the inputs one size: ``fix_shapes:batch=1,seq=128``.

    A key is the name of a dimension, which is then set wherever it stands (``past + 1`` too, when
    ``past`` is given), or an input and an axis: ``fix_shapes:input.0=1``. A dimension that has a
    name means all of that name, unless its axes are given different sizes. Keys with a colon or
    other marks go in quotes. The result accepts exactly these sizes; it is run
    once with them, and sizes that the model cannot take are refused. After it, ``simplify`` can
    compute in advance whatever depended on the sizes.
    """

    name: ClassVar[str] = "fix_shapes"
    summary: ClassVar[str] = "give dynamic dimensions of the inputs one size"
    exact: ClassVar[bool] = True
    changes_interface: ClassVar[bool] = True

    dims: Annotated[
        tuple[tuple[str, int], ...], Param("name of a dimension, or input.axis, and its size", ge=1)
    ] = ()

    def requires(self, model: ir.Model, context: Context) -> None:
        """Check that the dimensions exist.

        Raises:
            PreconditionError: One does not, or is fixed to another size; lists those that exist.
        """
        del context
        resolve(model.graph, self.dims, self.name)

    def narrowed(self, model: ir.Model) -> ir.Model:
        """Return a model whose inputs have the sizes; samples are made or checked for it."""
        wanted = resolve(model.graph, self.dims, self.name)
        after = model.clone()
        _fix_ports(after.graph, wanted)
        return after

    def apply(self, model: ir.Model, context: Context) -> Outcome:
        """Set the dimensions everywhere and run the result once.

        Raises:
            PreconditionError: The model cannot take these sizes.
        """
        if not self.dims:
            return Outcome(modified=False, notes=(_nothing_asked(model),))
        wanted = resolve(model.graph, self.dims, self.name)
        before = model.clone()
        count = _fix_ports(model.graph, wanted)
        if not count:
            return Outcome(modified=False)
        _check_defaults(model.graph)
        _fix_inner(model, wanted)
        notes, skipped = _check_by_running(before, model, context)
        return Outcome(
            modified=True,
            counts={"dimensions_fixed": float(count)},
            skipped=skipped,
            notes=notes,
        )


def _nothing_asked(model: ir.Model) -> str:
    dims = ", ".join(dynamic_dims(model.graph)) or "none"
    return f"no dimension was given; the dynamic ones are: {dims}"


def _fix_ports(graph: ir.Graph, wanted: Wanted) -> int:
    """Set dimensions of inputs and outputs; return how many."""
    count = 0
    for value in dict.fromkeys((*graph.inputs, *graph.outputs)):
        count += _fix(value, wanted)
    for value in graph.inputs:
        for axis in range(len(value.shape or ())):
            size = wanted.axes.get((value.name or "", axis))
            if size is not None and value.shape is not None and is_dynamic(value.shape[axis]):
                value.shape = _with(value.shape, {axis: size})
                count += 1
    return count


def _fix(value: ir.Value, wanted: Wanted) -> int:
    """Set the named dimensions of one value."""
    if value.shape is None:
        return 0
    sizes: dict[int, int | None] = {}
    for axis, dim in enumerate(value.shape):
        name = name_of(dim)
        size = None if name is None else evaluate(name, wanted.names)
        if size is not None:
            sizes[axis] = size
    if sizes:
        value.shape = _with(value.shape, sizes)
    return len(sizes)


def _with(shape: ir.Shape, sizes: Mapping[int, int | None]) -> ir.Shape:
    """Return the shape with other sizes; denotations stay."""
    dims: list[Any] = [sizes.get(axis, dim) for axis, dim in enumerate(shape)]
    return ir.Shape(dims, [shape.get_denotation(axis) for axis in range(len(shape))])


def _fix_inner(model: ir.Model, wanted: Wanted) -> None:
    """Set the dimensions of declared values; in inner graphs a name may mean something else."""
    ports = {*model.graph.inputs, *model.graph.outputs}
    for graph in graphs(model):
        values = [output for node in graph for output in node.outputs]
        if graph is not model.graph:
            values += [*graph.inputs, *graph.outputs]
        for value in dict.fromkeys(values):
            if value in ports or value.shape is None:
                continue
            if graph is model.graph:
                _fix(value, wanted)
                continue
            named = {
                axis: None
                for axis, dim in enumerate(value.shape)
                if (name := name_of(dim)) is not None and evaluate(name, wanted.names) is not None
            }
            if named:
                value.shape = _with(value.shape, named)


def _check_defaults(graph: ir.Graph) -> None:
    """An input with a default value keeps the shape of that value."""
    for value in graph.inputs:
        tensor = value.const_value if value.name in graph.initializers else None
        if tensor is None or value.shape is None:
            continue
        dims = tuple(int(d) for d in tensor.shape.numpy())
        if any(
            isinstance(d, int) and d != size for d, size in zip(value.shape, dims, strict=False)
        ):
            raise PreconditionError(
                f"the default value of input {value.name!r} has the shape {list(dims)}",
                pass_name=FixShapes.name,
                allowed="sizes that the default value has",
            )


# Running


def _check_by_running(
    before: ir.Model, after: ir.Model, context: Context
) -> tuple[tuple[str, ...], tuple[Skip, ...]]:
    """Run the result once with its sizes; free outputs that turn out to have another size."""
    if context.services is None:
        return (), ()
    feed = _feed(after, context)
    try:
        found = context.run(after, [feed])[0]
    except ConverterError as error:
        if _runs_at_all(before, context):
            raise PreconditionError(
                f"the model does not run with these sizes: {error.what}",
                pass_name=FixShapes.name,
                hint=_advice(after),
            ) from error
        return ("the result was not run, because the model does not run here anyway",), ()
    return (), tuple(_loosen(before, after, found))


def _advice(model: ir.Model) -> str:
    rest = ", ".join(dynamic_dims(model.graph))
    if not rest:
        return "choose sizes that fit each other and the weights"
    return f"sizes were made up for {rest}: give them too, or samples with --data"


def _loosen(before: ir.Model, after: ir.Model, found: Mapping[str, Any]) -> list[Skip]:
    """Give outputs their old dimensions back where the name did not mean what it said."""
    skipped = []
    for old, new in zip(before.graph.outputs, after.graph.outputs, strict=True):
        shape = getattr(found.get(new.name or ""), "shape", None)
        if shape is None or new.shape is None or old.shape is None or len(shape) != len(new.shape):
            continue
        pairs = enumerate(zip(old.shape, new.shape, shape, strict=True))
        wrong = {axis: dim for axis, (dim, now, real) in pairs if now not in (dim, real)}
        if wrong:
            new.shape = _with(new.shape, wrong)  # type: ignore[arg-type]
            skipped.append(Skip(new.name or "", "it has another size than its dimension names say"))
    return skipped


def _feed(model: ir.Model, context: Context) -> Mapping[str, Any]:
    """Return samples of the user where they fit, else made-up ones."""
    from converter.data.ports import ports_of
    from converter.data.synthetic import make_synthetic

    ports = ports_of(model)
    for batch in context.dataset or ():
        if all(_fits(ports[name], array) for name, array in batch.inputs.items() if name in ports):
            return batch.inputs
        break
    return next(iter(make_synthetic(model, ports, seed=context.seed))).inputs


def _fits(port: Port, array: Any) -> bool:
    shape = getattr(array, "shape", None)
    if shape is None or port.shape is None:
        return True
    pairs = zip(port.shape, shape, strict=False)
    return len(shape) == len(port.shape) and all(
        not isinstance(want, int) or want == have for want, have in pairs
    )


def _runs_at_all(model: ir.Model, context: Context) -> bool:
    """Tell whether the model runs with the sizes that it is tried with when nothing is asked."""
    try:
        context.run(model, [_feed(model, context)])
    except ConverterError:
        return False
    return True
