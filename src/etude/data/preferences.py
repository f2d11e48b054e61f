r"""Preference rows in one form: prompt, chosen and rejected, all plain texts or all lists of chat messages.

They come as {prompt, chosen, rejected} in plain texts or chats, as chats whose common first turns are the prompt, as plain texts whose common
beginning is it, or as whole dialogues ("\n\nHuman: ...\n\nAssistant: ...", as in HH) that share everything up to the last answer.
Rows that cannot teach a preference are left out, counted by their reason.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etude.data.contract import Preferences

if TYPE_CHECKING:
    from datasets import Dataset

Say = Callable[[str], None]
LAYOUT = 1  # of what is cached
NAMES: dict[str, tuple[str, ...]] = {
    "chosen": ("chosen", "preferred", "winner", "win", "better", "accepted", "chosenresponse", "responsechosen"),
    "rejected": ("rejected", "dispreferred", "loser", "lose", "worse", "rejectedresponse", "responserejected"),
    "prompt": ("prompt", "question", "instruction", "query", "input", "context", "problem"),
}
NUMBERS = {"weight": ("weight", "weights"), "rate": ("rate", "agreement")}
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
SPEAKERS = ("system", "user", "assistant", "tool", "developer")
FORMS = "columns prompt, chosen and rejected (plain texts or chat messages), or chosen and rejected alone where both begin with the prompt"


class _LeftOut(Exception):
    """Why a row cannot be used, in the plural."""


def read(spec: str, dataset: Dataset, columns: Mapping[str, str], say: Say) -> Preferences:
    """The preferences that a data set holds.

    Args:
        spec: its name, for messages.
        columns: role -> column, where the user gave one.
        say: is told which columns are taken, and how many rows are left out for what reason.

    Raises:
        ValueError: there is no column of rejected answers, a row is malformed (it is named), or fewer than two rows are left.
    """
    from etude.data import arrow
    from etude.data.cache import artifact, digest_json, store_folder

    roles = roles_of(spec, dataset, columns)
    if guessed := [f"{role}={name}" for role, name in roles.items() if columns.get(role) != name]:
        say(f"columns taken: {', '.join(guessed)} (guessed; --column ROLE=NAME changes it)")

    def fill(folder: Path) -> None:
        schema, mixed = arrow.infer(_rows(spec, dataset, roles, Counter()))
        if clash := [name for name in ("prompt", "chosen", "rejected") if name in mixed]:
            raise ValueError(f"data {spec}: column {clash[0]} holds plain texts in some rows and chats in others: bring one form")
        reasons = Counter[str]()
        count = arrow.write(_rows(spec, dataset, roles, reasons), schema, folder / "rows.arrow")
        (folder / "left_out.json").write_text(json.dumps([count, reasons.most_common()]))

    digest = store_folder(fill, digest_json(["preferences", LAYOUT, dataset._fingerprint, roles]))
    count, reasons = json.loads((artifact(digest) / "left_out.json").read_text())
    told = "; ".join(f"{rows} {reason}" for reason, rows in reasons)
    if count < 2:
        raise ValueError(f"data {spec} holds {count} preference rows that can be used ({told or 'no more rows'}): bring {FORMS}")
    if told:
        say(f"{sum(rows for _, rows in reasons)} of {len(dataset)} rows are left out: {told}")
    there = {role: role for role in ("prompt", "chosen", "rejected", *roles)}
    return Preferences(arrow.mapped(artifact(digest) / "rows.arrow", digest), there)


def _rows(spec: str, dataset: Dataset, roles: Mapping[str, str], reasons: Counter[str]) -> Iterator[dict[str, Any]]:
    """The rows that stay, in their one form; the others are counted by their reason."""
    for number, row in enumerate(dataset.select_columns(list(dict.fromkeys(roles.values()))), 1):
        try:
            yield normal(f"data {spec}, row {number}", {role: row[name] for role, name in roles.items()})
        except _LeftOut as reason:
            reasons[str(reason)] += 1


def roles_of(spec: str, dataset: Dataset, columns: Mapping[str, str]) -> dict[str, str]:
    """The columns of chosen, rejected and, where they are there, prompt, weight, rate and group."""
    plain = {"".join(filter(str.isalnum, name.lower())): name for name in reversed(dataset.column_names)}
    found = dict(columns)
    for role, names in (NAMES | NUMBERS).items():
        taken = set(found.values())
        name = next((plain[name] for name in names if name in plain and plain[name] not in taken), "")
        if role not in found and name and (role not in NUMBERS or _is_number(dataset, name)):
            found[role] = name
    if "chosen" in found and "rejected" not in found:
        raise ValueError(
            f"data {spec} holds chosen answers (column {found['chosen']}) and no rejected ones: a preference needs both; "
            f"name the other column with --column rejected=NAME (it has {', '.join(dataset.column_names)})"
        )
    if "chosen" not in found:
        raise ValueError(f"data {spec} holds no preferences, its columns are {', '.join(dataset.column_names)}: bring {FORMS}; --column chosen=NAME")
    for role in NUMBERS:
        if role in found and not _is_number(dataset, found[role]):
            raise ValueError(f"data {spec}: column {found[role]} ({role}) holds {dataset.features[found[role]]} and no numbers")
    return found


def _is_number(dataset: Dataset, name: str) -> bool:
    return str(getattr(dataset.features[name], "dtype", "")).startswith(("int", "uint", "float", "double"))


def normal(place: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """One row as prompt, chosen and rejected, and what else it carries.

    Raises:
        ValueError: it is malformed.
    """
    prompt, chosen, rejected = (_decoded(row.get(role)) for role in ("prompt", "chosen", "rejected"))
    if not chosen or not rejected:
        raise _LeftOut(f"have no {'rejected' if chosen else 'chosen'} answer")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise ValueError(f"{place}: chosen and rejected must both be texts or both be chats")
    plain = isinstance(chosen, str) and (prompt is None or isinstance(prompt, str))
    told = _texts(prompt, chosen, rejected) if plain else _chats(place, prompt, chosen, rejected)
    extra = {name: row[name] for name in row if name not in ("prompt", "chosen", "rejected")}
    return dict(zip(("prompt", "chosen", "rejected"), told, strict=True)) | {name: _number(place, name, value) for name, value in extra.items()}


def _decoded(value: Any) -> Any:
    """A chat that a table (or a column of mixed forms) keeps as JSON text."""
    if isinstance(value, str) and value.startswith("[{") and '"role"' in value:
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _number(place: str, name: str, value: Any) -> Any:
    """A weight or rate that is in range; one that is missing counts as 1."""
    if name not in NUMBERS:
        return value
    number = 1.0 if value is None else float(value)
    if name == "weight" and not 0 <= number < float("inf"):
        raise ValueError(f"{place}: weight must be 0 or more, got {number}")
    if name == "rate" and not 0 <= number <= 1:
        raise ValueError(f"{place}: rate must lie in [0, 1], got {number}: it is the share of annotators who prefer the chosen answer")
    return number


def shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many letters, turns or tokens two sequences share from their beginnings."""
    length = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        length += 1
    return length


