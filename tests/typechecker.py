"""What jaxtyping's import hook checks with: beartype, where it can resolve a signature."""

from __future__ import annotations

import typing
from typing import Any, Self

from beartype import BeartypeConf, beartype

CONF = BeartypeConf(is_pep484_tower=True)  # a whole number is a number


def checked(function: Any) -> Any:
    """The function with its arguments and results checked at run time; as it is where a hint names what only a type checker sees."""
    try:
        hints = typing.get_type_hints(function)
    except (NameError, AttributeError, TypeError):
        return function
    return function if any(Self in (hint, *typing.get_args(hint)) for hint in hints.values()) else beartype(function, conf=CONF)
