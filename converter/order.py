"""What one conversion is asked to do, and the checks that need nothing but the order itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.core.context import Dataset
from converter.core.contract import Pass
from converter.errors import UsageError
from converter.io.layout import Layout
from converter.pipeline.pipeline import Check, OnFailure

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.core.recipe import Recipe


REPORTS = (".json", ".html", ".htm")


@dataclass(frozen=True)
class Samples:
    """What samples to take from where; see :func:`converter.data.sources.open_data`.

    Attributes:
        spec: File, folder, ``module:function``, arrays, a dataset, or None for none.
        samples: Take at most so many.
        batch: Samples per run.
        labels: Name of the array that holds the labels.
        image: Preprocessing of a folder of images.
    """

    spec: Any = None
    samples: int | None = None
    batch: int = 1
    labels: str | None = None
    image: str | None = None

    def files(self) -> list[Path]:
        """Return the files that hold the samples, sorted; none for what is no file."""
        if not isinstance(self.spec, str | Path):
            return []
        path = Path(self.spec)
        if path.is_dir():
            return sorted(file for file in path.iterdir() if file.is_file())
        return [path] if path.is_file() else []

    def open(self, model: ir.Model, seed: int) -> Dataset | None:
        """Open the samples for a model; None when none were given."""
        from converter.data.sources import open_data

        if self.spec is None:
            return None
        return open_data(
            self.spec,
            model,
            batch=self.batch,
            samples=self.samples,
            labels=self.labels,
            image=self.image,
            seed=seed,
        )


@dataclass(frozen=True)
class Checks:
    """How strictly the result is checked; see :func:`converter.api.convert` for each field."""

    budget: Sequence[str] = ()
    verify: bool = True
    each: Check = "end"
    on_failure: OnFailure = "fail"
    keep_opset: bool = False
    reproducer: Path | None = None
    reproducer_weights: bool = False


@dataclass(frozen=True)
class Output:
    """Where the results go; see :func:`converter.api.convert` for each field."""

    target: Path | None = None
    report: Path | None = None
    keep: bool = False
    in_place: bool = False
    layout: Layout = Layout()  # noqa: RUF009 - frozen
    provenance: bool = True

    @property
    def compressed(self) -> bool:
        """Whether the target is a file that is compressed for transport."""
        return self.target is not None and self.target.suffix.lower() == ".zst"


@dataclass(frozen=True)
class Order:
    """Everything that one conversion was asked to do."""

    source: Any
    passes: tuple[Pass, ...] = ()
    data: Samples = Samples()
    checks: Checks = Checks()
    output: Output = Output()
    seed: int = 0
    threads: int = 1
    allow_links: bool = False
    custom_op_library: Path | None = None
    time_limit: float | None = None
    explain: tuple[str, ...] = ()
    example: Any = None
    calibration_cache: Path | None = None

    def recipe(self) -> Recipe:
        """Return all of the order that a recipe can hold, for reports and for running it again."""
        from converter.core.recipe import Recipe, RecipeData, RecipeOutput

        data, output, layout = self.data, self.output, self.output.layout
        return Recipe(
            passes=self.passes,
            seed=self.seed,
            data=RecipeData(
                path=str(data.spec) if isinstance(data.spec, str | Path) else None,
                samples=data.samples,
                batch=None if data.batch == 1 else data.batch,
                labels=data.labels,
                image=data.image,
            ),
            budget=tuple(self.checks.budget),
            output=RecipeOutput(
                external_data=None if layout.external_data == "auto" else layout.external_data,
                shard_size=None if layout.shard_size is None else str(layout.shard_size),
                weights_format=None if layout.weights_format == "raw" else layout.weights_format,
                strip_weights=layout.strip_weights or None,
                sparse_initializers=layout.sparse_initializers or None,
                compress="zstd" if output.compressed else None,
                keep_opset=self.checks.keep_opset or None,
                provenance=None if output.provenance else False,
            ),
        )


def check_target(order: Order) -> None:
    """Refuse a target that cannot be written before any work is done.

    Raises:
        UsageError: The folder is missing or not writable, the target is the input, or the suffix
            of the report says nothing of its form.
    """
    from converter.io.atomic import check_target as check_path
    from converter.io.formats import check_output

    output, source = order.output, order.source
    if output.target is not None:
        given = source if isinstance(source, str | Path) else None
        check_output(output.target, source=given, in_place=output.in_place, layout=output.layout)
    if order.calibration_cache is not None:
        check_path(order.calibration_cache)
    if output.report is None:
        return
    check_path(output.report)
    if output.report.suffix.lower() not in REPORTS:
        raise UsageError(
            f"a report cannot be written as {output.report.suffix or 'a file without a suffix'}",
            where=f"--report {output.report}",
            allowed=" or ".join(f"FILE{suffix}" for suffix in REPORTS),
        )
