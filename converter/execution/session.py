"""A model opened in onnxruntime: the one place where that library is touched to run models.

A session runs native code on a model that may be hostile; for models that are not trusted open it
inside a function given to :func:`converter.execution.sandbox.call`.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx

from converter.errors import BatchError, InvalidModelError, ModelError, UnsupportedOperatorError

Array = np.ndarray[Any, Any]
_UNKNOWN_OPERATOR = (
    re.compile(r"(?P<op>\S+?)(?:\(-?\d+\))? is not a registered function/op"),
    re.compile(r"Could not find an implementation for (?P<op>\S+?)(?: node|\s|$)"),
    re.compile(r"No [Oo]p(?:erator)? registered for (?P<op>\S+)"),
    re.compile(r"Failed to find kernel for (?P<op>\S+)"),
)
_SMALL = {
    "bfloat16": (onnx.TensorProto.BFLOAT16, ml_dtypes.bfloat16),
    "float8e4m3fn": (onnx.TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
    "float8e4m3fnuz": (onnx.TensorProto.FLOAT8E4M3FNUZ, ml_dtypes.float8_e4m3fnuz),
    "float8e5m2": (onnx.TensorProto.FLOAT8E5M2, ml_dtypes.float8_e5m2),
    "float8e5m2fnuz": (onnx.TensorProto.FLOAT8E5M2FNUZ, ml_dtypes.float8_e5m2fnuz),
    "float8e8m0": (onnx.TensorProto.FLOAT8E8M0, ml_dtypes.float8_e8m0fnu),
}
"""Element types of onnxruntime without a counterpart in plain numpy: (ONNX number, numpy type)."""
_NUMBERS = {np.dtype(kind): number for number, kind in _SMALL.values()}


@dataclass(frozen=True)
class Node:
    """An input or output of a session.

    Attributes:
        name: Its name.
        type: Type as onnxruntime writes it, e.g. ``tensor(float)``.
        shape: Size, name or None per axis.
    """

    name: str
    type: str
    shape: tuple[int | str | None, ...]


class Session:
    """A model ready to run on the CPU.

    Args:
        path: The model file; external data is found beside it.
        threads: Threads inside an operator.
        optimize: Let onnxruntime rewrite the graph with everything it has; "basic": only with what
            every execution provider profits from, such as computing what is constant.
        custom_op_library: Shared library with operators, trusted by the user.
        optimized: Where onnxruntime writes the graph that it will run; weights go beside it.
        profile: Start of the name of a file that tells how long every kernel takes.

    Raises:
        UnsupportedOperatorError: onnxruntime does not know an operator.
        InvalidModelError: onnxruntime refuses the model.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int = 1,
        optimize: bool | Literal["basic"] = True,
        custom_op_library: Path | None = None,
        optimized: Path | None = None,
        profile: Path | None = None,
    ) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = {
            True: levels.ORT_ENABLE_ALL,
            False: levels.ORT_DISABLE_ALL,
            "basic": levels.ORT_ENABLE_BASIC,
        }[optimize]
        options.intra_op_num_threads = max(1, threads)
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # memory patterns pay for equal shapes only, and keep the largest run's memory for ever
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
            entry = "session.optimized_model_external_initializers_"
            options.add_session_config_entry(f"{entry}file_name", f"{optimized.name}.data")
            options.add_session_config_entry(f"{entry}min_size_in_bytes", "1024")
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        self.path = path
        try:
            if custom_op_library is not None:
                options.register_custom_ops_library(str(custom_op_library))
            self._session = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except foreign_errors() as error:
            raise _refused(error, path) from error
        self.inputs = tuple(map(_node, self._session.get_inputs()))
        self.outputs = tuple(map(_node, self._session.get_outputs()))
        self.optional = tuple(map(_node, self._session.get_overridable_initializers()))
        self._types = {node.name: node.type for node in self.outputs}

    def run(self, feed: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Run once.

        Args:
            feed: Arrays by input name.
            outputs: Names of outputs; None: all.

        Returns:
            Arrays by output name; a sequence comes as list, a map as dict, an absent optional as
            None.

        Raises:
            BatchError: onnxruntime refuses the feed.
            ModelError: The run failed.
        """
        names = [node.name for node in self.outputs] if outputs is None else list(outputs)
        feed = {n: np.asarray(v) if isinstance(v, np.generic) else v for n, v in feed.items()}
        try:
            if self._plain(feed, names):
                return dict(zip(names, self._session.run(names, feed), strict=True))
            return self._run_small(feed, names)
        except foreign_errors() as error:
            raise _failed(error, self.path) from error

    def end_profile(self) -> Path:
        """Write the profile and return its file: JSON, a list of events with ``dur`` in us."""
        return Path(self._session.end_profiling())

    def _plain(self, feed: Mapping[str, Any], names: Sequence[str]) -> bool:
        """Tell whether numpy knows all element types at the border."""
        return not any(getattr(v, "dtype", None) in _NUMBERS for v in feed.values()) and not any(
            _element(self._types.get(name, "")) in _SMALL for name in names
        )

    def _run_small(self, feed: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        import onnxruntime as ort

        values = {}
        for name, array in feed.items():
            number = _NUMBERS.get(array.dtype)
            if number is None:
                values[name] = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
                continue
            raw = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
            values[name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, number)
        # values that are no tensors come out as Python objects only: a run of their own
        objects = [n for n in names if not self._types.get(n, "tensor").startswith("tensor")]
        tensors = [name for name in names if name not in objects]
        read: dict[str, Any] = {}
        if objects:
            read.update(zip(objects, self._session.run(objects, values), strict=True))
        if tensors:
            found = self._session.run_with_ort_values(tensors, values)
            read.update((name, _read(value)) for name, value in zip(tensors, found, strict=True))
        return {name: read[name] for name in names}


def _node(argument: Any) -> Node:
    return Node(argument.name, argument.type, tuple(argument.shape or ()))


def _element(kind: str) -> str:
    return kind.removeprefix("tensor(").removesuffix(")")


def _read(value: Any) -> Any:
    """Copy an output of onnxruntime into an array of its own type."""
    small = _SMALL.get(_element(value.data_type()))
    if small is None:
        return value.numpy()
    kind = np.dtype(small[1])
    shape = tuple(value.shape())
    nbytes = int(np.prod(shape)) * kind.itemsize
    if not nbytes:
        return np.zeros(shape, kind)
    raw = ctypes.string_at(value.data_ptr(), nbytes)
    return np.frombuffer(raw, kind).reshape(shape)


def foreign_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that onnxruntime raises."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [v for v in vars(state).values() if isinstance(v, type) and issubclass(v, Exception)]
    return (*own, RuntimeError, ValueError, TypeError)


def _refused(error: Exception, path: Path) -> ModelError:
    text = str(error)
    operators = {m["op"] for pattern in _UNKNOWN_OPERATOR for m in pattern.finditer(text)}
    if operators:
        return UnsupportedOperatorError(
            f"onnxruntime cannot run the model: it lacks operator {', '.join(sorted(operators))}",
            where=path.name,
            hint="give the library that has it with --custom-op-library FILE, or convert with "
            "--no-verify and without passes that run the model",
        )
    return InvalidModelError(
        f"onnxruntime refuses the model: {_short(text)}",
        where=path.name,
        hint="repair the model, or convert with --no-verify if another runtime accepts it",
    )


def _failed(error: Exception, path: Path) -> ModelError | BatchError:
    text = str(error)
    inside = "while running" in text  # of a node: its shapes come from more than the samples
    refused = not inside and "INVALID_ARGUMENT" in text
    if refused or "Invalid input name" in text or "Required inputs" in text:
        return BatchError(
            f"onnxruntime refuses the samples: {_short(text)}",
            where=path.name,
            hint="check names, shapes and values of the samples against the model's inputs",
        )
    return ModelError(
        f"the model failed while it ran: {_short(text)}",
        where=path.name,
        hint="check that the samples are what the model expects; made-up ones may not be "
        "(give real ones with --data, or convert with --no-verify)",
    )


def _short(text: str, length: int = 500) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= length else flat[:length] + "..."
