"""A folder of images, with a preprocessing that is stated in full.

The preprocessing is a text such as
``resize=256,crop=224,mean=0.485/0.456/0.406,std=0.229/0.224/0.225``. Options are separated by
commas, the numbers of one option by slashes:

    resize=256        shorter side, keeping the aspect; resize=256/320: height and width exactly
    crop=224          centre crop; crop=224/192: height and width
    filter=bilinear   how to resize: nearest, bilinear, bicubic, lanczos
    color=rgb         rgb, bgr or gray
    scale=255         divide by this first (default 255 for floating-point inputs, else 1)
    mean=..., std=... subtract and divide, one number or one per channel (default 0 and 1)
    layout=nchw       nchw or nhwc
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from converter.core.context import Batch
from converter.data import ports as p
from converter.data.dataset import only_input
from converter.data.npz import open_regular
from converter.data.ports import Array, Port
from converter.errors import BatchError, DataError, ParameterError

MOST_PIXELS = 100_000_000
_CHOICES = {
    "layout": ("nchw", "nhwc"),
    "color": ("rgb", "bgr", "gray"),
    "filter": ("bilinear", "nearest", "bicubic", "lanczos"),
}
_SIZES = ("resize", "crop")
_NUMBERS = ("scale", "mean", "std")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes an array; see the module for the meaning of each field."""

    resize: tuple[int, ...] = ()
    crop: tuple[int, ...] = ()
    scale: tuple[float, ...] = ()
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str = "nchw"
    color: str = "rgb"
    filter: str = "bilinear"

    @property
    def channels(self) -> int:
        """Number of channels."""
        return 1 if self.color == "gray" else 3


def parse(text: str) -> Preprocessing:
    """Read a preprocessing text.

    Raises:
        ParameterError: Names every unknown option and wrong value.
    """
    found: dict[str, Any] = {}
    wrong: list[str] = []
    known = (*_SIZES, *_NUMBERS, *_CHOICES)
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = item.partition("=")
        if key not in known:
            wrong.append(f"unknown option {key!r} {p.nearest(key, known)}".rstrip())
        elif not equals or key in found:
            wrong.append(f"{key!r} needs one value" if not equals else f"{key!r} is given twice")
        else:
            try:
                found[key] = _value(key, value)
            except ValueError:
                wrong.append(f"{key}={value!r} ({_allowed(key)})")
    made = Preprocessing(**found)
    for key in _NUMBERS:
        numbers = getattr(made, key)
        if len(numbers) not in {0, 1, made.channels}:
            wrong.append(f"{key} has {len(numbers)} numbers for {made.channels} channels")
    if wrong:
        raise ParameterError(
            "the preprocessing of images cannot be read: " + "; ".join(wrong),
            where="--image",
            allowed=f"options {', '.join(known)}, separated by commas",
        )
    return made


def _value(key: str, value: str) -> Any:
    if key in _CHOICES:
        if value not in _CHOICES[key]:
            raise ValueError(value)
        return value
    kind = int if key in _SIZES else float
    numbers = tuple(kind(part) for part in value.split("/"))
    if not all(np.isfinite(n) for n in numbers):
        raise ValueError(value)
    if key in _SIZES and (len(numbers) > 2 or not all(0 < n <= 1 << 14 for n in numbers)):
        raise ValueError(value)
    if key in {"std", "scale"} and 0 in numbers:
        raise ValueError(value)
    return numbers


def _allowed(key: str) -> str:
    if key in _CHOICES:
        return " or ".join(_CHOICES[key])
    return "one or two sizes" if key in _SIZES else "numbers separated by slashes"


def open_images(
    folder: Path,
    ports: Mapping[str, Port],
    image: str | None,
    *,
    batch: int = 1,
    samples: int | None = None,
) -> Images:
    """Open a folder of images, sorted by name, for a model with one input.

    Raises:
        DataError: Pillow is missing, no preprocessing was given, there is no image, or one does
            not fit the model.
        ParameterError: The preprocessing cannot be read.
    """
    where = str(folder)
    if image is None:
        raise DataError(
            "a folder of images needs a preprocessing",
            where=where,
            hint='say how the model was trained, e.g. --image "resize=256,crop=224,'
            'mean=0.485/0.456/0.406,std=0.229/0.224/0.225"',
        )
    try:
        import PIL.Image  # noqa: F401 - only to know before anything runs
    except ImportError as error:
        raise DataError(
            "reading images needs Pillow, which is not installed",
            hint='pip install "onnxpress[image]", or give the samples as npz',
        ) from error
    how = parse(image)
    port = ports[only_input(ports, where)]
    if batch > 1 and port.fixed is not None:
        raise BatchError(
            f"{batch} samples per run do not fit input {port.name!r}",
            allowed=str(port),
            hint="leave --batch out",
        )
    if port.rank not in {4, None}:
        raise BatchError(
            f"input {port.name!r} takes {port.rank} axes, images give 4",
            where=where,
            allowed=str(port),
        )
    files = sorted(f for f in os.listdir(folder) if f.lower().endswith(_SUFFIXES))  # noqa: PTH208
    if not files:
        raise DataError("the folder holds no images", where=where, allowed=", ".join(_SUFFIXES))
    return Images(folder, tuple(files[:samples]), port, how, port.fixed or batch).check()


