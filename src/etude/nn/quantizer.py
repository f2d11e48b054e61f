"""The quantizer `etude`: how transformers reads shapes that a configuration cannot express (`etude.nn.hosts` registers it).

config.json then holds under `quantization_config`

    {"quant_method": "etude", "factors": {module: rank}, "packed": {module: {"bits", "group", "symmetric"}}}

and the named layers are replaced on the meta device before the weights arrive; packed ones become dense again, codes kept, once they are
read. This module is read while transformers itself is still being imported, so it imports only what stands by then.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import nn
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin


def register(host: ModuleType) -> None:
    """Enter the quantizer and its configuration in the tables of `transformers.quantizers.auto`."""
    if "etude" not in host.AUTO_QUANTIZER_MAPPING:
        host.register_quantization_config("etude")(EtudeConfig)
        host.register_quantizer("etude")(EtudeQuantizer)


class EtudeConfig(QuantizationConfigMixin):
    """Which layers have a shape of their own.

    Attributes:
        factors: module name -> rank of its two factors.
        packed: module name -> {"bits", "group", "symmetric"} of its codes.
    """

    def __init__(self, factors: dict[str, int] | None = None, packed: dict[str, dict[str, Any]] | None = None, **unknown: Any) -> None:
        unknown.pop("quant_method", None)
        if unknown:
            raise ValueError(f"quantization_config of etude has no {', '.join(unknown)}: a newer etude wrote this folder, update yours")
        self.quant_method = "etude"
        self.factors, self.packed = dict(factors or {}), dict(packed or {})


class EtudeQuantizer(HfQuantizer):
    """Swaps the named layers before the weights are read."""

    requires_calibration = True  # a dense model cannot be turned into these shapes while it is loaded

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        from etude.nn.factored import FactoredLinear
        from etude.nn.packed import PackedLinear
        from etude.nn.packing import Grid
        from etude.nn.surgery import features, replace_module

        about = self.quantization_config
        for name in [*about.factors, *about.packed]:
            old = _layer(model, name)
            (out, width), bias, place = features(old), old.bias is not None, (old.weight.device, old.weight.dtype)
            if name in about.factors:
                replace_module(model, name, FactoredLinear(width, out, about.factors[name], bias, *place))
            else:
                replace_module(model, name, PackedLinear(width, out, Grid(**about.packed[name]), bias, *place))
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        from etude.nn.surgery import replace_module

        for name in self.quantization_config.packed:
            replace_module(model, name, model.get_submodule(name).unpacked())
        return model

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[dict[str, Any], dict[str, str]]:
        from etude.nn.saving import stored

        return stored(model)[0], {}

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def _layer(model: nn.Module, name: str) -> nn.Module:
    from etude.nn.surgery import is_linear

    try:
        layer = model.get_submodule(name)
    except AttributeError:
        layer = None
    if layer is None or not is_linear(layer):
        raise ValueError(
            f"{type(model).__name__} has no linear layer {name!r}, which quantization_config names: open the folder with the class it names"
        )
    return layer
