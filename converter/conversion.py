"""One conversion from source to artifact, step by step; :mod:`converter.api` is the door to it.

    prepare ─► load ─► data ─► passes ─► stamp ─► verify ─► write ─► report

Nothing is written to the target before the verdict is known.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.core.context import Context, Dataset, RunSettings
from converter.core.contract import Need
from converter.core.observe import Observer, Progress, Silent
from converter.errors import ConverterError, VerificationError
from converter.order import Order, Samples, check_target
from converter.pipeline.deadline import limits_for, time_limit
from converter.pipeline.pipeline import Pipeline, Policy
from converter.pipeline.services import LocalServices
from converter.source import as_model, source_files

if TYPE_CHECKING:
    import onnx_ir as ir

    from converter.calibration.store import Store
    from converter.core.run import Run
    from converter.report.report import Report
    from converter.verification.budget import Budget
    from converter.verification.verdict import Verdict

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifact:
    """The result of a conversion.

    Attributes:
        model: The converted model.
        path: Where it was written, or None.
        report: What was done, skipped, gained and lost.
        verdict: The comparison with the original, or None without verification.
        run: The steps of the pipeline.
    """

    model: ir.Model
    path: Path | None
    report: Report
    verdict: Verdict | None
    run: Run


def execute(
    order: Order, *, progress: Progress | None = None, observers: Sequence[Observer] = ()
) -> Artifact:
    """Carry out one conversion.

    Raises:
        ConverterError: See :mod:`converter.errors`. Once the model is loaded, every error carries
            the report of the failed conversion as attribute ``report``.
    """
    with (
        tempfile.TemporaryDirectory(prefix="onnxpress-") as folder,
        time_limit(order.time_limit),
    ):
        return _Conversion(order, Path(folder), progress or Silent(), observers).execute()


class _Conversion:
    """The state of one conversion while it runs."""

    def __init__(
        self, order: Order, folder: Path, progress: Progress, observers: Sequence[Observer]
    ) -> None:
        self.order = order
        self.observers = observers
        self.progress = progress
        self.settings = RunSettings(
            threads=order.threads,
            workspace=folder,
            custom_op_library=order.custom_op_library,
        )
        self.folder = folder
        self.started = time.monotonic()
        self.report: Report | None = None

    def execute(self) -> Artifact:
        """Run all steps in order."""
        from converter.verification.budget import Budget

        order = self.order
        budget = Budget.parse(order.checks.budget)
        if not order.checks.verify:
            budget.check_static()
        check_target(order)
        original = self._load()
        limits = limits_for([original], order.time_limit)
        if order.time_limit is not None:
            limits = replace(limits, deadline=self.started + order.time_limit)
        self.settings = replace(self.settings, limits=limits)
        self.report = self._first_report(original)
        try:
            return self._execute(original, budget)
        except ConverterError as error:
            self._record_failure(error)
            raise

    def _execute(self, original: ir.Model, budget: Budget) -> Artifact:
        order = self.order
        self._check_export(original)
        fed = original
        for pass_ in order.passes:
            fed = pass_.narrowed(fed)
        data = order.data.open(fed, order.seed)
        samples = data
        if samples is None and order.checks.verify:
            samples = self._made_up(fed)
        self._note_data(samples, calibrated=data is not None)
        run = self._run_passes(original, (data, samples), budget)
        model = self._sparsified(self._stamp(original, run.model))
        verdict = self._verify(original, model, samples, budget)
        if verdict is not None and not verdict.passed:
            self._reject(original, model, run, verdict, samples)
        files = self._write(model, samples)
        self._prove(original, model, verdict, samples)
        report = self._finish(model, files, verdict)
        return Artifact(model, files[0] if files else None, report, verdict, run)

    def _load(self) -> ir.Model:
        from converter.io.formats import load

        source = self.order.source
        if isinstance(source, str | Path):
            return load(
                Path(source), allow_links=self.order.allow_links, example=self.order.example
            )
        return as_model(source, example=self.order.example)

    def _check_export(self, original: ir.Model) -> None:
        """Hold a model that was exported just now against the PyTorch module it came from."""
        from converter.io.meta import EXAMPLE, NOTES

        if EXAMPLE not in original.meta or not self.order.checks.verify:
            return
        from converter.verification.export import check_export

        check_export(original, self.settings)
        assert self.report is not None
        told = (*self.report.notes, *original.meta[NOTES])
        self._update(notes=tuple(dict.fromkeys(told)))

    def _made_up(self, original: ir.Model) -> Dataset | None:
        """Return samples for verification where none were given: the example, or made-up ones."""
        from converter.io.meta import EXAMPLE

        example = original.meta.get(EXAMPLE)
        if example is None or not example.inputs:
            return Samples("synthetic", batch=self.order.data.batch).open(original, self.order.seed)
        dataset = Samples([dict(example.inputs)]).open(original, self.order.seed)
        assert dataset is not None
        return replace(dataset, description="the example inputs of the PyTorch model")  # type: ignore[type-var]

    def _run_passes(
        self, original: ir.Model, data: tuple[Dataset | None, Dataset | None], budget: Budget
    ) -> Run:
        """Run all passes with what they calibrate on and what exact ones are checked on."""
        order = self.order
        calibration, samples = data
        store = self._statistics()
        context = Context(
            dataset=calibration,
            services=LocalServices(self.settings, self.progress, store),
            settings=self.settings,
            seed=order.seed,
            keep_opset=order.checks.keep_opset,
            explain=order.explain,
            progress=self.progress,
            budget=budget.limits,
        )
        policy = Policy(
            check=order.checks.each,
            on_failure=order.checks.on_failure,
            samples=samples if order.checks.verify else None,
            keep_opset=order.checks.keep_opset,
            deadline=None if order.time_limit is None else self.started + order.time_limit,
        )
        pipeline = Pipeline(order.passes)
        try:
            run = pipeline.run(original, context, observers=self.observers, policy=policy)
        except ConverterError as error:
            self._reproduce(original, error)
            raise
        assert self.report is not None
        self._update(steps=run.steps, notes=(*self.report.notes, *store.notes))
        self._explain(original, run)
        return run

    def _statistics(self) -> Store:
        """Open the cache of calibration statistics, or one that lasts for this conversion."""
        from importlib.metadata import version

        from converter.calibration.store import Store

        runtime = f"onnxruntime {version('onnxruntime')}, {self.settings.threads} threads"
        return Store(self.order.calibration_cache, runtime)

    def _explain(self, original: ir.Model, run: Run) -> None:
        if not self.order.explain:
            return
        from converter.report.explain import explain

        assert self.report is not None
        rows, notes = explain(self.order.explain, original, run)
        self._update(explained=tuple(rows), notes=(*self.report.notes, *notes))

    def _stamp(self, original: ir.Model, model: ir.Model) -> ir.Model:
        """Write provenance into a model of our own; the caller's original stays as it is."""
        if not self.order.output.provenance:
            return model
        from converter.pipeline.provenance import digest_files, stamp, versions

        if model is original:
            model = original.clone()
        assert self.report is not None
        stamp(
            model,
            {
                "recipe": self.report.passes,
                "seed": self.order.seed,
                "source": self.report.source.digest,
                "data": digest_files(self.order.data.files()),
                "versions": versions(),
            },
        )
        return model

    def _sparsified(self, model: ir.Model) -> ir.Model:
        """Store weights as sparse ones where that was asked for, so that this is verified too."""
        if not self.order.output.layout.sparse_initializers:
            return model
        from converter.io.sparsify import sparsified

        model, notes = sparsified(model)
        assert self.report is not None
        self._update(notes=(*self.report.notes, *notes))
        return model

    def _verify(
        self,
        original: ir.Model,
        model: ir.Model,
        samples: Dataset | None,
        budget: Budget,
    ) -> Verdict | None:
        from converter.execution.runner import materialize
        from converter.verification.verify import verify, verify_sizes

        running = self.order.checks.verify and samples is not None
        if not running and not budget:
            return None
        before = materialize(original, self._subfolder("original"))
        after = materialize(model, self._subfolder("converted"))
        if samples is None or not running:
            return verify_sizes(before, after, budget)
        return verify(
            before,
            after,
            samples,
            budget=budget,
            settings=self.settings,
            progress=self.progress,
        )

    def _prove(
        self, original: ir.Model, model: ir.Model, verdict: Verdict | None, samples: Dataset | None
    ) -> None:
        """Count what of a quantized model runs on integers, and what its grids cut off."""
        if not self.order.checks.verify or self.order.output.layout.strip_weights:
            return
        from converter.execution.runner import materialize
        from converter.report.proof import Case, prove

        assert self.report is not None
        path, steps = materialize(model, self._subfolder("converted")), self.report.steps
        proof = prove(Case(original, model, path, steps, samples, verdict), self.settings)
        if proof is not None:
            self._update(proof=proof, notes=(*self.report.notes, *proof.notes))

    def _subfolder(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return folder

    def _write(self, model: ir.Model, samples: Dataset | None) -> list[Path]:
        """Write to the target; return the files, the model file first."""
        from converter.verification.write import Proof, write_model

        output, source = self.order.output, self.order.source
        if output.target is None:
            return []
        saved = write_model(
            model,
            output.target,
            layout=replace(output.layout, sparse_initializers=False),  # they are sparse by now
            proof=Proof(self.settings, samples),
            source=Path(source) if isinstance(source, str | Path) else None,
            in_place=output.in_place,
        )
        assert self.report is not None
        self._update(notes=(*self.report.notes, *saved.notes))
        return [saved.path, *saved.data_paths]

    # --- the report ------------------------------------------------------------------------------

    def _first_report(self, original: ir.Model) -> Report:
        from converter.core.recipe import recipe_dict
        from converter.io.meta import NOTES
        from converter.pipeline.lint import unusual
        from converter.pipeline.provenance import digest_files, versions
        from converter.report.report import FileFacts, Report

        order = self.order
        named = isinstance(order.source, str | Path)
        files, name = (source_files(original), str(order.source)) if named else ([], "")
        facts = FileFacts.of(original, files, digest_files(files))
        return Report(
            status="failed",
            source=replace(facts, name=facts.name or name),
            passes=str(Pipeline(order.passes)),
            recipe=recipe_dict(order.recipe()),
            seed=order.seed,
            notes=(*original.meta.get(NOTES, ()), *unusual(order.passes)),
            versions=versions(),
        )

    def _update(self, **changes: Any) -> Report:
        assert self.report is not None
        self.report = replace(self.report, seconds=time.monotonic() - self.started, **changes)
        return self.report

    def _note_data(self, samples: Dataset | None, *, calibrated: bool) -> None:
        from converter.report.report import Usage

        if samples is None:
            return
        uses = {}
        if calibrated and any(Need.DATA in pass_.needs for pass_ in self.order.passes):
            uses["calibration"] = samples.samples
        if self.order.checks.verify:
            uses["verification"] = samples.samples
        self._update(data=Usage(samples.description, samples.synthetic, uses))

    def _finish(self, model: ir.Model, files: list[Path], verdict: Verdict | None) -> Report:
        from converter.report.report import FileFacts

        report = self._update(
            status="done" if self.order.checks.verify else "not verified",
            target=FileFacts.of(model, files),
            verdict=verdict,
        )
        self._write_report(report)
        return report

    def _record_failure(self, error: ConverterError) -> None:
        missed = isinstance(error, VerificationError)
        report = self._update(status="budget missed" if missed else "failed", error=str(error))
        error.report = report  # type: ignore[attr-defined]
        self._write_report(report)

    def _write_report(self, report: Report) -> None:
        path = self.order.output.report
        if path is None:
            return
        from converter.io.atomic import write_text
        from converter.report.html_report import render
        from converter.report.json_report import to_json

        if path.suffix.lower() in {".html", ".htm"}:
            write_text(path, render(report.to_dict()))
        else:
            write_text(path, to_json(report))

    # --- failures --------------------------------------------------------------------------------

    def _reproduce(self, original: ir.Model, error: ConverterError) -> None:
        checks = self.order.checks
        if checks.reproducer is None:
            return
        from converter.pipeline.reproducer import write_reproducer

        write_reproducer(
            checks.reproducer,
            original,
            self.order.recipe(),
            error=error,
            weights=checks.reproducer_weights,
        )

    def _reject(
        self,
        original: ir.Model,
        model: ir.Model,
        run: Run,
        verdict: Verdict,
        samples: Dataset | None,
    ) -> None:
        """Say which budget was missed, by how much, and which pass cost most.

        Raises:
            VerificationError: Always.
        """
        from converter.pipeline.blame import advice, blame
        from converter.report.report import FileFacts

        kept = self._write(model, samples) if self.order.output.keep else []
        culprit = ""
        if samples is not None and self.order.checks.verify:
            culprit = blame(original, run, verdict, samples, self.settings)
        missed = "; ".join(str(check) for check in verdict.checks if not check.passed)
        error = VerificationError(
            f"the result misses its budget: {missed}" + (f". {culprit}" if culprit else ""),
            verdict=verdict,
            where=str(self.order.output.target or ""),
            hint=advice(self.order.passes, verdict, kept),
        )
        self._update(verdict=verdict, target=FileFacts.of(model, kept))
        self._reproduce(original, error)
        raise error