# --- plain texts and dialogues ------------------------------------------------------------------------------------------


def _texts(prompt: str | None, chosen: str, rejected: str) -> tuple[str, str, str]:
    if prompt is None:
        prompt, chosen, rejected = _dialogue(chosen, rejected) if ASSISTANT in chosen else _parted(chosen, rejected)
    if not prompt.strip():
        raise _LeftOut("have no prompt")
    _compare(chosen.strip(), rejected.strip())
    return prompt, chosen, rejected


def _compare(chosen: Any, rejected: Any) -> None:
    if not chosen or not rejected:
        raise _LeftOut("have an empty answer")
    if chosen == rejected:
        raise _LeftOut("have a chosen answer equal to the rejected one")


def _dialogue(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Both dialogues share everything up to their last answer."""
    if chosen == rejected:
        raise _LeftOut("have a chosen answer equal to the rejected one")
    end = chosen[: shared(chosen, rejected)].rfind(ASSISTANT)
    if end < 0:
        raise _LeftOut("are dialogues that share no turn up to an answer")
    opening = f"\n\n{chosen.lstrip()}"
    if not 0 <= opening.find(HUMAN) < opening.find(ASSISTANT):
        raise _LeftOut("are dialogues whose first turn is the assistant's")
    start = end + len(ASSISTANT)
    if HUMAN in chosen[start:] or HUMAN in rejected[start:]:
        raise _LeftOut("are dialogues that part ways before their last answer")
    return chosen[:start], chosen[start:], rejected[start:]


def _parted(chosen: str, rejected: str) -> tuple[str, str, str]:
    """What both texts begin with is the prompt, up to a space between words."""
    if chosen == rejected:
        raise _LeftOut("have a chosen answer equal to the rejected one")
    start = shared(chosen, rejected)
    while 0 < start < max(len(chosen), len(rejected)) and not any(side[start : start + 1].isspace() for side in (chosen, rejected)):
        start -= 1
    return chosen[:start], chosen[start:], rejected[start:]


# --- chats ----------------------------------------------------------------------------------------------------------------

Chat = list[dict[str, str]]


def _chats(place: str, prompt: Any, chosen: Any, rejected: Any) -> tuple[Chat, Chat, Chat]:
    told, other = _messages(place, chosen, "assistant"), _messages(place, rejected, "assistant")
    asked = _messages(place, prompt, "user") if prompt else []
    turns = shared(told[:-1], other[:-1])
    head, told, other = told[:turns], told[turns:], other[turns:]
    if head:  # turns that stand in both belong to the prompt; where they begin with it, a column of its own repeats it
        asked = asked + head if asked and head[0]["role"] == "assistant" else head
    if not asked:
        raise _LeftOut("are chats that share no turn")
    _check_turns(asked, told, other)
    return asked, told, other


def _check_turns(asked: Chat, told: Chat, other: Chat) -> None:
    first = next((message["role"] for message in asked if message["role"] not in ("system", "developer")), "assistant")
    if first == "assistant":
        raise _LeftOut("are chats whose first turn is the assistant's")
    if any(side[0]["role"] != "assistant" for side in (told, other)):
        raise _LeftOut("are chats whose answers do not begin with the assistant's turn")
    _compare(*["".join(message["content"] for message in side).strip() for side in (told, other)])


def _messages(place: str, value: Any, speaker: str) -> Chat:
    """A chat as role and content; a plain text is one turn of `speaker`."""
    if isinstance(value, str):
        return [{"role": speaker, "content": value}]
    return list(_checked(place, value))


def _checked(place: str, messages: Any) -> Iterator[dict[str, str]]:
    for message in messages:
        role, content = (message or {}).get("role"), (message or {}).get("content")
        if role not in SPEAKERS or not isinstance(content, str):
            raise ValueError(f"{place}: a message needs a role ({', '.join(SPEAKERS)}) and a content of text, got {str(message)[:80]}")
        yield {"role": role, "content": content}
