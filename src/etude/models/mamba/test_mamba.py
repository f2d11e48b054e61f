"""The Mamba block and model: memory, padding, checkpoints both ways, other hosts, tasks, and what is refused."""

from __future__ import annotations

import copy
import math
import random
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import softplus
from transformers import MambaConfig, MambaForCausalLM
from transformers.models.mamba.modeling_mamba import MambaMixer as TheirMixer

from etude.fit.loop import by_shape, spared
from etude.models._size import count, made
from etude.models.mamba import Mamba
from etude.models.mamba.block import MambaMixer
from etude.models.mamba.convert import from_hugging_face, to_hugging_face
from etude.models.mamba.experiment import EXPERIMENTS
from etude.models.mamba.tasks import SYMBOLS, Task
from etude.nn.cache import DecoderCache
from etude.nn.decoder import Context, EtudeDecoder
from etude.nn.decoder_config import EtudeDecoderConfig
from etude.nn.tiny import tiny_llama

few, fewer = settings(max_examples=10, deadline=None), settings(max_examples=5, deadline=None)
IDS = torch.arange(36).reshape(2, 18) * 7 % 61
GREEDY = dict(max_new_tokens=12, do_sample=False)


def tiny(**options) -> EtudeDecoder:
    """Two blocks 24 wide, whose states and step sizes are far from their small start."""
    model = made(Mamba(layers=2, width=24, state=4, **options).shape(64))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return model


