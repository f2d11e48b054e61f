"""What the verbs see of the user's data: parts by type, the two splits a technique may use, the budget, the journal of its trials."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, cast

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Batch = Mapping[str, "Tensor"]  # what a tokenizer returns: input_ids (B, T) and attention_mask (B, T)
K = TypeVar("K", bound="Part")


class Missing(ValueError):
    """A technique asked for a part of the data that the user did not bring."""

    def __init__(self, kind: str, there: tuple[str, ...] = ()) -> None:
        super().__init__(f"needs {kind}, which the data does not hold (it holds {', '.join(there) or 'nothing'})")


@dataclass(frozen=True)
class Part:
    """One kind of data, memory-mapped.

    Attributes:
        dataset: an Arrow-backed `datasets.Dataset`.
        roles: role -> column, for instance {"text": "sentence", "label": "label"}.
        running: rows are consecutive pieces of one running text, newlines included: joined, they are the text.
    """

    dataset: Dataset
    roles: Mapping[str, str]
    running: bool = False
    kinds: ClassVar[dict[str, type[Part]]] = {}

    def __init_subclass__(cls) -> None:
        Part.kinds[cls.__name__] = cls

    def __len__(self) -> int:
        return len(self.dataset)

    def column(self, role: str) -> Any:
        """The values of a role's column, lazily."""
        if role not in self.roles:
            raise Missing(f"a {role} column", tuple(f"{r}={c}" for r, c in self.roles.items()))
        return self.dataset[self.roles[role]]

    def take(self, indices: list[int]) -> Self:
        """The rows at these positions, without copying them."""
        return type(self)(self.dataset.select(indices), self.roles, self.running)

    def save(self, folder: Path) -> None:
        """Write the part as an Arrow folder with its roles beside it."""
        self.dataset.save_to_disk(str(folder / "rows"))
        (folder / "part.json").write_text(json.dumps({"kind": type(self).__name__, "roles": dict(self.roles), "running": self.running}))

    @staticmethod
    def load(folder: Path) -> Part:
        """The part that `save` wrote, memory-mapped."""
        from datasets import Dataset

        about = json.loads((folder / "part.json").read_text())
        return Part.kinds[about["kind"]](Dataset.load_from_disk(str(folder / "rows")), about["roles"], about["running"])


class Text(Part):
    """Texts (role "text"): documents, or the pieces of one running text."""


class Rows(Part):
    """Rows with an answer: roles "text" and "label", "prompt" and "answer", "messages" (chat), or "prompt", "choices" (list) and "label" (index)."""


class Preferences(Part):
    """Pairs of answers to one prompt: roles "prompt", "chosen" and "rejected" (texts, or lists of chat messages); "weight" and "rate" where given."""


class Table(Part):
    """A table whose columns are the data; roles name the columns a contest needs ("parameters", "tokens", "loss", "compute")."""


class Split:
    """Parts by type: a new family adds a type and edits nothing here."""

    def __init__(self, *parts: Part) -> None:
        self.parts: dict[type[Part], Part] = {type(part): part for part in parts}

    def __getitem__(self, kind: type[K]) -> K:
        if kind not in self.parts:
            raise Missing(kind.__name__, tuple(k.__name__ for k in self.parts))
        return cast(K, self.parts[kind])

    def __contains__(self, kind: type[Part]) -> bool:
        return kind in self.parts

    def save(self, folder: Path) -> None:
        """Write every part below `folder`."""
        for kind, part in self.parts.items():
            (folder / kind.__name__).mkdir(parents=True)
            part.save(folder / kind.__name__)

    @classmethod
    def load(cls, folder: Path) -> Split:
        """The split that `save` wrote, memory-mapped."""
        return cls(*(Part.load(path.parent) for path in sorted(folder.glob("*/part.json"))))


