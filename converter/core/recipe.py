"""Recipes: a pipeline with its data, budgets and output choices in a TOML (or JSON) file.

    version = 1
    seed = 0

    [[pass]]
    name = "prune"
    sparsity = 0.5

    [data]
    path = "calib.npz"

    [budget]
    size = "<=0.3x"

    [output]
    external_data = "auto"

Unknown keys are errors. What the command line says wins over the recipe.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from converter.core import params, registry, values
from converter.core.contract import Pass
from converter.core.params import Param, Problem
from converter.errors import RecipeError, UsageError

VERSION = 1
MAX_BYTES = 1 << 20
_TERM = re.compile(r"\s*([^<>=]*?)\s*([<>=].*)", re.DOTALL)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_KEYS = ("version", "seed", "pass", "data", "budget", "output")
T = TypeVar("T")


@dataclass(frozen=True)
class RecipeData:
    """Section ``[data]``; None means not given."""

    path: Annotated[str | None, Param("what --data takes; files are relative to the recipe")] = None
    samples: Annotated[int | None, Param("use at most so many samples", ge=1)] = None
    batch: Annotated[int | None, Param("samples per run", ge=1)] = None
    labels: Annotated[str | None, Param("array with the labels")] = None
    image: Annotated[str | None, Param("preprocessing of a folder of images")] = None


@dataclass(frozen=True)
class RecipeOutput:
    """Section ``[output]``; None means not given."""

    external_data: Annotated[
        Literal["auto", "yes", "no"] | None, Param("weights in a file of their own")
    ] = None
    shard_size: Annotated[str | None, Param("largest file of weights, e.g. 2GB")] = None
    weights_format: Annotated[
        Literal["raw", "safetensors"] | None, Param("container of the weights beside the model")
    ] = None
    strip_weights: Annotated[bool | None, Param("write the graph without its weights")] = None
    sparse_initializers: Annotated[
        bool | None, Param("write tensors with many zeros as sparse ones")
    ] = None
    compress: Annotated[
        Literal["zstd"] | None, Param("write a .onnx.zst file, for transport only")
    ] = None
    report: Annotated[str | None, Param("report file, .json or .html")] = None
    keep_opset: Annotated[bool | None, Param("never change opset or IR version")] = None
    provenance: Annotated[bool | None, Param("write the recipe into the model")] = None


@dataclass(frozen=True)
class Recipe:
    """A whole recipe.

    Attributes:
        passes: The pipeline.
        seed: Root of all random streams; None when not given.
        data: Samples to use.
        budget: Terms such as ``size<=0.3x``.
        output: How the result is written.
    """

    passes: tuple[Pass, ...] = ()
    seed: int | None = None
    data: RecipeData = field(default_factory=RecipeData)
    budget: tuple[str, ...] = ()
    output: RecipeOutput = field(default_factory=RecipeOutput)


# --- reading -------------------------------------------------------------------------------------


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe file; ``.json`` is JSON, everything else TOML.

    Raises:
        RecipeError: The file cannot be read or parsed, or has unknown keys or wrong values.
        ParameterError: Parameters of passes are wrong; names all of them.
        UnknownPassError: A pass does not exist.
    """
    path = Path(path)
    text = _read_text(path)
    try:
        recipe = parse_recipe(text, kind="json" if path.suffix.lower() == ".json" else "toml")
    except UsageError as error:
        error.where = error.where or str(path)
        raise
    given = recipe.data.path
    if given is not None and (path.parent / given).exists():
        data = dataclasses.replace(recipe.data, path=str(path.parent / given))
        recipe = dataclasses.replace(recipe, data=data)
    return recipe


def _read_text(path: Path) -> str:
    try:
        if not path.is_file():
            raise RecipeError(
                "the recipe is missing or no regular file",
                where=str(path),
                allowed="a TOML or JSON file",
            )
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(
            f"the recipe cannot be read: {error.strerror or error}", where=str(path)
        ) from error
    if len(raw) > MAX_BYTES:
        raise RecipeError(
            "the recipe is too large", where=str(path), allowed=f"at most {MAX_BYTES} bytes"
        )
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise RecipeError("the recipe is not UTF-8 text", where=str(path)) from error


def parse_recipe(text: str, *, kind: Literal["toml", "json"] = "toml") -> Recipe:
    """Read a recipe from its text; see :func:`read_recipe`."""
    try:
        table = json.loads(text) if kind == "json" else tomllib.loads(text)
    except (tomllib.TOMLDecodeError, ValueError) as error:
        raise RecipeError(f"the recipe is no valid {kind.upper()}: {error}") from error
    except RecursionError as error:
        raise RecipeError("the recipe is nested too deeply") from error
    if not isinstance(table, dict):
        raise RecipeError("the recipe is no table", allowed=", ".join(_KEYS))
    return _from_table(table)


