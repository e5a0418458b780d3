"""The dependency rule of docs/architecture.md, section 2, read from the source of every file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*ROOT.glob("converter/**/*.py"), *ROOT.glob("passes/**/*.py")])
HEAVY = {"torch", "onnxruntime", "sklearn", "matplotlib", "cryptography", "PIL", "sympy", "scipy"}

# What each part of `converter` may import, beside itself.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "core": {"errors"},
    "ops": {"errors", "core"},
    "io": {"errors", "core", "ops"},
    "data": {"errors", "core"},
    "execution": {"errors", "core", "ops", "io", "data"},
    "calibration": {"errors", "core", "ops", "io", "data", "execution"},
    "measure": {"errors", "core", "ops", "io", "data", "execution"},
}
ALLOWED["coupling"] = ALLOWED["measure"]
ALLOWED["verification"] = ALLOWED["measure"] | {"measure"}
ALLOWED["search"] = ALLOWED["measure"] | {"measure"}
ALLOWED["pipeline"] = ALLOWED["verification"] | {"verification", "calibration"}
ALLOWED["report"] = ALLOWED["pipeline"] | {"pipeline", "search", "coupling"}
ALLOWED["order"] = ALLOWED["pipeline"] | {"pipeline"}
ALLOWED["source"] = ALLOWED["pipeline"]
ALLOWED["conversion"] = ALLOWED["report"] | {"report", "order", "source"}
ALLOWED["examination"] = ALLOWED["conversion"] | {"conversion", "search", "coupling"}
ALLOWED["api"] = ALLOWED["conversion"] | {"conversion"}
ALLOWED["cli"] = ALLOWED["api"] | ALLOWED["examination"] | {"api", "examination"}
FOR_PASSES = {
    "errors", "core", "ops", "data", "execution", "calibration", "coupling", "measure", "search",
}  # fmt: skip


def modules_in(tree: ast.AST) -> Iterator[str]:
    """Names of imported modules, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(path: Path) -> str:
    relative = path.relative_to(ROOT / "converter")
    return relative.parts[0].removesuffix(".py")


def module_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run on import; the body of ``if TYPE_CHECKING`` does not."""
    for statement in tree.body:
        if isinstance(statement, ast.If):
            if "TYPE_CHECKING" not in ast.dump(statement.test):
                yield from statement.body
            yield from statement.orelse
        else:
            yield statement


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_dependency_rule(path: Path) -> None:
    tree = ast.parse(path.read_text())
    found = {m.split(".")[1] for m in modules_in(tree) if m.startswith("converter.")}
    if path.is_relative_to(ROOT / "passes"):
        assert found <= FOR_PASSES
        return
    imported = set(modules_in(tree))
    assert not any(m == "passes" or m.startswith("passes.") for m in imported)
    part = part_of(path)
    if part in {"__init__", "__main__"}:
        return
    assert found - {part} <= ALLOWED[part]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_modules_are_imported_in_functions(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for statement in module_level(tree):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            found = {m.split(".")[0] for m in modules_in(statement)}
            assert not found & HEAVY


def test_the_parts_form_no_cycle() -> None:
    for part, allowed in ALLOWED.items():
        for other in allowed:
            assert part not in ALLOWED[other], f"{part} and {other} may import each other"


@pytest.mark.parametrize("path", sorted(ROOT.glob("passes/*.py")), ids=lambda p: p.stem)
def test_every_pass_has_a_test_file(path: Path) -> None:
    if path.stem == "__init__":
        return
    assert (ROOT / "tests" / "passes" / f"test_{path.stem}.py").is_file()


def test_no_file_holds_two_concerns_by_sheer_length() -> None:
    long = {
        str(p.relative_to(ROOT)): n for p in FILES if (n := len(p.read_text().splitlines())) > 450
    }
    assert long == {}
