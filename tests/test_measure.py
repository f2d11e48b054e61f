"""Measurements against values known in closed form, on random models of a few thousand parameters."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.data.contract import Text
from etude.measure.contract import Items, number
from etude.measure.cost import decode_speed, folder_bytes, state_bytes, timings, training_speed
from etude.measure.quality import (
    answer_nll,
    choice_accuracy,
    encode_with_bytes,
    language,
    score_answers,
    store_reference,
    unigram_entropy,
    windows_of,
)

PROSE = "The café is über-long; naïve 🦊 foxes jump over λ. " * 40


def tokenizer_of(corpus: str = PROSE, pad: bool = False, size: int = 300):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([corpus], trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=["<end>"]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")
    if pad:
        tokenizer.pad_token = "<end>"
    return tokenizer


def text_of(*texts: str, running: bool = False) -> Text:
    from datasets import Dataset

    return Text(Dataset.from_dict({"text": list(texts)}), {"text": "text"}, running)


def tiny(kind: str = "llama", context: int = 512, vocabulary: int = 300, dtype: torch.dtype = torch.float32):
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if kind == "llama":
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=context,
            initializer_range=0.5,
        )
        return LlamaForCausalLM(config).to(dtype)
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_embd=16, n_layer=2, n_head=2, n_positions=context, initializer_range=0.5)).to(dtype)


def uniform(model):
    """The model that gives every token the same probability."""
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    return model


TOKENIZER = tokenizer_of()
BOTH = pytest.mark.parametrize("kind", ["llama", "gpt2"])


@BOTH
def test_a_uniform_model_costs_the_log_of_the_vocabulary_and_the_first_token_is_not_counted(kind):
    found = language(uniform(tiny(kind, context=64)), TOKENIZER, text_of(PROSE), tokens=256, window=64, block=16)
    windows = windows_of(TOKENIZER, text_of(PROSE), 256, 64)
    predicted = windows.bytes_NW[:, 1:].sum().item()
    assert number(found["nats_per_token"]) == pytest.approx(math.log(300), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(4 * 63 * math.log2(300) / predicted, rel=1e-5)
    assert found.perplexity == pytest.approx(300, rel=1e-4)
    items = found["bits_per_byte"]
    assert isinstance(items, Items) and len(items.ids) == 16 and len(set(items.ids)) == 16
    assert sum(items.bottom) == predicted


@given(st.text(max_size=60), st.sampled_from(["", "🦊", "é"]))
@settings(max_examples=100, deadline=None)
def test_bytes_of_tokens_add_up_to_the_text(text, tail):
    whole = (text + tail).encode("utf-8", "replace").decode()
    ids, sizes = encode_with_bytes(TOKENIZER, whole)
    assert len(ids) == len(sizes) and sum(sizes) == len(whole.encode())


def test_windows_are_spread_evenly_and_short_text_is_taken_whole():
    rows = [f"row {i} " * 60 for i in range(20)]
    spread = windows_of(TOKENIZER, text_of(*rows), tokens=128, window=32)
    assert spread.ids_NW.shape == (4, 32)
    assert [TOKENIZER.decode(ids)[:6].split()[1] for ids in spread.ids_NW] == ["0", "5", "10", "15"]
    assert windows_of(TOKENIZER, text_of("fox " * 60), tokens=4096, window=64).ids_NW.shape[0] == len(TOKENIZER("fox " * 60)["input_ids"]) // 64
    pieces = [PROSE[i : i + 7] for i in range(0, 700, 7)]
    running, whole = windows_of(TOKENIZER, text_of(*pieces, running=True), 8192, 64), windows_of(TOKENIZER, text_of(PROSE[:700]), 8192, 64)
    assert torch.equal(running.ids_NW, whole.ids_NW)


def test_text_shorter_than_a_window_is_refused_with_counts():
    with pytest.raises(ValueError, match=r"holds \d+ tokens, less than one evaluation window of 512"):
        language(tiny(), TOKENIZER, text_of("too short", ""), window=512)


def test_a_window_longer_than_the_context_is_cut_to_it_and_empty_rows_do_no_harm():
    found = language(tiny("gpt2", context=32), TOKENIZER, text_of("", PROSE, ""), tokens=128, window=512, block=128)
    items = found["bits_per_byte"]
    assert isinstance(items, Items) and len(items.ids) == 4


@BOTH
def test_divergence_from_itself_is_zero_and_from_another_is_not(kind, tmp_path):
    text, sizes = text_of(PROSE), {"tokens": 256, "window": 64}
    store_reference(tiny(kind), TOKENIZER, text, tmp_path, **sizes, stored=128)
    same = language(tiny(kind), TOKENIZER, text, **sizes, block=32, reference=tmp_path)
    assert same.divergence == pytest.approx(0, abs=1e-6) and same.agreement == 1
    items = same["divergence"]
    assert isinstance(items, Items) and sum(items.bottom) == 126
    other = language(uniform(tiny(kind)), TOKENIZER, text, **sizes, block=32, reference=tmp_path)
    assert other.divergence > 0.1 and other.agreement < 1
    with pytest.raises(ValueError, match="stored for other tokens"):
        language(tiny(kind), TOKENIZER, text_of("other words " * 200), **sizes, reference=tmp_path)


@BOTH
def test_batch_equals_single_whatever_the_padding(kind):
    model, prompts, answers = tiny(kind), ["The fox", "A much longer prompt about foxes", "x"], [" jumps", " over", " café 🦊"]
    single = [answer_nll(model, TOKENIZER, [p], [a]).top[0] for p, a in zip(prompts, answers, strict=True)]
    for side in ("left", "right"):
        for pad in (False, True):
            tokenizer = tokenizer_of(pad=pad)
            tokenizer.padding_side = side
            assert answer_nll(model, tokenizer, prompts, answers).top == pytest.approx(single, abs=1e-5)


@BOTH
def test_answer_nll_equals_the_models_own_loss_and_the_mode_is_restored(kind):
    model = tiny(kind).train()
    if kind == "gpt2":
        model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    (one,) = score_answers(model, TOKENIZER, ["The fox"], [" jumps over"])
    assert [module.training for module in model.modules()] == modes
    context, whole = (TOKENIZER(text, return_tensors="pt")["input_ids"] for text in ("The fox", "The fox jumps over"))
    labels = whole.clone()
    labels[:, : context.shape[1]] = -100
    assert one.nats / one.tokens == pytest.approx(model.eval()(whole, labels=labels).loss.item(), rel=1e-5)
    greedy = TOKENIZER.decode(model(context).logits[0, -1].argmax())
    if TOKENIZER(greedy)["input_ids"] == [int(model(context).logits[0, -1].argmax())]:
        assert score_answers(model, TOKENIZER, ["The fox"], [greedy])[0].rank == 0


def test_trailing_space_of_the_prompt_belongs_to_the_answer():
    model = tiny()
    assert score_answers(model, TOKENIZER, ["The fox "], ["jumps"]) == score_answers(model, TOKENIZER, ["The fox"], [" jumps"])


def test_choices_are_ranked_by_likelihood_and_a_uniform_model_ties():
    model = tiny()
    offered = [[" fox", " jump", " over"]] * 2
    nats = [score_answers(model, TOKENIZER, ["The"], [choice])[0].nats for choice in offered[0]]
    best = nats.index(min(nats))
    assert choice_accuracy(model, TOKENIZER, ["The", "The"], offered, [best, (best + 1) % 3], normalise="none").top == (1.0, 0.0)
    assert choice_accuracy(uniform(model), TOKENIZER, ["The"], [[" a", " b"]], [0], normalise="token").top == (0.0,)


def test_bfloat16_models_are_scored_in_float32_and_broken_ones_refused():
    exact = language(tiny(), TOKENIZER, text_of(PROSE), tokens=256, window=64)
    half = language(tiny(dtype=torch.bfloat16), TOKENIZER, text_of(PROSE), tokens=256, window=64)
    assert half.bits_per_byte == pytest.approx(exact.bits_per_byte, rel=0.03)
    broken = tiny()
    broken.get_output_embeddings().weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        language(broken, TOKENIZER, text_of(PROSE), tokens=64, window=64)
    with pytest.raises(ValueError, match="not finite"):
        answer_nll(broken, TOKENIZER, ["The"], [" fox"])


def test_unanswerable_rows_are_refused_and_long_prompts_lose_their_start():
    with pytest.raises(ValueError, match="has no token"):
        answer_nll(tiny(), TOKENIZER, ["The"], [""])
    with pytest.raises(ValueError, match="2 prompts and 1 answers"):
        answer_nll(tiny(), TOKENIZER, ["a", "b"], ["c"])
    assert answer_nll(tiny("gpt2", context=16), TOKENIZER, [PROSE], [" fox"]).top[0] > 0


def test_unigram_entropy_is_that_of_the_bytes():
    assert unigram_entropy(text_of("abab", running=True)) == pytest.approx(1)
    assert unigram_entropy(text_of("aaaa", running=True)) == 0
    with pytest.raises(ValueError, match="empty"):
        unigram_entropy(text_of("", running=True))


def test_costs_are_positive_and_bytes_are_those_on_disk(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "a").write_bytes(b"x" * 10)
    (tmp_path / "below" / "b").write_bytes(b"y" * 5)
    (tmp_path / "c").hardlink_to(tmp_path / "a")
    assert folder_bytes(tmp_path) == 15
    with pytest.raises(ValueError, match="no folder"):
        folder_bytes(tmp_path / "missing")
    found = timings(tiny("gpt2", context=32), seconds=0.2)
    assert found.prefill_speed > 0 and found.decode_speed > 0 and found.threads == torch.get_num_threads()
    assert decode_speed(tiny(), seconds=0.05) > 0


def test_decoding_starts_after_the_whole_prompt():
    lengths, model = [], tiny()
    model.register_forward_pre_hook(lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    decode_speed(model, prompt=300, seconds=0.0, most=8)
    assert lengths[0] == 300 and set(lengths[1:]) == {1}


def test_the_state_is_keys_and_values_of_every_token():
    model = tiny()  # 2 layers, one head of 8 for keys and one for values, float32
    assert state_bytes(model, 100) == 2 * 2 * 8 * 100 * 4
    with pytest.raises(ValueError, match="at most 512 tokens, not 513"):
        state_bytes(model, 513)


def test_training_speed_counts_tokens_and_leaves_the_mode():
    model = tiny().eval()
    assert training_speed(model, length=16, batch=2, seconds=0.05) > 0 and not model.training
