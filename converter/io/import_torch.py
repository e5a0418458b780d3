"""Loading PyTorch models: exported with the dynamo exporter, whose result is an IR model already.

Nothing is written on the way and weights are not copied: tensors of the model are views of the
module's own. The module is run on its example inputs as well, so that the export can be checked
against it (:mod:`converter.verification.export`).
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.core.graph import graphs, walk
from converter.errors import ConverterError, ModelError, UnsupportedOperatorError
from converter.io import meta
from converter.io.limits import LoadLimits
from converter.io.skeleton import to_skeleton
from converter.io.torch_explain import explained, short
from converter.io.torch_program import load_exported
from converter.io.torch_source import TorchSource, as_source, call_factory, require_torch
from converter.io.validate import validate

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

KEPT = frozenset({"pkg.torch.onnx.name_scopes"})
"""Metadata of the exporter that is worth keeping: where in the module a node comes from."""
_EXPORTER = ("pkg.torch.", "pkg.onnxscript.")
_EXPORTER_KEYS = frozenset({"namespace"})
_SCRUBBED = (
    "stack traces, class names and traced expressions of the exporter were left out; they hold "
    "paths of the machine that exported the model"
)


@dataclass(frozen=True)
class Example:
    """Inputs that a model was exported with.

    Attributes:
        inputs: Arrays by input name.
        outputs: What PyTorch computed from them, by output name.
    """

    inputs: Mapping[str, np.ndarray[Any, Any]]
    outputs: Mapping[str, np.ndarray[Any, Any]]


def load_factory(module: str, function: str, *, example: Any = None) -> ir.Model:
    """Load what a factory of the user's returns; see :mod:`converter.io.torch_source`.

    Raises:
        UsageError: There is no such factory, it fails, or returns something else.
        ModelError: torch is missing, or the model cannot be exported.
    """
    made = call_factory(module, function)
    return load_torch(made, example=example, where=f"{module}:{function}")


def load_program(path: Path, *, limits: LoadLimits) -> ir.Model:
    """Load a ``.pt2`` file; see :mod:`converter.io.torch_program` for what is let through.

    Raises:
        ModelError: torch is missing, or the file is damaged, hostile or too large.
    """
    torch = require_torch()
    with _quiet():
        program = load_exported(torch, path, limits)
    model = load_torch(program, where=str(path))
    if path.suffix.lower() == ".pt2":  # under the name of an ONNX model it would be taken for one
        model.meta[meta.PATH] = str(path.absolute())
    return model


def load_torch(value: Any, *, example: Any = None, where: str = "") -> ir.Model:
    """Turn a PyTorch source into an ONNX model in memory.

    ``model.meta`` holds an :class:`Example` where there were inputs (:data:`meta.EXAMPLE`), and
    notes (:data:`meta.NOTES`).

    Raises:
        UsageError: It is no PyTorch source.
        ModelError: torch is missing, the module fails on its example, or it cannot be exported.
    """
    torch = require_torch()
    source = as_source(value, example=example, where=where)
    if isinstance(source.model, torch.onnx.ONNXProgram):
        program, results = source.model, None
        model: ir.Model = program.model.clone()
    else:
        _refuse_script(torch, source)
        with _evaluation(source.model):
            results = _run(torch, source)
            program = _export(torch, source, results)
        model = program.model
    exported = program.exported_program
    if results is None and exported is not None:
        results = _run(torch, _as_given(exported, source))
    _name_inputs(model, source)
    _name_outputs(model, source, results)
    recorded = None if results is None else _record(model, exported, source, results)
    notes = [] if recorded else ["the export was not checked: the program has no example inputs"]
    notes += _fixed(exported)
    if _scrub(model):
        notes.append(_SCRUBBED)
    _validate(model)
    model.meta[meta.NOTES] = notes
    if recorded:
        model.meta[meta.EXAMPLE] = recorded
    return model


# --- running and exporting ------------------------------------------------------------------------


@contextlib.contextmanager
def _evaluation(model: Any) -> Iterator[None]:
    """Put a module into evaluation mode, and every part of it back afterwards."""
    parts = list(model.modules()) if hasattr(model, "modules") else []
    modes = [part.training for part in parts]
    if any(modes):
        model.eval()
    try:
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode


def _as_given(exported: Any, source: TorchSource) -> TorchSource:
    """Return a program with the inputs that it was exported with, unless others are given."""
    if source.args is not None or exported.example_inputs is None:
        return TorchSource(exported, source.args, source.kwargs, where=source.where)
    args, kwargs = exported.example_inputs
    return TorchSource(exported, tuple(args), kwargs or {}, where=source.where)


def _run(torch: Any, source: TorchSource) -> Any:
    """Run the model on its example; nothing it writes to is the caller's. None without example."""
    module = source.model
    if isinstance(module, torch.export.ExportedProgram):
        source = _as_given(module, source)
        module = module.module()
    if source.args is None:
        return None
    tree = torch.utils._pytree  # noqa: SLF001 - flattens as the exporter does
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    args, kwargs = tree.tree_map_only(
        torch.Tensor, lambda tensor: tensor.detach().clone(), (source.args, dict(source.kwargs))
    )
    try:
        with torch.no_grad(), _quiet():
            return torch.func.functional_call(module, buffers, args, kwargs)
    except ConverterError:
        raise
    except Exception as error:
        # the module is code of the user's own and may raise anything
        raise ModelError(
            f"the module fails on its example inputs: {type(error).__name__}: {short(str(error))}",
            where=source.where,
            hint="give inputs that model(*args, **kwargs) accepts",
        ) from error


