"""The tokenizer gives every text back; GGUF files hold what was written."""

from __future__ import annotations

import gguf
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from etude.models._size import made
from etude.models.llama import Llama
from etude.models.llama.gguf_file import from_gguf, to_gguf
from etude.models.llama.tokens import BYTES, SPECIAL, assembled, train_tokenizer
from etude.nn.decoder_config import EtudeDecoderConfig
from etude.nn.tiny import byte_tokenizer, tiny_sentences

IDS = torch.arange(40).reshape(2, 20) * 7 % 400
TOKENIZER = train_tokenizer([*tiny_sentences(200), "0123456789 " * 20], 400)


@settings(max_examples=30, deadline=None)
@given(st.text())
@example("  two spaces, a \t tab\n\nand ▁ the sign of SentencePiece")
@example("<0x41> 日本語 \U0001f389 \x00 ")
def test_any_text_comes_back(text):
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == text and TOKENIZER.unk_token_id not in ids


def test_digits_stand_alone_and_unknown_letters_are_bytes():
    assert TOKENIZER.tokenize("1984") == ["1", "9", "8", "4"] and not any(len(token) > 1 and any(map(str.isdigit, token)) for token in learned())
    assert TOKENIZER.tokenize("é") == ["<0xC3>", "<0xA9>"]
    assert TOKENIZER.tokenize("the market")[1].startswith(" ")  # a word takes the space before it


def learned() -> list[str]:
    return [token for token in TOKENIZER.get_vocab() if token not in (*SPECIAL, *BYTES)]


def test_ids_begin_with_special_tokens_and_bytes():
    assert TOKENIZER.convert_ids_to_tokens([0, 1, 2, 3, 258]) == ["<unk>", "<s>", "</s>", "<0x00>", "<0xFF>"] and len(TOKENIZER) <= 400


def test_a_merge_that_spells_the_name_of_a_byte_is_left_out():
    letters = {letter: number for number, letter in enumerate("<0x41>")}
    pairs = [("<", "0"), ("<0", "x"), ("<0x", "4"), ("<0x4", "1"), ("<0x41", ">")]
    tokenizer = assembled(letters | {left + right: 10 + number for number, (left, right) in enumerate(pairs)}, pairs)
    assert tokenizer.decode(tokenizer("<0x41>A")["input_ids"]) == "<0x41>A" and tokenizer.tokenize("<0x41>")[-1] == ">"


@pytest.mark.parametrize(
    ("texts", "vocabulary", "says"),
    [(["a b"], 259, "has no room beside"), (iter(["a"]), 300, "give a list or a column"), ([""], 300, "the texts are empty")],
)
def test_texts_that_teach_nothing_are_refused(texts, vocabulary, says):
    with pytest.raises(ValueError, match=says):
        train_tokenizer(texts, vocabulary)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return made(Llama(layers=2, width=64, heads=4, kv_heads=2, hidden=160, context=64, eps=1e-5, base=5e4).shape(400))


@pytest.mark.parametrize(("kind", "tolerance"), [("F32", 0.0), ("F16", 2e-3), ("Q8_0", 2e-2)])
def test_a_gguf_file_gives_the_model_back(model, kind, tolerance, tmp_path):
    again = from_gguf(to_gguf(model, tmp_path / "model.gguf", TOKENIZER, kind))
    assert float((again(IDS).logits - model(IDS).logits).detach().abs().max()) <= tolerance
    assert (again.config.mixer["kv_heads"], again.config.mixer["base"], again.config.norm_eps) == (2, 5e4, pytest.approx(1e-5))


def test_queries_lie_in_the_file_in_pairs_and_a_tied_head_is_left_out(tmp_path):
    tied = made(Llama(layers=1, width=32, context=64, tied=True).shape(256))
    reader = gguf.GGUFReader(to_gguf(tied, tmp_path / "tied.gguf", byte_tokenizer()))
    names = {tensor.name: tensor for tensor in reader.tensors}
    assert "output.weight" not in names and names["blk.0.attn_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    row = torch.from_numpy(names["blk.0.attn_q.weight"].data.copy())[1]
    assert torch.equal(row, tied.model.layers[0].mixer.q_proj.weight[4])  # heads 8 wide: the second of a pair is row 4 of the halves
    again = from_gguf(tmp_path / "tied.gguf")
    assert again.config.tie_word_embeddings and torch.equal(again(IDS % 256).logits, tied(IDS % 256).logits)


def test_tokens_of_a_byte_level_tokenizer_are_read_back_by_transformers(tmp_path):
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer, learner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner.train_from_iterator(tiny_sentences(100), trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, special_tokens=["<|end|>"]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=learner, eos_token="<|end|>")
    to_gguf(made(Llama(layers=1, width=32, context=64).shape(300)), tmp_path / "model.gguf", tokenizer)
    again = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    text = "the miller counts seven apples, héllo 12"
    assert again(text, add_special_tokens=False)["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert again.eos_token == "<|end|>" and again.convert_ids_to_tokens(299) == "<unused299>"


def test_tokens_of_a_byte_fallback_tokenizer_have_their_kinds_and_ranks(model, tmp_path):
    fields = gguf.GGUFReader(to_gguf(model, tmp_path / "model.gguf", TOKENIZER)).fields
    tokens, kinds, scores = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type", "scores"))
    assert fields["tokenizer.ggml.model"].contents() == "llama" and len(tokens) == 400
    assert kinds[:4] == [2, 3, 3, 6] and tokens[3] == "<0x00>" and kinds[300] == 1 and any(token.startswith("▁") for token in tokens)
    merged = [score for token, score in zip(tokens, scores, strict=True) if len(token) > 1 and not token.startswith("<")]
    assert merged == sorted(merged, reverse=True) and merged[0] == 0.0


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({}, "F8", "kind is one of F32"),
        ({"width": 48, "heads": 4}, "Q8_0", "which rows of 48"),
        ({"tokens": 300}, "F32", "400 tokens and the model 300"),
    ],
)
def test_what_does_not_fit_into_a_file_is_refused(options, kind, says, tmp_path):
    tokens = options.pop("tokens", 400)
    with pytest.raises(ValueError, match=says):
        to_gguf(made(Llama(**{"layers": 1, "width": 32} | options).shape(tokens)), tmp_path / "model.gguf", TOKENIZER, kind)


def test_files_that_exist_or_do_not_are_refused_and_biases_too(model, tmp_path):
    (tmp_path / "there.gguf").write_bytes(b"")
    with pytest.raises(ValueError, match="exists: give another file"):
        to_gguf(model, tmp_path / "there.gguf")
    with pytest.raises(ValueError, match="there is no file"):
        from_gguf(tmp_path / "missing.gguf")
    config = EtudeDecoderConfig(**model.config.to_dict() | {"mixer": model.config.mixer | {"bias": True}})
    with pytest.raises(ValueError, match="without linear biases"):
        to_gguf(made(config), tmp_path / "biased.gguf")
