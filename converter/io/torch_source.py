"""What a PyTorch source may be, brought to one form; torch itself is imported when it is needed.

    module                                   its examples come from example= or its own attributes
    (module, args)   (module, args, kwargs)
    {"model": ..., "args": ..., "kwargs": ..., "dynamic_shapes": ..., "input_names": ...,
     "output_names": ..., "opset": ...}
    torch.export.ExportedProgram, torch.onnx.ONNXProgram

A factory is a function without parameters that returns one of these.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from converter.core.factory import current_folder_importable, resolve
from converter.errors import ConverterError, ModelError, UsageError

FORMS = (
    "an nn.Module, (module, args), (module, args, kwargs), a dict with the keys model, args, "
    "kwargs, dynamic_shapes, input_names, output_names, opset, an ExportedProgram or an ONNXProgram"
)
KEYS = ("model", "args", "kwargs", "dynamic_shapes", "input_names", "output_names", "opset")
ATTRIBUTES = ("example_inputs", "example_input_array", "dummy_inputs")
"""Where modules keep example inputs: by our convention, Lightning's, and that of transformers."""
_HAVE_INPUTS = "return (module, args), give example= or --example-inputs FILE.npz"


@dataclass(frozen=True)
class TorchSource:
    """A PyTorch model and how it is to be exported.

    Attributes:
        model: An ``nn.Module``, ``ExportedProgram`` or ``ONNXProgram``.
        args, kwargs: Example inputs; None: the program has its own or there are none.
        dynamic_shapes: As ``torch.export`` takes them.
        input_names, output_names: Names in the ONNX model.
        opset: Opset version; None: what the exporter prefers.
        where: For messages.
    """

    model: Any
    args: tuple[Any, ...] | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic_shapes: Any = None
    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None
    opset: int | None = None
    where: str = ""


def require_torch() -> Any:
    """Import torch and what its exporter needs.

    Raises:
        ModelError: They are not installed.
    """
    try:
        import onnxscript  # noqa: F401 - only to know before anything runs
        import torch
        import torch.export
        import torch.onnx
    except ImportError as error:
        name = error.name or "torch"
        raise ModelError(
            f"reading PyTorch models needs {name}, which is not installed",
            hint='pip install "onnxpress[torch]"',
        ) from error
    return torch


def is_torch(value: Any) -> bool:
    """Tell whether a Python object is a PyTorch source, without importing torch for it."""
    if isinstance(value, Mapping):
        value = value.get("model")
    elif isinstance(value, tuple) and value:
        value = value[0]
    return isinstance(value, _kinds())


def _kinds() -> tuple[type, ...]:
    names = (
        ("torch.nn", "Module"),
        ("torch.export", "ExportedProgram"),
        ("torch.onnx", "ONNXProgram"),
    )
    found = (getattr(sys.modules.get(module), name, None) for module, name in names)
    return tuple(kind for kind in found if isinstance(kind, type))


def call_factory(module: str, function: str) -> Any:
    """Import and call a factory; what it prints goes to stderr.

    Raises:
        UsageError: There is no such function, or it fails.
        ModelError: torch is not installed.
    """
    require_torch()
    where = f"{module}:{function}"
    doing = "cannot be imported"
    try:
        with contextlib.redirect_stdout(sys.stderr), current_folder_importable():
            found = resolve(module, function)
            if is_torch(found):
                return found
            if callable(found):
                doing = "fails"
                return found()
    except ConverterError:
        raise
    except Exception as error:
        # code of the user's own: whatever it raises is reported, not the traceback
        raise UsageError(
            f"the factory {doing}: {type(error).__name__}: {error}",
            where=where,
            allowed="MODULE:FUNCTION, a function that needs no arguments",
            hint="check the name, and that the module lies in the current folder or PYTHONPATH",
        ) from error
    raise UsageError(
        f"{function} is a {type(found).__name__}, no function",
        where=where,
        allowed=f"a function without parameters that returns {FORMS}",
    )


def as_source(value: Any, *, example: Any = None, where: str = "") -> TorchSource:
    """Bring a PyTorch source to one form.

    Args:
        value: What a factory returned or the Python API was given.
        example: Example inputs given apart: a tensor, a tuple of arguments, a dict of keyword
            arguments, or the path of an npz file with arrays named after the arguments.
        where: For messages.

    Raises:
        UsageError: It is none of the accepted forms.
    """
    source = _split(value, where)
    if not isinstance(source.model, _kinds()):
        raise UsageError(f"{_name(source.model)} is no PyTorch model", where=where, allowed=FORMS)
    if example is not None:
        args, kwargs = _example(example, source.model, where)
        source = _with(source, args, kwargs)
    if source.args is None and isinstance(source.model, _kinds()[0]):
        source = _with(source, *_own_example(source.model, where))
    return source


def refuse_example(example: Any, where: str) -> None:
    """Refuse example inputs for a source that is traced already.

    Raises:
        UsageError: Example inputs were given.
    """
    if example is not None:
        raise UsageError(
            "example inputs were given, and the source is a file that needs none",
            where=where,
            allowed="example inputs together with MODULE:FACTORY or an nn.Module",
            hint="give samples with --data (data=) instead",
        )


