"""Equal parameters for all contenders: the depth and width whose decoder has the size that was asked for, within 2 %."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Self

import torch

from etude.nn.decoder import EtudeDecoder
from etude.nn.decoder_config import EtudeDecoderConfig

Make = Callable[[int, int], EtudeDecoderConfig]  # (layers, width) -> configuration
Stretch = Callable[[EtudeDecoderConfig, int], EtudeDecoderConfig]  # (configuration, parameters it lacks) -> configuration

TOLERANCE = 0.02
REACH = 0.35  # of the size: how far off a plain shape may be for `stretch` to be tried


class Sized:
    """What the options of all blocks share: checks, the one operating point, and a model of the size that is asked for."""

    COUNTS: ClassVar[tuple[str, ...]]  # options that are at least 1
    layers: int | None
    width: int | None
    rate: float | None

    def __post_init__(self) -> None:
        for name in ("layers", "width", *self.COUNTS):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if (self.layers is None) != (self.width is None):
            raise ValueError(f"give layers and width, or neither: got layers {self.layers} and width {self.width}")
        if self.rate is not None and not (math.isfinite(self.rate) and self.rate > 0):
            raise ValueError(f"rate is a number above 0, or left out, got {self.rate}")

    @property
    def shapes(self) -> list[tuple[int, int]] | None:
        """The one (layers, width) that is given; None where the size decides."""
        return None if self.layers is None or self.width is None else [(self.layers, self.width)]

    def points(self, budget: Any, subject: Any) -> list[Self]:
        """One operating point: the size is given."""
        return [self]

    def config(self, vocabulary: int, parameters: int) -> EtudeDecoderConfig:
        """The configuration that `build` builds."""
        raise NotImplementedError

    def build(self, vocabulary: int, parameters: int) -> EtudeDecoder:
        """An untrained decoder for so many tokens, its size within 2 % of `parameters`.

        Raises:
            ValueError: no width and depth, or not the given ones, come near enough.
        """
        return made(self.config(vocabulary, parameters))


def made(config: EtudeDecoderConfig) -> EtudeDecoder:
    """The untrained decoder, drawn from torch's random state as it is, which is left as it was."""
    with torch.random.fork_rng(devices=[]):
        return EtudeDecoder(config).eval()


def count(config: EtudeDecoderConfig) -> int:
    """Parameters of the decoder, tied ones once; no memory is taken."""
    return sum(parameter.numel() for parameter in _weightless(config).parameters())


def _weightless(config: EtudeDecoderConfig) -> EtudeDecoder:
    with torch.device("meta"):
        return EtudeDecoder(config)


def aspect(parameters: int) -> float:
    """The usual width over depth at a size: 32 up to a million parameters, 66 at GPT-2's 0.1 billion, 132 at LLaMA's 7 billion."""
    return 32 * max(1.0, parameters / 1e6) ** 0.16


def sized(
    make: Make,
    parameters: int,
    step: int | None = None,
    stretch: Stretch | None = None,
    shapes: Sequence[tuple[int, int]] | None = None,
    blocks: int = 1,
) -> EtudeDecoderConfig:
    """The configuration of about `parameters` parameters whose width over depth is nearest to the usual.

    Args:
        make: the configuration of so many layers and such a width.
        step: widths are multiples of it; by default of 16; from 1, 5 and 500 million parameters on of 32, 64 and 128.
        stretch: changes a configuration by so many parameters, or by what comes near, at the same depth and width (mostly by the MLP's width).
        shapes: the (layers, width) that are allowed; by default all.
        blocks: that do the work of one transformer layer (attention and MLP): so many times as deep is usual.

    Raises:
        ValueError: no shape comes within 2 %; the message names the nearest size.
    """
    if parameters < 1:
        raise ValueError(f"parameters must be at least 1, got {parameters}")
    wanted, best = aspect(parameters) / blocks, (math.inf, 0, None)
    step = step or (16 if parameters < 1e6 else 32 if parameters < 5e6 else 64 if parameters < 5e8 else 128)
    allowed = _shapes(make, parameters, step, TOLERANCE if stretch is None else REACH) if shapes is None else shapes
    for layers, width in sorted(allowed, key=lambda shape: abs(math.log(shape[1] / shape[0] / wanted))):
        config = make(layers, width)
        if stretch is not None:
            config = stretch(config, parameters - count(config))
        size = count(config)
        off = abs(size / parameters - 1)
        if off <= TOLERANCE / 4:
            return config
        best = min(best, (off, size, config), key=lambda one: one[0])
    if best[2] is not None and best[0] <= TOLERANCE:
        return best[2]
    nearest = best[1] or min((count(make(1, width)) for width in range(step, 9 * step, step)), key=lambda size: abs(size - parameters))
    what = "no depth and width give" if shapes is None else "these layers and this width do not give"
    raise ValueError(f"{what} {parameters:,} parameters within {TOLERANCE:.0%}: the nearest is {nearest:,}")


def by_hidden(low: float, high: float) -> Stretch:
    """Changes the option "hidden" of the channel mixer, between `low` and `high` times the width; wide ones stay multiples of 8 or 64."""

    def stretch(config: EtudeDecoderConfig, missing: int) -> EtudeDecoderConfig:
        width, hidden = config.hidden_size, config.channel_mixer["hidden"]
        each = count(with_hidden(config, hidden + 1)) - count(with_hidden(config, hidden))
        unit = 1 if width < 256 else 8 if width < 1024 else 64
        return with_hidden(config, min(max(unit * round((hidden + missing / each) / unit), round(low * width)), round(high * width)))

    return stretch


def with_hidden(config: EtudeDecoderConfig, hidden: int) -> EtudeDecoderConfig:
    """The configuration with another hidden width of its channel mixer."""
    return EtudeDecoderConfig(**config.to_dict() | {"channel_mixer": config.channel_mixer | {"hidden": hidden}})


def _shapes(make: Make, parameters: int, step: int, reach: float) -> Iterator[tuple[int, int]]:
    """(layers, width) whose size is about right: every block counts alike."""
    width = step
    while True:
        model = _weightless(make(1, width))
        one, block = (sum(parameter.numel() for parameter in part.parameters()) for part in (model, model.model.layers[0]))
        if one > parameters * (1 + reach):
            return
        layers = 1 + (parameters - one) / block
        for near in {math.floor(layers), math.ceil(layers)} - {0}:
            if abs(one + (near - 1) * block - parameters) <= reach * parameters:
                yield near, width
        width += step * max(1, width // (32 * step))