class Journal:
    """Finished trials of a search, appended to a JSONL file: a search that is started again does not repeat them.

    The report draws the tuning curve from it. Without a path it lives in memory.

    Attributes:
        chosen: what the search settled on, in words; the technique writes it.
        settled: the same as options: what is built after it, on further seeds, takes them over.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.chosen, self.settled = "", dict[str, Any]()
        self.path, self.trials = path, list[dict[str, Any]]()
        if path and path.exists():
            lines = path.read_text().split("\n")[:-1]  # what follows the last newline was torn by a kill
            self.trials = [json.loads(line) for line in lines]
            path.write_text("".join(line + "\n" for line in lines))

    @property
    def checkpoints(self) -> Path | None:
        """A folder for the checkpoints of what is being built; None without a path."""
        return self.path.with_suffix(".checkpoints") if self.path else None

    def room(self, options: Mapping[str, Any]) -> Path | None:
        """Where the trial of these options keeps its checkpoints; those of the best trial stay, so that what it trained need not be trained again."""
        return self.checkpoints and self.checkpoints / ", ".join(f"{name} {value}" for name, value in options.items())

    def settle(self, **options: Any) -> None:
        """Say what the search settled on, as options of the technique."""
        self.settled.update(options)

    def close(self) -> None:
        """What was built is done: trials and checkpoints are needed no more."""
        if self.path:
            self.path.unlink(missing_ok=True)
            shutil.rmtree(self.path.with_suffix(".checkpoints"), ignore_errors=True)

    def once(self, options: Mapping[str, Any], score: Callable[[], float]) -> float:
        """The score of these options (lower is better): recorded before, or computed now and recorded."""
        for trial in self.trials:
            if trial["options"] == json.loads(json.dumps(options)):
                return float(trial["score"])
        trial = {"options": json.loads(json.dumps(options)), "score": float(score())}
        self.trials.append(trial)
        if self.path:
            with self.path.open("a") as file:
                file.write(json.dumps(trial) + "\n")
            best = min(self.trials, key=lambda one: float(one["score"]))
            for room in {self.room(one["options"]) for one in self.trials} - {self.room(best["options"]), None}:
                shutil.rmtree(cast(Path, room), ignore_errors=True)
        return float(trial["score"])


@dataclass(frozen=True)
class Budget:
    """A parsed limit on one cost axis: no technique reads "2x faster".

    Attributes:
        axis: the metric that is limited ("bytes", "seconds", ...).
        limit: in the axis's unit; infinite when only the loss is limited.
        reference: the reference's cost in the same unit; infinite where it is not known yet, because nothing is limited by it.
    """

    axis: str
    limit: float
    reference: float

    @property
    def share(self) -> float:
        """The limit as a share of the reference, at most 1."""
        return min(1.0, self.limit / self.reference) if math.isfinite(self.limit) else 1.0


@dataclass(frozen=True)
class Data:
    """All that a verb sees: training and validation parts, a seed, the tokenizer, the journal of its trials."""

    train: Split
    validation: Split
    seed: int = 0
    tokenizer: PreTrainedTokenizerBase | None = None
    journal: Journal = field(default_factory=Journal, compare=False)

    def calibration(self, tokens: int, length: int, batch: int = 4) -> Iterator[Batch]:
        """A seeded draw of `tokens` tokens in windows of `length`, from random places of the training text.

        Raises:
            ValueError: the training text is shorter than one window, or there is no tokenizer.
        """
        import torch

        windows, short = self._windows(max(1, tokens // length), length), list[list[int]]()
        for ids in windows:
            short.append(ids)
            if len(short) == batch:
                yield _stacked(torch.tensor(short))
                short = []
        if short:
            yield _stacked(torch.tensor(short))

    def _windows(self, count: int, length: int) -> Iterator[list[int]]:
        if self.tokenizer is None:
            raise ValueError("calibration needs a tokenizer: the model folder holds none")
        part: Part = self.train[Text] if Text in self.train else self.train[Rows]
        texts, dice = part.column("text" if "text" in part.roles else "prompt"), random.Random(self.seed)
        glue = "" if part.running else "\n\n"
        for _ in range(count):
            start, ids, read, text = dice.randrange(len(texts)), list[int](), 0, ""
            while len(ids) < length and read < len(texts):
                while len(text) < 8 * length and read < len(texts):
                    text += texts[(start + read) % len(texts)] + glue
                    read += 1
                ids, text = ids + self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], ""
            if len(ids) < length:
                raise ValueError(f"the training text holds {len(ids)} tokens, less than one calibration window of {length}: bring more text")
            yield ids[:length]


def _stacked(ids_BT: Tensor) -> Batch:
    return {"input_ids": ids_BT, "attention_mask": ids_BT.new_ones(ids_BT.shape)}
