r"""The text form of a pipeline: ``fuse,prune:sparsity=0.5,exclude=/head/*,quantize``.

    pipeline = pass { "," ( pass | param ) }
    pass     = name [ ":" ( param | flag ) ]
    param    = key "=" value

A key may be quoted as values are, because some passes take keys of the user's choice. An item whose
first mark is ``=`` belongs to the pass before it. A bare flag stands only right after ``name:``.
Repeating a key makes a list. A value with a comma, quote, backslash or white space is written in
double quotes, inside which ``\"`` and ``\\`` stand for the mark itself. White space around an item
is ignored. There are no braces, because shells expand them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from converter.core import params, registry, values
from converter.core.contract import Pass
from converter.errors import SpecError, UnknownPassError

_WORD = re.compile(r'[^\s,:="\\]*')
_PLAIN = re.compile(r'[^\s,"\\]+')
_VALUE = re.compile(r'[^\s,"\\]*')
_SPACE = re.compile(r"\s*")
_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_RESERVED = ("none",)
Finder = Callable[[str], type[Pass]]


@dataclass
class _Call:
    """One pass as it was written."""

    name: str
    column: int
    given: dict[str, list[str]] = field(default_factory=dict)
    flag: str = ""


class _Reader:
    """Walks over a pipeline text; knows nothing of which passes exist."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def error(self, what: str, at: int, *, allowed: str = "", hint: str = "") -> SpecError:
        before, after = self.text[max(0, at - 40) : at], self.text[at : at + 30]
        return SpecError(
            what,
            where=f'column {at + 1} of the passes, marked with ^ in "{before}^{after}"',
            allowed=allowed,
            hint=hint,
        )

    def take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.position)
        assert match is not None  # every pattern here matches the empty string
        self.position = match.end()
        return match.group()

    @property
    def mark(self) -> str:
        """The character at the position; empty at the end."""
        return self.text[self.position : self.position + 1]

    def calls(self) -> list[_Call]:
        found: list[_Call] = []
        self.take(_SPACE)
        if not self.mark:
            return found
        while True:
            self.take(_SPACE)
            self.item(found)
            self.take(_SPACE)
            if not self.mark:
                return found
            if self.mark != ",":
                raise self.error(
                    f"{self.mark!r} cannot stand here",
                    self.position,
                    allowed="a comma between items",
                    hint="put a value with spaces, quotes or backslashes in double quotes",
                )
            self.position += 1

    def item(self, found: list[_Call]) -> None:
        start = self.position
        word = self.key()
        if not _NAME.fullmatch(word) and not (word and found and self.mark == "="):
            raise self.error(
                f"{word!r} is no name" if word else "a pass or a parameter is missing",
                start,
                allowed="name, name:key=value or key=value between commas",
                hint="" if word else "remove the extra comma or mark",
            )
        if self.mark == "=":
            if not found:
                raise self.error(
                    f"parameter {word!r} stands before the first pass",
                    start,
                    allowed="a pass first, e.g. prune:sparsity=0.5",
                )
            self.value(found[-1], word)
            return
        call = _Call(word, start)
        found.append(call)
        if self.mark == ":":
            self.position += 1
            self.first(call)

    def key(self) -> str:
        """Read a name, or a quoted key that ``=`` must follow."""
        if self.mark != '"':
            return self.take(_WORD)
        word = self.quoted()
        if self.mark != "=":
            raise self.error("a quoted key needs a value", self.position, allowed='"key"=value')
        return str(word)

    def first(self, call: _Call) -> None:
        """Read the parameter or flag after ``name:``."""
        start = self.position
        word = self.key()
        if not word:
            raise self.error(
                f"a parameter must follow {call.name + ':'!r}", start, allowed="key=value or a flag"
            )
        if self.mark == "=":
            self.value(call, word)
        elif self.mark == ":":
            raise self.error(
                "a second colon cannot stand here",
                self.position,
                allowed="name:key=value",
                hint="put a key that holds a colon in double quotes",
            )
        else:
            call.flag = word

    def value(self, call: _Call, key: str) -> None:
        self.position += 1
        value = self.quoted() if self.mark == '"' else self.take(_VALUE)
        call.given.setdefault(key, []).append(value)

    def quoted(self) -> values.Quoted:
        start = self.position
        self.position += 1
        parts: list[str] = []
        while self.mark != '"':
            if not self.mark:
                raise self.error("the quote is never closed", start, allowed='a closing "')
            if self.mark == "\\":
                self.position += 1
                if self.mark not in ('"', "\\"):
                    raise self.error(
                        "a backslash stands before a mark that needs none",
                        self.position - 1,
                        allowed='\\" and \\\\ inside quotes',
                    )
            parts.append(self.mark)
            self.position += 1
        self.position += 1
        return values.Quoted("".join(parts))


