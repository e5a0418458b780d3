"""Train networks on a hard task made of scikit-learn's digits, and write them with their data.

    python -m benchmarks.hard_digits FOLDER [--net resnet ...] [--minutes-scale 1.0]

Needs torch, onnxscript and scikit-learn (the extra ``fixtures``). A digit of 8x8 pixels is turned,
scaled and moved onto a canvas of 32x32 between fragments of other digits and noise, so that a good
network is right about 94 times in 100 and removing too much shows at once. Test pictures are made
of digits that training has not seen. Everything is seeded and torch runs on one thread.

Writes per network ``NAME.onnx`` (batch norms folded, by torch's newer exporter) and
``NAME_bn.onnx`` (batch norms kept, by the older one), and once ``calibration.npz`` (512 pictures
without labels), ``calibration_64.npz`` and ``test.npz`` (4,000 pictures with labels).
"""

from __future__ import annotations

import argparse
import io
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional

from benchmarks import hard_digits_nets

SIDE = 32
TRAINING, TEST, CALIBRATION, FEW = 24_000, 4_000, 512, 64
DIGITS_FOR_TEST = 500
SPLIT_SEED = 20240501
Pair = tuple[torch.Tensor, torch.Tensor]
Move = Callable[[torch.Tensor, int, int], torch.Tensor]


# ---------------------------------------------------------------------------------------- data


class Canvas:
    """Makes pictures of digits among clutter from one seeded stream.

    Args:
        images: Digits, float32 (n, 1, 8, 8) from 0 to 1.
        labels: Their classes, int64 (n,).
        seed: Of every random choice.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, seed: int) -> None:
        self.images, self.labels = images, labels
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=self.generator)

    def chosen(self, count: int) -> torch.Tensor:
        return torch.randint(len(self.images), (count,), generator=self.generator)

    def placed(
        self, images: torch.Tensor, scale: tuple[float, float], shift: float, turn: float
    ) -> torch.Tensor:
        """Put each image on its canvas: ``scale`` shrinks it, ``turn`` is in radians."""
        count = len(images)
        angle = (self.uniform(count) * 2 - 1) * turn
        factor = scale[0] + self.uniform(count) * (scale[1] - scale[0])
        theta = torch.zeros(count, 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = angle.cos() * factor
        theta[:, 1, 0] = angle.sin() * factor
        theta[:, 0, 1] = -theta[:, 1, 0]
        theta[:, :, 2] = (self.uniform(count, 2) * 2 - 1) * shift
        grid = functional.affine_grid(theta, [count, 1, SIDE, SIDE], align_corners=False)
        return functional.grid_sample(images, grid, align_corners=False)

    def fragments(self, count: int) -> torch.Tensor:
        """Return torn pieces of digits, small and anywhere."""
        pieces = self.images[self.chosen(count)].clone()
        torn = torch.randint(0, 4, (count,), generator=self.generator)
        left, top = torn < 2, torn % 2 == 0
        pieces[left, :, :, :4] = 0
        pieces[top, :, :4] = 0
        pieces[:, :, :, 5:] *= 0.3
        return self.placed(pieces, (2.5, 4.0), 1.8, 3.1) * 0.7

    def pictures(self, count: int) -> Pair:
        """Return pictures, float32 (count, 1, 32, 32) around 0, and the classes in them."""
        picked = self.chosen(count)
        shown = self.placed(self.images[picked], (1.4, 2.2), 0.5, 0.5)
        shown = shown * (0.6 + 0.4 * self.uniform(count, 1, 1, 1))
        for _ in range(3):
            shown = torch.maximum(shown, self.fragments(count))
        noise = torch.randn(shown.shape, generator=self.generator)
        return (shown + 0.15 * noise - 0.2) / 0.35, self.labels[picked]


def digits() -> tuple[Pair, Pair]:
    """Return the digits for training and those for the test, never the same."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy((found.images / 16).astype(np.float32))[:, None]
    labels = torch.from_numpy(found.target.astype(np.int64))
    order = torch.from_numpy(np.random.default_rng(SPLIT_SEED).permutation(len(images)))
    test, train = order[:DIGITS_FOR_TEST], order[DIGITS_FOR_TEST:]
    return (images[train], labels[train]), (images[test], labels[test])


