"""Chats: rows of messages in the forms that are about, as turns that a chat template takes; what cannot be answered is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

SPEAKERS = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}


@dataclass(frozen=True)
class Message:
    """One turn: who speaks ("system", "user", "assistant") and what is said."""

    role: str
    content: str


def messages_of(value: Any) -> list[Message]:
    """The messages of one row: objects with role and content (also "from" and "value").

    Raises:
        ValueError: it is no list of such objects, or a speaker is unknown.
    """
    if not isinstance(value, Iterable) or isinstance(value, str | Mapping):
        raise ValueError(f"messages must be a list of objects with role and content, this is {str(value)[:60]!r}")
    found = list[Message]()
    for turn in value:
        role, content = (turn.get("role") or turn.get("from"), turn.get("content", turn.get("value"))) if isinstance(turn, Mapping) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError(f"a message is an object with role and content as text, this is {str(turn)[:60]!r}")
        if role.lower() not in SPEAKERS:
            raise ValueError(f"nobody is called {role!r} in a chat: roles are system, user and assistant")
        found.append(Message(SPEAKERS[role.lower()], content))
    return found


def turns(value: Any) -> list[Message]:
    """The messages of one row as a chat whose last turn is the assistant's answer; what follows that turn is left out.

    Raises:
        ValueError: the first turn is the assistant's, there is no answer or an empty one, two turns of one speaker follow each other, or the
            system speaks later than first.
    """
    messages = messages_of(value)
    last = max((place for place, message in enumerate(messages) if message.role == "assistant"), default=-1)
    if last < 0:
        raise ValueError("no turn is the assistant's: there is no answer to learn")
    messages = messages[: last + 1]
    spoken = messages[1:] if messages[0].role == "system" else messages
    if spoken[0].role == "assistant":
        raise ValueError("the first turn is the assistant's: a chat begins with the user (after an optional system message)")
    for place, message in enumerate(spoken):
        wanted = ("user", "assistant")[place % 2]
        if message.role != wanted:
            raise ValueError(f"turn {place + 1} is the {message.role}'s where the {wanted} should speak: user and assistant take turns")
    if not messages[-1].content.strip():
        raise ValueError("the last answer is empty")
    return messages
