"""etude: published machine-learning methods compete on your model and data, and one is recommended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from etude.nn.hosts import install

if TYPE_CHECKING:
    from etude.cli.commands import apply as apply
    from etude.cli.commands import compare as compare

__all__ = ["apply", "compare"]
install()


def __getattr__(name: str) -> Any:
    if name in __all__:
        from etude.cli import commands

        return getattr(commands, name)
    raise AttributeError(f"module 'etude' has no attribute {name!r}")
