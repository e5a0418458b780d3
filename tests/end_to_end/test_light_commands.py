"""Commands that need no model: quick, and free of heavy imports."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from program import ROOT, convert
from sample_plugin.wheel import install

HEAVY = ("onnx", "onnx_ir", "onnxruntime", "numpy", "sympy", "torch")
LIGHT = (["--help"], ["--version"], ["passes"], ["passes", "prune"], ["passes", "prune", "--json"])
SECONDS = 0.25


def in_root(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_no_heavy_import(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from converter.cli.entry import main\n"
        f"code = main({arguments!r})\n"
        f"found = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "sys.exit(f'imported {found}' if found else code)\n"
    )
    done = in_root(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_quick(arguments: list[str], tmp_path: Path) -> None:
    """CPU of the whole process; the best of five, because others use this machine too.

    With byte code, as after an installation, also where the environment forbids to write any.
    """
    bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    convert(*arguments, **bytecode)
    assert any(tmp_path.rglob("*.pyc"))
    best = min(_cpu(arguments, bytecode) for _ in range(5))
    assert best <= SECONDS


def _cpu(arguments: list[str], variables: dict[str, str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert convert(*arguments, **variables).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)


def test_version() -> None:
    from converter import __version__

    assert convert("--version").stdout == f"onnxpress {__version__}\n"


def test_help_names_every_option_and_command() -> None:
    text = convert("--help").stdout
    options = (
        "--passes --recipe --data --samples --batch --labels --image --budget --report --seed "
        "--threads --check --on-failure --no-verify --keep --in-place --external-data --keep-opset "
        "--allow-links --no-provenance --reproducer --time-limit --custom-op-library --quiet "
        "--json --debug"
    )
    for word in (*options.split(), "inspect", "verify", "bench", "passes"):
        assert word in text


def test_passes_as_json() -> None:
    rows = json.loads(convert("passes", "--json").stdout)
    assert {"prune", "quantize", "simplify"} <= {row["name"] for row in rows}
    found = json.loads(convert("passes", "prune", "--json").stdout)
    assert found["name"] == "prune"
    assert "sparsity" in [p["name"] for p in found["parameters"]]


def test_an_installed_plugin_is_listed_described_and_convert(tmp_path: Path) -> None:
    site = install(tmp_path)
    path = os.pathsep.join((str(ROOT), str(site)))
    listed = json.loads(convert("passes", "--json", PYTHONPATH=path).stdout)
    assert {"name": "annotate", "owner": "sample-plugin", "summary": "from sample-plugin"} in listed
    described = convert("passes", "annotate", PYTHONPATH=path)
    assert "write a remark into the metadata" in described.stdout
    assert convert("passes", "annotate").returncode == 2  # not without the plugin


def test_two_owners_of_a_name_stop_with_both_names(tmp_path: Path) -> None:
    site = install(tmp_path, distribution="thief", pass_name="prune")
    done = convert("passes", PYTHONPATH=os.pathsep.join((str(ROOT), str(site))))
    assert done.returncode == 2
    assert "onnxpress" in done.stderr
    assert "thief" in done.stderr


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m converter passes --json | head -c 1"
    done = in_root("bash", "-o", "pipefail", "-c", command)
    assert done.returncode == 0
    assert done.stderr == ""


def test_output_survives_an_ascii_terminal() -> None:
    for arguments in (["passes"], ["passes", "quantize"], ["--help"]):
        done = convert(*arguments, PYTHONIOENCODING="ascii", LANG="C", LC_ALL="C")
        assert done.returncode == 0
        assert done.stderr == ""


def test_the_page_about_passes_is_current() -> None:
    made = in_root(sys.executable, "-m", "converter.cli.docs")
    assert (ROOT / "docs" / "passes.md").read_text() == made.stdout, (
        "run: python -m converter.cli.docs > docs/passes.md"
    )


def test_the_page_about_operators_is_current() -> None:
    made = in_root(sys.executable, "-m", "converter.cli.docs", "axes")
    assert (ROOT / "docs" / "operators.md").read_text() == made.stdout, (
        "run: python -m converter.cli.docs axes > docs/operators.md"
    )


def test_the_page_about_rules_is_current() -> None:
    made = in_root(sys.executable, "-m", "converter.cli.docs", "rules")
    assert (ROOT / "docs" / "rules.md").read_text() == made.stdout, (
        "run: python -m converter.cli.docs rules > docs/rules.md"
    )
