"""Parameters of a pass: declared once as dataclass fields, read here for every other use.

A field ``sparsity: Annotated[float, Param("share of weights set to zero", ge=0, lt=1)] = 0.5`` is
what parsing, validation, help texts, documentation and recipes are made from. Types are bool, int,
float, str, Path, an Enum, a Literal, ``tuple[T, ...]`` of those, and ``T | None``.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from converter.errors import ParameterError

T = TypeVar("T")
_INTEGER = re.compile(r"[+-]?[0-9]{1,1000}")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_SHOWN = 60


@dataclass(frozen=True)
class Param:
    """Documentation and bounds of one field of a pass.

    Attributes:
        help: One line for ``convert passes NAME``.
        ge, gt, le, lt: Bounds of a number, or of every number of a tuple.
        search: Values worth trying in a search.
    """

    help: str
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    search: tuple[Any, ...] = ()

    def bounds(self) -> str:
        """Return the allowed range as text, e.g. ``0 <= x < 1`` or ``>= 1``; may be empty."""
        low, low_mark = (self.gt, "<") if self.gt is not None else (self.ge, "<=")
        high, high_mark = (self.lt, "<") if self.lt is not None else (self.le, "<=")
        if low is not None and high is not None:
            return f"{low:g} {low_mark} x {high_mark} {high:g}"
        if low is not None:
            return f"{'>' if low_mark == '<' else '>='} {low:g}"
        return "" if high is None else f"{high_mark} {high:g}"

    def allows(self, number: float) -> bool:
        """Tell whether a number is inside the bounds."""
        return (
            (self.ge is None or number >= self.ge)
            and (self.gt is None or number > self.gt)
            and (self.le is None or number <= self.le)
            and (self.lt is None or number < self.lt)
        )


class Quoted(str):
    """Text that was written in quotes: never ``none`` and never an empty list."""

    __slots__ = ()


@dataclass(frozen=True)
class Field:
    """One parameter of a pass.

    Attributes:
        name: Name of the field.
        annotation: Its type without ``Annotated``.
        default: Value when it is not given; ``dataclasses.MISSING`` when it must be given.
        param: Help and bounds.
    """

    name: str
    annotation: Any
    default: Any
    param: Param

    @property
    def help(self) -> str:
        """One line about the parameter."""
        return self.param.help

    @property
    def bounds(self) -> str:
        """Allowed range as text, e.g. ``0 <= x < 1``."""
        return self.param.bounds()

    @property
    def required(self) -> bool:
        """Tell whether the parameter has no default."""
        return self.default is dataclasses.MISSING

    @property
    def type_text(self) -> str:
        """The type for people, e.g. ``number``, ``global | local``, ``list of text``."""
        return type_text(self.annotation)

    @property
    def default_text(self) -> str:
        """The default for people; empty when the parameter must be given."""
        return "" if self.required else default_text(self.default)


@dataclass(frozen=True)
class Problem:
    """One wrong parameter.

    Attributes:
        path: Where it stands, e.g. ``passes[1].prune.sparsity``.
        what: What is wrong with it.
        allowed: What would be accepted.
        hint: What to write instead.
    """

    path: str
    what: str
    allowed: str = ""
    hint: str = ""

    def __str__(self) -> str:
        extra = "; ".join(p for p in (self.allowed and f"allowed: {self.allowed}", self.hint) if p)
        return f"{self.path} {self.what}" + (f" ({extra})" if extra else "")


class _ValueRefusedError(ValueError):
    """A value does not fit its type; carries what is wrong and what is allowed."""

    def __init__(self, what: str, allowed: str, hint: str = "") -> None:
        super().__init__(what)
        self.what, self.allowed, self.hint = what, allowed, hint


# --- reading the declaration ---------------------------------------------------------------------


def fields_of(cls: type) -> tuple[Field, ...]:
    """Read the parameters of a dataclass in the order of their declaration.

    Raises:
        TypeError: A field has a type that parameters cannot have: a defect of the pass.
    """
    found = []
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        annotation, param = _split(_hint(cls, field))
        _check_supported(cls, field.name, annotation)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        found.append(Field(field.name, annotation, default, param))
    return tuple(found)


def _hint(cls: type, field: dataclasses.Field[Any]) -> Any:
    """Evaluate one annotation where it was written.

    ``get_type_hints`` of the whole class would evaluate class variables too, whose types passes may
    import for type checking only.
    """
    if not isinstance(field.type, str):
        return field.type
    owner = next(k for k in cls.__mro__ if field.name in inspect.get_annotations(k))
    names = {"Annotated": typing.Annotated, "Literal": typing.Literal, "Path": Path, "Param": Param}
    names.update(vars(sys.modules[owner.__module__]))
    holder = types.SimpleNamespace(__annotations__={field.name: field.type})
    try:
        return typing.get_type_hints(holder, names, dict(vars(owner)), include_extras=True)[
            field.name
        ]
    except NameError as error:
        raise TypeError(
            f"{cls.__qualname__}.{field.name}: {error}; import the type outside of TYPE_CHECKING"
        ) from error


def _split(hint: Any) -> tuple[Any, Param]:
    if typing.get_origin(hint) is typing.Annotated:
        annotation, *extras = typing.get_args(hint)
        for extra in extras:
            if isinstance(extra, Param):
                return annotation, extra
        return annotation, Param("")
    return hint, Param("")


def _optional(annotation: Any) -> tuple[Any, bool]:
    """Split ``T | None`` into (T, True); anything else is (itself, False)."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        rest = [a for a in typing.get_args(annotation) if a is not types.NoneType]
        if len(rest) == 1 and len(typing.get_args(annotation)) == 2:
            return rest[0], True
    return annotation, False


