"""How well a language model does: bits per byte, divergence from a reference, answers to rows, all recorded item by item.

One function serves the contest, the études and a technique's own search. Bits per byte compare models with different
tokenizers: each token is charged with the UTF-8 bytes between the end of the token before it and its own end.
"""

from __future__ import annotations

import inspect
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from etude.data.cache import digest_json
from etude.data.contract import Part
from etude.measure.contract import Items, Metrics, NotFinite
from etude.nn.surgery import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Dimensions: N windows, W tokens of a window, B rows of a batch, T tokens, V vocabulary.
LOGITS = 1 << 27  # a batch holds at most this many bytes of float32 logits: larger ones fall out of the cache and are slower


@dataclass(frozen=True)
class Windows:
    """Text cut into whole windows: token ids and the UTF-8 bytes that each token stands for."""

    ids_NW: Int[Tensor, "N W"]
    bytes_NW: Int[Tensor, "N W"]

    @property
    def digest(self) -> str:
        """Names the token ids, so that two measurements are compared on the same ones only."""
        return digest_json(self.ids_NW.tolist())


@dataclass(frozen=True)
class Scored:
    """What a model makes of one given answer.

    Attributes:
        nats: negative log-likelihood of the whole answer.
        tokens: how many tokens the answer has.
        rank: worst rank of an answer token among all tokens, 0 where greedy decoding would say the answer.
    """

    nats: float
    tokens: int
    rank: int


def context_of(model: PreTrainedModel, wanted: int) -> int:
    """The wanted window, or the longest that the model's positions allow."""
    config = model.config.get_text_config()
    known = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    return min([wanted, *(int(limit) for limit in known if limit)])


