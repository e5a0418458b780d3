"""The types that a parameter can have: their words, and how values of them are read."""

from __future__ import annotations

import difflib
import enum
import math
import numbers
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from converter.core.params import Param

_INTEGER = re.compile(r"[+-]?[0-9]{1,1000}")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_SHOWN = 60


class Quoted(str):
    """Text that was written in quotes: never ``none`` and never an empty list."""

    __slots__ = ()


class ValueRefusedError(ValueError):
    """A value does not fit its type; carries what is wrong and what is allowed."""

    def __init__(self, what: str, allowed: str, hint: str = "") -> None:
        super().__init__(what)
        self.what, self.allowed, self.hint = what, allowed, hint


def optional_type(annotation: Any) -> tuple[Any, bool]:
    """Split ``T | None`` into (T, True); anything else is (itself, False)."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        rest = [a for a in typing.get_args(annotation) if a is not types.NoneType]
        if len(rest) == 1 and len(typing.get_args(annotation)) == 2:
            return rest[0], True
    return annotation, False


def item_type(annotation: Any) -> Any:
    """Return T of ``tuple[T, ...]``, else None."""
    args = typing.get_args(annotation)
    if typing.get_origin(annotation) is tuple and len(args) == 2 and args[1] is Ellipsis:
        return args[0]
    return None


def pair_type(annotation: Any) -> Any:
    """Return V of ``tuple[tuple[str, V], ...]``, else None: a parameter with keys of its own."""
    args = typing.get_args(item_type(annotation))
    return args[1] if len(args) == 2 and args[0] is str and args[1] is not Ellipsis else None


def _is_enum(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, enum.Enum)


def type_text(annotation: Any) -> str:
    """Describe a parameter type for people, e.g. ``number``, ``a | b``, ``list of text``."""
    inner, optional = optional_type(annotation)
    item = item_type(inner)
    if pair_type(inner) is not None:
        text = f"any name={type_text(pair_type(inner))}"
    elif item is not None:
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
        shown = (f"{v[0]}={format_value(v[1])}" if isinstance(v, tuple) else v for v in value)
        return ", ".join(format_value(v) for v in shown) or "none"
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


def _show(value: object) -> str:
    try:
        text = repr(str(value)) if isinstance(value, str) else repr(value)
    except ValueError:  # Python refuses to write out integers of thousands of digits
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _is_number(value: object, kind: type) -> bool:
    """Tell whether a value is such a number, of Python or numpy; truth values are none."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _read_bool(value: Any, *, text: bool) -> bool:
    if isinstance(value, bool):
        return value
    if text and value in ("true", "false"):
        return bool(value == "true")
    raise ValueRefusedError(f"is {_show(value)}", "true or false")


def _read_int(value: Any, *, text: bool) -> int:
    if text and isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    if _is_number(value, numbers.Integral):
        return int(value)
    raise ValueRefusedError(f"is {_show(value)}", "an integer")


def _read_float(value: Any, *, text: bool) -> float:
    if text and isinstance(value, str) and _NUMBER.fullmatch(value):
        number = float(value)
    elif _is_number(value, numbers.Real):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    else:
        raise ValueRefusedError(f"is {_show(value)}", "a finite number")
    if not math.isfinite(number):
        raise ValueRefusedError(f"is {_show(value)}", "a finite number")
    return number


def _read_str(value: Any, *, text: bool) -> str:
    del text
    if isinstance(value, str):
        return str(value)
    raise ValueRefusedError(f"is {_show(value)}", "text")


def _read_path(value: Any, *, text: bool) -> Path:
    del text
    if isinstance(value, str | Path) and str(value) and "\0" not in str(value):
        return Path(value)
    raise ValueRefusedError(f"is {_show(value)}", "a path")


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
    raise ValueRefusedError(
        f"is {_show(value)}", " or ".join(choices), nearest(str(value), choices)
    )


def _read_scalar(annotation: Any, param: Param, value: Any, *, text: bool) -> Any:
    inner, optional = optional_type(annotation)
    if optional and (value is None or (text and value == "none" and not isinstance(value, Quoted))):
        return None
    if inner not in _READERS:
        return _read_choice(inner, value)
    read = _READERS[inner](value, text=text)
    if inner in (int, float) and not param.allows(read):
        raise ValueRefusedError(f"is {_show(value)}", param.bounds())
    return read


def _read_tuple(annotation: Any, param: Param, value: Any, *, text: bool) -> tuple[Any, ...]:
    item = item_type(annotation)
    items = list(value) if isinstance(value, list | tuple) else [value]
    if text and len(items) == 1 and items[0] == "" and not isinstance(items[0], Quoted):
        return ()
    return tuple(_read_scalar(item, param, v, text=text) for v in items)


def _read_pairs(
    annotation: Any, param: Param, value: Any, *, text: bool
) -> tuple[tuple[str, Any], ...]:
    """Read a mapping, or pairs; each key may stand once."""
    try:
        pairs = [(_read_str(k, text=text), v) for k, v in _items(value)]
    except (TypeError, ValueError) as error:
        raise ValueRefusedError(f"is {_show(value)}", type_text(annotation)) from error
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueRefusedError("names a key more than once", "each key once")
    return tuple((key, _read_scalar(annotation, param, v, text=text)) for key, v in pairs)


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    return value.items() if isinstance(value, Mapping) else [(key, v) for key, v in value]


def read(annotation: Any, param: Param, value: Any, *, text: bool) -> Any:
    """Read one value of a type, or refuse it.

    Args:
        annotation: The type of the parameter.
        param: Its bounds.
        value: A value, or words of a pipeline text.
        text: Whether ``value`` is text (or a tuple of texts) that stands for values of other types.

    Raises:
        ValueRefusedError: The value does not fit.
    """
    inner, optional = optional_type(annotation)
    if pair_type(inner) is not None:
        return _read_pairs(pair_type(inner), param, value, text=text)
    if item_type(inner) is not None:
        alone = value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
        none = text and alone == "none" and not isinstance(alone, Quoted)
        if optional and (value is None or none):
            return None
        return _read_tuple(inner, param, value, text=text)
    if isinstance(value, list | tuple):
        if text and len(value) == 1:
            value = value[0]
        elif text:
            raise ValueRefusedError("is given more than once", "one value")
        else:
            raise ValueRefusedError("is a list", type_text(annotation))
    if text and value == "" and not isinstance(value, Quoted):
        raise ValueRefusedError("has no value", type_text(annotation))
    return _read_scalar(annotation, param, value, text=text)


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


def is_supported(annotation: Any) -> bool:
    """Tell whether a parameter can have this type."""
    inner, _ = optional_type(annotation)
    item = pair_type(inner) or item_type(inner)
    scalar, _ = optional_type(item) if item is not None else (inner, False)
    return scalar in _READERS or _is_enum(scalar) or typing.get_origin(scalar) is typing.Literal