def write_data(folder: Path, train: Pair, test: Pair) -> Pair:
    """Write samples for calibration and for the test; return the latter."""
    calibration, _ = Canvas(*train, seed=2).pictures(CALIBRATION)
    np.savez(folder / "calibration.npz", image=calibration.numpy())
    np.savez(folder / "calibration_64.npz", image=calibration[:FEW].numpy())
    pictures, labels = Canvas(*test, seed=3).pictures(TEST)
    np.savez(folder / "test.npz", image=pictures.numpy(), labels=labels.numpy())
    return pictures, labels


# ---------------------------------------------------------------------------- training, export


def moved(pictures: torch.Tensor, across: int, down: int) -> torch.Tensor:
    """Move pictures by some pixels."""
    return torch.roll(pictures, (across, down), (2, 3))


def train(model: nn.Module, data: Pair, epochs: int, rate: float, moved: Move = moved) -> nn.Module:
    """Train with AdamW and a one-cycle learning rate on samples that are moved each time."""
    pictures, labels = data
    generator = torch.Generator().manual_seed(4)
    steps = math.ceil(len(pictures) / 64)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, epochs=epochs, steps_per_epoch=steps
    )
    model.train()
    for epoch in range(epochs):
        start = time.process_time()
        for picked in torch.randperm(len(pictures), generator=generator).split(64):
            across, down = torch.randint(-2, 3, (2,), generator=generator).tolist()
            batch = moved(pictures[picked], across, down)
            loss = functional.cross_entropy(model(batch), labels[picked], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        took = time.process_time() - start
        print(f"  epoch {epoch + 1}/{epochs}: loss {loss.item():.3f}, {took:.0f} s", flush=True)
    return model.eval()


def export(model: nn.Module, example: torch.Tensor, path: Path, *, dynamo: bool) -> None:
    """Write ONNX with a free batch axis ``N``; ``dynamo`` folds batch norms."""
    axes: dict[str, Any] = {"image": {0: "N"}, "scores": {0: "N"}}
    names = {"input_names": ["image"], "output_names": ["scores"], "verbose": False}
    if dynamo:
        shapes = ({0: torch.export.Dim("N")},)
        found = torch.onnx.export(
            model, (example,), opset_version=18, dynamic_shapes=shapes, dynamo=True, **names
        )
        proto = found.model_proto
    else:
        buffer = io.BytesIO()
        torch.onnx.export(
            model,
            (example,),
            buffer,
            opset_version=17,
            dynamic_axes=axes,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            **names,
        )
        proto = onnx.load_model_from_string(buffer.getvalue())
    for item in [proto, proto.graph, *proto.graph.node]:
        item.ClearField("doc_string")
        del item.metadata_props[:]
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, str(path))


def accuracy(path: Path, test: Pair) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = [session.run(None, {"image": part.numpy()})[0] for part in test[0].split(500)]
    return float((np.concatenate(found).argmax(1) == test[1].numpy()).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--net", choices=hard_digits_nets.NETS, action="append")
    parser.add_argument("--epochs", type=int, help="instead of what each network was given")
    parser.add_argument("--samples", type=int, default=TRAINING)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    options.folder.mkdir(parents=True, exist_ok=True)
    training, testing = digits()
    test = write_data(options.folder, training, testing)
    data = Canvas(*training, seed=1).pictures(options.samples)
    for name in options.net or ["resnet"]:
        net = hard_digits_nets.NETS[name]
        torch.manual_seed(0)
        model = train(net.make(), data, options.epochs or net.epochs, net.rate)
        for suffix, dynamo in (("", True), ("_bn", False)):
            path = options.folder / f"{name}{suffix}.onnx"
            export(model, test[0][:2], path, dynamo=dynamo)
            print(f"{path.name}: {accuracy(path, test):.2%}", flush=True)


if __name__ == "__main__":
    main()
