"""Models for the benchmarks of pruning: what calibrates them, what judges them, and what they cost.

Each task has a model, samples without labels for calibration, and other samples that judge. Costs
are counted here again, from the shapes that onnxruntime reports, not by the code that is measured.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.quantize_accuracy import Task as Images
from benchmarks.quantize_accuracy import log_probabilities

ROOT = Path(__file__).resolve().parent.parent
Array = np.ndarray[Any, Any]
Feed = dict[str, Array]


@dataclass(frozen=True)
class Judged:
    """How a changed model compares with the original on samples that did not calibrate it.

    Attributes:
        before: Metric of the original: per cent of right answers, or the task's own figure.
        lost: What the change costs, in points of that metric (positive is worse).
        error: Standard error of ``lost``, paired; NaN where there is none.
        agreement: Per cent of equal first choices, or NaN.
        divergence: Mean KL(original || changed) in nats, or NaN.
    """

    before: float
    lost: float
    error: float = math.nan
    agreement: float = math.nan
    divergence: float = math.nan


class Task(Protocol):
    """A model with data."""

    name: str
    path: Path

    def calibration(self, count: int, folder: Path) -> Path:
        """Write ``count`` samples without labels."""

    def judge(self, changed: Path) -> Judged:
        """Compare with the original."""


def compared(expected: Array, actual: Array, labels: Array) -> Judged:
    """Compare log-probabilities, (samples, classes), of two models."""
    old, new = expected.argmax(1), actual.argmax(1)
    lost = 100.0 * ((old == labels).astype(float) - (new == labels))
    return Judged(
        100.0 * float((old == labels).mean()),
        float(lost.mean()),
        float(lost.std() / len(lost) ** 0.5),
        100.0 * float((old == new).mean()),
        float((np.exp(expected) * (expected - actual)).sum(1).mean()),
    )


def normalized(scores: Array) -> Array:
    scores = scores.astype(np.float64)
    scores = scores - scores.max(1, keepdims=True)
    return np.asarray(scores - np.log(np.exp(scores).sum(1, keepdims=True)))


def opened(path: Path | bytes) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    given = path if isinstance(path, bytes) else str(path)
    return ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])


class Digits:
    """A network of ``hard_digits.py`` in the folder that it wrote."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.stem
        self._expected: Array | None = None

    def calibration(self, count: int, folder: Path) -> Path:
        samples = dict(np.load(self.path.parent / "calibration.npz"))
        target = folder / f"{self.name}_{count}.npz"
        np.savez(target, **{name: array[:count] for name, array in samples.items()})
        return target

    def judge(self, changed: Path) -> Judged:
        data = dict(np.load(self.path.parent / "test.npz"))
        labels = data.pop("labels")
        if self._expected is None:
            self._expected = self._scores(self.path, data)
        return compared(self._expected, self._scores(changed, data), labels)

    @staticmethod
    def _scores(path: Path, data: Feed) -> Array:
        session = opened(path)
        ((name, samples),) = data.items()
        parts = [session.run(None, {name: x})[0] for x in np.array_split(samples, 8)]
        return normalized(np.concatenate(parts))


class Pictures:
    """A classifier of the zoo; calibrates on pictures spread evenly, is judged on all others."""

    def __init__(self, zoo: Any, name: str, path: Path) -> None:
        self.path, self.name = path, path.stem
        self.images = Images.of(zoo, name)
        self._known: tuple[int, Array, Array, Array] | None = None
        self._count = 64

    def calibration(self, count: int, folder: Path) -> Path:
        self._count = max(count, 64)
        task, target = self.images, folder / f"{self.name}_{count}.npz"
        name = opened(self.path).get_inputs()[0].name
        samples: Feed = {name: task.feed(task.images[self._chosen()[:count]])}
        np.savez(target, **samples)
        return target

    def judge(self, changed: Path) -> Judged:
        expected, views, labels = self._reference()
        return compared(expected, log_probabilities(changed, self.images, views), labels)

    def _chosen(self) -> Array:
        every = len(self.images.labels)
        return np.linspace(0, every, self._count, endpoint=False).astype(int) + every // 900

    def _reference(self) -> tuple[Array, Array, Array]:
        if self._known is None or self._known[0] != self._count:
            task = self.images
            rest = np.setdiff1d(np.arange(len(task.labels)), self._chosen())
            views = task.views(task.images[rest])
            shown = np.concatenate(views)
            expected = log_probabilities(self.path, task, shown)
            labels = np.concatenate([task.labels[rest]] * len(views))
            labels = labels + (1 if expected.shape[1] == 1001 else 0)
            self._known = (self._count, expected, shown, labels)
        return self._known[1:]


class Other:
    """A model of the zoo with a metric of its own; some of its samples also calibrate."""

    def __init__(self, zoo: Any, name: str, path: Path) -> None:
        self.zoo, self.key, self.path, self.name = zoo, name, path, path.stem
        self._before: float | None = None

    def calibration(self, count: int, folder: Path) -> Path:
        single = self.zoo.TASKS[self.key][0] in {"mnist"}
        target = folder / f"{self.name}_{count}{'.npz' if single else ''}"
        command = [sys.executable, "prepare.py", self.key, str(target), "--samples", str(count)]
        subprocess.run(command, cwd=self.zoo.Z, check=True, capture_output=True)
        return target

    def judge(self, changed: Path) -> Judged:
        if self._before is None:
            self._before = self._metric(self.path)
        return Judged(self._before, self._before - self._metric(changed))

    def _metric(self, path: Path) -> float:
        found = self.zoo.evaluate(str(path), self.key, str(self.path))
        wanted = "f1_vs_ref" if "f1_vs_ref" in found else next(iter(found))
        scale = 1.0 if wanted.endswith(("db", "ref")) else 100.0
        return scale * float(found[wanted])