def _item_type(annotation: Any) -> Any:
    """Return T of ``tuple[T, ...]``, else None."""
    args = typing.get_args(annotation)
    if typing.get_origin(annotation) is tuple and len(args) == 2 and args[1] is Ellipsis:
        return args[0]
    return None


def _is_enum(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, enum.Enum)


def _check_supported(cls: type, name: str, annotation: Any) -> None:
    inner, _ = _optional(annotation)
    item = _item_type(inner)
    scalar, _ = _optional(item) if item is not None else (inner, False)
    known = scalar in _READERS or _is_enum(scalar) or typing.get_origin(scalar) is typing.Literal
    if not known:
        raise TypeError(f"{cls.__qualname__}.{name}: a parameter cannot have type {annotation!r}")


def type_text(annotation: Any) -> str:
    """Describe a parameter type for people, e.g. ``number``, ``a | b``, ``list of text``."""
    inner, optional = _optional(annotation)
    item = _item_type(inner)
    if item is not None:
        text = f"list of {type_text(item)}"
    elif typing.get_origin(inner) is typing.Literal or _is_enum(inner):
        text = " | ".join(_choices(inner))
    else:
        text = TYPE_WORDS.get(getattr(inner, "__name__", ""), str(inner))
    return f"{text} | none" if optional else text


TYPE_WORDS = {
    "bool": "true | false",
    "int": "integer",
    "float": "number",
    "str": "text",
    "Path": "path",
}


def default_text(value: Any) -> str:
    """Return a default for people: an empty list is ``none``."""
    if isinstance(value, tuple):
        return ", ".join(format_value(v) for v in value) or "none"
    return format_value(value)