def _from_table(table: Mapping[str, Any]) -> Recipe:
    problems = [
        Problem(key, "is no key of a recipe", ", ".join(_KEYS), values.nearest(key, _KEYS))
        for key in table
        if key not in _KEYS
    ]
    _integer(table, "version", problems)
    if table.get("version", VERSION) != VERSION:
        problems.append(Problem("version", f"is {table['version']!r}", str(VERSION)))
    seed = _integer(table, "seed", problems)
    data = _section(RecipeData, table.get("data", {}), "data", problems)
    output = _section(RecipeOutput, table.get("output", {}), "output", problems)
    budget = _budget(table.get("budget", {}), problems)
    passes, wrong = _passes(table.get("pass", []), problems)
    if problems:
        raise RecipeError(params.problems_error([*problems, *wrong]).what, **_extras(problems))
    if wrong:
        raise params.problems_error(wrong)
    return Recipe(
        passes=passes,
        seed=seed,
        data=data or RecipeData(),
        budget=budget,
        output=output or RecipeOutput(),
    )


def _extras(problems: list[Problem]) -> dict[str, str]:
    one = problems[0]
    return {"allowed": one.allowed, "hint": one.hint} if len(problems) == 1 else {}


def _integer(table: Mapping[str, Any], key: str, problems: list[Problem]) -> int | None:
    value = table.get(key)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    problems.append(Problem(key, f"is {value!r}", "an integer from 0"))
    return None


def _section(cls: type[T], table: Any, path: str, problems: list[Problem]) -> T | None:
    if not isinstance(table, dict):
        problems.append(Problem(path, f"is {table!r}", "a table"))
        return None
    made, wrong = params.construct(cls, table, path=path)
    problems += wrong
    return made


def _budget(table: Any, problems: list[Problem]) -> tuple[str, ...]:
    if not isinstance(table, dict):
        problems.append(Problem("budget", f"is {table!r}", 'a table, e.g. size = "<=0.3x"'))
        return ()
    found: list[str] = []
    for metric, value in table.items():
        for limit in value if isinstance(value, list) else [value]:
            if isinstance(limit, str) and limit.strip()[:1] in ("<", ">", "="):
                found.append(f"{metric}{limit.strip()}")
            else:
                problems.append(Problem(f"budget.{metric}", f"is {limit!r}", 'e.g. "<=0.3x"'))
    return tuple(found)


def _passes(tables: Any, problems: list[Problem]) -> tuple[tuple[Pass, ...], list[Problem]]:
    """Make the passes; structural problems go to ``problems``, those of parameters are returned."""
    made: list[Pass] = []
    wrong: list[Problem] = []
    if not isinstance(tables, list):
        problems.append(Problem("pass", "is no list", "[[pass]] tables, each with a name"))
        return (), wrong
    for index, table in enumerate(tables):
        path = f"pass[{index}]"
        if not isinstance(table, dict) or not isinstance(table.get("name"), str):
            problems.append(Problem(path, "has no name", 'name = "prune"'))
            continue
        kind = registry.get(table["name"])
        given = _without_none(kind, {k: v for k, v in table.items() if k != "name"})
        pass_, found = params.construct(kind, given, path=f"{path}.{table['name']}")
        wrong += found
        if pass_ is not None:
            made.append(pass_)
    return tuple(made), wrong


def _without_none(kind: type[Pass], table: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null: the word ``none`` stands for it where a parameter may be none."""
    optional = {f.name for f in params.fields_of(kind) if f.type_text.endswith("| none")}
    return {k: None if k in optional and v == "none" else v for k, v in table.items()}


# --- writing -------------------------------------------------------------------------------------


def write_recipe(recipe: Recipe) -> str:
    """Return the canonical TOML text of a recipe; :func:`parse_recipe` gives back an equal one.

    Raises:
        RecipeError: A text has characters that TOML cannot hold.
    """
    lines = [f"version = {VERSION}"]
    if recipe.seed is not None:
        lines.append(f"seed = {recipe.seed}")
    for pass_ in recipe.passes:
        lines += ["", "[[pass]]", f"name = {_toml(pass_.name)}"]
        lines += [f"{k} = {_toml(v)}" for k, v in params.changed_values(pass_).items()]
    for title, section in (("data", recipe.data), ("output", recipe.output)):
        lines += _table(title, params.changed_values(section).items())
    lines += _table("budget", _limits(recipe.budget).items())
    return "\n".join(lines) + "\n"


def recipe_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as JSON-able data of the same structure."""
    return tomllib.loads(write_recipe(recipe))


def _table(title: str, items: Iterable[tuple[str, Any]]) -> list[str]:
    rows = [f"{_toml_key(k)} = {_toml(v)}" for k, v in items]
    return ["", f"[{title}]", *rows] if rows else []


def _toml_key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _toml(key)


def _limits(terms: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, list[str]] = {}
    for term in terms:
        match = _TERM.fullmatch(term)
        if match is None:
            raise RecipeError(f"{term!r} is no budget", allowed="a metric and a limit: size<=0.3x")
        found.setdefault(match[1], []).append(match[2].strip())
    return {k: tuple(v) if len(v) > 1 else v[0] for k, v in found.items()}


def _toml(value: Any) -> str:
    if isinstance(value, tuple) and any(isinstance(v, tuple) for v in value):
        return f"{{{', '.join(f'{_toml_key(k)} = {_toml(v)}' for k, v in value)}}}"
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(v) for v in value)}]"
    if isinstance(value, bool | float) or type(value) is int:
        return values.format_value(value)
    text = values.format_value(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RecipeError(f"{text!r} cannot be written as TOML: it is no valid Unicode") from error
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
