"""The paper's analyses (sections 4 and 5): heat map, complement, frequency, paraphrases, and the ablations that are not a low rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from etude.compress.laser.rank import Decomposition, Intervention, complement, decompose, intervened, low_rank, rank_of, replaced
from etude.compress.laser.search import Score
from etude.measure.contract import Items
from etude.nn.surgery import evaluating, weight_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def heat_map(model: PreTrainedModel, grid: Sequence[Intervention], score: Score) -> dict[Intervention, float]:
    """The change of the score under each single intervention (figure 2): below 0 is better. The model is left bit-equal."""
    before, changes = score(model), dict[Intervention, float]()
    for each in grid:
        with intervened(model, [each]):
            changes[each] = score(model) - before
    return changes


def gain_by_frequency(before: Items, after: Items, counts: Mapping[str, float], bins: int = 3) -> list[tuple[float, float]]:
    """(mean count, mean of `after - before`) in equal bins of facts, from the rarest to the most frequent (figure 3).

    Args:
        before, after: the same measurement of the untouched and of the reduced model, by fact.
        counts: how often each fact occurred in training, by the item's id.

    Raises:
        ValueError: the two were measured on other facts, or there are fewer facts than bins.
    """
    if before.ids != after.ids:
        raise ValueError("the two measurements are of other facts: measure both on the same ones")
    if len(before.ids) < bins:
        raise ValueError(f"{len(before.ids)} facts cannot fill {bins} bins")
    order = sorted(range(len(before.ids)), key=lambda i: counts[before.ids[i]])
    gains = [after.top[i] / after.bottom[i] - before.top[i] / before.bottom[i] for i in range(len(before.ids))]
    edges = [place * len(order) // bins for place in range(bins + 1)]
    parts = [order[low:high] for low, high in pairwise(edges)]
    return [(sum(counts[before.ids[i]] for i in part) / len(part), sum(gains[i] for i in part) / len(part)) for part in parts]


def robust_hits(forms: Sequence[Items]) -> Items:
    """One item a fact: 1 where it is answered right in every paraphrase (table 1's robustness).

    Raises:
        ValueError: the paraphrases were asked of other facts.
    """
    if not forms or any(form.ids != forms[0].ids for form in forms):
        raise ValueError("paraphrases need the same facts in the same order, and at least one form")
    return Items.of(forms[0].ids, [float(all(hit > 0 for hit in hits)) for hits in zip(*(form.top for form in forms), strict=True)])


def complement_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], intervention: Intervention, top: int = 1
) -> list[list[str]]:
    """The likeliest next tokens when only the discarded components W - W_r are kept (section 5.1), for each prompt."""
    weight = weight_of(model.get_submodule(intervention.name))
    rest = complement(decompose(weight, intervention.name), rank_of(intervention.rho, *weight.shape))
    with replaced(model, [(intervention.name, rest)]):
        return next_tokens(model, tokenizer, prompts, top)


def next_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], top: int = 1) -> list[list[str]]:
    """The `top` likeliest next tokens of each prompt, as text."""
    answers = list[list[str]]()
    with evaluating(model), torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]], device=model.device)
            best = model(input_ids=ids).logits[0, -1].topk(top).indices.tolist()
            answers.append([str(tokenizer.decode([token])) for token in best])
    return answers


def generation_hits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[str], tokens: int = 8
) -> Items:
    """One item a row: 1 where the gold answer occurs in the greedy continuation, whatever its case (the paper's generation accuracy)."""
    hits = list[float]()
    with evaluating(model), torch.inference_mode():
        for prompt, answer in zip(prompts, answers, strict=True):
            ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]], device=model.device)
            made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0)
            hits.append(float(answer.strip().lower() in str(tokenizer.decode(made[0, ids.shape[1] :])).lower()))
    return Items.of(range(len(hits)), hits)


# ---- ablations: as much change, no low rank ----


def noised(weight: Float[Tensor, "m n"], parts: Decomposition, rank: int, seed: int) -> Float[Tensor, "m n"]:
    """W plus Gaussian noise of the Frobenius norm of what LASER would discard."""
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)).to(weight.device)
    return weight.float() + noise * (parts.S[rank:].norm() / noise.norm())


def zeroed(weight: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """Nothing of W."""
    return torch.zeros_like(weight)


def magnitude(weight: Float[Tensor, "m n"], rank: int) -> Float[Tensor, "m n"]:
    """W with its largest entries only, as many as the two factors of this rank would hold."""
    keep = min(weight.numel(), rank * sum(weight.shape))
    flat = weight.float().flatten()
    pruned = torch.zeros_like(flat)
    places = flat.abs().topk(keep).indices
    pruned[places] = flat[places]
    return pruned.view_as(weight)


def fitted(weight: Float[Tensor, "m n"], rank: int, seed: int, steps: int = 250, lr: float = 1e-3) -> Float[Tensor, "m n"]:
    """A product of two thin matrices fitted to W by Adam from random ones, as the official code does for comparison."""
    dice, target = torch.Generator().manual_seed(seed), weight.detach().float()
    A, B = (torch.randn(shape, generator=dice).to(target.device).div_(rank**0.5) for shape in ((weight.shape[0], rank), (rank, weight.shape[1])))
    A.requires_grad_()
    B.requires_grad_()
    optimizer = torch.optim.Adam([A, B], lr=lr)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(A @ B, target, reduction="sum").backward()
            optimizer.step()
    return (A @ B).detach()


def same_rank(weight: Float[Tensor, "m n"], rho: float, kind: str, seed: int = 0) -> Float[Tensor, "m n"]:
    """The weight after LASER ("laser") or after one of the ablations: "noise", "zero", "magnitude", "fitted", "complement".

    Raises:
        ValueError: there is no such kind.
    """
    rank, parts = rank_of(rho, *weight.shape), decompose(weight)
    made = {
        "laser": lambda: low_rank(parts, rank),
        "complement": lambda: complement(parts, rank),
        "noise": lambda: noised(weight, parts, rank, seed),
        "zero": lambda: zeroed(weight),
        "magnitude": lambda: magnitude(weight, rank),
        "fitted": lambda: fitted(weight, rank, seed),
    }
    if kind not in made:
        raise ValueError(f"no ablation {kind!r}; there are {', '.join(made)}")
    return made[kind]()