def parse(text: str, *, find: Finder = registry.get) -> tuple[Pass, ...]:
    """Read a pipeline text.

    Args:
        text: See the module's grammar; an empty text is an empty pipeline.
        find: Returns the class of a pass by name.

    Raises:
        SpecError: The text breaks the grammar; says at which column.
        UnknownPassError: A pass does not exist; names the nearest.
        ParameterError: Names every wrong parameter of every pass.
    """
    reader = _Reader(text)
    made: list[Pass] = []
    problems: list[params.Problem] = []
    previous: type[Pass] | None = None
    for index, call in enumerate(reader.calls()):
        kind = _find(call, previous, find)
        if call.flag:
            _check_flag(reader, call, kind)
        path = f"passes[{index}].{call.name}"
        pass_, wrong = params.construct(kind, _given(call), path=path, text=True)
        problems += wrong
        if pass_ is not None:
            made.append(pass_)
        previous = kind
    if problems:
        raise params.problems_error(problems)
    return tuple(made)


def _given(call: _Call) -> dict[str, Any]:
    given: dict[str, Any] = {key: tuple(values) for key, values in call.given.items()}
    if call.flag:
        given[call.flag] = (*given.get(call.flag, ()), "true")
    return given


def _find(call: _Call, previous: type[Pass] | None, find: Finder) -> type[Pass]:
    try:
        return find(call.name)
    except UnknownPassError as error:
        names = [] if previous is None else [f.name for f in params.fields_of(previous)]
        if call.name in names:
            error.hint = f"a flag stands only right after the colon; write {call.name}=true"
        raise


def _check_flag(reader: _Reader, call: _Call, kind: type[Pass]) -> None:
    """A flag is a switch; anything else after the colon is a value whose name was left out."""
    fields = params.fields_of(kind)
    known = {f.name: f for f in fields}
    if call.flag in known:
        if known[call.flag].annotation is bool:
            return
        raise reader.error(
            f"{call.flag} of {call.name} is no switch and needs a value",
            call.column,
            allowed=f"{call.name}:{call.flag}={known[call.flag].type_text}",
        )
    if any(f.is_open for f in fields):
        raise reader.error(
            f"{call.flag} has no value",
            call.column + len(call.name) + 1,
            allowed=f"{call.name}:name=value",
        )
    fitting = [f.name for f in fields if _fits(kind, f, call.flag)]
    if fitting:
        raise reader.error(
            f"the value {call.flag} has no name",
            call.column + len(call.name) + 1,
            allowed="key=value",
            hint=f"write {call.name}:{fitting[0]}={call.flag}",
        )
    if not _NAME.fullmatch(call.flag):
        raise reader.error(
            f"{call.flag!r} is neither a parameter nor a flag",
            call.column + len(call.name) + 1,
            allowed=f"{call.name}:key=value",
        )


def _fits(kind: type[Pass], field_: params.Field, word: str) -> bool:
    if any(word in field_.type_text for word in ("text", "path", "true")):
        return False  # these take any word, so the word says nothing about what was meant
    found, _ = params.read_values(kind, {field_.name: word}, text=True)
    return field_.name in found


def format_pass(pass_: Pass) -> str:
    """Return the canonical text of a pass; parameters at their default are left out."""
    items = []
    for name, value in params.changed_values(pass_).items():
        if isinstance(value, tuple) and any(isinstance(v, tuple) for v in value):
            items += [f"{_format_key(k)}={_format(v)}" for k, v in value]
        elif isinstance(value, tuple):
            items += [f"{name}={_format(v)}" for v in value] or [f"{name}="]
        else:
            items.append(f"{name}={_format(value)}")
    return pass_.name + (":" + ",".join(items) if items else "")


def format_passes(passes: Iterable[Pass]) -> str:
    """Return the canonical text of a pipeline."""
    return ",".join(format_pass(pass_) for pass_ in passes)


def _format(value: Any) -> str:
    text = values.format_value(value)
    if value is not None and (text in _RESERVED or not _PLAIN.fullmatch(text)):
        return _quote(text)
    return text


def _format_key(key: str) -> str:
    return key if _NAME.fullmatch(key) else _quote(key)


def _quote(text: str) -> str:
    marked = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{marked}"'


def format_list(passes: Sequence[Pass]) -> tuple[str, ...]:
    """Return the canonical text of each pass."""
    return tuple(format_pass(pass_) for pass_ in passes)