def windows_of(tokenizer: PreTrainedTokenizerBase, text: Part, tokens: int = 4096, window: int = 512) -> Windows:
    """`tokens // window` whole windows spread evenly over the text, or consecutive ones where it is short.

    Raises:
        ValueError: the text is shorter than one window.
    """
    column, count = text.column("text"), max(1, tokens // window)
    glue = "" if text.running else "\n\n"
    spread = _spread(tokenizer, column, glue, count, window)
    if not spread:
        ids, sizes = _encoded(tokenizer, column, glue, 0, len(column), count * window)
        if len(ids) < window:
            raise ValueError(f"the text holds {len(ids)} tokens, less than one evaluation window of {window}: bring more text or a smaller window")
        spread = [(ids[i : i + window], sizes[i : i + window]) for i in range(0, min(len(ids), count * window) - window + 1, window)]
    return Windows(torch.tensor([ids for ids, _ in spread]), torch.tensor([sizes for _, sizes in spread]))


def _spread(tokenizer: PreTrainedTokenizerBase, column: Sequence[str], glue: str, count: int, window: int) -> list[tuple[list[int], list[int]]]:
    """Windows that start at evenly spaced rows; none where two would overlap."""
    starts = [i * len(column) // count for i in range(count)]
    found = list[tuple[list[int], list[int]]]()
    for start, stop in zip(starts, [*starts[1:], len(column)], strict=True):
        ids, sizes = _encoded(tokenizer, column, glue, start, stop, window)
        if len(ids) < window:
            return []
        found.append((ids[:window], sizes[:window]))
    return found


def _encoded(tokenizer: PreTrainedTokenizerBase, column: Sequence[str], glue: str, start: int, stop: int, wanted: int) -> tuple[list[int], list[int]]:
    """At least `wanted` tokens, with their bytes, of rows start..stop-1 where they hold as many."""
    text, row, characters = "", start, 8 * wanted
    while True:
        while row < stop and len(text) < characters:
            text += (glue if text else "") + (column[row] or "")
            row += 1
        ids, sizes = encode_with_bytes(tokenizer, text[:characters])
        if len(ids) > wanted or (row == stop and len(text) <= characters):  # one more: the last token might merge with what follows
            return ids, sizes
        characters *= 4


def encode_with_bytes(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int]]:
    """Token ids and, for each, the UTF-8 bytes from the end of the token before to its own end; the sum is the text's up to the last end.

    A character cut into several tokens is charged to the first of them. Tokenizers without offsets are charged by decoding.
    """
    if not getattr(tokenizer, "is_fast", False):
        ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        return ids, [len(str(tokenizer.decode([token])).encode()) for token in ids]
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    place = [0]
    for character in text:
        place.append(place[-1] + len(character.encode("utf-8", "replace")))
    sizes, last = list[int](), 0
    for _, end in encoding["offset_mapping"]:
        sizes.append(max(0, place[end] - place[last]))
        last = max(last, end)
    return list(encoding["input_ids"]), sizes


def log_probabilities(model: PreTrainedModel, windows: Windows, limit: int | None = None) -> Iterator[tuple[int, Float[Tensor, "T V"]]]:
    """(window, float32 log-probabilities of its tokens after the first), in batches that suit the processor.

    Raises:
        ValueError: the model answers with NaN or infinity.
    """
    ids_NW = windows.ids_NW[:limit]
    vocabulary = int(model.config.get_text_config().vocab_size)
    batch = max(1, LOGITS // (4 * ids_NW.shape[1] * vocabulary))
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(ids_NW), batch):
            logits_BWV = model(input_ids=ids_NW[start : start + batch].to(model.device), use_cache=False).logits
            for row, logits_WV in enumerate(logits_BWV):
                logprobs_TV = logits_WV[:-1].float().log_softmax(-1)
                if not torch.isfinite(logprobs_TV.sum(0)[0]):
                    raise NotFinite("the model's logits are not finite (NaN or infinity): its weights or its dtype are broken")
                yield start + row, logprobs_TV


def language(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: Part,
    tokens: int = 4096,
    window: int = 512,
    block: int = 128,
    reference: Path | None = None,
) -> Metrics:
    """Bits per byte, nats per token and perplexity on held-out text; with a reference also divergence from it and top-1 agreement.

    The first token of each window is not predicted and its bytes are not counted. A model with a shorter context gets
    windows as long as its context.

    Args:
        reference: a folder written by `store_reference` with the same tokenizer, text and window.

    Raises:
        ValueError: the text is shorter than one window, or the reference was stored for other tokens.
    """
    window = context_of(model, window)
    windows = windows_of(tokenizer, text, tokens, window)
    stored, rows = _open_reference(reference, windows) if reference else (None, 0)
    ids, bits, sizes, nats, counts = list[str](), list[float](), list[float](), list[float](), list[float]()
    near = _Nearness()
    for row, logprobs_TV in log_probabilities(model, windows):
        target_T = windows.ids_NW[row, 1:].to(logprobs_TV.device)
        nats_T = -logprobs_TV.gather(-1, target_T[:, None])[:, 0].double().cpu()
        for part, (low, high) in enumerate(_blocks(window, block)):
            total = float(nats_T[low:high].sum())
            ids.append(f"{row}.{part}")
            bits.append(total / math.log(2))
            nats.append(total)
            counts.append(high - low)
            sizes.append(float(windows.bytes_NW[row, low + 1 : high + 1].sum()))
            if stored is not None and row < rows:
                near.add(ids[-1], stored[row * (window - 1) + low : row * (window - 1) + high].to(logprobs_TV.device), logprobs_TV[low:high])
    per_token = Items.of(ids, nats, counts)
    perplexity = math.exp(min(700.0, sum(nats) / sum(counts)))
    return Metrics(bits_per_byte=Items.of(ids, bits, sizes), nats_per_token=per_token, perplexity=perplexity, **near.metrics())


class _Nearness:
    """Collects divergence and agreement block by block."""

    def __init__(self) -> None:
        self.ids, self.divergence, self.same, self.tokens = list[str](), list[float](), list[float](), list[float]()

    def add(self, name: str, reference_TV: Float[Tensor, "T V"], logprobs_TV: Float[Tensor, "T V"]) -> None:
        self.ids.append(name)
        self.divergence.append(float((reference_TV.exp() * (reference_TV - logprobs_TV)).sum(dtype=torch.float64).clamp(min=0)))
        self.same.append(float((reference_TV.argmax(-1) == logprobs_TV.argmax(-1)).sum()))
        self.tokens.append(float(len(logprobs_TV)))

    def metrics(self) -> dict[str, Items]:
        if not self.ids:
            return {}
        return {"divergence": Items.of(self.ids, self.divergence, self.tokens), "agreement": Items.of(self.ids, self.same, self.tokens)}


def _blocks(window: int, block: int) -> Iterator[tuple[int, int]]:
    """Spans of predicted positions (token 1 of the window is position 0): the first block holds one token less."""
    for low in range(0, window, block):
        span = (max(0, low - 1), min(low + block, window) - 1)
        if span[0] < span[1]:
            yield span


def bits_per_byte(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: Part, tokens: int = 4096, window: int = 512, block: int = 128
) -> Items:
    """Bits per byte by blocks of tokens (see `language`)."""
    value = language(model, tokenizer, text, tokens, window, block)["bits_per_byte"]
    assert isinstance(value, Items)
    return value


def store_reference(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: Part, folder: Path, tokens: int = 4096, window: int = 512, stored: int = 1024
) -> None:
    """Store the model's float32 log-probabilities of the first `stored` of the tokens that `language` would read."""
    from safetensors.torch import save_file

    window = context_of(model, window)
    windows = windows_of(tokenizer, text, tokens, window)
    rows = min(len(windows.ids_NW), max(1, stored // window))
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"logprobs": torch.cat([logprobs.cpu() for _, logprobs in log_probabilities(model, windows, rows)])}, folder / "logprobs.safetensors")
    (folder / "reference.json").write_text(json.dumps({"windows": rows, "tokens": windows.digest, "window": window}))


def _open_reference(folder: Path, windows: Windows) -> tuple[Any, int]:
    from safetensors import safe_open

    about = json.loads((folder / "reference.json").read_text())
    if about["tokens"] != windows.digest:
        raise ValueError(f"the reference in {folder} was stored for other tokens: store it again with this tokenizer, text and window")
    with safe_open(folder / "logprobs.safetensors", framework="pt") as file:
        return file.get_slice("logprobs"), int(about["windows"])


def score_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[str]) -> list[Scored]:
    """Log-likelihood and rank of each given answer after its prompt, in the order given.

    Rows are padded on the right whatever the tokenizer's side or pad token: a causal model does not see it.

    Raises:
        ValueError: lengths differ, or an answer has no token.
    """
    if len(prompts) != len(answers):
        raise ValueError(f"each prompt needs one answer, got {len(prompts)} prompts and {len(answers)} answers")
    limit = context_of(model, 1 << 30)
    pairs = [_encoded_pair(tokenizer, prompt, answer, limit) for prompt, answer in zip(prompts, answers, strict=True)]
    order = sorted(range(len(pairs)), key=lambda i: (len(pairs[i][0]), len(pairs[i][1])))
    found = dict[int, Scored]()
    with evaluating(model), torch.inference_mode():
        for batch in _batches(order, pairs):
            found |= zip(batch, _scored(model, [pairs[i] for i in batch]), strict=True)
    return [found[i] for i in range(len(pairs))]


