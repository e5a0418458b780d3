"""What a pass says about itself, read from its source without running it, or from its class.

Pass modules import onnx_ir, which costs half a second; help texts must not pay for it. Both ways
give the same :class:`Declaration`; the source is read only as far as literals, names of the same
module and names imported from this project go, and :class:`NotStaticError` says where that ends.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.core import params, values
from converter.core.contract import Pass
from converter.core.params import Param

if TYPE_CHECKING:
    from converter.core.registry import Entry


class NotStaticError(Exception):
    """The source does not say it in a form that can be read without running it."""


@dataclass(frozen=True)
class Parameter:
    """One parameter in words.

    Attributes:
        name: Its key.
        kind: Its type, e.g. ``number`` or ``global | local``.
        default: Its default; empty when it must be given.
        help: One line.
        bounds: Allowed range, e.g. ``0 <= x < 1``.
    """

    name: str
    kind: str
    default: str
    help: str
    bounds: str = ""


@dataclass(frozen=True)
class Declaration:
    """One pass in words.

    Attributes:
        name: Name in the pipeline text.
        summary: One line.
        owner: Distribution that brings it.
        target: Module, or module and class.
        details: The class's documentation, without the part about attributes.
        parameters: In the order of declaration.
        needs: Things without which it cannot run, e.g. ``data``.
        exact: It promises equal outputs.
        changes_interface: Inputs, outputs, opset or IR version may change.
    """

    name: str
    summary: str
    owner: str
    target: str
    details: str
    parameters: tuple[Parameter, ...]
    needs: tuple[str, ...] = ()
    exact: bool = False
    changes_interface: bool = False


def from_class(kind: type[Pass], entry: Entry) -> Declaration:
    """Describe an imported pass."""
    return Declaration(
        name=kind.name,
        summary=kind.summary,
        owner=entry.owner,
        target=entry.target,
        details=_details(inspect.getdoc(kind)),
        parameters=tuple(
            Parameter(f.name, f.type_text, f.default_text, f.help, f.bounds)
            for f in params.fields_of(kind)
        ),
        needs=tuple(sorted(need.value for need in kind.needs)),
        exact=kind.exact,
        changes_interface=kind.changes_interface,
    )


def _details(doc: str | None) -> str:
    """Keep what the documentation says before its formal sections."""
    lines: list[str] = []
    for line in inspect.cleandoc(doc or "").splitlines():
        if line in ("Attributes:", "Args:", "Raises:", "Class attributes:"):
            break
        lines.append(line)
    return "\n".join(lines).strip()


_METHOD = ("    def ", "    async def ", "    @")
_FUNCTION = ("def ", "async def ", "@")
_SIGNATURE_END = ")"  # of a signature in several lines

# --- reading source ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """A piece of source and the module in which its names have their meaning."""

    node: Any
    module: _Module


class _Module:
    """The top level of one source file."""

    def __init__(self, path: Path) -> None:
        self.names: dict[str, ast.AST] = {}
        for statement in _statements(_parsed(path.read_text(encoding="utf-8"))):
            if isinstance(statement, ast.ClassDef):
                self.names[statement.name] = statement
            elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                self.names[statement.targets[0].id] = statement.value
            elif isinstance(statement, ast.ImportFrom):
                for alias in statement.names:
                    self.names[alias.asname or alias.name] = statement

    def resolve(self, name: str) -> _Found:
        """Follow a name to the class or expression that it stands for."""
        found = self.names.get(name)
        if isinstance(found, ast.ImportFrom) and found.module and not found.level:
            original = next(a.name for a in found.names if (a.asname or a.name) == name)
            return _read(found.module).resolve(original)
        if found is None or isinstance(found, ast.ImportFrom):
            raise NotStaticError(f"{name} is not defined at the top of a module")
        return _Found(found, self)


def _parsed(source: str) -> ast.Module:
    """Parse a module, without functions and methods where that can be told by indentation.

    They are most of the text and say nothing about the pass; parsing them takes the most time.
    """
    kept, inside = [], False
    for line in source.splitlines():
        if line and not line[0].isspace() and not line.startswith(_SIGNATURE_END):
            inside = line.startswith(_FUNCTION)
        inside = inside or line.startswith(_METHOD)
        if not inside:
            kept.append(line)
    try:
        return ast.parse("\n".join(kept))
    except SyntaxError:
        return ast.parse(source)


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    for statement in tree.body:
        if isinstance(statement, ast.If):  # if TYPE_CHECKING
            yield from statement.body
        else:
            yield statement


@cache
def _read(name: str) -> _Module:
    package, *inner = name.split(".")
    if package not in ("passes", "converter"):
        raise NotStaticError(f"{name} is not part of this project")
    spec = importlib.util.find_spec(package)  # of an inner module it would import the packages
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder, *inner)
        for source in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
            if source.is_file():
                return _Module(source)
    raise NotStaticError(f"{name} has no source")


def from_source(entry: Entry) -> Declaration:
    """Describe a pass of this project from its source.

    Raises:
        NotStaticError: The declaration is computed when the module runs.
    """
    return _declare(entry, _class_of(entry))


def summary_from_source(entry: Entry) -> str:
    """Return the summary of a pass of this project; quicker than all of its declaration.

    Raises:
        NotStaticError: It is not a text in the class itself.
    """
    found = _class_of(entry)
    body = _attributes(found.node)
    if "summary" not in body:
        raise NotStaticError(f"{found.node.name} has no summary of its own")
    return str(_literal(body["summary"].value, found.module))


def _class_of(entry: Entry) -> _Found:
    module = _read(entry.module)
    for node in module.names.values():
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            body = _attributes(node)
            if "name" in body and _literal(body["name"].value, module) == entry.name:
                return _Found(node, module)
    raise NotStaticError(f"no class of {entry.module} has the name {entry.name!r}")


def _declare(entry: Entry, found: _Found) -> Declaration:
    fields: dict[str, tuple[ast.AnnAssign, _Module]] = {}
    facts: dict[str, tuple[Any, _Module]] = {}
    for owner in reversed(list(_lineage(found))):
        for name, statement in _attributes(owner.node).items():
            if isinstance(statement, ast.AnnAssign) and "ClassVar" not in ast.dump(
                statement.annotation
            ):
                fields[name] = (statement, owner.module)
            else:
                facts[name] = (statement.value, owner.module)
    return Declaration(
        name=entry.name,
        summary=_fact(facts, "summary", ""),
        owner=entry.owner,
        target=entry.target,
        details=_details(ast.get_docstring(found.node)),
        parameters=tuple(_parameter(name, *where) for name, where in fields.items()),
        needs=_needs(facts),
        exact=_fact(facts, "exact", False),  # noqa: FBT003 - the default of the fact
        changes_interface=_fact(facts, "changes_interface", False),  # noqa: FBT003 - as above
    )


def _lineage(found: _Found) -> Iterator[_Found]:
    """Yield the class and its bases up to Pass, most derived first."""
    yield found
    for base in found.node.bases:
        if not isinstance(base, ast.Name):
            raise NotStaticError(f"base {ast.unparse(base)} is computed")
        if base.id not in ("Pass", "ABC"):
            yield from _lineage(found.module.resolve(base.id))


def _attributes(node: ast.ClassDef) -> dict[str, ast.AnnAssign | ast.Assign]:
    found: dict[str, ast.AnnAssign | ast.Assign] = {}
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            found[statement.target.id] = statement
        elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            found[statement.targets[0].id] = statement
    return found


def _fact(facts: dict[str, tuple[Any, _Module]], name: str, default: Any) -> Any:
    if name not in facts:
        return default
    return _literal(*facts[name])


def _needs(facts: dict[str, tuple[Any, _Module]]) -> tuple[str, ...]:
    if "needs" not in facts:
        return ()
    tree, _ = facts["needs"]
    members = [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    return tuple(sorted(member.lower() for member in members))


def _parameter(name: str, statement: ast.AnnAssign, module: _Module) -> Parameter:
    annotation: ast.expr = statement.annotation
    param = Param("")
    if _is_subscript(annotation, "Annotated"):
        assert isinstance(annotation, ast.Subscript)
        assert isinstance(annotation.slice, ast.Tuple)
        param = _param(annotation.slice.elts[1], module)
        annotation = annotation.slice.elts[0]
    default = "" if statement.value is None else _default(statement.value, module)
    return Parameter(name, _kind(annotation, module), default, param.help, param.bounds())


def _param(call: ast.expr, module: _Module) -> Param:
    if not isinstance(call, ast.Call):
        raise NotStaticError(f"{ast.unparse(call)} is no Param(...)")
    positional = [_literal(a, module) for a in call.args]
    named = {k.arg: _literal(k.value, module) for k in call.keywords if k.arg}
    return Param(*positional, **named)


def _default(value: ast.expr, module: _Module) -> str:
    return values.default_text(_literal(value, module))


def _literal(value: ast.expr | None, module: _Module) -> Any:
    """Evaluate literals, names of module constants, members of enums, tuples and f-strings."""
    if isinstance(value, ast.Name):
        found = module.resolve(value.id)
        return _literal(found.node, found.module)
    if isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name):
        members = _members(module.resolve(value.value.id))
        if value.attr in members:
            return members[value.attr]
    if isinstance(value, ast.Tuple):
        return tuple(_literal(v, module) for v in value.elts)
    if isinstance(value, ast.JoinedStr):
        parts = [p.value if isinstance(p, ast.FormattedValue) else p for p in value.values]
        return "".join(str(_literal(part, module)) for part in parts)
    try:
        return ast.literal_eval(value) if value is not None else None
    except (ValueError, TypeError) as error:
        raise NotStaticError("a value is computed") from error


def _members(found: _Found) -> dict[str, str]:
    """Texts of the members of an enum by member name."""
    if not isinstance(found.node, ast.ClassDef):
        raise NotStaticError("a value is computed")
    texts = {}
    for name, statement in _attributes(found.node).items():
        value = statement.value
        is_text = isinstance(value, ast.Constant) and isinstance(value.value, str)
        texts[name] = value.value if is_text else name.lower()  # type: ignore[union-attr]
    return texts


def _is_subscript(node: ast.expr, name: str) -> bool:
    return (
        isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Name)
        and node.value.id == name
    )


def _kind(node: Any, module: _Module) -> str:
    """The type in the words of :func:`converter.core.values.type_text`."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return " | ".join(_kind(side, module) for side in (node.left, node.right))
    if isinstance(node, ast.Constant) and node.value is None:
        return "none"
    if isinstance(node, ast.Subscript):
        return _generic(node, module)
    if not isinstance(node, ast.Name):
        raise NotStaticError(f"type {ast.unparse(node)} is computed")
    if node.id in values.TYPE_WORDS:
        return values.TYPE_WORDS[node.id]
    found = module.resolve(node.id)
    if isinstance(found.node, ast.ClassDef):
        return " | ".join(_members(found).values())
    return _kind(found.node, found.module)


def _generic(node: ast.Subscript, module: _Module) -> str:
    items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if _is_subscript(node, "Literal"):
        return " | ".join(values.format_value(_literal(item, module)) for item in items)
    if _is_subscript(node, "tuple") and len(items) == 2:
        if isinstance(items[0], ast.Subscript):
            pair = items[0].slice
            assert isinstance(pair, ast.Tuple)
            return f"any name={_kind(pair.elts[1], module)}"
        return f"list of {_kind(items[0], module)}"
    raise NotStaticError(f"type {ast.unparse(node)} is computed")
