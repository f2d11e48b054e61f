r"""Tied-LoRA: LoRA whose low-rank pair is shared by all layers, with small scaling vectors of each layer's own.

With \(L\) layers, rank \(r\) and the query, key and value projections taken as one map \(W: \mathbb{R}^d \to \mathbb{R}^{3d}\) (fewer outputs
with grouped-query attention), layer \(l\) computes (arXiv 2311.09578, section 3)

$$ z = W x + \frac{\alpha}{r}\; \mathrm{diag}(v_l)\, B\, \mathrm{diag}(u_l)\, A\, x, \qquad
A \in \mathbb{R}^{r \times d},\; B \in \mathbb{R}^{3d \times r},\; u_l \in \mathbb{R}^r,\; v_l \in \mathbb{R}^{3d}. $$

**Tying**: one \(A\) and one \(B\) serve all layers; gradients of all layers add up in them. **Selective training**: each of A, B, u, v is trained
or frozen. A frozen u or v is all ones, and absent; a frozen A or B is a random draw that is made again from a seed instead of stored. So one
option, `train`, holds the paper's whole study, and `tie` decides which matrix is shared:

| what | options | trained numbers, \(q, k, v\) of \(L\) layers |
| --- | --- | --- |
| TL6, the paper's choice | the defaults | \(4dr + L(r + 3d)\) |
| no vectors (TL5) | `train=["A", "B"]` | \(4dr\) |
| vectors only (VeRA) | `train=["u", "v"]` | \(L(r + 3d)\) |
| fused LoRA | `train=["A", "B"], tie=[]` | \(4Ldr\) |

At \(L = 32\), \(d = 4096\), \(r = 8\) that is 0.52 million against LoRA's 4.19 million (12.5 %). Mind which LoRA a share is of: PEFT's keeps an A for
each of q, k and v and counts \(6Ldr\). The share falls with depth: at six layers it is still 26 %.

The update is zero at the start: \(B = 0\) where B is trained, else \(v = 0\).

Use it when many adapters are stored, sent or served, on a deep model, for tasks that a low rank serves (classification, commonsense,
extraction). Not when one adapter is all you need (LoRA is the safer choice, and its few megabytes are nothing beside the model), not where LoRA
itself gains from a higher rank (translation: the paper's own weak spot), and not for speed: a step costs what LoRA's does. Merged it costs
nothing at inference. Tune the learning rate for it: the tied pair collects the gradients of all layers, so LoRA's rate need not fit.

    >>> from etude.adapt.tied_lora import TiedLora
    >>> tuned = TiedLora(rank=8).attach(model, data)      # a PeftModel: train it, save_pretrained, merge_and_unload
    >>> import etude; PeftModel.from_pretrained(model, folder)

Targets beyond q, k, v (`target="all"`, "o_proj", a pattern) share one pair for each shape. The tied pair is one parameter in one place, saved once.
Peers: PEFT's LoRA; its VeRA (frozen shared matrices, trained vectors: `train=["u", "v"]` here gives the same function), VB-LoRA (a bank of
vectors), Uni-LoRA (one vector, projected) and PVeRA share in other ways.
Source: Renduchintala, Konuk, Kuchaiev, "Tied-LoRA: Enhancing parameter efficiency of LoRA with weight tying", arXiv 2311.09578; no official code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from etude.adapt._train import head_names
from etude.adapt.tied_lora.pair import KINDS, Bundle, Store, TiedPart, bundles, count
from etude.data.contract import Budget, Data
from etude.nn.matrices import all_matrices
from etude.nn.surgery import linear_layers
from etude.nn.tuner import Injected, attach, refuse_adapted

PAPER, ROLE, CLASS = "2311.09578", "contender", "TiedLora"
ENTERS = ("adapt",)
NEEDS = ("Rows",)
TRAITS = ("trains", "low rank")

TARGETS = {"qkv": ("q", "k", "v", "qkv"), "attn": ("q", "k", "v", "qkv", "o"), "mlp": ("in", "out"), "all": ("q", "k", "v", "qkv", "o", "in", "out")}


@dataclass(frozen=True)
class TiedLora:
    """Options of Tied-LoRA.

    Attributes:
        rank: of the pair; cheap where layers are many, because little more than the tied pair grows with it.
        alpha: the update is scaled by alpha / rank; left out, it is the rank.
        train: which of A, B, u, v are trained; the rest is frozen (u and v: ones; A and B: drawn from the seed).
        tie: which of A and B all layers of a shape have in common; an empty list is plain LoRA.
        target: "qkv", "attn", "mlp", "all", or the end of a layer's name or a pattern ("o_proj").
        dropout: of the input, before A.
        rate: peak learning rate; left out, it is tuned.
        seed: of the draws; left out, the data's.
    """

    rank: int = 8
    alpha: float | None = None
    train: tuple[str, ...] = ("A", "B", "u", "v")
    tie: tuple[str, ...] = ("A", "B")
    target: str = "qkv"
    dropout: float = 0.0
    rate: float | None = None
    seed: int | None = None
    start: ClassVar[float] = 2e-3  # where the search for a rate begins

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if self.alpha is not None and not self.alpha > 0:
            raise ValueError(f"alpha must be above 0, got {self.alpha}: the update is scaled by alpha / rank")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.rate is not None and not self.rate > 0:
            raise ValueError(f"rate must be above 0, got {self.rate}: leave it out to have it tuned")
        for name, given, known in (("train", self.train, KINDS), ("tie", self.tie, KINDS[:2])):
            if wrong := [kind for kind in given if kind not in known] or (len(set(given)) < len(given) and list(given)):
                raise ValueError(f"{name} takes each of {', '.join(known)} once at most, got {', '.join(map(str, wrong))}")
        if not self.train:
            raise ValueError("train is empty: nothing would be trained")
        if not {"B", "v"} & set(self.train):
            raise ValueError(f"train={list(self.train)} can never move: the update starts at zero by B, or by v where B is frozen; train one of them")
        if not self.target:
            raise ValueError(f"target is empty: name a group ({', '.join(TARGETS)}) or a layer's name")

    @property
    def scale(self) -> float:
        """What the update is multiplied by."""
        return (self.rank if self.alpha is None else self.alpha) / self.rank

    def attach(self, model: PreTrainedModel, data: Data) -> PeftModel:
        """Freeze `model` and put the adapter around its target layers, in place; its output is as it was.

        Args:
            data: its seed is that of the draws, where `seed` is left out.

        Raises:
            ValueError: no layer matches the target (the candidates are listed), or the model already carries an adapter.
        """
        refuse_adapted(model)
        seeded = self if self.seed is not None else replace(self, seed=data.seed)
        return attach(model, "tied_lora", seeded, target_layers(model, self.target), head_names(model))

    def adapter(self, layers: Mapping[str, nn.Module], facts: Mapping[str, Any]) -> Injected:
        """What `etude.nn.tuner` injects: the store, and its view for each layer.

        Args:
            layers: the target layers by name.
            facts: of the saved adapter: its groups, and the digests of its frozen matrices.

        Raises:
            ValueError: the layers, or what the seed draws here, are not those of the saved adapter.
        """
        found = bundles(layers)
        store = Store(found, self.rank, self.train, self.tie, self.seed or 0)
        now = {"groups": groups(found), "frozen": store.frozen, "torch": torch.__version__}
        check(facts, now)
        parts = {name: TiedPart(store, one, start, end, self.scale, self.dropout) for one in found for name, start, end in one.members}
        return Injected(store, parts, {**now, "torch": facts.get("torch", torch.__version__)})

    def points(self, budget: Budget, subject: PreTrainedModel) -> list[Self]:
        """Operating points: a quarter of the rank, and the rank; under a limit on bytes the largest ranks that meet it."""
        if budget.axis != "bytes" or budget.share == 1:
            return [replace(self, rank=rank) for rank in sorted({max(1, self.rank // 4), self.rank})]
        found = bundles(target_layers(subject, self.target))
        head = sum(p.numel() for name in head_names(subject) for p in subject.get_submodule(name).parameters())
        numbers = {rank: head + count(found, rank, self.train, self.tie) for rank in range(1, 4 * self.rank + 1)}
        best = max((rank for rank in numbers if 4 * numbers[rank] <= 0.95 * budget.limit), default=1)  # float32; names and configuration weigh too
        return [replace(self, rank=rank) for rank in sorted({max(1, best // 4), best})]


def target_layers(model: PreTrainedModel, target: str) -> dict[str, nn.Module]:
    """The linear layers that a target means, by name.

    Raises:
        ValueError: nothing matches; what exists is listed.
    """
    if target not in TARGETS:
        return linear_layers(model, target)
    every = all_matrices(model)
    found = {matrix.name: matrix.module for matrix in every if matrix.type in TARGETS[target]}
    if not found:
        listed = ", ".join(sorted({f"{matrix.end} ({matrix.type or 'no type'})" for matrix in every}))
        raise ValueError(f"no linear layer matches the target {target!r}; this model has {listed}")
    return found


def groups(found: list[Bundle]) -> dict[str, int]:
    """How many bundles share each group's pair."""
    sizes = dict[str, int]()
    for bundle in found:
        sizes[bundle.group] = sizes.get(bundle.group, 0) + 1
    return sizes


def check(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse layers of other shapes than those of the saved adapter, and frozen matrices that were drawn otherwise."""
    if not saved:
        return
    if saved["groups"] != now["groups"]:
        told = [", ".join(f"{number} of {group}" for group, number in each["groups"].items()) for each in (saved, now)]
        raise ValueError(f"the adapter belongs to another base model: it ties {told[0]}; this one has {told[1]}")
    for name, digest in saved["frozen"].items():
        if now["frozen"].get(name) != digest:
            drawn = f"the frozen matrix {name} is drawn otherwise by torch {now['torch']} than by torch {saved['torch']}"
            raise ValueError(f"{drawn}, which trained the adapter: use that version")
