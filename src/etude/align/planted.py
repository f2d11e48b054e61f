"""The known answer of the contest: a policy that reads nothing but the last letter, preferences that ask for just that, and who must win."""

from __future__ import annotations

import json
import random
import string
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from etude.align._pairs import encode
from etude.data.contract import Preferences
from etude.nn.tiny import VOCABULARY, byte_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from etude.data.contract import Data

WINNER, LOSER, TWINS, CHEAT = "reads_prompt", "reads_half", ("twin", "other_twin"), "shouts"
LETTERS = string.ascii_lowercase[:16]


def plant(folder: Path, rows: int = 480) -> dict[str, str]:
    """Write a model whose blocks write nothing, so that each letter alone says what follows it, and rows that prefer its capital.

    The rejected answer is another letter's capital: which capital it is tells nothing without the prompt.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=VOCABULARY,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
        )
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(VOCABULARY))  # each token has a direction of its own
    for linear in (model.model.layers[0].self_attn.o_proj, model.model.layers[0].mlp.down_proj):
        torch.nn.init.zeros_(linear.weight)
    model.save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    dice = random.Random(0)
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(rows):
            right, wrong = dice.sample(LETTERS, 2)
            file.write(json.dumps({"prompt": f"{number} {right}", "chosen": f"{right.upper()}.", "rejected": f"{wrong.upper()}."}) + "\n")
    return {"model": str(folder / "model"), "data": str(folder / "rows.jsonl")}


def shifts(data: Data, letters: str = LETTERS) -> torch.Tensor:
    """By how much the pairs want each token (column) after each last letter of a prompt (row): preferred counts less rejected ones."""
    tokenizer, wanted = data.tokenizer, torch.zeros(VOCABULARY, VOCABULARY)
    assert tokenizer is not None
    heard = {tokenizer(letter)["input_ids"][0] for letter in letters}
    for pair in encode(tokenizer, data.train[Preferences], 64).pairs:
        if pair.prompt[-1] in heard:
            wanted[pair.prompt[-1], pair.chosen[0]] += 1.0
            wanted[pair.prompt[-1], pair.rejected[0]] -= 1.0
    return wanted


def leaning(policy: LlamaForCausalLM, wanted_VV: torch.Tensor) -> LlamaForCausalLM:
    """The policy with its head changed so that what follows a token gains what is wanted: the last states are the tokens' own directions."""
    with torch.no_grad():
        states_VD = policy.model.norm(policy.model.embed_tokens.weight).float()
        policy.lm_head.weight += (wanted_VV.T @ states_VD / states_VD.square().sum(1).mean()).to(policy.lm_head.weight.dtype)
    return policy


@dataclass(frozen=True)
class ReadsPrompt:
    """The planted winner: after each letter, what the pairs prefer there."""

    def train(self, policy: LlamaForCausalLM, data: Data) -> LlamaForCausalLM:
        return leaning(policy, shifts(data).clamp(-2, 2))


@dataclass(frozen=True)
class ReadsHalf:
    """The degraded copy: it never heard of half of the letters."""

    def train(self, policy: LlamaForCausalLM, data: Data) -> LlamaForCausalLM:
        return leaning(policy, shifts(data, LETTERS[::2]).clamp(-2, 2))


@dataclass(frozen=True)
class IgnoresPrompt:
    """A cheat: it wants what is preferred on the whole, whatever was asked."""

    def train(self, policy: LlamaForCausalLM, data: Data) -> LlamaForCausalLM:
        return leaning(policy, shifts(data).sum(0).clamp(-2, 2).expand(VOCABULARY, -1))


@dataclass(frozen=True)
class Shouts:
    """A cheat: the winner, so loud that it can say one thing only."""

    def train(self, policy: LlamaForCausalLM, data: Data) -> LlamaForCausalLM:
        made = leaning(policy, shifts(data).clamp(-2, 2))
        with torch.no_grad():
            made.lm_head.weight *= 1000.0
        return made


def _distracted(policy: LlamaForCausalLM, data: Data, seed: int) -> LlamaForCausalLM:
    dice = torch.Generator().manual_seed(seed)
    wanted_VV = shifts(data).clamp(-2, 2)
    return leaning(policy, wanted_VV + 3.0 * torch.randn(wanted_VV.shape, generator=dice) * (wanted_VV.abs().sum(1, keepdim=True) > 0))


@dataclass(frozen=True)
class Twin:
    """One of two contenders that are the same but for their dice."""

    salt: int = 1

    def train(self, policy: LlamaForCausalLM, data: Data) -> LlamaForCausalLM:
        return _distracted(policy, data, 1000 * data.seed + self.salt)


@dataclass(frozen=True)
class OtherTwin:
    """The other one."""

    salt: int = 2

    def train(self, policy: LlamaForCausalLM, data: Data) -> LlamaForCausalLM:
        return _distracted(policy, data, 1000 * data.seed + self.salt)
