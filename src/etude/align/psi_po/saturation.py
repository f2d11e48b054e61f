"""The diagnosis: has a policy run away on its pairs, or stopped where its loss told it to? (arXiv 2310.12036, section 4.2)"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from etude.align._judge import divergence, ends_of, sample
from etude.align._pairs import Pair, encode
from etude.align._score import Scores, score
from etude.align.psi_po.losses import check_reduction, target_of
from etude.data.contract import Preferences
from etude.measure.quality import context_of

if TYPE_CHECKING:
    from peft import PeftModel

# Dimensions: N pairs.


@dataclass(frozen=True)
class Saturation:
    """What a policy made of its pairs.

    Attributes:
        one_order: share of the pairs that were never seen the other way round: what their data say of them is "always".
        h: log-ratio of each pair, in nats a token ("mean") or a reply ("sum").
        target: what the loss asked of each pair; empty where it asks for no end (DPO).
        kl: KL to the reference in nats a reply, on the policy's own samples of at most `tokens` tokens.
    """

    one_order: float
    h: tuple[float, ...]
    target: tuple[float, ...]
    kl: float
    tokens: int

    @property
    def largest(self) -> float:
        """The largest |h|."""
        return max(map(abs, self.h))

    @property
    def median(self) -> float:
        """The median h."""
        return statistics.median(self.h)

    @property
    def beyond(self) -> float:
        """Share of the pairs that were pushed more than half as far again as their target; 0 where there is none."""
        pairs = zip(self.h, self.target, strict=False)
        return sum(h > 1.5 * target > 0 for h, target in pairs) / len(self.h)

    def __str__(self) -> str:
        asked = f", target {statistics.median(self.target):.3g}, {self.beyond:.0%} of the pairs far beyond it" if self.target else ", no target"
        return (
            f"{self.one_order:.0%} of {len(self.h)} pairs were seen in one order only; "
            f"h: median {self.median:.3g}, largest {self.largest:.3g}{asked}; "
            f"KL to the reference {self.kl:.3g} nats in {self.tokens} tokens"
        )


def saturation(
    part: Preferences,
    policy: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    tau: float | None = None,
    reduction: str = "mean",
    *,
    reference: PreTrainedModel | None = None,
    prompts: int = 32,
    tokens: int = 16,
    seed: int = 0,
) -> Saturation:
    """Diagnose a policy on pairs, mostly those it was trained on.

    Args:
        tau: of the IPO loss it was trained with; None for a loss without a target.
        reference: the policy before training; of a PEFT model the model without its adapter.
        prompts: how many prompts the KL is measured on, with 0 it is not (and NaN); tokens: of a sample, at most; seed: of the samples.

    Raises:
        ValueError: `policy` is no PEFT model and there is no reference, or tau or a rate is out of range.
    """
    check_reduction(reduction)
    pairs = encode(tokenizer, part, context_of(policy, 1 << 30), tokens=None).pairs
    with reference_of(policy, reference) as before:
        old = score(before, pairs)
    h_N = log_ratios(score(policy, pairs), old, pairs, reduction)
    target_N = target_of(torch.tensor([pair.rate for pair in pairs]), tau) if tau is not None else torch.empty(0)
    asked = list({tuple(pair.prompt): pair.prompt for pair in pairs}.values())[:prompts]
    kl = sampled_kl(policy, asked, tokens, ends_of(policy, tokenizer), reference, seed) if asked else math.nan
    return Saturation(one_order(part), tuple(h_N.tolist()), tuple(target_N.tolist()), kl, tokens)


def sampled_kl(
    policy: PreTrainedModel | PeftModel,
    prompts: Sequence[list[int]],
    tokens: int,
    ends: Sequence[int],
    reference: PreTrainedModel | None = None,
    seed: int = 0,
) -> float:
    """KL(policy || reference) in nats a reply: one sampled reply a prompt, the KL of each next-token distribution summed along it."""
    apart = divergence(policy, prompts, sample(policy, prompts, tokens, ends, seed), reference)
    return sum(apart.top) / len(apart.top)


def one_order(part: Preferences) -> float:
    """Share of the rows whose two replies nowhere stand the other way round for the same prompt."""
    rows = [tuple(map(str, row)) for row in zip(*(part.column(role) for role in ("prompt", "chosen", "rejected")), strict=True)]
    seen = set(rows)
    return sum((prompt, rejected, chosen) not in seen for prompt, chosen, rejected in rows) / len(rows)


def log_ratios(policy: Scores, reference: Scores, pairs: Sequence[Pair], reduction: str) -> Float[Tensor, " N"]:
    """h of every pair, in the form of the loss."""
    if reduction == "sum":
        return policy.ratio(reference)
    chosen_N, rejected_N = (torch.tensor([len(getattr(pair, side)) for pair in pairs]) for side in ("chosen", "rejected"))
    return (policy.chosen - reference.chosen) / chosen_N - (policy.rejected - reference.rejected) / rejected_N


@contextmanager
def reference_of(policy: PreTrainedModel | PeftModel, reference: PreTrainedModel | None) -> Iterator[Any]:
    """The policy before it was trained.

    Raises:
        ValueError: there is none.
    """
    if reference is not None:
        yield reference
    elif hasattr(policy, "disable_adapter"):
        with policy.disable_adapter():
            yield policy
    else:
        raise ValueError("the policy is no PEFT model, so its weights before training are gone: give the reference")
