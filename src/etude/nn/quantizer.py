"""The quantizer `etude`: how transformers reads shapes that a configuration cannot express (`etude.nn.hosts` registers it).

config.json then holds `"quantization_config": {"quant_method": "etude", "factors": {module: rank}, "packed": {module: [bits, group]}}`,
and the named layers are replaced on the meta device before the weights arrive. This module is read while transformers itself is still
being imported, so it imports only what stands by then.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin


class EtudeConfig(QuantizationConfigMixin):
    """Which layers have a shape of their own.

    Attributes:
        factors: module name -> rank of its two factors.
    """

    def __init__(self, factors: dict[str, int] | None = None, **unknown: Any) -> None:
        unknown.pop("quant_method", None)
        if unknown:
            raise ValueError(f"quantization_config of etude has no {', '.join(unknown)}: the folder was written by a newer etude, update it")
        self.quant_method = "etude"
        self.factors = dict(factors or {})


class EtudeQuantizer(HfQuantizer):
    """Swaps the named layers before the weights are read."""

    requires_calibration = True  # a dense model cannot be turned into these shapes while it is loaded

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        from etude.nn.factored import FactoredLinear
        from etude.nn.surgery import features, replace_module

        for name, rank in self.quantization_config.factors.items():
            old = _layer(model, name)
            out, width = features(old)
            replace_module(model, name, FactoredLinear(width, out, rank, old.bias is not None, old.weight.device, old.weight.dtype))
        return model

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
        raise ValueError(f"{type(model).__name__} has no linear layer {name!r}, which quantization_config names: open the folder with the class it names")
    return layer
