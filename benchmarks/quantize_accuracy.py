"""How close ``quantize`` stays to float on real models, beside onnxruntime's ``quantize_static``.

    python -m benchmarks.quantize_accuracy [--zoo FOLDER] [--weights int8|int4] [--peer] [MODEL ...]

Calibrates on 64 images spread over the classes, without labels, and compares all others with the
float model, paired: share of equal top classes, mean KL(float || quantized) in nats, and points of
top-1 lost with their standard error. ImageNet images count twice, as stored and as a mirrored zoom.
CPU seconds are those of the whole command, children included. Needs the zoo's folder with
``models``, ``evaluate.py`` and its data.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quantize import OURS, measure

SAMPLES = 64
MODELS = (
    "squeezenet1.1_imagenet.onnx",
    "mobilenetv1_0.25_imagenet.onnx",
    "resnet20_cifar10.onnx",
    "resnet44_cifar10.onnx",
    "mlperf_resnet8_cifar10.onnx",
)
PEER = """
import sys
import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static)
from onnxruntime.quantization.shape_inference import quant_pre_process
class Reader(CalibrationDataReader):
    def __init__(self, path):
        data = dict(np.load(path))
        count = len(next(iter(data.values())))
        self.samples = iter([{k: v[i:i + 1] for k, v in data.items()} for i in range(count)])
    def get_next(self):
        return next(self.samples, None)
prepared = sys.argv[2] + ".prepared.onnx"
quant_pre_process(sys.argv[1], prepared)
quantize_static(prepared, sys.argv[2], Reader(sys.argv[3]), quant_format=QuantFormat.QDQ,
    per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    calibrate_method=CalibrationMethod.MinMax)
