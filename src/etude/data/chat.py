"""Chats: rows of messages in the forms that are about, as turns that a chat template takes; what cannot be answered is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


def problem(messages: Sequence[Message]) -> str:
    """Why there is no answer to learn in this chat, in the plural; empty where there is one.

    What follows the assistant's last turn does not count.
    """
    last = max((place for place, message in enumerate(messages) if message.role == "assistant"), default=-1)
    if last < 0:
        return "hold no turn of the assistant's"
    spoken = messages[1 : last + 1] if messages[0].role == "system" else messages[: last + 1]
    if spoken[0].role == "assistant":
        return "begin with the assistant's turn"
    if any(message.role != ("user", "assistant")[place % 2] for place, message in enumerate(spoken)):
        return "hold two turns of one speaker after each other, or a system message later than first"
    if not messages[last].content.strip():
        return "end with an empty answer"
    return ""


def turns(value: Any) -> list[Message]:
    """The messages of one row as a chat whose last turn is the assistant's answer; what follows that turn is left out.

    Raises:
        ValueError: it is no list of messages, or there is no answer to learn in it.
    """
    messages = messages_of(value)
    if reason := problem(messages):
        raise ValueError(f"chats are left out that {reason}: a chat begins with the user (after an optional system message), and the two take turns")
    return messages[: 1 + max(place for place, message in enumerate(messages) if message.role == "assistant")]