def _split(value: Any, where: str) -> TorchSource:
    if isinstance(value, Mapping):
        return _from_mapping(value, where)
    if not isinstance(value, tuple):
        return TorchSource(value, where=where)
    if not 1 <= len(value) <= 3:
        raise UsageError(f"a tuple of {len(value)} is no model", where=where, allowed=FORMS)
    model, *rest = value
    args = _arguments(rest[0]) if rest else None
    kwargs = rest[1] if len(rest) > 1 else {}
    return TorchSource(model, args, _keywords(kwargs, where), where=where)


def _from_mapping(value: Mapping[str, Any], where: str) -> TorchSource:
    unknown = [str(key) for key in value if key not in KEYS]
    if unknown or "model" not in value:
        what = f"unknown keys: {', '.join(unknown)}" if unknown else "there is no key 'model'"
        raise UsageError(
            f"the dict does not describe a model: {what}", where=where, allowed=", ".join(KEYS)
        )
    opset = value.get("opset")
    if opset is not None and (not isinstance(opset, int) or isinstance(opset, bool) or opset < 18):
        raise UsageError(
            f"opset is {opset!r}",
            where=where,
            allowed="a number from 18 on, the oldest that PyTorch's exporter writes",
        )
    kwargs = _keywords(value.get("kwargs") or {}, where)
    given = "args" in value or kwargs
    return TorchSource(
        model=value["model"],
        args=_arguments(value.get("args", ())) if given else None,
        kwargs=kwargs,
        dynamic_shapes=value.get("dynamic_shapes"),
        input_names=_names(value.get("input_names"), "input_names", where),
        output_names=_names(value.get("output_names"), "output_names", where),
        opset=opset,
        where=where,
    )


def _with(
    source: TorchSource, args: tuple[Any, ...] | None, kwargs: Mapping[str, Any]
) -> TorchSource:
    return replace(source, args=args, kwargs=kwargs)


def _arguments(value: Any) -> tuple[Any, ...]:
    """One argument may be given as it is."""
    if value is None:
        return ()
    return tuple(map(_tensor, value)) if isinstance(value, tuple | list) else (_tensor(value),)


def _keywords(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise UsageError(
            f"kwargs is a {type(value).__name__}", where=where, allowed="a dict with names as keys"
        )
    return {key: _tensor(item) for key, item in value.items()}


def _names(value: Any, key: str, where: str) -> list[str] | None:
    if value is None:
        return None
    if isinstance(value, str) or not all(isinstance(name, str) and name for name in value):
        raise UsageError(f"{key} is {value!r}", where=where, allowed="a list of names")
    return list(value)


def _tensor(value: Any) -> Any:
    """Turn numpy arrays, also inside lists and dicts, into tensors; leave the rest as it is."""
    import numpy as np
    import torch

    if isinstance(value, np.ndarray | np.generic):
        return torch.from_numpy(np.array(value))
    if isinstance(value, list):
        return [_tensor(item) for item in value]
    if type(value) is tuple:
        return tuple(_tensor(item) for item in value)
    if type(value) is dict:
        return {key: _tensor(item) for key, item in value.items()}
    return value


def _own_example(module: Any, where: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    for name in ATTRIBUTES:
        found = getattr(module, name, None)
        if found is not None and not callable(found):
            return _example(found, module, where)
    raise UsageError(
        f"{_name(module)} has no example inputs, which tracing needs",
        where=where,
        allowed=f"inputs given with the module, or in its attribute {' or '.join(ATTRIBUTES)}",
        hint=_HAVE_INPUTS,
    )


def _example(value: Any, model: Any, where: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(value, str | Path):
        return _from_npz(Path(value), model)
    if isinstance(value, Mapping):
        return (), _keywords(value, where)
    return _arguments(value), {}


def _from_npz(path: Path, model: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read arguments: arrays ``arg_0``, ``arg_1``, ... by position, all others by name."""
    arrays = {name: _tensor(array) for name, array in _read_npz(path).items()}
    positional = [f"arg_{index}" for index in range(len(arrays))]
    positional = positional[: next((i for i, n in enumerate(positional) if n not in arrays), None)]
    args = tuple(arrays.pop(name) for name in positional)
    allowed = _parameters(model)
    unknown = [] if allowed is None else [name for name in arrays if name not in allowed]
    if unknown:
        raise UsageError(
            f"the model has no argument {', '.join(map(repr, unknown))}",
            where=str(path),
            allowed=", ".join(allowed or ()) + ", or arg_0, arg_1, ... by position",
        )
    return args, {name: arrays[name] for name in (allowed or arrays) if name in arrays}


def _read_npz(path: Path) -> dict[str, Any]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, BadZipFile) as error:
        raise UsageError(
            f"the example inputs cannot be read: {error}",
            where=str(path),
            allowed="an npz file with arrays named after the arguments of forward",
            hint="write it with numpy.savez(FILE, x=array, mask=array)",
        ) from error


def _parameters(model: Any) -> list[str] | None:
    """Names of forward's parameters; None when it takes any."""
    import inspect

    function: Callable[..., Any] = getattr(model, "forward", model)
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters if p.kind is not p.VAR_POSITIONAL]


def _name(value: Any) -> str:
    return type(value).__name__
