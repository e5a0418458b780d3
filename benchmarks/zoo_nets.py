"""Train recurrent networks and a U-Net on data of a zoo, for what removes channels.

    python -m benchmarks.zoo_nets FOLDER --zoo ZOO [--net gru ...]

Needs torch and onnxscript. ``spoken`` (fsdd_8k.npz) are recordings of digits as 64 frames of 32
logarithmic bands; speakers of the test have not been heard in training. ``membranes``
(membrane_isbi2012.npz) are microscope pictures, each pixel inside a cell or on its border; six of
30 are for the test. Files and their data are named as those of ``hard_digits.py``.
"""

from __future__ import annotations

import argparse
import io
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.hard_digits import Move, Pair, export, train
from benchmarks.hard_digits_nets import normed

FRAMES, BANDS, WINDOW = 64, 32, 256
SPEAKER_FOR_TEST, CROP = "lucas", 96


def spectrogram(wave: np.ndarray) -> np.ndarray:
    """Return (64, 32) logarithms of power, around 0; recordings are stretched to one length."""
    starts = np.linspace(0, max(1, len(wave) - WINDOW), FRAMES).astype(int)
    padded = np.pad(wave, (0, WINDOW))
    frames = np.stack([padded[s : s + WINDOW] for s in starts]) * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(frames)[:, 1:]) ** 2
    half = BANDS // 2
    edges = [*range(half), *np.geomspace(half, power.shape[1], half + 1).astype(int)]
    bands = np.stack([power[:, a:b].mean(1) for a, b in itertools.pairwise(edges)])
    return np.asarray((np.log(bands.T + 1e-4) + 2) / 3, np.float32)


def spoken(zoo: Path) -> tuple[Pair, Pair]:
    found = np.load(zoo / "data/fsdd_8k.npz")
    code = found["mulaw"].astype(np.float32) / 127.5 - 1
    waves = np.sign(code) * (256 ** np.abs(code) - 1) / 255
    spans = list(zip(found["offsets"], found["offsets"][1:], strict=False))
    samples = torch.from_numpy(np.stack([spectrogram(waves[a:b]) for a, b in spans]))
    labels = torch.from_numpy(found["y"].astype(np.int64))
    held = torch.tensor([SPEAKER_FOR_TEST in name for name in found["name"]])
    if not held.any():
        raise SystemExit(f"no recordings of {SPEAKER_FOR_TEST} in {zoo}")
    return (samples[~held], labels[~held]), (samples[held], labels[held])


def membranes(zoo: Path) -> tuple[Pair, Pair]:
    from PIL import Image

    found = np.load(zoo / "data/membrane_isbi2012.npz")
    spans = zip(found["offsets"], found["offsets"][1:], strict=False)
    files = [Image.open(io.BytesIO(found["jpeg"][a:b].tobytes())) for a, b in spans]
    pictures = np.stack([np.asarray(f.convert("L"), np.float32) for f in files])[:, None]
    inside = np.unpackbits(found["y"], axis=2).astype(np.int64)
    samples, labels = torch.from_numpy(pictures / 128 - 1), torch.from_numpy(inside)
    return _crops(samples[:24], labels[:24], 60), _crops(samples[24:], labels[24:], 16)


def _crops(samples: torch.Tensor, labels: torch.Tensor, count: int) -> Pair:
    """Return ``count`` squares of each picture."""
    generator = torch.Generator().manual_seed(5)
    places = torch.randint(0, samples.shape[2] - CROP, (count, 2), generator=generator).tolist()
    found = [samples[:, :, y : y + CROP, x : x + CROP] for y, x in places]
    known = [labels[:, y : y + CROP, x : x + CROP] for y, x in places]
    return torch.cat(found).contiguous(), torch.cat(known).contiguous()


class Recurrent(nn.Module):
    """Layers over time and a linear layer on their mean."""

    def __init__(self, make: type[nn.Module], width: int, layers: int, *, both: bool) -> None:
        super().__init__()
        self.layers = make(BANDS, width, layers, batch_first=True, bidirectional=both)
        self.head = nn.Linear(width * (1 + both), 10)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(frames)[0].mean(1))


class UNet(nn.Module):
    """Three levels down by max pooling, up by transposed convolutions, joined by Concat."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64)) -> None:
        super().__init__()
        inputs = (1, *widths[:-1])
        self.down = nn.ModuleList(self.pair(i, o) for i, o in zip(inputs, widths, strict=True))
        steps = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, 2) for i, o in steps)
        self.join = nn.ModuleList(self.pair(2 * o, o) for _, o in steps)
        self.head = nn.Conv2d(widths[0], 2, 1)

    @staticmethod
    def pair(inputs: int, outputs: int) -> nn.Module:
        first, second = normed(inputs, outputs, 3), normed(outputs, outputs, 3)
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = []
        for step in self.down:
            x = step(x if not kept else functional.max_pool2d(x, 2))
            kept.append(x)
        for up, join, beside in zip(self.up, self.join, kept[-2::-1], strict=True):
            x = join(torch.cat([up(x), beside], 1))
        return self.head(x)


@dataclass(frozen=True)
class Net:
    """How one network is made and trained: its data, passes over them, peak learning rate."""

    make: Callable[[], nn.Module]
    data: Callable[[Path], tuple[Pair, Pair]]
    epochs: int
    rate: float


NETS = {
    "gru": Net(lambda: Recurrent(nn.GRU, 256, 1, both=False), spoken, 16, 2e-3),
    "bilstm": Net(lambda: Recurrent(nn.LSTM, 128, 2, both=True), spoken, 16, 3e-3),
    "unet": Net(UNet, membranes, 4, 3e-3),
}


def in_time(frames: torch.Tensor, across: int, down: int) -> torch.Tensor:
    """Move recordings by some frames."""
    return torch.roll(frames, (across, down // 2), (1, 2))


def turned(pictures: torch.Tensor, across: int, down: int) -> torch.Tensor:
    """Change brightness and contrast, as every pixel has its label."""
    return pictures * (1 + across / 10) + down / 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--net", choices=NETS, action="append")
    parser.add_argument("--epochs", type=int, help="instead of what each network was given")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.net or NETS:
        net = NETS[name]
        folder = options.folder / net.data.__name__
        folder.mkdir(parents=True, exist_ok=True)
        training, test = net.data(options.zoo)
        shuffled = torch.randperm(len(training[0]), generator=torch.Generator().manual_seed(6))
        np.savez(folder / "calibration.npz", image=training[0][shuffled[:512]].numpy())
        np.savez(folder / "test.npz", image=test[0].numpy(), labels=test[1].numpy())
        torch.manual_seed(0)
        move: Move = turned if net.data is membranes else in_time
        model = train(net.make(), training, options.epochs or net.epochs, net.rate, move)
        with torch.no_grad():
            right = [(model(x).argmax(1) == y).float().mean() for x, y in _parts(test)]
        for suffix, dynamo in (("", True), ("_bn", False)):
            export(model, test[0][:2], folder / f"{name}{suffix}.onnx", dynamo=dynamo)
        print(f"{name}: {100 * float(torch.stack(right).mean()):.2f} %", flush=True)


def _parts(data: Pair) -> list[Pair]:
    return list(zip(*(part.split(50) for part in data), strict=True))


if __name__ == "__main__":
    main()
