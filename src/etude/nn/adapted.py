"""A linear layer with the parts of its adapters: run beside it, merged into its weight, or left out."""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from jaxtyping import Float
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from etude.nn.same_base import DENSE
from etude.nn.surgery import is_linear, set_weight, weight_of


class Part(nn.Module):
    """What one adapter adds to one layer."""

    def forward(self, x: Float[Tensor, "*B in"], y: Float[Tensor, "*B out"]) -> Float[Tensor, "*B out"]:
        """The layer's output with this adapter, from its input and its output so far."""
        raise NotImplementedError

    def delta(self) -> Float[Tensor, "out in"]:
        """What merging adds to the weight; a ValueError where the adapter is no change of the weight."""
        raise NotImplementedError


class AdaptedLayer(nn.Module, BaseTunerLayer):
    """A linear layer with the parts of its adapters by name."""

    adapter_layer_names = ("etude_parts",)
    other_param_names = ()

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer, self.etude_parts = base_layer, nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self.rows: tuple[str, ...] = ()  # adapters of the rows of a mixed batch, while one is run
        self._before: tuple[Tensor, Any] | None = None  # weight and codes as they were, while adapters are merged: unmerging is exact

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        y: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return y
        if self.rows:
            return self._by_row(x, y)
        for name in self.active_adapters:
            if name in self.etude_parts:
                y = self.etude_parts[name](x, y)
        return y

    def _by_row(self, x: Tensor, y: Tensor) -> Tensor:
        if len(x) != len(self.rows):
            raise ValueError(f"adapter_names names the adapters of {len(self.rows)} rows, but a layer gets {len(x)}")
        for name in dict.fromkeys(self.rows):
            if name in self.etude_parts:
                mine = [place for place, each in enumerate(self.rows) if each == name]
                y = y.index_put((torch.tensor(mine, device=y.device),), self.etude_parts[name](x[mine], y[mine]))
        return y

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters' changes to the weight; what it was is kept for `unmerge`."""
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.etude_parts:
                continue
            base = self.get_base_layer()
            refuse_quantised(base)
            weight = weight_of(base)
            delta = cast(Part, self.etude_parts[name]).delta()
            merged = (weight.to(torch.promote_types(weight.dtype, delta.dtype)) + delta.to(weight.device)).to(weight.dtype)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(f"merging adapter {name!r} gives weights that are no numbers: the adapter is broken")
            if self._before is None:
                self._before = (weight.detach().clone(), getattr(base, "codes", None))
            set_weight(base, merged)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """The weight as it was before the first merge, to the last bit."""
        if self._before is None:
            warnings.warn("nothing is merged", stacklevel=2)
            return
        base, (weight, codes) = self.get_base_layer(), self._before
        set_weight(base, weight.to(weight_of(base).device))
        if codes is not None:
            base.codes = codes
        self._before, self.merged_adapters = None, []

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Only to the device: trained parts stay float32 on a base of half precision, where a scale near 1 would not move."""
        if adapter_name in self.etude_parts:
            move(self.etude_parts[adapter_name], device or device_of(self.get_base_layer()))


def device_of(layer: nn.Module) -> torch.device:
    """Where a layer's weights lie."""
    return next((tensor.device for tensor in (*layer.parameters(), *layer.buffers())), torch.device("cpu"))


def move(module: nn.Module, device: torch.device) -> None:
    """To the device, but for tensors that are still without data."""
    module._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(device))


def refuse_quantised(layer: nn.Module) -> None:
    """Raise a ValueError where a change cannot be added to the weight."""
    weight = getattr(layer, "weight", None)
    if not is_linear(layer) or not isinstance(weight, Tensor) or weight.dtype not in DENSE:
        what = f"{type(layer).__name__} of {str(weight.dtype).removeprefix('torch.')}" if isinstance(weight, Tensor) else type(layer).__name__
        raise ValueError(f"the base is quantised ({what}): load it dequantised (dtype float32 or bfloat16) to merge the adapter into it")
