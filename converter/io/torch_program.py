"""Checking a ``.pt2`` archive of ``torch.export.save`` before torch's own loader sees it.

That loader trusts its file: it unpickles entries that say so, evaluates expressions, compiles
guards, resolves operators by name, imports classes and loads shared libraries. What a program needs
is much less: plain tensors, operators of torch, arithmetic on sizes. Only that is let through;
torch is asked to unpickle with ``weights_only`` besides.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from converter.errors import FormatError, InvalidModelError, LimitExceededError
from converter.io.limits import LoadLimits, quoted

MOST_ENTRIES = 200_000
_ENTRY = re.compile(
    r"archive_format|archive_version|byteorder|\.data/[\w.]+|\.format_version|\.storage_alignment"
    r"|models/model\.json|data/sample_inputs/model\.pt|data/weights/weight_\d+"
    r"|data/weights/model_weights_config\.json|data/constants/tensor_\d+"
    r"|data/constants/model_constants_config\.json|extra/.+"
)
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_NAMESPACES = (
    "aten|prim|prims|higher_order|quantized|quantized_decomposed|torchvision|torchaudio|torchao|onnx"
    "|onnx_symbolic"
)
_TARGET = re.compile(
    rf"torch\.ops\.({_NAMESPACES})\.(?!__)\w+(\.(?!__)\w+)?"
    r"|torch\.ops\.aten\.__i?(and|or|xor|lshift|rshift)__(\.(?!__)\w+)?"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_"
    r"|getitem)"
    r"|math\.(ceil|floor|trunc|sqrt)|torch\.sym_\w+|torch\._sym_sqrt"
)
_NAME = re.compile(r"[A-Za-z_][\w.]*|")
_NODES = (
    ast.Expression, ast.Compare, ast.BoolOp, ast.UnaryOp, ast.BinOp, ast.Subscript, ast.Constant,
    ast.Name, ast.Attribute, ast.Call, ast.Load, ast.cmpop, ast.boolop, ast.unaryop, ast.operator,
    ast.IfExp, ast.Tuple, ast.keyword,
)  # fmt: skip
_METHODS = frozenset({"size", "stride", "storage_offset"})
_FUNCTIONS = frozenset({
    "FloorDiv", "ModularIndexing", "Where", "PythonMod", "Mod", "CleanDiv", "CeilToInt",
    "FloorToInt", "CeilDiv", "IntTrueDiv", "FloatTrueDiv", "LShift", "RShift", "TruncToFloat",
    "TruncToInt", "RoundToInt", "RoundDecimal", "ToFloat", "Identity", "Max", "Min", "Eq", "Ne",
    "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "Abs", "Piecewise", "sqrt", "floor", "ceiling",
    "max", "min", "Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Equality", "Unequality",
    "LessThan", "StrictLessThan", "GreaterThan", "StrictGreaterThan",
})  # fmt: skip
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow"})
_LONGEST = 4096
_LARGEST = 64
"""Exponents, and digits asked for: beyond it an expression could compute for ever."""


def load_exported(torch: Any, path: Path, limits: LoadLimits) -> Any:
    """Check a ``.pt2`` file and load it.

    Raises:
        FormatError: It is damaged, or written by another version of torch.
        InvalidModelError: It holds something that could run code.
        LimitExceededError: It is larger than the limits.
    """
    with path.open("rb") as file:  # torch reads what was checked: the same open file
        check_program(file, str(path), limits)
        file.seek(0)
        try:
            with _weights_only():
                return torch.export.load(file)
        except Exception as error:
            # damaged files end in whatever the loader trips over
            raise FormatError(
                f"torch {torch.__version__} cannot load the program: "
                f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
                where=quoted(str(path)),
                hint="save it again with torch.export.save of the installed version of torch",
            ) from error


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    """Make every unpickling of torch a restricted one."""
    key, other = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = {name: os.environ.pop(name, None) for name in (key, other)}
    os.environ[key] = "1"
    try:
        yield
    finally:
        os.environ.pop(key, None)
        os.environ.update({name: value for name, value in before.items() if value is not None})


def check_program(file: IO[bytes], shown: str, limits: LoadLimits) -> None:
    """Refuse an archive that is damaged, too large, or holds more than a plain program.

    Raises:
        FormatError: It is no such archive.
        InvalidModelError: It holds something that could run code.
        LimitExceededError: It is larger than the limits.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = _entries(archive, shown, limits)
            for name in _CONFIGS:
                _check_config(_json(archive, entries, name, shown, limits), shown)
            model = _json(archive, entries, "models/model.json", shown, limits)
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
        raise FormatError(
            f"the archive is damaged: {error}", where=quoted(shown), hint="save or copy it again"
        ) from error
    for key, value in _fields(model):
        check = _CHECKS.get(key)
        if check is not None:
            check(value, shown)
        elif isinstance(value, str) and ("__enum__" in value or "default_factory" in value):
            raise _refused("a class that would be imported", value, shown)