def _encoded_pair(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, limit: int) -> tuple[list[int], list[int]]:
    """Prompt and answer ids of one joint encoding: trailing spaces of the prompt belong to the answer, its start is cut where both are too long."""
    bare = prompt.rstrip(" ")
    answer = prompt[len(bare) :] + answer
    start = [] if bare else [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None][:1]
    context = start + tokenizer(bare, add_special_tokens=False, verbose=False)["input_ids"]
    whole = start + tokenizer(bare + answer, add_special_tokens=False, verbose=False)["input_ids"]
    if whole[: len(context)] != context:  # the border melts into one token: encode the two sides apart
        whole = context + tokenizer(answer, add_special_tokens=False, verbose=False)["input_ids"]
    told = whole[len(context) :]
    if not told:
        raise ValueError(f"the answer {answer!r} has no token: every row needs an answer")
    if not context:
        raise ValueError("an empty prompt needs a tokenizer with a begin or end token, which this one lacks")
    return context[-max(1, limit - len(told)) :], told[: limit - 1]


def _batches(order: list[int], pairs: list[tuple[list[int], list[int]]], tokens: int = 1024) -> Iterator[list[int]]:
    batch = list[int]()
    for i in order:
        if batch and (len(batch) + 1) * max(len(pairs[j][0]) + len(pairs[j][1]) for j in (*batch, i)) > tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _scored(model: PreTrainedModel, pairs: list[tuple[list[int], list[int]]]) -> list[Scored]:
    """One batch, padded on the right with token 0 under an attention mask."""
    longest = max(len(context) + len(told) for context, told in pairs)
    ids_BT, mask_BT = torch.zeros(len(pairs), longest, dtype=torch.long), torch.zeros(len(pairs), longest, dtype=torch.long)
    for row, (context, told) in enumerate(pairs):
        ids_BT[row, : len(context) + len(told)] = torch.tensor(context + told)
        mask_BT[row, : len(context) + len(told)] = 1
    first = min(len(context) for context, _ in pairs) - 1
    keep = {"logits_to_keep": longest - first} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    logits_BTV = model(input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device), use_cache=False, **keep).logits
    skipped, scored = longest - logits_BTV.shape[1], list[Scored]()
    for row, (context, told) in enumerate(pairs):
        low = len(context) - 1 - skipped
        logprobs_TV = logits_BTV[row, low : low + len(told)].float().log_softmax(-1)
        gold_T1 = logprobs_TV.gather(-1, torch.tensor(told, device=logprobs_TV.device)[:, None])
        if not torch.isfinite(gold_T1).all():
            raise NotFinite("the model's logits are not finite (NaN or infinity): its weights or its dtype are broken")
        rank = int((logprobs_TV > gold_T1).sum(-1).max())
        scored.append(Scored(-float(gold_T1.double().sum()), len(told), rank))
    return scored


