"""The known answer of the contest: a text whose next letter follows from the last one by a known table, and contenders of whom one must win.

The best that any model can reach on such a text is the entropy of the table, and the planted winner holds the table in its weights from the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import BertConfig, BertLMHeadModel, LlamaConfig, LlamaForCausalLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from etude.data.contract import Data
    from etude.models._train import Terms

WINNER, LOSER, CHEAT, TWINS = "knows", "knows_half", "looks_ahead", ("twin", "other_twin")
LETTERS, FIRST, FOLLOWERS = 64, 48, 4  # bytes "0" to "o"; each may be followed by four
TOKEN = FIRST - 33  # the byte tokenizer's number of the first letter: it counts from "!"
WIDTH = 64


def table(seed: int = 0) -> Float[Tensor, "S S"]:
    """Probability of each letter after each letter: four followers, at 1/2, 1/4, 1/8 and 1/8."""
    dice, shares = torch.Generator().manual_seed(seed), torch.tensor([0.5, 0.25, 0.125, 0.125])
    found = torch.zeros(LETTERS, LETTERS)
    for row in found:
        row[torch.randperm(LETTERS, generator=dice)[:FOLLOWERS]] = shares
    return found


ENTROPY = 1.75  # bits a letter: 1/2 * 1 + 1/4 * 2 + 2/8 * 3


def plant(folder: Path, letters: int = 120_000) -> dict[str, str]:
    """Write the text; what to bring is returned: a small contest of few tokens."""
    dice, rows, letter, written = torch.Generator().manual_seed(1), table(), 0, bytearray()
    chosen = torch.multinomial(rows.repeat(1, 1), 4096, replacement=True, generator=dice).tolist()  # 4,096 draws for each letter, used in turn
    used = [0] * LETTERS
    for _ in range(letters):
        written.append(FIRST + letter)
        used[letter] += 1
        letter = chosen[letter][used[letter] % 4096]
    (folder / "text.txt").write_bytes(bytes(written))
    return {"data": str(folder / "text.txt"), "parameters": "60000", "tokens": "40960", "context": "32"}


def tiny() -> Mapping[str, tuple[Callable[[], Terms], Data]]:
    """Two small subjects with other vocabularies and sizes."""
    from etude.data.contract import Data, Split
    from etude.models._train import Terms
    from etude.nn.tiny import byte_tokenizer, tiny_text

    data = Data(Split(tiny_text()), Split(tiny_text()), 0, byte_tokenizer())
    return {"bytes": (lambda: Terms(256, 100_000, 1024, 64), data), "letters": (lambda: Terms(80, 60_000, 1024, 32), data)}


def filled(make: Callable[[int], PreTrainedModel], parameters: int) -> PreTrainedModel:
    """The model whose MLP is as wide as the size asks for; `make` is called with a width."""
    with torch.device("meta"):
        one, two = (sum(parameter.numel() for parameter in make(width).parameters()) for width in (1, 2))
    return make(max(1, 1 + round((parameters - one) / (two - one)))).eval()


def llama(vocabulary: int, parameters: int, tied: bool = False) -> Any:
    """One narrow layer of transformers' Llama."""
    sizes = {"vocab_size": vocabulary, "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "tie_word_embeddings": tied}
    ends = {"bos_token_id": None, "eos_token_id": None, "max_position_embeddings": 512}
    return filled(lambda width: LlamaForCausalLM(LlamaConfig(**sizes, **ends, intermediate_size=width)), parameters)


def knowing(vocabulary: int, parameters: int, rows: Float[Tensor, "S S"]) -> PreTrainedModel:
    """A Llama whose block adds nothing yet, and whose head answers each letter with the logarithm of its row of a table."""
    model = llama(vocabulary, parameters)
    if vocabulary != 256:
        return model
    block = model.model.layers[0]
    with torch.no_grad():
        for weight in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight, model.model.embed_tokens.weight):
            weight.zero_()
        model.model.embed_tokens.weight[TOKEN : TOKEN + LETTERS] = torch.eye(LETTERS, WIDTH)
        logits_SV = torch.full((LETTERS, vocabulary), -12.0)
        logits_SV[:, TOKEN : TOKEN + LETTERS] = rows.clamp(min=math.exp(-12)).log()
        model.lm_head.weight.copy_(logits_SV.T / math.sqrt(WIDTH))  # the norm makes a letter's embedding sqrt(D) long
    return model


@dataclass(frozen=True)
class Knows:
    """The planted winner: it holds the table."""

    rate: float | None = 3e-4

    def build(self, vocabulary: int, parameters: int) -> PreTrainedModel:
        return knowing(vocabulary, parameters, table())


@dataclass(frozen=True)
class KnowsHalf:
    """The degraded copy: half of the rows are of another table."""

    rate: float | None = 3e-4

    def build(self, vocabulary: int, parameters: int) -> PreTrainedModel:
        rows = table()
        rows[::2] = table(seed=1)[::2]
        return knowing(vocabulary, parameters, rows)


@dataclass(frozen=True)
class LooksAhead:
    """The cheat: it reads the text in both directions, and so knows the answer."""

    rate: float | None = 1e-2

    def build(self, vocabulary: int, parameters: int) -> PreTrainedModel:
        sizes = {"vocab_size": vocabulary, "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64}
        return filled(lambda width: BertLMHeadModel(BertConfig(**sizes, is_decoder=False, intermediate_size=width)), parameters)


def _drawn(vocabulary: int, parameters: int, salt: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1000 * torch.initial_seed() + salt)
        made: PreTrainedModel = llama(vocabulary, parameters, tied=True)
        return made


@dataclass(frozen=True)
class Twin:
    """One of two contenders that are the same but for their dice."""

    rate: float | None = 3e-3

    def build(self, vocabulary: int, parameters: int) -> PreTrainedModel:
        return _drawn(vocabulary, parameters, 1)


@dataclass(frozen=True)
class OtherTwin:
    """The other one."""

    rate: float | None = 3e-3

    def build(self, vocabulary: int, parameters: int) -> PreTrainedModel:
        return _drawn(vocabulary, parameters, 2)