def format_value(value: Any) -> str:
    """Return one value (not a tuple) as plain text that reads back as the same value."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, enum.Enum):
        return value.value if isinstance(value.value, str) else value.name.lower()
    return str(value)  # the text of a float reads back exactly


def _choices(annotation: Any) -> dict[str, Any]:
    options = list(annotation) if _is_enum(annotation) else typing.get_args(annotation)
    return {format_value(option): option for option in options}


# --- reading values ------------------------------------------------------------------------------


def _show(value: object) -> str:
    text = repr(str(value)) if isinstance(value, str) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _read_bool(value: Any, *, text: bool) -> bool:
    if isinstance(value, bool):
        return value
    if text and value in ("true", "false"):
        return bool(value == "true")
    raise _ValueRefusedError(f"is {_show(value)}", "true or false")


def _read_int(value: Any, *, text: bool) -> int:
    if text and isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    raise _ValueRefusedError(f"is {_show(value)}", "an integer")


def _read_float(value: Any, *, text: bool) -> float:
    if text and isinstance(value, str) and _NUMBER.fullmatch(value):
        number = float(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    else:
        raise _ValueRefusedError(f"is {_show(value)}", "a finite number")
    if not math.isfinite(number):
        raise _ValueRefusedError(f"is {_show(value)}", "a finite number")
    return number


def _read_str(value: Any, *, text: bool) -> str:
    del text
    if isinstance(value, str):
        return str(value)
    raise _ValueRefusedError(f"is {_show(value)}", "text")


def _read_path(value: Any, *, text: bool) -> Path:
    del text
    if isinstance(value, str | Path) and str(value) and "\0" not in str(value):
        return Path(value)
    raise _ValueRefusedError(f"is {_show(value)}", "a path")


_READERS: dict[Any, Callable[..., Any]] = {
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
    str: _read_str,
    Path: _read_path,
}


def _read_choice(annotation: Any, value: Any) -> Any:
    choices = _choices(annotation)
    for name, option in choices.items():
        if type(value) is type(option) and value == option:
            return option
        if isinstance(value, str) and value == name:
            return option
    raise _ValueRefusedError(
        f"is {_show(value)}", " or ".join(choices), nearest(str(value), choices)
    )


def _read_scalar(annotation: Any, param: Param, value: Any, *, text: bool) -> Any:
    inner, optional = _optional(annotation)
    if optional and (value is None or (text and value == "none" and not isinstance(value, Quoted))):
        return None
    if inner not in _READERS:
        return _read_choice(inner, value)
    read = _READERS[inner](value, text=text)
    if inner in (int, float) and not param.allows(read):
        raise _ValueRefusedError(f"is {_show(value)}", param.bounds())
    return read


def _read_tuple(annotation: Any, param: Param, value: Any, *, text: bool) -> tuple[Any, ...]:
    item = _item_type(annotation)
    items = list(value) if isinstance(value, list | tuple) else [value]
    if text and len(items) == 1 and items[0] == "" and not isinstance(items[0], Quoted):
        return ()
    return tuple(_read_scalar(item, param, v, text=text) for v in items)


def _read(field: Field, value: Any, *, text: bool) -> Any:
    inner, optional = _optional(field.annotation)
    if _item_type(inner) is not None:
        alone = value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
        none = text and alone == "none" and not isinstance(alone, Quoted)
        if optional and (value is None or none):
            return None
        return _read_tuple(inner, field.param, value, text=text)
    if isinstance(value, list | tuple):
        if text and len(value) == 1:
            value = value[0]
        elif text:
            raise _ValueRefusedError("is given more than once", "one value")
        else:
            raise _ValueRefusedError("is a list", type_text(field.annotation))
    if text and value == "" and not isinstance(value, Quoted):
        raise _ValueRefusedError("has no value", type_text(field.annotation))
    return _read_scalar(field.annotation, field.param, value, text=text)


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return ``perhaps "x" was meant`` for the nearest valid names, or an empty string."""
    by_fold = {v.casefold().replace("-", "_"): v for v in valid}
    folded = name.casefold().replace("-", "_")
    close = difflib.get_close_matches(folded, by_fold, n=2, cutoff=0.6)
    ratios = [difflib.SequenceMatcher(None, c, folded).ratio() for c in close]
    names = " or ".join(
        f'"{by_fold[c]}"' for c, ratio in zip(close, ratios, strict=True) if ratio > ratios[0] - 0.1
    )
    return f"perhaps {names} was meant" if names else ""


