"""Language models and texts of a few kilobytes, made on the spot: for conformance, smoke études and tests."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from etude.data.contract import Text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VOCABULARY = 256


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the 256 bytes: it reads any text and needs no training."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer: Tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def tiny_llama(layers: int = 4, width: int = 64, context: int = 512) -> LlamaForCausalLM:
    """A Llama of random weights with grouped-query attention and its head tied to the embedding."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def tiny_gpt2(layers: int = 4, width: int = 64, context: int = 512) -> GPT2LMHeadModel:
    """A GPT-2 (Conv1D layers, learned positions) of random weights."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=width, n_layer=layers, n_head=4, n_positions=context, bos_token_id=None, eos_token_id=None)
    return GPT2LMHeadModel(config).eval()


def tiny_sentences(count: int = 400, seed: int = 0) -> list[str]:
    """Sentences of a small grammar: enough regularity for a tiny model to learn."""
    dice = random.Random(seed)
    who = ["the miller", "a sailor", "my neighbour", "the old queen", "every child"]
    does = ["carries", "paints", "forgets", "counts", "sells"]
    what = ["seven apples", "a blue door", "the morning news", "an iron key", "two lanterns"]
    where = ["by the river", "at night", "in the market", "before the storm", "near the bridge"]
    return [f"{dice.choice(who)} {dice.choice(does)} {dice.choice(what)} {dice.choice(where)}.\n" for _ in range(count)]


def tiny_text(count: int = 400, seed: int = 0) -> Text:
    """The sentences as a running text."""
    from datasets import Dataset

    return Text(Dataset.from_dict({"text": tiny_sentences(count, seed)}), {"text": "text"}, running=True)


def train(model: PreTrainedModel, text: str, steps: int = 200, length: int = 64, batch: int = 16, lr: float = 3e-3, seed: int = 0) -> float:
    """Train a byte-level model on a text with AdamW and return its last loss in nats a byte."""
    ids = torch.tensor(byte_tokenizer()(text, add_special_tokens=False, verbose=False)["input_ids"])
    dice, optimizer, loss = torch.Generator().manual_seed(seed), torch.optim.AdamW(model.parameters(), lr=lr), torch.tensor(0.0)
    model.train()
    for _ in range(steps):
        starts = torch.randint(0, len(ids) - length, (batch,), generator=dice)
        window_BT = torch.stack([ids[start : start + length] for start in starts])
        loss = model(input_ids=window_BT, labels=window_BT).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    return float(loss.detach())
