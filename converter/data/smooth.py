"""Made-up samples that look like signals: noise at several scales, and in pictures shapes.

Pictures, sounds and other signals have most of their power in low frequencies. White noise has
not, and what a network computes from it says little about its channels; see
:mod:`converter.data.noise` for what it is made of. Mean and standard deviation are those given,
else what the first layers of the model say about the data that it was trained on, else 0 and 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from converter.data import ports as p
from converter.data.first_layers import Layout, Moments, look
from converter.data.noise import signal
from converter.data.ports import Array, Port
from converter.data.synthetic import Recipe, Synthetic, make_synthetic
from converter.errors import UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

SAMPLES = 256
"""How many samples are made where nobody says."""
_LEAST = 4  # a shorter axis is no signal
_CONTRAST = 0.2  # standard deviation of a sample's logarithmic contrast
_BYTES = Moments(np.array([115.0]), np.array([65.0]))  # of usual photographs


@dataclass(frozen=True, eq=False)
class Signal(Recipe):
    """How one input is filled with smooth noise.

    Attributes:
        layout: Which axes are smooth, and which one is the channels.
        moments: Mean and standard deviation, per channel or of all.
    """

    layout: Layout = field(default_factory=Layout)
    moments: Moments = field(default_factory=Moments)

    def fill(self, rng: np.random.Generator) -> Array:
        """Draw one array."""
        channel = self.layout.channel
        made = signal(rng, self.shape, self.layout.smooth, channel)
        made *= np.exp(_CONTRAST * rng.standard_normal((self.shape[0],) + (1,) * (made.ndim - 1)))
        per_channel = [1] * made.ndim
        if channel is not None:
            per_channel[channel] = -1
        mean, std = (np.reshape(m, per_channel) for m in (self.moments.mean, self.moments.std))
        made = made * std + mean
        kind = self.port.dtype
        if p.kind_of(kind) == "int":
            made = np.clip(np.rint(made), np.iinfo(kind).min, np.iinfo(kind).max)
        result: Array = made.astype(kind)
        return result


def make_smooth(  # noqa: PLR0913 - all but two have defaults
    model: ir.Model,
    ports: Mapping[str, Port] | None = None,
    *,
    batch: int = 1,
    samples: int | None = None,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Synthetic:
    """Make up smooth samples for a model.

    Inputs that are signals (images, also of bytes, waves, sequences of features) get noise at
    several scales, and images shapes with edges. All others are filled as by
    :func:`make_synthetic`: token ids from their table, masks with ones, plain features with white
    noise.

    Args:
        model: Whose inputs are filled.
        ports: Its inputs, where they are known already.
        batch: Samples per run; 1 where an input has a fixed axis 0, whatever its size.
        samples: How many.
        seed: Of the noise.
        mean: Of the signals, one number or one per channel; None: what the model says, else 0.
        std: Likewise, positive; None: what the model says, else 1.

    Raises:
        LimitExceededError: The inputs alone would exceed a gibibyte.
        UsageError: The numbers do not fit the channels, or a deviation is not positive.
    """
    ports = p.ports_of(model) if ports is None else ports
    if any(port.fixed is not None for port in ports.values() if not port.optional):
        batch = 1
    plain = make_synthetic(model, ports, batch=batch, samples=samples, seed=seed)
    values = {v.name: v for v in model.graph.inputs}
    told: set[str] = set()
    recipes = []
    for recipe in plain.recipes:
        made = _signal(recipe, values[recipe.port.name], mean, std)
        recipes.append(made or recipe)
        if made is not None:
            told.add(made.moments.source)
    if not told:
        return plain
    source = ", ".join(sorted(told - {""})) or "with mean 0 and deviation 1"
    kind = f"smooth noise made up for the model's inputs, {source}"
    return replace(plain, recipes=tuple(recipes), kind=kind)


def _signal(
    recipe: Recipe,
    value: ir.Value,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Signal | None:
    """Return the recipe of a signal, or None for what is none."""
    kind = p.kind_of(recipe.port.dtype)
    if kind not in {"float", "int"} or recipe.ones or recipe.below or not recipe.shape:
        return None
    layout, found = look(value, recipe.shape)
    smooth = tuple(axis for axis in layout.smooth if recipe.shape[axis] >= _LEAST)
    if kind == "int" and (recipe.port.dtype.name not in {"uint8", "int8"} or len(smooth) != 2):
        return None
    if not smooth and found is None and mean is None and std is None:
        return None
    default = _BYTES if recipe.port.dtype.name == "uint8" else Moments()
    moments = _given(found or default, mean, std, _channels(recipe.shape, layout), recipe)
    return Signal(recipe.port, recipe.shape, layout=replace(layout, smooth=smooth), moments=moments)


def _channels(shape: tuple[int, ...], layout: Layout) -> int:
    return 1 if layout.channel is None else shape[layout.channel]


def _given(
    moments: Moments,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    channels: int,
    recipe: Recipe,
) -> Moments:
    """Replace what the user gave."""
    if mean is None and std is None:
        return moments
    made = []
    for word, given, known in (("mean", mean, moments.mean), ("std", std, moments.std)):
        numbers = known if given is None else np.array(given, np.float64).reshape(-1)
        if numbers.size not in {1, channels} or not np.isfinite(numbers).all():
            raise UsageError(
                f"{word} is {list(numbers)} and input {recipe.port.name!r} has {channels} channels",
                allowed="one number, or one per channel",
            )
        made.append(numbers)
    if (made[1] <= 0).any():
        raise UsageError(f"std is {list(made[1])}", allowed="positive numbers")
    return Moments(made[0], made[1], "with mean and deviation as given")
