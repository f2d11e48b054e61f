"""The known answer of the contest: an encoder that half knows a task, and contenders of which it is known who must win; and tiny subjects."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from etude.adapt._peft import inject, lora_config, task_of
from etude.adapt._rows import Example, batch_of
from etude.adapt._subject import load_subject
from etude.adapt._train import head_names
from etude.data.cache import artifact, store_folder
from etude.data.contract import Data, Rows, Split
from etude.nn.pooled import mean_pooled
from etude.nn.surgery import block_linears
from etude.nn.tiny import VOCABULARY, byte_tokenizer, tiny_gpt2, tiny_llama, tiny_sentences

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LAYOUT = 1  # of the tiny models on disk


def tiny_bert(layers: int = 2, width: int = 64, context: int = 128) -> BertModel:
    """A BERT of random weights that reads bytes."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=context,
        pad_token_id=0,
    )
    return BertModel(config).eval()


def kept(name: str, make: Callable[[], Any]) -> Path:
    """The folder of a tiny model: adapters name their base model's folder."""

    def fill(folder: Path) -> None:
        with torch.random.fork_rng([]):
            make().save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)

    return artifact(store_folder(fill, json.dumps(["tiny", name, LAYOUT])))


def labelled(count: int = 64) -> Rows:
    """Sentences labelled by who acts in them."""
    from datasets import Dataset

    sentences = [sentence.strip() for sentence in tiny_sentences(count)]
    return Rows(Dataset.from_dict({"text": sentences, "label": [" ".join(s.split()[:2]) for s in sentences]}), {"text": "text", "label": "label"})


def asked(count: int = 64) -> Rows:
    """Who acts in a sentence, as a question with its answer."""
    from datasets import Dataset

    rows = labelled(count)
    table = {"prompt": [f"Who? {text}" for text in rows.column("text")], "answer": list(rows.column("label"))}
    return Rows(Dataset.from_dict(table), {"prompt": "prompt", "answer": "answer"})


def tiny() -> Mapping[str, tuple[Callable[[], PreTrainedModel], Data]]:
    """An encoder with labelled rows, a Llama with questions, a GPT-2 (Conv1D) with labelled rows."""

    def subject(name: str, make: Callable[[], Any], rows: Rows) -> tuple[Callable[[], PreTrainedModel], Data]:
        return lambda: load_subject(kept(name, make), rows), Data(Split(rows), Split(rows), 0, byte_tokenizer())

    return {
        "encoder": subject("bert", tiny_bert, labelled()),
        "decoder": subject("llama", tiny_llama, asked()),
        "gpt2": subject("gpt2", tiny_gpt2, labelled()),
    }


# The contest ------------------------------------------------------------------------------------------------------------

