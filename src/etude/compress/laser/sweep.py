"""What the étude prepares once: every fact's answer under every single intervention and ablation, so that all random halves read one table."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from etude.compress.laser.analysis import same_rank
from etude.compress.laser.facts import Relation, relation
from etude.compress.laser.matrices import matrices
from etude.compress.laser.rank import replaced
from etude.measure.contract import Items
from etude.measure.quality import score_answers
from etude.nn.surgery import weight_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Setting:
    """One matrix changed in one way: "laser", or an ablation of `analysis.same_rank` ("untouched" changes nothing)."""

    kind: str
    name: str = ""
    rho: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Answers:
    """Mean nats a token and rank of each fact's gold answer under a setting."""

    setting: Setting
    nats: tuple[float, ...]
    ranks: tuple[int, ...]

    def nll(self, facts: Sequence[int]) -> Items:
        """Nats by fact."""
        return Items.of(facts, [self.nats[i] for i in facts])

    def top1(self, facts: Sequence[int]) -> Items:
        """1 where greedy decoding says the answer, by fact."""
        return Items.of(facts, [float(self.ranks[i] == 0) for i in facts])

    def mean(self, facts: Sequence[int]) -> float:
        """What is selected by."""
        return sum(self.nats[i] for i in facts) / len(facts)


@dataclass(frozen=True)
class Questions:
    """The étude's facts: relations one after another; a fact is its place in the list."""

    relations: tuple[Relation, ...]

    def __len__(self) -> int:
        return sum(len(each.subjects) for each in self.relations)

    def prompts(self, form: int = 0) -> list[str]:
        return [prompt for each in self.relations for prompt in each.prompts(form)]

    def answers(self) -> list[str]:
        return [answer for each in self.relations for answer in each.answers()]

    def of_same_type(self, place: int) -> set[str]:
        """All answers of the relation to which this fact belongs."""
        for each in self.relations:
            if place < len(each.subjects):
                return set(each.answers())
            place -= len(each.subjects)
        raise IndexError(place)

    def halves(self, seed: int) -> tuple[list[int], list[int]]:
        """Validation and held-out facts: a random half each."""
        order = list(range(len(self)))
        random.Random(seed).shuffle(order)
        return sorted(order[: len(order) // 2]), sorted(order[len(order) // 2 :])


def questions(most: int | None) -> Questions:
    """Capitals and currencies, the first `most` of each."""
    return Questions((relation("capital", most), relation("currency", most)))


def settings(model: PreTrainedModel, module: str, layers: tuple[int, ...], rhos: tuple[float, ...], ablations: Sequence[str]) -> list[Setting]:
    """Untouched, the grid of single interventions, and each ablation at every place of it ("zero" once a matrix)."""
    found = [Setting("untouched")]
    for matrix in matrices(model, module, layers):
        found += [Setting("zero", matrix.name)] if "zero" in ablations else []
        for rho in rhos:
            found += [Setting(kind, matrix.name, rho) for kind in ("laser", *ablations) if kind != "zero"]
    return found


def answered(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Questions, setting: Setting, form: int = 0) -> Answers:
    """Ask everything under one setting; the model is left bit-equal."""
    with replaced(model, changed(model, setting)):
        scored = score_answers(model, tokenizer, asked.prompts(form), asked.answers())
    return Answers(setting, tuple(one.nats / one.tokens for one in scored), tuple(one.rank for one in scored))


def changed(model: PreTrainedModel, setting: Setting) -> list[tuple[str, torch.Tensor]]:
    """The weight that a setting puts in place, by name."""
    if setting.kind == "untouched":
        return []
    weight = weight_of(model.get_submodule(setting.name))
    return [(setting.name, same_rank(weight, setting.rho, setting.kind, setting.seed))]


def save(path: Path, found: Iterator[Answers]) -> None:
    """Write the table."""
    rows = [{"setting": asdict(each.setting), "nats": each.nats, "ranks": each.ranks} for each in found]
    path.write_text(json.dumps(rows))


def load(path: Path) -> list[Answers]:
    """Read the table."""
    return [Answers(Setting(**row["setting"]), tuple(row["nats"]), tuple(row["ranks"])) for row in json.loads(path.read_text())]


def chosen(table: Sequence[Answers], facts: Sequence[int], kinds: Sequence[str]) -> Answers:
    """The best of these kinds on these facts."""
    return min((each for each in table if each.setting.kind in kinds), key=lambda each: each.mean(facts))