@dataclass(frozen=True)
class Images:
    """Images of a folder as a :class:`Dataset`; each is decoded when it is needed."""

    folder: Path
    files: tuple[str, ...]
    port: Port
    how: Preprocessing
    batch: int = 1
    synthetic: bool = field(default=False)
    labelled: bool = field(default=False)

    @property
    def samples(self) -> int:
        """Number of images."""
        return len(self.files)

    @property
    def description(self) -> str:
        """For the report."""
        return f"{self.folder.name} ({len(self.files)} images)"

    def __len__(self) -> int:
        return math.ceil(len(self.files) / self.batch)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.files), self.batch):
            names = self.files[start : start + self.batch]
            arrays = [_read(self.folder / name, self.how, self.port) for name in names]
            yield Batch({self.port.name: _stack(arrays, names, self.port)}, None, len(names))

    def check(self) -> Images:
        """Decode every image once and hold it against the model.

        Raises:
            DataError: An image cannot be read or does not fit.
        """
        for batch in self:
            shape = batch.inputs[self.port.name].shape
            p.check_shapes({self.port.name: shape}, {self.port.name: self.port}, str(self.folder))
        return self


def _stack(arrays: list[Array], names: tuple[str, ...], port: Port) -> Array:
    odd = [n for n, a in zip(names, arrays, strict=True) if a.shape != arrays[0].shape]
    if odd:
        raise BatchError(
            f"images of one run have different sizes: {odd[0]!r} is not as {names[0]!r}",
            hint="add resize=HEIGHT/WIDTH or crop=SIZE to --image, or leave --batch out",
        )
    return p.fit(np.stack(arrays), port, names[0])


def _read(path: Path, how: Preprocessing, port: Port) -> Array:
    """Decode and preprocess one image; the array has no batch axis."""
    from PIL import Image, UnidentifiedImageError

    try:
        with os.fdopen(open_regular(path), "rb") as file, Image.open(file) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise DataError(
                    f"the image has {picture.width} x {picture.height} pixels",
                    where=str(path),
                    allowed=f"{MOST_PIXELS} pixels",
                )
            pixels = _resample(picture.convert("L" if how.color == "gray" else "RGB"), how)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"the image cannot be decoded: {error}", where=str(path)) from error
    return _normalize(np.asarray(pixels), how, port)


def _resample(picture: Any, how: Preprocessing) -> Any:
    from PIL import Image

    width, height = picture.size
    if how.resize:
        if len(how.resize) == 2:
            new = (how.resize[1], how.resize[0])
        else:
            ratio = how.resize[0] / min(width, height)
            new = (max(1, round(width * ratio)), max(1, round(height * ratio)))
        picture = picture.resize(new, Image.Resampling[how.filter.upper()])
        width, height = new
    if not how.crop:
        return picture
    rows, columns = how.crop[0], how.crop[-1]
    if rows > height or columns > width:
        raise ValueError(f"it is {height} x {width}, smaller than the crop of {rows} x {columns}")
    left, top = (width - columns) // 2, (height - rows) // 2
    return picture.crop((left, top, left + columns, top + rows))


def _normalize(pixels: Array, how: Preprocessing, port: Port) -> Array:
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if how.color == "bgr":
        pixels = pixels[..., ::-1]
    floating = p.kind_of(port.dtype) == "float"
    default = (255.0,) if floating else (1.0,)
    scale, mean, std = (np.array(v, np.float32) for v in (how.scale or default, how.mean, how.std))
    values: Array = (pixels.astype(np.float32) / scale - mean) / std
    if how.layout == "nchw":
        values = np.moveaxis(values, -1, 0)
    if floating:
        return values
    rounded: Array = np.rint(values).astype(np.int64)
    return rounded