def _entries(
    archive: zipfile.ZipFile, shown: str, limits: LoadLimits
) -> Mapping[str, zipfile.ZipInfo]:
    """Return the entries by name below the archive's root."""
    infos = archive.infolist()
    total = sum(info.file_size for info in infos)
    if len(infos) > MOST_ENTRIES or total > limits.tensor_bytes:
        raise LimitExceededError(
            f"the archive holds {len(infos)} entries of {total} bytes",
            where=quoted(shown),
            allowed=f"at most {MOST_ENTRIES} entries and {limits.tensor_bytes} bytes",
        )
    roots = {info.filename.split("/", 1)[0] for info in infos}
    found: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.filename.split("/", 1)[-1]
        if info.flag_bits & 1 or info.compress_type != zipfile.ZIP_STORED:
            raise _refused("an encrypted or compressed entry", info.filename, shown)
        if len(roots) > 1 or name in found or ".." in name or not _ENTRY.fullmatch(name):
            raise _refused("an entry that no plain program has", info.filename, shown)
        found[name] = info
    if "models/model.json" not in found:
        raise FormatError(
            "the archive holds no exported program called 'model'",
            where=quoted(shown),
            allowed="what torch.export.save of torch 2.8 or newer writes",
            hint="load it with the version of torch that wrote it and save it with a newer one",
        )
    return found


def _json(
    archive: zipfile.ZipFile,
    entries: Mapping[str, zipfile.ZipInfo],
    name: str,
    shown: str,
    limits: LoadLimits,
) -> Any:
    info = entries.get(name)
    if info is None:
        raise FormatError(f"the archive lacks {name}", where=quoted(shown))
    if info.file_size > limits.skeleton_bytes:
        raise LimitExceededError(
            f"{name} has {info.file_size} bytes",
            where=quoted(shown),
            allowed=f"at most {limits.skeleton_bytes} bytes",
        )
    try:
        return json.loads(archive.read(info))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{name} is no JSON: {error}", where=quoted(shown)) from error


def _check_config(config: Any, shown: str) -> None:
    """Refuse tensors that are stored as pickles or as objects."""
    for key, value in _fields(config):
        if key == "use_pickle" and value is not False:
            raise _refused("a pickled tensor", "use_pickle", shown)
        if key == "path_name" and not re.fullmatch(r"(weight|tensor)_\d+", str(value)):
            raise _refused("a pickled object", str(value), shown)


def _fields(root: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key with its value, keys of mappings that hold names included."""
    todo: list[tuple[str, Any]] = [("", root)]
    while todo:
        key, value = todo.pop()
        yield key, value
        if isinstance(value, dict):
            todo.extend((str(k), v) for k, v in value.items())
        elif isinstance(value, list):
            todo.extend((key, item) for item in value if isinstance(item, dict | list | str))


def _check_target(value: Any, shown: str) -> None:
    """Names of operators; parameters and buffers have a ``target`` too, which is looked up only."""
    operator = isinstance(value, str) and value.startswith(("torch.", "_operator", "math", "#"))
    if operator and not _TARGET.fullmatch(value):
        raise _refused("an operator that is none of torch's", value, shown)


def _check_name(value: Any, shown: str) -> None:
    if isinstance(value, str) and not _NAME.fullmatch(value):
        raise _refused("a name that is no identifier", value, shown)


def _check_expression(value: Any, shown: str) -> None:
    if isinstance(value, str) and not is_arithmetic(value):
        raise _refused("an expression that is not plain arithmetic on sizes", value, shown)


def _check_ranges(value: Any, shown: str) -> None:
    for symbol in value if isinstance(value, dict) else ():
        _check_expression(symbol, shown)


def _refuse_object(value: Any, shown: str) -> None:
    if value:
        raise _refused("an object of a class of its own", str(value)[:80], shown)


_CHECKS: dict[str, Callable[[Any, str], None]] = {
    "target": _check_target,
    "as_operator": _check_target,
    "name": _check_name,
    "forward_arg_names": _check_name,
    "expr_str": _check_expression,
    "guards_code": _check_expression,
    "range_constraints": _check_ranges,
    "as_custom_obj": _refuse_object,
    "custom_obj_values": _refuse_object,
}


def is_arithmetic(text: str) -> bool:
    """Tell whether a Python expression does no more than compute with sizes.

    >>> is_arithmetic("L['x'].size()[0] >= 2"), is_arithmetic("__import__('os')")
    (True, False)
    """
    if len(text) > _LONGEST:
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(isinstance(node, _NODES) and _harmless(node) for node in ast.walk(tree))


def _harmless(node: ast.AST) -> bool:
    """Judge one node by itself; its children are judged, too."""
    match node:
        case ast.Call(func=function, args=arguments):
            return _is_known(function, arguments)
        case ast.Attribute(attr=name):
            return name in _METHODS
        case ast.Name(id=text) | ast.Constant(value=str(text)):
            return "__" not in text
        case ast.BinOp(op=ast.Pow(), right=right):
            return _is_small(right)
        case ast.keyword(value=value):
            return _is_small(value)
    return True


def _is_known(function: ast.expr, arguments: list[ast.expr]) -> bool:
    match function:
        case ast.Name(id=name) if name in _POWERS:
            return len(arguments) == 2 and _is_small(arguments[1])
        case ast.Name(id=name):
            return name in _FUNCTIONS
    return isinstance(function, ast.Attribute)  # whose name is looked at by itself


def _is_small(node: ast.expr) -> bool:
    """Tell whether it is a small number as it stands, also as ``Integer(-2)``."""
    match node:
        case ast.Call(func=ast.Name(id="Integer"), args=[inner]):
            return _is_small(inner)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return _is_small(inner)
        case ast.Constant(value=int() | float() as value):
            return value <= _LARGEST
    return False


def _refused(what: str, detail: str, shown: str) -> InvalidModelError:
    return InvalidModelError(
        f"the program holds {what}: {quoted(detail, 120)}",
        where=quoted(shown),
        allowed="tensors, operators of torch and arithmetic on sizes: torch would run the rest "
        "while loading",
        hint="if you trust the file, load it in a factory: return torch.export.load(FILE)",
    )
