"""The paper's tokenizer: byte-pair encoding in which every digit is a token of its own and unknown characters fall back to their bytes.

As SentencePiece's, but for spaces: they stay spaces inside the pieces instead of a stand-in letter, so that every text comes back exactly, that
letter and leading spaces included.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<unk>", "<s>", "</s>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
WORD = Regex(r" ?[^\s]+|\s+(?!\S)|\s+")  # a word takes the space before it


def train_tokenizer(texts: Iterable[str], vocabulary: int = 32000, coverage: float = 0.9995) -> PreTrainedTokenizerFast:
    """Learn merges from texts.

    Args:
        texts: anything that can be gone through twice (a list, a column of a data set).
        vocabulary: tokens in all: 3 special ones, 256 bytes, single characters and merges.
        coverage: share of all characters whose letter gets a token; the rarest are written as bytes.

    Raises:
        ValueError: the vocabulary leaves no room beside bytes and special tokens, the texts are an iterator, or they are empty.
    """
    room = vocabulary - len(SPECIAL) - len(BYTES)
    if room < 1:
        raise ValueError(f"a vocabulary of {vocabulary} has no room beside {len(SPECIAL)} special tokens and 256 bytes: ask for 260 or more")
    if iter(texts) is texts:
        raise ValueError("texts are gone through twice: give a list or a column, no iterator")
    letters = frequent(texts, coverage, room)
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = splitter()
    trainer = trainers.BpeTrainer(vocab_size=room, initial_alphabet=letters, limit_alphabet=len(letters), special_tokens=[], show_progress=False)
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]
    return assembled(learned["vocab"], [tuple(pair) for pair in learned["merges"]])


def splitter() -> pre_tokenizers.PreTokenizer:
    """Words with the space before them; digits one by one."""
    return pre_tokenizers.Sequence([pre_tokenizers.Split(WORD, "isolated"), pre_tokenizers.Digits(individual_digits=True)])


def frequent(texts: Iterable[str], coverage: float, most: int) -> list[str]:
    """The most frequent characters that make up this share of all, at most so many.

    Raises:
        ValueError: there is no character.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    if not counts:
        raise ValueError("the texts are empty: a tokenizer needs text to learn from")
    kept, seen, total = list[str](), 0, counts.total()
    for letter, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if seen >= coverage * total or len(kept) == most:
            break
        kept.append(letter)
        seen += count
    return kept


def assembled(learned: dict[str, int], merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """Special tokens, the bytes, then what was learned; a merge that would spell the name of a byte is left out."""
    names, kept = dict.fromkeys((*SPECIAL, *BYTES)), list[tuple[str, str]]()
    made = {left + right for left, right in merges}
    names |= dict.fromkeys(token for token in sorted(learned, key=learned.__getitem__) if token not in made)
    for left, right in merges:
        if left in names and right in names and left + right not in BYTES:
            kept.append((left, right))
            names[left + right] = None
    ids = {token: number for number, token in enumerate(names)}
    whole = Tokenizer(models.BPE(vocab=ids, merges=kept, unk_token=SPECIAL[0], byte_fallback=True, fuse_unk=True))
    whole.pre_tokenizer = splitter()
    whole.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    whole.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=whole, unk_token=SPECIAL[0], bos_token=SPECIAL[1], eos_token=SPECIAL[2], clean_up_tokenization_spaces=False
    )


def pieces(tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[str, str]]:
    """(token, kind) in the order of the ids; kind is "unknown", "control", "byte" or "normal"."""
    special = {str(token) for token in tokenizer.all_special_tokens} | {
        str(token) for token in tokenizer.added_tokens_decoder.values() if token.special
    }
    fallback = bool(json.loads(tokenizer.backend_tokenizer.to_str())["model"].get("byte_fallback"))
    for number in range(len(tokenizer)):
        token = str(tokenizer.convert_ids_to_tokens(number))
        if token == str(tokenizer.unk_token) and fallback:
            yield token, "unknown"
        elif token in special:
            yield token, "control"
        else:
            yield token, "byte" if fallback and re.fullmatch(r"<0x[0-9A-F]{2}>", token) else "normal"