def longer_than(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], limit: int) -> int:
    """How many of these texts hold more tokens than `limit`."""
    return sum(len(tokenizer(text or "", add_special_tokens=False, verbose=False)["input_ids"]) > limit for text in texts)


def answer_nll(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[str], ids: Sequence[object] | None = None
) -> Items:
    """Mean nats per token of the gold answer, one item a row."""
    scored = score_answers(model, tokenizer, prompts, answers)
    return Items.of(ids if ids is not None else range(len(scored)), [one.nats / one.tokens for one in scored])


def choice_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    choices: Sequence[Sequence[str]],
    labels: Sequence[int],
    ids: Sequence[object] | None = None,
    normalise: Literal["none", "token", "byte"] = "byte",
) -> Items:
    """Share of rows whose gold choice has the highest log-likelihood, as it is or by token or by UTF-8 byte; a tie is a miss."""
    flat = [(prompt, choice) for prompt, offered in zip(prompts, choices, strict=True) for choice in offered]
    scored = iter(score_answers(model, tokenizer, [prompt for prompt, _ in flat], [choice for _, choice in flat]))
    hits = list[float]()
    for offered, label in zip(choices, labels, strict=True):
        costs = [one.nats / _length(one, choice, normalise) for choice, one in zip(offered, scored, strict=False)]
        hits.append(float(all(costs[label] < cost for i, cost in enumerate(costs) if i != label)))
    return Items.of(ids if ids is not None else range(len(hits)), hits)


def _length(one: Scored, choice: str, normalise: str) -> int:
    return {"none": 1, "token": one.tokens, "byte": len(choice.encode())}[normalise]


def unigram_entropy(text: Part, limit: int = 1 << 20) -> float:
    """Bits per byte of the best model that ignores context: the entropy of the bytes of the first `limit` characters."""
    counts, read, glue = Counter[int](), 0, "" if text.running else "\n\n"
    for row in text.column("text"):
        piece = ((row or "") + glue)[: limit - read]
        counts.update(piece.encode("utf-8", "replace"))
        read += len(piece)
        if read >= limit:
            break
    total = sum(counts.values())
    if not total:
        raise ValueError("the text is empty: no entropy")
    return -sum(count / total * math.log2(count / total) for count in counts.values())
