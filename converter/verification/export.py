"""Check an exported model against the PyTorch module that it was exported from."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from converter.core.context import RunSettings
from converter.core.graph import walk
from converter.errors import VerificationError
from converter.execution.runner import materialize, run_model
from converter.io.meta import EXAMPLE, NOTES
from converter.measure.difference import DifferenceMeter
from converter.verification.exact import summarize
from converter.verification.randomness import RANDOM_OPERATORS, random_outputs

if TYPE_CHECKING:
    import onnx_ir as ir


def check_export(model: ir.Model, settings: RunSettings) -> None:
    """Run an exported model on its example inputs and hold the outputs against PyTorch's.

    The bounds are those for passes that promise equal outputs
    (:data:`converter.verification.exact.TOLERANCE`). The finding is added to the model's notes. A
    model without an example is left alone.

    Raises:
        VerificationError: The outputs differ.
        ModelError: onnxruntime cannot run the export.
    """
    example = model.meta.get(EXAMPLE)
    if example is None:
        return
    found = run_model(model, [example.inputs], settings=settings)[0]
    random = _random(model, settings)
    differences = []
    for name, expected in example.outputs.items():
        meter = DifferenceMeter(name, random=name in random)
        meter.update(expected, found[name])
        differences.append(meter.result())
    difference = summarize(differences)
    if not difference.equal:
        raise VerificationError(
            f"the exported model and the PyTorch module give other outputs on the example inputs: "
            f"{difference.detail}",
            hint="this is a defect of PyTorch's exporter or a module that is random or changes "
            "itself; --no-verify (verify=False) converts it all the same",
        )
    words = f"largest difference {difference.max_abs:.3g}, {difference.max_rel:.2g} of the output"
    if random:
        words += f"; random outputs were not compared by value: {', '.join(sorted(random))}"
    model.meta[NOTES] = [
        *model.meta.get(NOTES, ()),
        f"export checked against PyTorch on 1 example: {words}",
    ]


def _random(model: ir.Model, settings: RunSettings) -> dict[str, str]:
    """Return the random outputs; a model without random operators is not written for it."""
    if not any(node.op_type in RANDOM_OPERATORS for node in walk(model)):
        return {}
    with tempfile.TemporaryDirectory(prefix="export-", dir=settings.workspace) as folder:
        return random_outputs(materialize(model, Path(folder)))
