"""What the documents show works: links, pipelines, recipes, budgets, names in Python."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from converter.core.recipe import parse_recipe, read_recipe
from converter.core.spec import format_passes, parse

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")])
PAGES = [page for page in PAGES if not page.parts[len(ROOT.parts)].startswith((".", "out"))]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def blocks(kind: str) -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for indent, language, text in FENCE.findall(page.read_text(encoding="utf-8")):
            if language == kind:
                lines = [line.removeprefix(indent) for line in text.splitlines()]
                found.append((page.name, "\n".join(lines)))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(FENCE, "", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_readme_has_two_commands_to_set_up() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = FENCE.search(text)
    assert first is not None
    commands = [line.split("#")[0].strip() for line in first.group(3).splitlines()]
    assert commands == ["make demo", "make test"]


def pipelines() -> list[str]:
    shown = [text for _, text in blocks("")]
    given = re.findall(r"--passes (\S+)", "\n".join(shown))
    return sorted({text for text in given if "[" not in text and "TEXT" not in text})


@pytest.mark.parametrize("text", pipelines())
def test_pipelines_can_be_read(text: str) -> None:
    passes = parse(text)
    assert parse(format_passes(passes)) == passes


@pytest.mark.parametrize("path", sorted(ROOT.glob("fixtures/recipes/*.toml")), ids=lambda p: p.name)
def test_bundled_recipes_can_be_read(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.passes
    assert recipe.data.path is None or Path(recipe.data.path).is_file()


def test_recipes_in_documents_can_be_read() -> None:
    from converter.verification.budget import Budget

    found = blocks("toml")
    assert found
    for _, text in found:
        recipe = parse_recipe(text)
        assert recipe.passes
        assert len(Budget.parse(recipe.budget).limits) == len(recipe.budget)


def test_budget_terms_in_documents_can_be_read() -> None:
    from converter.verification.budget import Budget

    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    terms = re.findall(r"--budget \"([^\"]+)\"", text)
    terms += re.findall(r"`((?:\w+)[<>]=[\d.e-]+[x%]?)`", text)
    assert len(terms) > 5
    for term in terms:
        assert len(Budget.parse((term,)).limits) == 1, term


def test_python_in_documents_names_what_exists() -> None:
    import importlib

    for page, text in blocks("python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), (page, node.module, alias.name)
