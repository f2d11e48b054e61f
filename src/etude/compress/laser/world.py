"""An invented world whose facts differ in frequency, and a small model trained on it from scratch."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from etude.measure.contract import Items
from etude.nn.surgery import evaluating

N = TypeVar("N", int, Tensor)


@dataclass(frozen=True)
class World:
    """An invented world: every subject has one object in every relation; tokens are numbers, with no text.

    Attributes:
        subjects, relations, objects: how many; each relation has its own objects.
        forms: tokens that name the same relation (paraphrases).
        noise: share of the training triples whose object is a wrong one of the same relation.
        seed: of the facts and of their frequencies.
    """

    subjects: int = 512
    relations: int = 4
    objects: int = 32
    forms: int = 3
    noise: float = 0.3
    seed: int = 0
    truth: tuple[tuple[int, ...], ...] = field(init=False)
    weights: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        dice = random.Random(self.seed)
        truth = tuple(tuple(dice.randrange(self.objects) for _ in range(self.relations)) for _ in range(self.subjects))
        ranks = list(range(1, self.subjects + 1))
        dice.shuffle(ranks)
        total = math.fsum(1 / rank for rank in ranks)
        object.__setattr__(self, "truth", truth)
        object.__setattr__(self, "weights", tuple(1 / rank / total for rank in ranks))

    @property
    def vocabulary(self) -> int:
        """Subjects first, then forms of the relations, then their objects."""
        return self.subjects + self.relations * self.forms + self.relations * self.objects

    def names(self) -> list[str]:
        """One name a fact, by subject and relation."""
        return [f"{subject}.{relation}" for subject in range(self.subjects) for relation in range(self.relations)]

    def form(self, relation: N, which: N) -> N:
        """The token of a relation's paraphrase."""
        return self.subjects + relation * self.forms + which

    def thing(self, relation: N, which: N) -> N:
        """The token of a relation's object."""
        return self.subjects + self.relations * self.forms + relation * self.objects + which


def corpus(world: World, draws: int, seed: int = 0) -> tuple[Int[Tensor, "N 3"], dict[str, float]]:
    """What is written about the world: `draws` triples (subject, relation's form, object), and how often each fact occurs in them.

    Facts are drawn by frequency; a share `noise` of the triples has a wrong object of the same relation.
    """
    dice, truth = torch.Generator().manual_seed(seed), torch.tensor(world.truth)
    subject_N = torch.multinomial(torch.tensor(world.weights), draws, replacement=True, generator=dice)
    relation_N = torch.randint(world.relations, (draws,), generator=dice)
    form_N = torch.randint(world.forms, (draws,), generator=dice)
    wrong_N = torch.rand(draws, generator=dice) < world.noise
    other_N = (truth[subject_N, relation_N] + torch.randint(1, world.objects, (draws,), generator=dice)) % world.objects
    object_N = torch.where(wrong_N, other_N, truth[subject_N, relation_N])
    shown = torch.zeros(world.subjects, world.relations)
    shown.index_put_((subject_N, relation_N), torch.ones(draws), accumulate=True)
    triples = torch.stack([subject_N, world.form(relation_N, form_N), world.thing(relation_N, object_N)], 1)
    return triples, dict(zip(world.names(), shown.flatten().tolist(), strict=True))


def train_world(
    triples: Int[Tensor, "N 3"], vocabulary: int, steps: int, batch: int = 128, width: int = 64, lr: float = 3e-3, seed: int = 0
) -> LlamaForCausalLM:
    """A two-layer model trained on the triples from scratch. Only the object is predicted: nothing tells which subject comes next."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=4,
        bos_token_id=None,
        eos_token_id=None,
    )
    model, dice = LlamaForCausalLM(config), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        batch_B3 = triples[torch.randint(len(triples), (batch,), generator=dice)]
        logits_BV = model(input_ids=batch_B3[:, :2], use_cache=False).logits[:, -1]
        loss = torch.nn.functional.cross_entropy(logits_BV, batch_B3[:, 2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@dataclass(frozen=True)
class Asked:
    """What a model answers to every fact in one form: nats of the truth and whether it is the likeliest token, by fact."""

    nats: Items
    hits: Items


def ask(model: PreTrainedModel, world: World, form: int = 0) -> Asked:
    """Ask for every fact of the world in the given paraphrase."""
    pairs = [(subject, relation) for subject in range(world.subjects) for relation in range(world.relations)]
    ids_BT = torch.tensor([[subject, world.form(relation, form)] for subject, relation in pairs])
    gold_B = torch.tensor([world.thing(relation, world.truth[subject][relation]) for subject, relation in pairs])
    with evaluating(model), torch.inference_mode():
        logits_BV: Float[Tensor, "B V"] = model(input_ids=ids_BT, use_cache=False).logits[:, -1].float()
    nats_B = torch.nn.functional.cross_entropy(logits_BV, gold_B, reduction="none")
    hits_B = logits_BV.argmax(-1) == gold_B
    return Asked(Items.of(world.names(), nats_B.tolist()), Items.of(world.names(), hits_B.float().tolist()))
