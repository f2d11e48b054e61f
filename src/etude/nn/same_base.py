"""Whether a model is the one that an adapter was trained on: a few of its weights are kept with the adapter, and looked at again."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import nn

from etude.nn.surgery import is_linear, weight_of

DENSE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SAMPLES = 16
ANOTHER, RELATED = 0.5, 0.05  # distance relative to the norm; on MiniLM 4-bit rounding gave 0.05 to 0.16, another layer's weights 0.77 to 1.42

Sketch = dict[str, list[float]]  # name of a layer -> some of its weights


def sketch(layers: Mapping[str, nn.Module]) -> Sketch:
    """Sixteen weights each of the first, the middle and the last layer whose weights can be read, in four digits."""
    names = [name for name, layer in layers.items() if readable(layer)]
    chosen = dict.fromkeys((names[0], names[len(names) // 2], names[-1])) if names else {}
    return {name: [float(f"{value:.4g}") for value in sample(layers[name])] for name in chosen}


def readable(layer: nn.Module) -> bool:
    """Whether the layer holds its weights as they are: neither quantised nor without data."""
    return is_linear(layer) and layer.weight.dtype in DENSE and not layer.weight.is_meta


@torch.no_grad()
def sample(layer: nn.Module) -> list[float]:
    """Weights from evenly spread places."""
    flat = weight_of(layer).reshape(-1)
    places = torch.linspace(0, flat.numel() - 1, SAMPLES, dtype=torch.float64).long()
    return [float(value) for value in flat[places.to(flat.device)].float().cpu()]


def check(layers: Mapping[str, nn.Module], known: Sketch, base: str | None = None) -> None:
    """Hold a model's layers against a sketch, and warn where they are only related to it; what cannot be read is passed over.

    Args:
        known: of the base of the training; an empty one fits any model.
        base: name of that base, for the message.

    Raises:
        ValueError: a layer is missing, or its weights have nothing in common with those of the sketch.
    """
    named = f" ({base})" if base else ""
    for name, before in known.items():
        if name not in layers:
            raise ValueError(f"the adapter belongs to another base model{named}: this one has no layer {name}")
        if not readable(layers[name]):
            continue
        then, now = torch.tensor(before), torch.tensor(sample(layers[name]))
        far = float((now - then).norm() / then.norm().clamp(min=1e-12))
        if far > ANOTHER:
            raise ValueError(f"the adapter belongs to another base model{named}: the weights of {name} are not those that it was trained on")
        if far > RELATED:
            warnings.warn(f"the weights of {name} differ by {far:.0%} from those that the adapter was trained on{named}", stacklevel=2)