def zoo_task(zoo: Any, name: str, path: Path) -> Task:
    """Return the task of a zoo model, or of a file that stands for it."""
    pictures = zoo.TASKS[name][0] in {"imagenet", "cifar"}
    return Pictures(zoo, name, path) if pictures else Other(zoo, name, path)


# --------------------------------------------------------------------------------------- costs


def products(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    """Return the multiply-accumulates of one node, for the shapes of one run."""
    given = [shapes.get(name, ()) for name in node.input]
    out = math.prod(shapes.get(node.output[0], ()))
    if node.op_type == "Conv":
        return out * math.prod(given[1][1:])
    if node.op_type == "ConvTranspose":
        return math.prod(given[0]) * math.prod(given[1][1:])
    if node.op_type in {"MatMul", "Gemm"}:
        turned = any(a.name == "transA" and a.i for a in node.attribute)
        return out * given[0][-2 if turned else -1]
    if node.op_type in {"LSTM", "GRU", "RNN"}:
        steps = given[0][0] * given[0][1]
        return steps * (math.prod(given[1]) + math.prod(given[2]))
    return 0


def macs(path: Path, feed: Feed) -> int:
    """Count multiply-accumulates of the main graph of one run of the main graph."""
    model = onnx.load(str(path))
    shapes = {t.name: numpy_helper.to_array(t).shape for t in model.graph.initializer}
    wanted = [n for n in model.graph.node if n.op_type in COUNTED]
    known = {v.name for v in model.graph.output}
    asked = {name for n in wanted for name in [n.input[0], *n.input[1:3], n.output[0]] if name}
    ours = {name for node in model.graph.node for name in node.output}
    for name in sorted((asked & ours) - known):
        model.graph.output.add().name = name
    session = opened(model.SerializeToString())
    names = {value.name for value in session.get_inputs()}
    found = session.run(None, {k: v for k, v in feed.items() if k in names})
    for value, array in zip(session.get_outputs(), found, strict=True):
        shapes[value.name] = np.shape(array)
    shapes |= {name: array.shape for name, array in feed.items()}
    return sum(products(node, shapes) for node in wanted)


COUNTED = {"Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU", "RNN"}


@dataclass(frozen=True)
class Cost:
    """What a process took: CPU seconds with children, seconds, MB of the largest process."""

    code: int
    cpu: float
    seconds: float
    peak: float
    said: str


LAUNCHER = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[2:], stdout=2)
_, status, used = os.wait4(child.pid, 0)
figures = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
open(sys.argv[1], "w").write(" ".join(map(str, figures)))
"""


def run(command: list[str], said: Path) -> Cost:
    """Run on one thread; ``said`` gets what it prints.

    A small process starts it, because memory counts what a process had before it began its program.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, "1")}
    figures = said.with_suffix(".cost")
    start = time.perf_counter()
    with said.open("wb") as stream:
        launched = [sys.executable, "-c", LAUNCHER, str(figures), *command]
        subprocess.run(launched, env=environment, cwd=ROOT, stderr=stream, check=True)
    seconds = time.perf_counter() - start
    code, cpu, peak = map(float, figures.read_text().split())
    return Cost(int(code), cpu, seconds, peak, said.read_text(errors="replace"))


def first_feed(data: Path) -> Feed:
    """Return one sample as a feed."""
    if data.is_dir():
        return dict(np.load(sorted(data.glob("*.npz"))[0]))
    return {name: array[:1] for name, array in np.load(data).items()}


def parser_of(about: str | None) -> argparse.ArgumentParser:
    """Return a parser of the arguments that say which models, and where files go."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--digits", type=Path, help="folder that hard_digits.py wrote")
    parser.add_argument("--zoo", type=Path, default=os.environ.get("CONVERTER_ZOO"))
    parser.add_argument("--work", type=Path, help="keep files and what the command said here")
    return parser


def tasks(options: argparse.Namespace) -> list[Task]:
    """Return the chosen models: of the folder of digits, and of the zoo."""
    found: list[Task] = []
    if options.digits:
        files = sorted(options.digits.glob("*.onnx"))
        found += [Digits(path) for path in files if _asked(path.stem, options.names)]
    if options.zoo:
        sys.path.insert(0, str(options.zoo))
        import evaluate  # type: ignore[import-not-found]

        replaced = dict(name.split("=", 1) for name in options.names if "=" in name)
        for path in sorted((options.zoo / "models").glob("*.onnx")):
            if path.stem in replaced:
                found.append(zoo_task(evaluate, path.name, Path(replaced[path.stem])))
            elif _asked(path.stem, options.names):
                found.append(zoo_task(evaluate, path.name, path))
    return found


def _asked(stem: str, names: list[str]) -> bool:
    return not names or stem in names


def print_head(head: str) -> None:
    """Print the first two lines of a table."""
    print(head + "\n" + "| --- " * head.count(" | ") + "| --- |")