"""
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Task:
    """The images of a zoo model, and how it wants them."""

    zoo: Any
    name: str
    images: Array
    labels: Array

    @classmethod
    def of(cls, zoo: Any, name: str) -> Task:
        """Load the images that fit a model."""
        if zoo.TASKS[name][0] == "imagenet":
            return cls(zoo, name, *zoo.imagenet_data())
        from PIL import Image

        data = dict(np.load(Path(zoo.D) / "cifar10_jpeg.npz"))
        spans = zip(data["offsets"], data["offsets"][1:], strict=False)
        files = (io.BytesIO(data["jpeg"][a:b].tobytes()) for a, b in spans)
        return cls(
            zoo,
            name,
            np.stack([np.asarray(Image.open(f).convert("RGB")) for f in files]),
            data["y"],
        )

    @property
    def options(self) -> dict[str, Any]:
        found = self.zoo.TASKS[self.name]
        return found[1] if len(found) > 1 else {}

    def views(self, images: Array) -> list[Array]:
        """As stored and, for photographs, a mirrored zoom."""
        if self.zoo.TASKS[self.name][0] != "imagenet":
            return [images]
        from PIL import Image

        size = images.shape[1]
        edge = size // 16
        inner = images[:, edge : size - edge, edge : size - edge][:, :, ::-1]
        zoomed = [
            np.asarray(Image.fromarray(i).resize((size, size), Image.Resampling.BILINEAR))
            for i in inner
        ]
        return [images, np.stack(zoomed)]

    def feed(self, images: Array) -> Array:
        """Return the input array of the model."""
        from PIL import Image

        options = self.options
        size = options.get("size", images.shape[1])
        if size != images.shape[1]:
            scaled = [
                Image.fromarray(i).resize((size, size), Image.Resampling.BILINEAR) for i in images
            ]
            images = np.stack([np.asarray(i) for i in scaled])
        key = "pre" if self.zoo.TASKS[self.name][0] == "imagenet" else "mode"
        prepare = self.zoo.PRE.get(options.get(key, "torch"), lambda x: x)
        return np.ascontiguousarray(prepare(images.astype(np.float32)), options.get("dtype", "f4"))


def log_probabilities(path: Path, task: Task, images: Array) -> Array:
    """Return (images, classes) from probabilities or logits."""
    session = task.zoo.S(str(path))
    port = session.get_inputs()[0]
    step = 1 if port.shape[0] == 1 else 32
    rows: list[Array] = []
    for start in range(0, len(images), step):
        given = task.feed(images[start : start + step])
        found = session.run(None, {port.name: given})[0]
        rows.append(found.astype(np.float64).reshape(len(given), -1))
    scores = np.concatenate(rows)
    if (scores >= 0).all() and np.allclose(scores.sum(1), 1, atol=0.02):
        return np.asarray(np.log(np.maximum(scores, 1e-12)))
    scores = scores - scores.max(1, keepdims=True)
    return np.asarray(scores - np.log(np.exp(scores).sum(1, keepdims=True)))


def compared(expected: Array, actual: Array, labels: Array) -> str:
    """Return agreement, divergence and lost points as cells of a table."""
    old, new = expected.argmax(1), actual.argmax(1)
    labels = labels + (1 if expected.shape[1] == 1001 else 0)
    lost = 100.0 * ((old == labels).astype(float) - (new == labels))
    divergence = (np.exp(expected) * (expected - actual)).sum(1).mean()
    error = lost.std() / len(lost) ** 0.5
    return f"{100 * (old == new).mean():.2f} | {divergence:.5f} | {lost.mean():+.2f} +-{error:.2f}"


def row(task: Task, model: Path, folder: Path, weights: str, *, peer: bool) -> None:
    """Quantize one model, evaluate it and print a line of the table."""
    chosen = np.linspace(0, len(task.labels), SAMPLES, endpoint=False).astype(int) + 3
    rest = np.setdiff1d(np.arange(len(task.labels)), chosen)
    port = task.zoo.S(str(model)).get_inputs()[0]
    samples: dict[str, Any] = {port.name: task.feed(task.images[chosen])}
    np.savez(folder / "data.npz", **samples)
    views = task.views(task.images[rest])
    labels = np.concatenate([task.labels[rest]] * len(views))
    expected = np.concatenate([log_probabilities(model, task, v) for v in views])
    files = {"ours": (OURS, folder / "ours.onnx")}
    if peer:
        files["onnxruntime"] = (PEER, folder / "peer.onnx")
    for who, (script, path) in files.items():
        arguments = [str(model), str(path), str(folder / "data.npz")]
        if who == "ours":
            passes = f"simplify,quantize:weights={weights}"
            arguments = [*arguments[:2], "--passes", passes, "--data", arguments[2]]
            arguments += ["--no-verify", "--quiet"]
        seconds, peak = measure(script, *arguments)
        actual = np.concatenate([log_probabilities(path, task, v) for v in views])
        size = path.stat().st_size / 1e6
        cells = compared(expected, actual, labels)
        print(f"| {model.stem} | {who} | {cells} | {size:.2f} | {seconds:.1f} | {peak:.0f} |")
        sys.stdout.flush()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    home = Path(os.environ.get("CONVERTER_ZOO", Path(__file__).resolve().parents[2] / "shared/zoo"))
    parser.add_argument("--zoo", type=Path, default=home)
    parser.add_argument("--weights", choices=("int8", "int4"), default="int8")
    parser.add_argument("--peer", action="store_true")
    arguments = parser.parse_args()
    if not (arguments.zoo / "evaluate.py").exists():
        raise SystemExit(f"no zoo at {arguments.zoo}; give --zoo FOLDER")
    sys.path.insert(0, str(arguments.zoo))
    import evaluate  # type: ignore[import-not-found]

    print("| model | by | agreement % | KL | points lost | MB | CPU s | peak MB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            task = Task.of(evaluate, name)
            path = arguments.zoo / "models" / name
            row(task, path, Path(folder), arguments.weights, peer=arguments.peer)


if __name__ == "__main__":
    main()