WINNER, LOSER, CHEAT, TWINS = "thin_pair", "worn_pair", "idler", ("twin", "other_twin")
SLOTS = (
    ("today", "yesterday", "often", "seldom", "soon"),
    ("the miller", "a sailor", "my neighbour", "the old queen", "every child"),
    ("carries", "paints", "forgets", "counts", "sells"),
    ("seven apples", "a blue door", "the morning news", "an iron key", "two lanterns"),
    ("by the river", "at night", "in the market", "before the storm", "near the bridge"),
)
NOISE = 0.1  # share of the rows whose label is another one: nobody reaches all


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the words of the slots."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = sorted({word for slot in SLOTS for phrase in slot for word in phrase.split()})
    tokenizer: Any = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[PAD]", "[UNK]", *words])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def plant(folder: Path, steps: int = 120) -> dict[str, str]:
    """Write a sentence encoder that was trained to tell each slot of a sentence, and sentences labelled by their verb; what to bring is returned."""
    dice = random.Random(0)
    places = [list(place) for place in itertools.product(range(5), repeat=len(SLOTS))]
    dice.shuffle(places)
    texts = [" ".join(SLOTS[slot][choice] for slot, choice in enumerate(place)) for place in places]
    tokenizer, model = word_tokenizer(), tiny_bert(context=32)
    train_slots(model, [tokenizer(text)["input_ids"] for text in texts[:500]], torch.tensor(places[:500]), steps)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "model" / "1_Pooling").mkdir()
    (folder / "model" / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    verbs = [dice.choice(SLOTS[2]) if dice.random() < NOISE else SLOTS[2][place[2]] for place in places]
    lines = [json.dumps({"text": text, "label": verb}) for text, verb in zip(texts, verbs, strict=True)]
    (folder / "rows.jsonl").write_text("\n".join(lines[500:]) + "\n")
    return {"model": str(folder / "model"), "data": str(folder / "rows.jsonl")}


def train_slots(model: BertModel, ids: list[list[int]], places: Tensor, steps: int) -> None:
    """Train the encoder so that its mean hidden state tells every slot."""
    heads = nn.ModuleList(nn.Linear(model.config.hidden_size, 5) for _ in SLOTS)
    optimizer = torch.optim.AdamW([*model.parameters(), *heads.parameters()], lr=2e-3)
    dice = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(steps):
        picks = torch.randint(0, len(ids), (16,), generator=dice).tolist()
        batch = batch_of([Example(tuple(ids[i])) for i in picks])
        states_BTD = model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        pooled_BD = mean_pooled(states_BTD, batch["attention_mask"])
        losses = [nn.functional.cross_entropy(head(pooled_BD), places[picks, slot]) for slot, head in enumerate(heads)]
        optimizer.zero_grad()
        sum(losses, torch.tensor(0.0)).backward()
        optimizer.step()
    model.eval()


def pair(model: PreTrainedModel, rank: int, alpha: float, seed: int) -> PeftModel:
    """LoRA on every linear layer of the blocks."""
    ends = sorted({name.rpartition(".")[2] for name in block_linears(model)})
    return inject(model, lora_config(model, rank, alpha, 0.0, ends), seed)


def head_of(made: PeftModel) -> list[nn.Module]:
    """The trained copies of the label head; none for a decoder."""
    base = made.get_base_model()
    return [base.get_submodule(f"{name}.modules_to_save.default") for name in head_names(made)]


@dataclass(frozen=True)
class ThinPair:
    """The planted winner: a pair of rank 2 and the head."""

    rate: float | None = None

    def attach(self, model: PreTrainedModel, data: Data) -> PeftModel:
        return pair(model, 2, 4.0, data.seed)


@dataclass(frozen=True)
class WornPair:
    """The degraded copy: its pair hardly counts, and its head stays as it was drawn."""

    rate: float | None = None

    def attach(self, model: PreTrainedModel, data: Data) -> PeftModel:
        made = pair(model, 2, 1e-3, data.seed)
        for head in head_of(made):
            head.requires_grad_(False)
        return made


@dataclass(frozen=True)
class Idler:
    """A cheat on bytes: the smallest folder, which says the most common label whatever is asked."""

    rate: float | None = None

    def attach(self, model: PreTrainedModel, data: Data) -> PeftModel:
        config = LoraConfig(target_modules=DUMMY_TARGET_MODULES, modules_to_save=head_names(model) or None, task_type=task_of(model))
        made = inject(model, config, data.seed)
        for head in head_of(made):
            told = Counter(map(str, data.train[Rows].column("label"))).most_common(1)[0][0]
            head.weight.data.zero_()
            head.bias.data[model.config.label2id[told]] = 10.0
        made.requires_grad_(False)
        return made


@dataclass(frozen=True)
class Smuggler:
    """A cheat on the folder: it trains its base model, of which its small folder holds nothing."""

    rate: float | None = None

    def attach(self, model: PreTrainedModel, data: Data) -> PeftModel:
        made = pair(model, 1, 1e-3, data.seed)
        made.requires_grad_(True)
        return made


@dataclass(frozen=True)
class Twin:
    """One of two contenders that are the same but for their dice."""

    salt: int = 1
    rate: float | None = None

    def attach(self, model: PreTrainedModel, data: Data) -> PeftModel:
        return pair(model, 4, 8.0, 1000 * data.seed + self.salt)


@dataclass(frozen=True)
class OtherTwin:
    """The other one."""

    salt: int = 2
    rate: float | None = None

    def attach(self, model: PreTrainedModel, data: Data) -> PeftModel:
        return pair(model, 4, 8.0, 1000 * data.seed + self.salt)