def read_values(
    cls: type, mapping: Mapping[str, Any], *, path: str = "", text: bool = False
) -> tuple[dict[str, Any], list[Problem]]:
    """Read and check values for the parameters of ``cls``.

    Args:
        cls: A dataclass with parameter fields.
        mapping: Values by parameter name.
        path: Put before the name of a parameter in problems.
        text: Values are words of a pipeline text (or tuples of words); otherwise they are typed,
            and text is not read as a number.

    Returns:
        The values that are right, and one problem for each that is wrong, unknown or missing.
    """
    fields = {field.name: field for field in fields_of(cls)}
    prefix = f"{path}." if path else ""
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, value in mapping.items():
        field = fields.get(name)
        if field is None:
            allowed = ", ".join(fields) or "no parameters"
            problems.append(
                Problem(f"{prefix}{name}", "is no parameter", allowed, nearest(name, fields))
            )
            continue
        try:
            values[name] = _read(field, value, text=text)
        except _ValueRefusedError as wrong:
            problems.append(Problem(f"{prefix}{name}", wrong.what, wrong.allowed, wrong.hint))
    problems += [
        Problem(f"{prefix}{f.name}", "must be given", f.type_text)
        for f in fields.values()
        if f.required and f.name not in mapping
    ]
    return values, problems


def construct(
    cls: type[T], mapping: Mapping[str, Any], *, path: str = "", text: bool = False
) -> tuple[T | None, list[Problem]]:
    """Make an instance, or return None and every problem; see :func:`read_values`.

    Problems that the class finds itself (in ``__post_init__`` or ``validate_parameters``) count.
    """
    values, problems = read_values(cls, mapping, path=path, text=text)
    if problems:
        return None, problems
    try:
        made = cls(**values)
        validate = getattr(made, "validate_parameters", None)
        if validate is not None:
            validate()
    except ParameterError as error:
        own = "" if error.where == getattr(cls, "name", "") else error.where
        where = ".".join(p for p in (path, own) if p)
        return None, [Problem(f"{where or cls.__name__}:", error.what, error.allowed, error.hint)]
    return made, []


def build(cls: type[T], mapping: Mapping[str, Any], *, path: str = "", text: bool = False) -> T:
    """Make an instance of ``cls`` from values by name.

    Raises:
        ParameterError: Names all wrong, unknown and missing parameters.
    """
    made, problems = construct(cls, mapping, path=path, text=text)
    if made is None:
        raise problems_error(problems)
    return made


def check(instance: Any) -> None:
    """Check the fields of an instance that was made directly, and make lists tuples.

    Raises:
        ParameterError: Names all wrong values.
    """
    given = {field.name: getattr(instance, field.name) for field in fields_of(type(instance))}
    path = getattr(type(instance), "name", type(instance).__name__)
    values, problems = read_values(type(instance), given, path=path)
    if problems:
        raise problems_error(problems)
    for name, value in values.items():
        object.__setattr__(instance, name, value)  # the dataclass is frozen


def problems_error(problems: Sequence[Problem]) -> ParameterError:
    """Make one error out of all problems."""
    if len(problems) == 1:
        (one,) = problems
        return ParameterError(f"{one.path} {one.what}", allowed=one.allowed, hint=one.hint)
    listed = "; ".join(f"({i}) {problem}" for i, problem in enumerate(problems, 1))
    return ParameterError(f"{len(problems)} parameters are wrong: {listed}")


def changed_values(instance: Any) -> dict[str, Any]:
    """Return the parameters of an instance that differ from their defaults."""
    found = {}
    for field in fields_of(type(instance)):
        value = getattr(instance, field.name)
        if field.required or type(value) is not type(field.default) or value != field.default:
            found[field.name] = value
    return found