def _refuse_script(torch: Any, source: TorchSource) -> None:
    if isinstance(source.model, torch.jit.ScriptModule):
        raise UnsupportedOperatorError(
            "TorchScript modules cannot be exported: they are compiled already",
            where=source.where,
            allowed="an nn.Module in Python",
            hint="give the module that torch.jit.script or torch.jit.trace was called with",
        )


def _validate(model: ir.Model) -> None:
    """Hold what the exporter made to the rules for files."""
    try:
        validate(to_skeleton(model)[0], LoadLimits())
    except ModelError as error:
        error.hint = (
            error.hint
            or "this is what PyTorch's exporter made; another opset (the key opset of a "
            "dict, from 18 on) or element type may avoid it"
        )
        raise


def _export(torch: Any, source: TorchSource, results: Any) -> Any:
    options: dict[str, Any] = {
        "dynamic_shapes": source.dynamic_shapes,
        "input_names": source.input_names,
        "output_names": source.output_names,
        "opset_version": source.opset,
    }
    if not isinstance(source.model, torch.export.ExportedProgram):
        options["kwargs"] = dict(source.kwargs)
    try:
        with _quiet():
            return torch.onnx.export(
                source.model, source.args or (), dynamo=True, verbose=False, **options
            )
    except Exception as error:
        # the exporter raises whatever it meets, from itself, from sympy, from the module
        raise explained(error, source, results) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress, advice and graphs that torch prints off the streams of the caller."""
    debugging = logging.getLogger("converter").isEnabledFor(logging.DEBUG)
    before = logging.root.manager.disable
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if not debugging:
            logging.disable(logging.WARNING)
            stack.callback(logging.disable, before)
            sink = io.StringIO()
            stack.enter_context(contextlib.redirect_stdout(sink))
            stack.enter_context(contextlib.redirect_stderr(sink))
        yield


# --- names and examples ---------------------------------------------------------------------------


def _name_inputs(model: ir.Model, source: TorchSource) -> None:
    """Give inputs back the name that the exporter took for an output that is the same tensor."""
    outputs = {value.name: value for value in model.graph.outputs}
    taken = {value.name for value in _values(model)}
    for value in model.graph.inputs if source.input_names is None else ():
        name = str(value.name).removesuffix("_orig")
        output = outputs.get(name)
        if name == value.name or output is None or output is value or f"{name}_output" in taken:
            continue
        output.name = f"{name}_output"
        value.name = name


def _fixed(exported: Any) -> list[str]:
    """Say which arguments are no inputs of the model, because they are no tensors."""
    if exported is None:
        return []
    specs = exported.graph_signature.input_specs
    given = [spec.arg for spec in specs if getattr(spec.arg, "value", None) is not None]
    words = ", ".join(f"{arg.name} = {short(repr(arg.value), 40)}" for arg in given)
    return [f"arguments that are no tensors are fixed in the model: {words}"] if words else []


def _name_outputs(model: ir.Model, source: TorchSource, results: Any) -> None:
    """Name the outputs of a module that returns a dict after its keys.

    The exporter names them after the operators that make them, which tells users nothing.
    """
    if source.output_names is not None or not isinstance(results, Mapping):
        return
    import torch

    leaves, _ = torch.utils._pytree.tree_flatten_with_path(results)  # noqa: SLF001 - no other way
    names = [_path(path) for path, leaf in leaves if isinstance(leaf, torch.Tensor)]
    outputs = model.graph.outputs
    taken = {value.name for value in _values(model)} - {value.name for value in outputs}
    fits = len(names) == len(outputs) == len(set(outputs)) == len(set(names))
    if not fits or taken & set(names) or any(value.producer() is None for value in outputs):
        return
    for index, value in enumerate(outputs):
        value.name = f"converter.output.{index}"  # names may be swapped
    for value, name in zip(outputs, names, strict=True):
        value.name = name


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in graphs(model):
        yield from graph.inputs
        yield from getattr(graph, "initializers", {}).values()
    for node in walk(model):
        yield from node.outputs


def _path(keys: Sequence[Any]) -> str:
    parts = (getattr(k, "key", getattr(k, "idx", getattr(k, "name", ""))) for k in keys)
    return "_".join(str(part) for part in parts)


def _record(model: ir.Model, exported: Any, source: TorchSource, results: Any) -> Example | None:
    """Pair the tensors that went in and came out with the names in the exported model."""
    import torch

    if exported is None:
        return None
    given = _as_given(exported, source)
    flat = exported._get_flat_args_with_check(given.args, dict(given.kwargs))[0]  # noqa: SLF001
    inputs = _tensors(torch, flat, exported.graph_signature.user_inputs)
    leaves = torch.utils._pytree.tree_leaves(results)  # noqa: SLF001 - flattens as the exporter does
    outputs = _tensors(torch, leaves, [None] * len(leaves))
    if len(inputs) != len(model.graph.inputs) or len(outputs) != len(model.graph.outputs):
        return None
    return Example(
        {str(v.name): _array(torch, t) for v, t in zip(model.graph.inputs, inputs, strict=True)},
        {str(v.name): _array(torch, t) for v, t in zip(model.graph.outputs, outputs, strict=True)},
    )


def _tensors(torch: Any, values: Sequence[Any], names: Sequence[Any]) -> list[Any]:
    """Return tensors, and numbers that became inputs; None and constants are no part of a graph."""
    found = []
    for value, name in zip(values, names, strict=True):
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, bool | int | float) and isinstance(name, str):
            found.append(torch.tensor(value))
    return found


def _array(torch: Any, tensor: Any) -> np.ndarray[Any, Any]:
    import ml_dtypes
    import numpy as np

    tensor = tensor.detach().cpu()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    small = {
        torch.bfloat16: ml_dtypes.bfloat16,
        torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn,
        torch.float8_e5m2: ml_dtypes.float8_e5m2,
    }.get(tensor.dtype)
    if small is None:
        return np.array(tensor.resolve_neg().numpy())
    width = {1: torch.uint8, 2: torch.int16}[tensor.element_size()]
    raw: np.ndarray[Any, Any] = np.array(tensor.contiguous().view(width).numpy())
    return raw.view(small)


# --- what stays in the model ----------------------------------------------------------------------


def _scrub(model: ir.Model) -> bool:
    """Drop what the exporter notes beside the graph; returns whether paths could be in it.

    Its objects in ``meta`` keep the whole traced program alive, and its tensors torch.
    """
    found = False
    places: list[Any] = [
        model,
        *model.functions.values(),
        *graphs(model),
        *walk(model),
        *_values(model),
    ]
    for place in places:
        props = place.metadata_props
        for key in [k for k in props if _is_exporters(k)]:
            del props[key]
            found = True
        for key in [k for k in place.meta if not str(k).startswith("converter.")]:
            del place.meta[key]
    for value in _values(model):
        if value.const_value is not None:
            value.const_value = _plain(value.const_value)
    return found


def _is_exporters(key: str) -> bool:
    return key not in KEPT and (key.startswith(_EXPORTER) or key in _EXPORTER_KEYS)


def _plain(tensor: Any) -> Any:
    """Return a view of a tensor of torch that needs no torch; others as they are."""
    if type(tensor).__module__.split(".")[0] != "torch":
        return tensor
    import onnx_ir as ir

    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, shape=tensor.shape, name=tensor.name)
