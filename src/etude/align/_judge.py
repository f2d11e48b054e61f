r"""How far a policy went from its reference, told by its own samples: divergence token by token, and length.

$$ \mathrm{KL}(\pi \,\|\, \pi_{ref}) \approx \frac{1}{\sum_n T_n} \sum_n \sum_{t \le T_n}
   \mathrm{KL}\big(\pi(\cdot \mid x_n, y_{n,<t}) \,\|\, \pi_{ref}(\cdot \mid x_n, y_{n,<t})\big), \qquad y_n \sim \pi(\cdot \mid x_n) $$

The whole distributions are compared at each token of a sample, so that the estimate is never negative and varies less than one from the
log-ratios of the sampled tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from etude.align._score import kept
from etude.data.cache import digest_json, memo
from etude.measure.contract import Items, number
from etude.nn.surgery import evaluating

# Dimensions: B prompts of a batch, T tokens, V vocabulary.
BATCH = 32  # prompts that are answered at once
LOST = 0.5  # of the logarithm of the vocabulary: a policy further from its reference than this is no language model any more


@dataclass(frozen=True)
class Sampled:
    """Answers drawn from a policy, and how far from the reference each is.

    Attributes:
        divergence: nats over tokens, by prompt.
        length: sampled tokens, by prompt, the end token included.
    """

    divergence: Items
    length: Items


def sample(model: PreTrainedModel, prompts: Sequence[list[int]], tokens: int, ends: Sequence[int], seed: int = 0) -> list[list[int]]:
    """One answer to each prompt, drawn at temperature 1 from the whole distribution; the end token is kept, what follows it is not.

    Args:
        tokens: that an answer holds at most.
        ends: token ids that end an answer; empty where the model never ends.
    """
    answers = dict[int, list[int]]()
    plain = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=tokens,
        pad_token_id=ends[0] if ends else 0,
        eos_token_id=list(ends) or None,
    )
    with evaluating(model), torch.inference_mode(), torch.random.fork_rng(), _plain(model):
        torch.manual_seed(seed)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            ids_BT, mask_BT = padded([prompts[row] for row in rows], left=True)
            made_BT = model.generate(ids_BT.to(model.device), attention_mask=mask_BT.to(model.device), generation_config=plain)
            for row, ids in zip(rows, made_BT[:, ids_BT.shape[1] :].tolist(), strict=True):
                stop = next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))
                answers[row] = ids[:stop]
    return [answers[row] for row in range(len(prompts))]


def ends_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the tokenizer's, and those of the model's generation defaults."""
    given = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    known = given if isinstance(given, list) else [given]
    return [int(token) for token in dict.fromkeys([tokenizer.eos_token_id, *known]) if token is not None]


class _plain(AbstractContextManager[None]):
    """A model whose own generation defaults (temperature, top-k...) do not mix in."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.before = model, getattr(model, "generation_config", None)

    def __enter__(self) -> None:
        self.model.generation_config = GenerationConfig()

    def __exit__(self, *told: object) -> None:
        self.model.generation_config = self.before


def padded(sequences: Sequence[list[int]], left: bool = False) -> tuple[Tensor, Tensor]:
    """Token ids (B, T) of sequences of any lengths, padded with token 0, and their attention mask."""
    longest = max(map(len, sequences))
    ids_BT, mask_BT = torch.zeros(len(sequences), longest, dtype=torch.long), torch.zeros(len(sequences), longest, dtype=torch.long)
    for row, ids in enumerate(sequences):
        place = slice(longest - len(ids), longest) if left else slice(0, len(ids))
        ids_BT[row, place] = torch.tensor(ids, dtype=torch.long)
        mask_BT[row, place] = 1
    return ids_BT, mask_BT


def distributions(model: PreTrainedModel, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> Iterator[Float[Tensor, "T V"]]:
    """Log-probabilities, float32, that the model gave to every token before it said each of the answer's."""
    with evaluating(model), torch.inference_mode():
        for prompt, answer in zip(prompts, answers, strict=True):
            ids = torch.tensor([prompt + answer], device=model.device)
            logits_TV = model(input_ids=ids, use_cache=False, **kept(model, len(answer) + 1)).logits[0, -len(answer) - 1 : -1]
            yield logits_TV.float().log_softmax(-1)


def judge(
    policy: PreTrainedModel,
    prompts: Sequence[list[int]],
    tokens: int,
    ends: Sequence[int],
    reference: PreTrainedModel | None = None,
) -> Sampled:
    """Sample the policy and hold its distributions against the reference's.

    Args:
        reference: None for a PEFT model: its base is the reference.

    Raises:
        ValueError: the policy went so far that it is no language model any more.
    """
    answers = sample(policy, prompts, tokens, ends)
    apart = divergence(policy, prompts, answers, reference)
    rate, limit = number(apart), LOST * math.log(policy.config.get_text_config().vocab_size)
    if not rate <= limit:
        raise ValueError(
            f"the policy is no language model any more: {rate:.3g} nats a token from its reference on its own samples, the limit is {limit:.3g} "
            "(half the logarithm of the vocabulary); train with a lower rate, fewer epochs or a stronger pull to the reference"
        )
    return Sampled(apart, Items(apart.ids, apart.bottom, (1.0,) * len(answers)))


def divergence(
    policy: PreTrainedModel, prompts: Sequence[list[int]], answers: Sequence[list[int]], reference: PreTrainedModel | None = None
) -> Items:
    """KL of the policy's next-token distributions to the reference's along given answers: nats over tokens, by prompt."""
    told = list(distributions(policy, prompts, answers))
    off = policy.disable_adapter() if reference is None else nullcontext()
    nats = list[float]()
    with off:
        for mine_TV, theirs_TV in zip(told, distributions(reference or policy, prompts, answers), strict=True):
            nats.append(float((mine_TV.exp() * (mine_TV - theirs_TV)).sum(dtype=torch.float64).clamp(min=0)))
    return Items.of(range(len(prompts)), nats, [float(len(answer)) for answer in answers])


def reference_length(reference: PreTrainedModel, prompts: Sequence[list[int]], tokens: int, ends: Sequence[int], key: str) -> float:
    """Mean length of the reference's own samples, drawn once on this disk.

    Args:
        key: `digest_of_model` of the reference.
    """

    def lengths() -> dict[str, Tensor]:
        return {"lengths": torch.tensor([len(answer) for answer in sample(reference, prompts, tokens, ends)])}

    about = digest_json([key, list(prompts), tokens, list(ends)])
    return float(memo(f"sampled lengths {about}", lengths)["lengths"].double().mean())
