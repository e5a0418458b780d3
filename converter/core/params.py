"""Parameters of a pass: declared once as dataclass fields, read here for every other use.

A field ``sparsity: Annotated[float, Param("share of weights set to zero", ge=0, lt=1)] = 0.5`` is
what parsing, validation, help texts, documentation and recipes are made from. Types are bool, int,
float, str, Path, an Enum, a Literal, ``tuple[T, ...]`` of those, and ``T | None``.

A field of type ``tuple[tuple[str, T], ...]`` is open: every key that is no other parameter belongs
to it, so ``fix_shapes:batch=1,seq=128`` gives ``dims`` the pairs (batch, 1) and (seq, 128). A pass
has one such field at most.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from converter.core import values
from converter.errors import ParameterError

T = TypeVar("T")


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
    def is_open(self) -> bool:
        """Tell whether it takes every key that is no other parameter."""
        return values.pair_type(self.annotation) is not None

    @property
    def type_text(self) -> str:
        """The type for people, e.g. ``number``, ``global | local``, ``list of text``."""
        return values.type_text(self.annotation)

    @property
    def default_text(self) -> str:
        """The default for people; empty when the parameter must be given."""
        return "" if self.required else values.default_text(self.default)


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
        if not values.is_supported(annotation):
            raise TypeError(
                f"{cls.__qualname__}.{field.name}: a parameter cannot have type {annotation!r}"
            )
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


# --- making instances ----------------------------------------------------------------------------


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
    read: dict[str, Any] = {}
    problems: list[Problem] = []
    open_field = next((f for f in fields.values() if f.is_open), None)
    pairs: list[tuple[str, Any]] = []
    for name, value in mapping.items():
        field = fields.get(name)
        if open_field is not None and _is_open_key(field, value, text=text):
            wrong_pair = _read_pair(open_field, name, value, pairs, text=text)
            problems += [replace(p, path=prefix + p.path) for p in wrong_pair]
            continue
        if field is None:
            allowed = ", ".join(fields) or "no parameters"
            problems.append(
                Problem(f"{prefix}{name}", "is no parameter", allowed, values.nearest(name, fields))
            )
            continue
        try:
            read[name] = values.read(field.annotation, field.param, value, text=text)
        except values.ValueRefusedError as wrong:
            problems.append(Problem(f"{prefix}{name}", wrong.what, wrong.allowed, wrong.hint))
    if open_field is not None and pairs:
        read[open_field.name] = (*read.get(open_field.name, ()), *pairs)
    problems += [
        Problem(f"{prefix}{f.name}", "must be given", f.type_text)
        for f in fields.values()
        if f.required and f.name not in mapping
    ]
    return read, problems


def _is_open_key(field: Field | None, value: Any, *, text: bool) -> bool:
    """Tell whether a key is one of the open field, whose own name may be one, too."""
    if field is None:
        return True
    return field.is_open and (text or not isinstance(value, Mapping | list | tuple))


def _read_pair(
    field: Field, name: str, value: Any, pairs: list[tuple[str, Any]], *, text: bool
) -> list[Problem]:
    kind = values.pair_type(field.annotation)
    try:
        pairs.append((name, values.read(kind, field.param, value, text=text)))
    except values.ValueRefusedError as wrong:
        return [Problem(name, wrong.what, wrong.allowed, wrong.hint)]
    return []


def construct(
    cls: type[T], mapping: Mapping[str, Any], *, path: str = "", text: bool = False
) -> tuple[T | None, list[Problem]]:
    """Make an instance, or return None and every problem; see :func:`read_values`.

    Problems that the class finds itself (in ``__post_init__`` or ``validate_parameters``) count.
    """
    given_values, problems = read_values(cls, mapping, path=path, text=text)
    if problems:
        return None, problems
    try:
        made = cls(**given_values)
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
    given_values, problems = read_values(type(instance), given, path=path)
    if problems:
        raise problems_error(problems)
    for name, value in given_values.items():
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
