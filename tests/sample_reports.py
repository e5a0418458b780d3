"""A report with something in every part, and with names that try to break out."""

from __future__ import annotations

from converter.core.contract import Outcome, Skip
from converter.core.graph import Footprint
from converter.core.run import Step
from converter.measure.integers import FloatLayer, Integers
from converter.report.proof import Proof
from converter.report.report import FileFacts, Report, Usage

EVIL = "</pre><script>alert(1)</script>\x1b[31m\n[red]\u202e"


def facts(name: str, nbytes: int, nodes: int) -> FileFacts:
    return FileFacts(
        name=name,
        nbytes=nbytes,
        digest="ab" * 32,
        footprint=Footprint(nodes, nbytes // 4, nbytes - 1000),
        opsets={"ai.onnx": 17, EVIL: 1},
        ir_version=8,
    )


def step(spec: str, outcome: Outcome | None, error: str = "") -> Step:
    return Step(
        spec=spec,
        seconds=0.25,
        outcome=outcome,
        before=Footprint(120, 1_000_000, 4_000_000),
        after=Footprint(90, 1_000_000, 4_000_000 if error else 1_100_000),
        error=error,
        max_difference=float("nan"),
        interface_changes=("opset ai.onnx 12 became 13",) if outcome and outcome.modified else (),
    )


def report() -> Report:
    skips = tuple(Skip(f"/head/{i}{EVIL}", "its input is no constant") for i in range(14))
    return Report(
        status="done",
        source=facts(f"in{EVIL}.onnx", 10_200_000, 120),
        target=facts("out.onnx", 2_700_000, 90),
        passes=f"simplify,quantize:exclude={EVIL}",
        recipe={"pass": [{"name": "simplify", "exclude": [EVIL]}]},
        steps=(
            step("simplify", Outcome(True, {"identities_removed": 3, "nothing": 0}, skips[:1])),
            step(
                "quantize:exclude=x",
                Outcome(True, {"nodes_quantized": 40.0, "share": 0.12345}, skips, (EVIL,)),
            ),
            step("fuse", None, error=f"it broke {EVIL}"),
        ),
        data=Usage(f"digits{EVIL}.npz", synthetic=True, uses={"calibration": 32}),
        proof=Proof(
            Integers(
                f"onnxruntime 1{EVIL}",
                40,
                2,
                {"QLinearConv": 40, "QLinearAdd": 7},
                3,
                (FloatLayer(f"head{EVIL}", "Gemm", EVIL), FloatLayer("tail", "MatMul")),
            ),
            saturated={f"stem{EVIL}": 0.02, "tail": 1e-6},
        ),
        notes=(EVIL, EVIL),
        versions={"onnxpress": "0.1.0", "onnx": "1.20"},
        seconds=61.4,
    )
