"""Makes transformers and PEFT know what is saved here, whichever is imported first, without importing either.

`import etude` installs a finder that does nothing but wait for the hosts below and registers right after one was imported; where a host is
there already it registers at once. What registers is named, not imported: a host that is never used costs nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

HOSTS = {  # the host's module -> the modules here whose function `register` enters its tables; it gets the host
    "transformers.quantizers.auto": ("etude.nn.quantizer",),
    "transformers.models.auto.configuration_auto": ("etude.nn.decoder_config", "etude.nn.pooled_config"),
    "transformers.models.auto.modeling_auto": ("etude.nn.decoder", "etude.nn.pooled"),
    "peft": ("etude.nn.tuner",),
}


def install() -> None:
    """Register with every host now, or as soon as it is imported; a second call changes nothing."""
    waiting = next((finder for finder in sys.meta_path if isinstance(finder, _Waiting)), None)
    if waiting is None:
        waiting = _Waiting()
        sys.meta_path.insert(0, waiting)
    for name in sorted(waiting.names):
        host = sys.modules.get(name)
        if host is not None and not getattr(host.__spec__, "_initializing", False):
            waiting.names.discard(name)
            register(host)


def register(host: ModuleType) -> None:
    """Enter what is ours in the host's tables."""
    for module in HOSTS[host.__name__]:
        if find_spec(module) is not None:
            enter = getattr(import_module(module), "register", None)  # None: it is being imported itself, and enters at its end
            if enter is not None:
                enter(host)


class _Waiting(MetaPathFinder):
    """Finds nothing but the hosts, lets their own loaders load them, and registers afterwards."""

    def __init__(self) -> None:
        self.names = set(HOSTS)

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self.names:
            return None
        self.names.discard(name)
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
