"""What jaxtyping's import hook checks with: beartype, wherever it can check a signature."""

from __future__ import annotations

import random
import typing
from typing import Any
from unittest.mock import patch

with patch("random.getrandbits", random.Random(0).getrandbits):  # it draws which item of a list it looks at: not from the caller's state
    from beartype import BeartypeConf, beartype
    from beartype.roar import BeartypeDecorHintException

CONF = BeartypeConf(is_pep484_tower=True)  # a whole number is a number


def checked(function: Any) -> Any:
    """The function with arguments and results checked at run time; as it is where a hint cannot be (a name only type checkers see, Self)."""
    try:
        typing.get_type_hints(function)
        return beartype(function, conf=CONF)
    except (NameError, AttributeError, TypeError, BeartypeDecorHintException):
        return function