def theirs(**options) -> MambaForCausalLM:
    """A Hugging Face Mamba of random weights."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=64, hidden_size=24, state_size=4, num_hidden_layers=2, bos_token_id=None, eos_token_id=None)
    return MambaForCausalLM(MambaConfig(**sizes | options)).eval()


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return float((a - b).detach().abs().max()) <= tolerance * max(1.0, float(b.detach().abs().max()))


# ---- memory: one pass, token by token, and anything between ----


@few
@given(st.integers(1, 17), st.booleans(), st.integers(1, 5))
def test_a_prefill_of_any_length_and_steps_are_the_whole(cut, selective, kernel):
    model = tiny(selective=selective, kernel=kernel)
    whole, first = model(input_ids=IDS, use_cache=False).logits, model(input_ids=IDS[:, :cut], use_cache=True)
    later = [model(input_ids=IDS[:, t : t + 1], cache=first.cache).logits for t in range(cut, IDS.shape[1])]
    assert close(torch.cat([first.logits, *later], 1), whole)
    block = first.cache.layers[0]
    assert block["conv"].shape == (2, 48, kernel) and block["ssm"].shape == (2, 48, 4)


@pytest.mark.parametrize("selective", [True, False])
def test_a_prefill_in_pieces_is_the_whole(selective):
    model = tiny(selective=selective)
    whole = model(input_ids=IDS, use_cache=False).logits
    first = model(input_ids=IDS[:, :2], use_cache=True)
    rest = [model(input_ids=piece, cache=first.cache).logits for piece in IDS[:, 2:].split([9, 7], 1)]
    assert close(torch.cat([first.logits, *rest], 1), whole)


@fewer
@given(st.lists(st.integers(1, 17), min_size=2, max_size=2), st.booleans())
def test_rows_cut_at_different_places_answer_as_alone(lengths, selective):
    """Left padding: what stands at it reaches neither the convolution nor the state, of which not a bit moves."""
    model, longest = tiny(selective=selective), max(lengths)
    ids, mask = torch.full((2, longest), 5), torch.zeros(2, longest, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, longest - length :], mask[row, longest - length :] = IDS[row, :length], 1
    together = model(input_ids=ids, attention_mask=mask, use_cache=True)
    for row, length in enumerate(lengths):
        alone = model(input_ids=IDS[row : row + 1, :length], use_cache=True)
        assert close(together.logits[row, longest - length :], alone.logits[0])
        for name in ("conv", "ssm"):
            assert close(together.cache.layers[1][name][row], alone.cache.layers[1][name][0])
    both = model.generate(ids, attention_mask=mask, **GREEDY)[:, longest:]
    assert all(torch.equal(both[row], model.generate(IDS[row : row + 1, :n], **GREEDY)[0, n:]) for row, n in enumerate(lengths))


def test_the_future_changes_no_bit_of_the_past_and_without_selection_next_to_none():
    other = IDS.clone()
    other[:, 11:] = 3
    selective, invariant = tiny(), tiny(selective=False)
    assert torch.equal(selective(input_ids=other).logits[:, :11], selective(input_ids=IDS).logits[:, :11])
    assert close(invariant(input_ids=other).logits[:, :11], invariant(input_ids=IDS).logits[:, :11])  # the Fourier transform rounds


def test_beams_are_searched_with_the_memory():
    model = tiny()
    options = dict(GREEDY, num_beams=3)
    assert torch.equal(model.generate(IDS, **options), model.generate(IDS, **options, use_cache=False))


# ---- checkpoints ----


@pytest.mark.parametrize("options", [{}, {"use_bias": True, "use_conv_bias": False, "time_step_rank": 5, "conv_kernel": 3, "expand": 3}])
def test_a_hugging_face_mamba_goes_through_ours_and_back(options, tmp_path):
    model = theirs(**options)
    model.save_pretrained(tmp_path / "theirs")
    for source in (model, tmp_path / "theirs"):
        ours = from_hugging_face(source)
        assert close(ours(input_ids=IDS).logits, model(input_ids=IDS).logits) and torch.equal(
            ours.generate(IDS, **GREEDY), model.generate(IDS, **GREEDY)
        )
    ours.save_pretrained(tmp_path / "ours")
    assert torch.equal(EtudeDecoder.from_pretrained(tmp_path / "ours")(input_ids=IDS).logits, ours(input_ids=IDS).logits)
    to_hugging_face(ours).save_pretrained(tmp_path / "back")
    back = MambaForCausalLM.from_pretrained(tmp_path / "back")
    assert torch.equal(back(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_what_we_build_plain_transformers_reads(tmp_path):
    model = Mamba().build(vocabulary=50, parameters=60_000)
    to_hugging_face(model).save_pretrained(tmp_path)
    back = MambaForCausalLM.from_pretrained(tmp_path)
    assert close(back(input_ids=IDS % 50).logits, model(input_ids=IDS % 50).logits)
    assert sum(p.numel() for p in back.parameters()) == count(model.config)


def test_gradients_are_those_of_transformers_slow_path():
    block = theirs().backbone.layers[0].mixer.train()
    ours = MambaMixer(24, state=4)
    ours.load_state_dict(block.state_dict())
    x = torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert isinstance(block, TheirMixer) and close(ours(x), block(x), 1e-4)
    for mixer in (block, ours):
        mixer(x).square().sum().backward()
    wanted = dict(block.named_parameters())
    assert wanted.keys() == dict(ours.named_parameters()).keys() and x.grad is not None
    assert all(close(parameter.grad, wanted[name].grad, 1e-4) for name, parameter in ours.named_parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: from_hugging_face(theirs(), vocabulary=65), "the tokenizer has 65 tokens and the checkpoint 64"),
        (lambda: from_hugging_face(theirs(hidden_act="relu")), "hidden_act is 'relu'"),
        (lambda: to_hugging_face(tiny(selective=False)), "selective"),
        (lambda: to_hugging_face(hybrid()), "not all the same Mamba block"),
        (lambda: to_hugging_face(EtudeDecoder(EtudeDecoderConfig(mixer={"method": "mamba"}))), "channel mixers"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_folder_of_another_model_or_without_a_tensor_is_refused(tmp_path):
    tiny_llama(layers=1, width=16).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'llama' is no Mamba"):
        from_hugging_face(tmp_path)
    model = theirs()
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("A_log")}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match="lacks 2 tensors of its Mamba"):
        from_hugging_face(tmp_path)


# ---- the start ----


def test_the_start_survives_what_zeroes_all_biases():
    model = Mamba(layers=4, width=32).build(256, count(Mamba(layers=4, width=32).shape(256)))
    for layer in model.model.layers:
        block, step = layer.mixer, softplus(layer.mixer.dt_proj.bias)
        assert 1e-4 <= step.min() < 3e-3 and 3e-2 < step.max() <= 0.1 + 1e-6
        assert torch.allclose(-torch.exp(block.A_log[5]), -torch.arange(1.0, 17.0)) and bool((block.D == 1).all())
        assert block.out_proj.weight.abs().max() <= (64 * 4) ** -0.5 < block.in_proj.weight.abs().max() <= 32**-0.5
    assert float(model.model.embed_tokens.weight.std()) == pytest.approx(0.02, rel=0.05)


def test_time_scales_and_skips_do_not_decay_not_even_in_a_copy():
    model = copy.deepcopy(tiny())
    groups = by_shape(model.parameters(), 0.1, spared(model))
    decaying = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    kept = [name for name, parameter in model.named_parameters() if id(parameter) not in decaying]
    assert all(name.endswith(("A_log", ".D", "bias", "norm.weight")) for name in kept)
    assert sum(name.endswith("A_log") for name in kept) == sum(name.endswith(".D") for name in kept) == 2


def test_in_half_precision_time_scales_and_states_stay_in_float32(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    half = EtudeDecoder.from_pretrained(tmp_path, dtype=torch.bfloat16)
    block = half.model.layers[0].mixer
    assert block.A_log.dtype == block.D.dtype == torch.float32 and block.in_proj.weight.dtype == torch.bfloat16
    out = half(input_ids=IDS, use_cache=True)
    assert out.cache.layers[0]["ssm"].dtype == torch.float32 and close(out.logits.float(), model(input_ids=IDS).logits, 0.05)


@fewer
@given(st.integers(64_000, 1_000_000), st.sampled_from([64, 256, 1000]))
def test_the_size_is_met(parameters, vocabulary):
    assert abs(count(Mamba().config(vocabulary, parameters)) / parameters - 1) <= 0.02


def test_the_count_is_a_formula():
    D, n, N, K, V = 40, 3, 16, 4, 256
    E, R = 2 * D, math.ceil(D / 16)
    block = D * 2 * E + E * K + E + E * (R + 2 * N) + R * E + E + E * N + E + E * D + D
    assert count(Mamba(layers=n, width=D).shape(250)) == V * D + n * block + D


def test_building_leaves_the_caller_s_dice():
    before = torch.get_rng_state(), random.getstate()
    first = Mamba().build(64, 20_000)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1] and not first.training


# ---- other hosts ----


def hybrid() -> EtudeDecoder:
    """Mamba and attention in turn, each with a gated MLP: a Llama two of whose mixers were replaced."""
    sizes = dict(vocab_size=64, hidden_size=24, num_hidden_layers=3)
    mixers = [{"method": "mamba", "state": 4}, {"method": "llama", "heads": 2}, {"method": "mamba", "state": 4}]
    return made(EtudeDecoderConfig(**sizes, mixer=mixers, channel_mixer={"method": "llama", "hidden": 40}))


def test_the_block_replaces_attention_in_a_llama():
    model, mask = hybrid(), torch.ones_like(IDS)
    mask[0, :7] = 0
    cached = model.generate(IDS, attention_mask=mask, **GREEDY)
    assert torch.equal(cached, model.generate(IDS, attention_mask=mask, **GREEDY, use_cache=False))
    loss = model.train()(input_ids=IDS, labels=IDS).loss
    loss.backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())


def test_gradient_checkpointing_changes_nothing():
    model, found = tiny().train(), []
    for checkpointing in (False, True):
        (model.gradient_checkpointing_enable if checkpointing else model.gradient_checkpointing_disable)()
        model.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(map(torch.equal, *found))


# ---- refused ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state": 0}, "state must be at least 1, got 0"),
        ({"kernel": 0}, "kernel must be at least 1, got 0"),
        ({"expand": -1}, "expand must be at least 1, got -1"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"scan": "fast"}, "scan is one of auto, sequential, doubling, numba, triton, got 'fast'"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
    ],
)
def test_a_block_refuses_sizes_below_1_and_unknown_kernels(options, message):
    with pytest.raises(ValueError, match=message):
        MambaMixer(8, **options)
    if set(options) <= {"state", "kernel", "expand", "rank"}:
        with pytest.raises(ValueError, match=message):
            Mamba(**options)


def test_a_block_refuses_what_it_cannot_continue():
    block, cache = MambaMixer(8, state=2), DecoderCache(1)
    context = Context(torch.zeros(2, 3, dtype=torch.long), cache=cache)
    with pytest.raises(ValueError, match=r"the sequence is empty: the block's input has shape \(2, 0, 8\); give at least one token"):
        block(torch.zeros(2, 0, 8), context)
    with pytest.raises(ValueError, match="has seen nothing yet: run the prompt"):
        block.step(torch.zeros(2, 1, 8), cache.layers[0])
    block(torch.zeros(2, 3, 8), context)
    with pytest.raises(ValueError, match="a step takes one token, got 3: call the block itself"):
        block.step(torch.zeros(2, 3, 8), cache.layers[0])
    with pytest.raises(ValueError, match="the cache remembers 2 sequences and 5 come: start a new cache"):
        block(torch.zeros(5, 1, 8), context)


def test_a_size_that_no_shape_meets_is_refused():
    with pytest.raises(ValueError, match="do not give 1,000,000 parameters"):
        Mamba(layers=2, width=16).build(256, 1_000_000)
    with pytest.raises(ValueError, match="rate is a number above 0, or left out, got 0"):
        Mamba(rate=0.0)


# ---- tasks, étude, benchmark ----


@few
@given(st.integers(3, 40), st.integers(0, 99))
def test_the_answer_of_induction_followed_the_first_marker(length, seed):
    ids, answers = Task("induction").batch(4, length, seed)
    for row, answer in zip(ids.tolist(), answers[:, 0].tolist(), strict=True):
        assert row[-1] == SYMBOLS and row.index(SYMBOLS) < length - 2 and row[row.index(SYMBOLS) + 1] == answer < SYMBOLS


@few
@given(st.integers(4, 40), st.integers(0, 99))
def test_the_answers_of_copying_are_the_symbols_in_their_order(length, seed):
    ids, answers = Task("copying", 4).batch(4, length, seed)
    assert [[token for token in row if token < SYMBOLS] for row in ids.tolist()] == answers.tolist()
    assert bool((ids[:, length:] == SYMBOLS + 1).all()) and ids.shape == (4, length + 4)


@pytest.mark.parametrize(("task", "length"), [(Task("induction"), 2), (Task("copying", 4), 3)])
def test_a_task_without_room_is_refused(task, length):
    with pytest.raises(ValueError, match=f"length of {length}"):
        task.batch(1, length, 0)


def test_every_row_of_the_sheet_is_a_claim():
    assert {claim.row for experiment in EXPERIMENTS for claim in experiment.claims} == {"1", "2", "3", "4"}


def test_the_benchmark_prints_its_ratios(monkeypatch, capsys):
    from etude.models.mamba import benchmark

    for name, value in {"WIDTH": 8, "CONTEXTS": (4, 12), "STEPS": 4}.items():
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--length", "5", "--rounds", "1"])
    benchmark.main()
    told = capsys.readouterr().out
    assert "training step, transformers, reference path" in told and "times faster" in told and "ms after 12" in told
