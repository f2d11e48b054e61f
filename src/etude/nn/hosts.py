"""Makes transformers know the quantizer `etude`, whichever of the two is imported first, without importing transformers itself.

`import etude` installs a finder that does nothing but wait for `transformers.quantizers.auto` and registers the quantizer right after it
was imported; where transformers is there already it registers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

HOST = "transformers.quantizers.auto"


def install() -> None:
    """Register the quantizer now, or as soon as transformers is imported; a second call changes nothing."""
    host = sys.modules.get(HOST)
    if host is not None and hasattr(host, "register_quantizer"):
        register(host)
    elif not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())


def register(host: ModuleType) -> None:
    """Enter the quantizer and its configuration in transformers' tables."""
    from etude.nn.quantizer import EtudeConfig, EtudeQuantizer

    if "etude" not in host.AUTO_QUANTIZER_MAPPING:
        host.register_quantization_config("etude")(EtudeConfig)
        host.register_quantizer("etude")(EtudeQuantizer)


class _Waiting(MetaPathFinder):
    """Finds nothing but the host, lets its own loader load it, and registers afterwards."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != HOST:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader)
        return spec


class _Registering(Loader):
    """The host's loader, then the registration."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        register(module)
