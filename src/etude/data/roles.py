"""Which column plays which role: given, else guessed from names, then content, and said aloud; which rows are left out or refused."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from etude.data import chat, preferences
from etude.data.contract import Part, Preferences, Rows, Split, Table, Text

if TYPE_CHECKING:
    from datasets import Dataset

Say = Callable[[str], None]

# Column names as letters and digits only, most telling first.
NAMES: dict[str, tuple[str, ...]] = {
    "text": (
        "text",
        "sentence",
        "content",
        "document",
        "review",
        "body",
        "passage",
        "article",
        "comment",
        "tweet",
        "utterance",
        "message",
        "description",
    ),
    "label": ("label", "labels", "class", "category", "sentiment", "polarity", "target", "intent", "emotion", "topic", "tag", "y"),
    "prompt": ("prompt", "question", "instruction", "query", "input", "problem", "context", "ctx"),
    "answer": ("answer", "response", "output", "completion", "target", "solution", "reply"),
    "choices": ("choices", "options", "endings", "candidates"),
    "messages": ("messages", "conversations", "conversation", "chat", "dialogue", "dialog", "turns"),
}
SCALING: dict[str, tuple[str, ...]] = {
    "parameters": ("parameters", "params", "nparams", "numparams", "nparameters", "numparameters", "parametercount", "modelsize", "size", "n"),
    "tokens": ("tokens", "ntokens", "numtokens", "trainingtokens", "traintokens", "tokencount", "tokensseen", "d"),
    "compute": ("compute", "flop", "flops", "trainingflop", "trainingflops", "trainflops", "totalflops", "totalflos", "c"),
    "loss": ("loss", "finalloss", "evalloss", "valloss", "validationloss", "testloss", "heldoutloss", "trainloss", "l"),
}
ROLES = tuple(dict.fromkeys((*NAMES, *SCALING, *preferences.NAMES, *preferences.NUMBERS, "group", "run")))
FEW = 50  # different values that a label guessed from content has at most
SHORT = 20  # rows up to which one repeated value makes a label
LOOKED_AT = 1000  # rows a guess from content looks at
FLOP = 6  # a parameter and token: C = 6 N D


def known(name: str) -> bool:
    """Is this a column name that some role goes by?"""
    return any(_plain(name) in names for names in (*NAMES.values(), *SCALING.values(), *preferences.NAMES.values()))


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def parts_of(spec: str, dataset: Dataset, running: bool, kinds: tuple[type[Part], ...], columns: Mapping[str, str], say: Say) -> Split:
    """The parts of these kinds that a data set holds.

    Raises:
        ValueError: a column that was given is not there, the rows cannot serve, or none of the kinds is there.
    """
    check_given(spec, dataset, columns)
    if running:
        if Text not in kinds:
            raise ValueError(f"data {spec} is running text; wanted are {_kinds(kinds)}: give JSONL, CSV or Parquet with columns")
        return Split(Text(dataset, {"text": "text"}, running=True))
    if len(dataset) < 2:
        raise ValueError(f"data {spec} holds {len(dataset)} row: several are needed to train, choose and test on")
    if Preferences in kinds:
        return Split(preferences.read(spec, dataset, columns, say))
    return Split(*(_table(dataset, columns, say),)) if Table in kinds else _texts(spec, dataset, kinds, columns, say)


def check_given(spec: str, dataset: Dataset, columns: Mapping[str, str]) -> None:
    """Refuse roles that do not exist and columns that are not there."""
    for role, name in columns.items():
        if role not in ROLES:
            near = difflib.get_close_matches(role, ROLES, 1)
            raise ValueError(
                f"--column {role}={name}: there is no role {role}; {f'did you mean {near[0]}? ' if near else ''}roles are {', '.join(ROLES)}"
            )
        if name not in dataset.column_names:
            raise ValueError(f"--column {role}={name}: data {spec} has no column {name}; it has {', '.join(dataset.column_names)}")


def _kinds(kinds: tuple[type[Part], ...]) -> str:
    return " or ".join(kind.__name__ for kind in kinds)


def _texts(spec: str, dataset: Dataset, kinds: tuple[type[Part], ...], columns: Mapping[str, str], say: Say) -> Split:
    guess = Guess(dataset, columns)
    if kinds == (Rows,) and (messages := guess.messages()):
        return Split(_chats(spec, dataset, messages, columns, say))
    rows = guess.rows(by_content=Text not in kinds) if Rows in kinds else {}
    text = rows.get("text") or rows.get("prompt") or (guess.text() if Text in kinds else "")
    if not text or (Rows in kinds and "label" in columns and not rows):
        raise ValueError(
            f"data {spec} holds no {_kinds(kinds)} that can be told from its columns {', '.join(dataset.column_names)}: "
            "name them with --column, for instance --column text=NAME --column label=NAME, or prompt and answer"
        )
    roles = rows or {"text": text}
    if guessed := [f"{role}={name}" for role, name in roles.items() if columns.get(role) != name]:
        say(f"columns taken: {', '.join(guessed)} (guessed; --column ROLE=NAME changes it)")
    extra = {role: name for role, name in columns.items() if role in ("group", "run")}
    dataset = _filled(spec, dataset, [name for role, name in roles.items() if role in ("text", "prompt", "answer")], say)
    parts = list[Part]()
    if rows:
        check_labels(spec, dataset, rows)
        parts.append(Rows(dataset, rows | extra))
    if Text in kinds:
        parts.append(Text(dataset, {"text": text} | extra))
    return Split(*parts)


def _chats(spec: str, dataset: Dataset, name: str, columns: Mapping[str, str], say: Say) -> Rows:
    """Rows of chats; those that hold no answer to learn are left out, counted by their reason.

    Raises:
        ValueError: a row is no list of messages (it is named), or fewer than two rows are left.
    """
    if columns.get("messages") != name:
        say(f"columns taken: messages={name} (guessed; --column ROLE=NAME changes it)")
    kept, reasons = list[int](), Counter[str]()
    for place, value in enumerate(dataset[name]):
        try:
            reason = chat.problem(chat.messages_of(value))
        except ValueError as error:
            raise ValueError(f"data {spec}, row {place + 1}, column {name}: {error}") from None
        reasons[reason] += 1
        if not reason:
            kept.append(place)
    told = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common() if reason)
    if len(kept) < 2:
        raise ValueError(f"data {spec} holds {len(kept)} chats that can be learned from ({told or 'no more rows'}): a chat begins with the user")
    if told:
        say(f"{len(dataset) - len(kept)} of {len(dataset)} chats are left out: {told}")
    extra = {role: column for role, column in columns.items() if role in ("group", "run")}
    return Rows(dataset.select(kept), {"messages": name} | extra)


def _filled(spec: str, dataset: Dataset, names: list[str], say: Say) -> Dataset:
    """The rows in which these text columns hold more than blanks; the others are counted aloud."""
    import pyarrow.compute as pc

    from etude.data import arrow

    for name in names:
        if not _is_text(dataset, name):
            raise ValueError(f"data {spec}: column {name} holds {dataset.features[name]} and no text; name another with --column")

    def wanted(arrays: list[Any]) -> Any:
        masks = [pc.greater(pc.fill_null(pc.binary_length(pc.utf8_trim_whitespace(array)), 0), 0).to_numpy() for array in arrays]
        return masks[0] if len(masks) == 1 else masks[0] & masks[1]

    kept = arrow.keep(dataset, names, wanted)
    if gone := len(dataset) - len(kept):
        say(f"{gone} of {len(dataset)} rows are empty in {' or '.join(names)} and left out")
    if len(kept) < 2:
        raise ValueError(f"data {spec} holds {len(kept)} row with text in {' and '.join(names)}: several are needed to train, choose and test on")
    return kept


def check_labels(spec: str, dataset: Dataset, roles: Mapping[str, str]) -> None:
    """Refuse rows whose label is missing, NaN, always the same, or no index of the choices."""
    if "label" not in roles:
        return
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from etude.data import arrow

    name, missing, seen = roles["label"], list[Any](), set[Any]()
    for (labels,) in arrow.columns(dataset, [name]):
        empty = pc.is_null(labels, nan_is_null=True)
        if pa.types.is_string(labels.type) or pa.types.is_large_string(labels.type):
            empty = pc.or_(empty, pc.fill_null(pc.is_in(pc.utf8_lower(pc.utf8_trim_whitespace(labels)), pa.array(["", "nan"])), False))
        missing.append(empty.to_numpy())
        seen.update(pc.unique(labels).to_pylist()) if len(seen) < 2 else None
    gone = np.flatnonzero(np.concatenate(missing))
    if len(gone):
        raise ValueError(
            f"data {spec}: label column {name} is missing or NaN in {len(gone)} of {len(dataset)} rows, first in row {gone[0] + 1}: fill or drop them"
        )
    if "choices" in roles:
        _check_choices(spec, dataset, roles)
    elif len(seen) < 2:
        raise ValueError(f"data {spec}: all {len(dataset)} rows have the label {next(iter(seen))!r} in column {name}: there is nothing to tell apart")


def _check_choices(spec: str, dataset: Dataset, roles: Mapping[str, str]) -> None:
    from etude.data import arrow

    row = 0
    for labels, choices in arrow.columns(dataset, [roles["label"], roles["choices"]]):
        for label, options in zip(labels.to_pylist(), choices.to_pylist(), strict=True):
            row += 1
            if not isinstance(label, int) or not options or not 0 <= label < len(options):
                raise ValueError(f"data {spec}, row {row}: label {label!r} is no index of its {len(options or [])} choices (they count from 0)")


def _is_text(dataset: Dataset, name: str) -> bool:
    return getattr(dataset.features[name], "dtype", "") in ("string", "large_string")


def _is_list(dataset: Dataset, name: str) -> bool:
    return type(dataset.features[name]).__name__ in ("List", "LargeList", "Sequence")


class Guess:
    """Roles from the names of the columns, and where they tell nothing from what the columns hold."""

    def __init__(self, dataset: Dataset, given: Mapping[str, str]) -> None:
        self.dataset, self.given = dataset, given
        self.plain = {_plain(name): name for name in reversed(dataset.column_names)}

    def named(self, role: str, names: tuple[str, ...], fits: Callable[[str], bool] = lambda name: True) -> str:
        """The column given for a role, else the first that goes by one of its names; "" if none."""
        if role in self.given:
            return self.given[role]
        taken = set(self.given.values())
        return next((self.plain[name] for name in names if name in self.plain and self.plain[name] not in taken and fits(self.plain[name])), "")

    def role(self, role: str) -> str:
        """The column of one of the `NAMES` roles."""
        if role == "label":
            return self.named(role, NAMES[role], lambda name: not _is_list(self.dataset, name) and self._few(name))
        return self.named(role, NAMES[role], lambda name: (_is_list if role == "choices" else _is_text)(self.dataset, name))

    def text(self) -> str:
        """The column of the text: named, a prompt, or the string column with the longest values."""
        return self.role("text") or self.role("prompt") or self._longest()

    def messages(self) -> str:
        """The column of chats; "" where there is none, or where other roles were given."""
        if self.given.keys() & {"text", "label", "prompt", "answer", "choices"}:
            return ""
        return self.given.get("messages") or self.named("messages", NAMES["messages"], lambda name: _is_list(self.dataset, name))

    def rows(self, by_content: bool) -> dict[str, str]:
        """Roles of labelled rows: prompt, choices and label; text and label; or prompt and answer. Empty where there are none."""
        text, label, prompt, answer, choices = map(self.role, ("text", "label", "prompt", "answer", "choices"))
        if choices and label and (prompt or text):
            return {"prompt": prompt or text, "choices": choices, "label": label}
        if "prompt" in self.given or "answer" in self.given or not label:
            asked = prompt or text
            if asked and answer and asked != answer:
                return {"prompt": asked, "answer": answer}
        nameless = all(re.fullmatch(r"column\d+", name) for name in self.dataset.column_names)
        text = text or prompt or (self._longest() if label or by_content or nameless else "")
        label = label or (self._fewest(text) if by_content or nameless else "")
        return {"text": text, "label": label} if text and label and text != label else {}

    def _head(self, name: str) -> list[Any]:
        return list(self.dataset.select(range(min(LOOKED_AT, len(self.dataset))))[name])

    def _few(self, name: str) -> bool:
        """Few enough different values for a label: they repeat, in more than a handful of rows each twice on average."""
        values = [repr(value) for value in self._head(name) if value is not None and value == value]
        limit = len(values) - 1 if len(values) <= SHORT else min(10 * FEW, len(values) // 2)
        return len(set(values)) <= max(2, limit)

    def _longest(self) -> str:
        names = [name for name in self.dataset.column_names if _is_text(self.dataset, name) and name not in self.given.values()]
        length = {name: sum(len(value or "") for value in self._head(name)) for name in names}
        return max(names, key=lambda name: length[name], default="")

    def _fewest(self, text: str) -> str:
        counts = dict[str, int]()
        for name in self.dataset.column_names:
            if name != text and getattr(self.dataset.features[name], "dtype", "") in ("string", "int64", "bool"):
                counts[name] = len({repr(value) for value in self._head(name)})
        rows = min(LOOKED_AT, len(self.dataset))
        fits = [name for name, count in counts.items() if 2 <= count <= max(2, min(FEW, rows // 2))]
        return min(fits, key=lambda name: counts[name], default="")


def _table(dataset: Dataset, columns: Mapping[str, str], say: Say) -> Table:
    """A table with the roles of a scaling table where its columns tell them; tokens follow from compute where only that is there."""
    guess = Guess(dataset, columns)
    found = {role: guess.named(role, names, lambda name: _is_number(dataset, name)) for role, names in SCALING.items()}
    roles = dict(columns) | {role: name for role, name in found.items() if name}
    for role in SCALING:
        if role in roles and not _is_number(dataset, roles[role]):
            raise ValueError(
                f"column {roles[role]} ({role}) holds {dataset.features[roles[role]]} and no numbers; name another with --column {role}=NAME"
            )
    if guessed := [f"{role}={name}" for role, name in roles.items() if columns.get(role) != name]:
        say(f"columns taken: {', '.join(guessed)} (guessed; --column ROLE=NAME changes it)")
    if {"parameters", "compute"} <= roles.keys() and "tokens" not in roles and "tokens" not in dataset.column_names:
        dataset, roles["tokens"] = dataset.add_column("tokens", _tokens(dataset, roles)), "tokens"
        say(f"tokens = compute / ({FLOP} parameters), from {roles['compute']} and {roles['parameters']}")
    return Table(dataset, roles)


def _tokens(dataset: Dataset, roles: Mapping[str, str]) -> Any:
    import numpy as np

    n, c = (np.asarray(dataset[roles[role]], dtype=float) for role in ("parameters", "compute"))
    return np.divide(c, FLOP * n, out=np.full(len(n), np.nan), where=n > 0)


def _is_number(dataset: Dataset, name: str) -> bool:
    return str(getattr(dataset.features[name], "dtype", "")).startswith(("int", "uint", "float", "double"))
