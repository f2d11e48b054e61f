"""Invariants of Llama: rotary positions, SwiGLU, sizes, memory, checkpoints both ways."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig

from etude.data.assets import model_folder
from etude.measure.contract import NotFinite
from etude.models._size import TOLERANCE, count, made
from etude.models.llama import Llama
from etude.models.llama.arms import checkpoint, greedy, tuned
from etude.models.llama.blocks import Attention, SwiGLU, hidden_width
from etude.models.llama.convert import config_to_llama, filled, from_hugging_face, from_ours, renamed, to_hugging_face, to_ours
from etude.models.llama.corpus.mixture import Mixture
from etude.models.llama.experiment import EXPERIMENTS, Components
from etude.models.llama.memory import causal_attention, keep_linear_outputs
from etude.models.llama.recipe import SIZES, pretrain, recipe
from etude.models.llama.rope import angles, frequencies, halves_to_pairs, pairs_to_halves, rotate
from etude.nn.decoder import Context, EtudeDecoder
from etude.nn.decoder_config import EtudeDecoderConfig

IDS = torch.arange(60).reshape(3, 20) * 7 % 256
few = settings(max_examples=20, deadline=None)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return float((a - b).detach().abs().max()) <= tolerance


# ---- rotary positions ----


@few
@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 300), st.sampled_from([2, 8, 16]), st.sampled_from(["halves", "pairs"]))
def test_a_score_knows_the_distance_alone(place, other, shift, width, layout):
    q, k = draw(1, 2, 1, width).double(), draw(1, 2, 1, width, seed=1).double()

    def score(at: int, to: int) -> torch.Tensor:
        turned = [rotate(x, tuple(a.double() for a in angles(torch.tensor([[p]]), frequencies(width))), layout) for x, p in ((q, at), (k, to))]
        return (turned[0] * turned[1]).sum(-1)

    assert close(score(place, other), score(place + shift, other + shift), 2e-4)


@few
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 7))
def test_the_layouts_permute_into_each_other_exactly(heads, half, width):
    weight = draw(heads * 2 * half, width)
    assert torch.equal(halves_to_pairs(pairs_to_halves(weight, heads), heads), weight)
    x, turn = draw(2, 4, width), angles(torch.arange(4)[None].expand(2, 4), frequencies(2 * half))
    by_pairs = rotate((x @ weight.T).unflatten(-1, (heads, -1)).transpose(1, 2), turn, "pairs")
    by_halves = rotate((x @ pairs_to_halves(weight, heads).T).unflatten(-1, (heads, -1)).transpose(1, 2), turn, "halves")
    assert close((by_pairs @ by_pairs.mT), by_halves @ by_halves.mT, 1e-4)


def test_meta_turns_complex_pairs():
    x = draw(1, 1, 5, 8)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones(5, 4), torch.arange(5.0)[:, None] * frequencies(8))
    assert close(rotate(x, angles(torch.arange(5)[None], frequencies(8)), "pairs"), torch.view_as_real(turned).flatten(-2))


@pytest.mark.parametrize("kind", ["linear", "llama3"])
def test_stretched_frequencies_are_those_of_transformers(kind):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": kind, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    config = LlamaConfig(hidden_size=64, num_attention_heads=2, rope_parameters=scaling | {"rope_theta": 1e4})
    assert close(frequencies(32, 1e4, scaling), ROPE_INIT_FUNCTIONS[kind](config, "cpu")[0], 1e-7)


def test_frequencies_stay_in_float32_when_the_model_is_cast():
    model = made(Llama(layers=1, width=32, context=4096).shape(256)).bfloat16()
    assert not [name for name, _ in model.named_buffers()]  # nothing that a cast could touch
    seen = {}
    model.model.layers[0].mixer.register_forward_pre_hook(lambda module, args: seen.update(context=args[1]))
    model(torch.zeros(1, 4000, dtype=torch.long))
    ((cos, _),) = (value for key, value in seen["context"].shared.items() if key.startswith("angles"))
    assert cos.dtype == torch.float32


# ---- SwiGLU, sizes ----


def test_the_hidden_width_of_the_four_sizes():
    assert [hidden_width(size.width) for size in SIZES.values()] == [11008, 13824, 17920, 22016]


@pytest.mark.parametrize("name", SIZES)
def test_the_four_sizes_have_the_papers_parameters(name):
    size = SIZES[name]
    assert count(size.config()) == size.parameters
    training = size.recipe()
    assert training.betas == (0.9, 0.95) and training.decay == 0.1 and training.clip == 1.0 and training.final == 0.1 and training.rate == size.rate
    assert round(training.warmup * training.steps) == 2000 and recipe(100, 1e-3).warmup == 0.1


def test_swiglu_by_hand():
    part, x = SwiGLU(EtudeDecoderConfig(hidden_size=12), hidden=20), draw(2, 3, 12)
    gate, up = x @ part.gate_proj.weight.T, x @ part.up_proj.weight.T
    assert close(part(x), (gate * torch.sigmoid(gate) * up) @ part.down_proj.weight.T) and part.gate_proj.bias is None


@settings(max_examples=3, deadline=None)
@given(st.integers(30_000, 300_000), st.sampled_from([64, 256]))
def test_a_size_that_is_asked_for_is_met_within_two_percent(parameters, vocabulary):
    config = Llama(context=64).config(vocabulary, parameters)
    assert abs(count(config) / parameters - 1) <= TOLERANCE and config.hidden_size % config.mixer["heads"] == 0


def test_seven_billion_gives_the_papers_heads_and_hidden_width():
    config = Llama(layers=32, width=4096).config(32000, 6_738_415_616)
    assert (config.mixer["heads"], config.channel_mixer["hidden"], config.tie_word_embeddings) == (32, 11008, False)


def test_building_draws_from_the_callers_dice_and_leaves_them():
    small = Llama(layers=1, width=16, context=16)
    torch.manual_seed(3)
    first, state = small.build(64, 5200), torch.get_rng_state()
    torch.manual_seed(3)
    assert torch.equal(torch.get_rng_state(), state)
    again, other = small.build(64, 5200), (torch.manual_seed(4), small.build(64, 5200))[1]
    assert torch.equal(first.lm_head.weight, again.lm_head.weight) and not torch.equal(first.lm_head.weight, other.lm_head.weight)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": 3}, "layers and width, or neither"),
        ({"heads": 0}, "heads must be at least 1, got 0"),
        ({"rate": 0.0}, "rate is a number above 0"),
        ({"layers": 1, "width": 32, "heads": 5}, "5 heads do not divide the width 32"),
        ({"layers": 1, "width": 32, "heads": 4, "kv_heads": 3}, "3 key heads do not divide 4"),
        ({"layers": 1, "width": 20, "heads": 4}, "must be even, got 5"),
        ({"layers": 8, "width": 512}, "these layers and this width do not give 30,000"),
    ],
)
def test_shapes_that_cannot_be_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        Llama(**options).build(64, 30_000)


def test_a_size_smaller_than_its_vocabulary_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="no depth and width give 1,000 parameters within 2%: the nearest is"):
        Llama().build(5000, 1000)


def test_a_run_that_was_killed_goes_on_to_the_same_weights(tmp_path):
    def begun() -> tuple[EtudeDecoder, Mixture]:
        torch.manual_seed(0)
        windows = {name: (draw(9, 12, seed=seed) * 30).long() % 64 for seed, name in enumerate(("a", "b"))}
        return made(Llama(layers=1, width=16, context=12).shape(64)), Mixture({n: w.numpy() for n, w in windows.items()}, {"a": 0.7, "b": 0.3})

    plan, (model, mixture) = recipe(7, 1e-2, every=2), begun()
    losses = pretrain(model, mixture, plan, 4)
    cut, broken = begun()
    broken.at = lambda number: mixture.at(number) if number < 20 else (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        pretrain(cut, broken, plan, 4, checkpoints=tmp_path)
    again, whole = begun()
    assert pretrain(again, whole, plan, 4, checkpoints=tmp_path) == losses
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


# ---- attention and memory ----


@pytest.mark.parametrize("spare", [0, 5])
def test_attention_in_blocks_is_plain_attention_and_so_are_its_gradients(spare):
    q, k, v = (draw(2, 3, size, 8, seed=seed).requires_grad_() for seed, size in enumerate((21 - spare, 21, 21)))
    real = torch.ones(2, 21, dtype=torch.bool)
    real[1, :4] = False
    place = torch.arange(spare, 21)[:, None]
    mask = ((place >= torch.arange(21)) & real[:, None, :])[:, None]
    seen = mask.any(-1, keepdim=True)
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask | (place == torch.arange(21))) * seen
    grad = draw(*plain.shape, seed=9)
    wanted = torch.autograd.grad(plain, (q, k, v), grad)
    ours = causal_attention(q, k, v, real, block=8)
    assert close(ours, plain) and all(close(a, b) for a, b in zip(torch.autograd.grad(ours, (q, k, v), grad), wanted, strict=True))


def test_the_backward_pass_in_blocks_survives_numerical_differentiation():
    q, k, v = (draw(1, 1, 5, 4, seed=seed).requires_grad_() for seed in range(3))
    assert torch.autograd.gradcheck(lambda *parts: causal_attention(*parts, None, 2), (q, k, v), eps=1e-2, atol=2e-3, rtol=1e-2)


def test_attention_in_blocks_keeps_no_square_for_its_backward_pass():
    q, k, v = (draw(1, 2, 64, 4, seed=seed).requires_grad_() for seed in range(3))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor):
        causal_attention(q, k, v, block=16)
    assert kept and max(kept) == q.numel()  # a square would be 16 times as large


class Counting(TorchDispatchMode):
    """Counts torch's operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func.__name__.split(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def step(model: EtudeDecoder, checkpoints: dict | None) -> tuple[Counter[str], list[torch.Tensor]]:
    """Operators that one training step calls, and its gradients."""
    model.train()
    model.activation_checkpointing_enable(checkpoints) if checkpoints else model.activation_checkpointing_disable()
    model.zero_grad()
    with Counting() as counting:
        model(IDS, labels=IDS).loss.backward()
    return counting.calls, [parameter.grad.clone() for parameter in model.parameters()]


def test_the_checkpoint_policy_computes_no_matrix_product_again_and_all_else():
    model = made(Llama(layers=2, width=32, context=64).shape(256))
    plain, wanted = step(model, None)
    everything, _ = step(model, {"use_reentrant": False})
    policy, found = step(model, {"use_reentrant": False, "context_fn": keep_linear_outputs})
    assert all(close(a, b) for a, b in zip(found, wanted, strict=True))
    assert policy["mm"] == plain["mm"] < everything["mm"] and policy["silu"] == everything["silu"] == 2 * plain["silu"]


def test_attention_in_blocks_with_memory_and_padding():
    plain = made(Llama(layers=2, width=32, heads=4, kv_heads=2, context=64).shape(256))
    blocks = filled(EtudeDecoderConfig(**plain.config.to_dict() | {"mixer": plain.config.mixer | {"attention": "blocks"}}), plain.state_dict())
    mask = torch.ones_like(IDS)
    mask[0, :6] = 0
    assert close(blocks(IDS, attention_mask=mask).logits[:, 6:], plain(IDS, attention_mask=mask).logits[:, 6:])
    cache = blocks(IDS[:, :9], use_cache=True).cache
    assert close(blocks(IDS[:, 9:], cache=cache).logits, plain(IDS).logits[:, 9:])


def test_an_unknown_layout_or_attention_is_refused():
    for wrong in ({"layout": "thirds"}, {"attention": "quick"}):
        with pytest.raises(ValueError, match="layout is one of halves, pairs and attention one of fused, blocks"):
            Attention(EtudeDecoderConfig(hidden_size=32), 0, **wrong)
    with pytest.raises(ValueError, match="'yarn' is not built here"):
        Attention(EtudeDecoderConfig(hidden_size=32), 0, scaling={"rope_type": "yarn"})


# ---- checkpoints ----


@pytest.fixture(scope="module")
def theirs() -> LlamaForCausalLM:
    return checkpoint("tiny")[0]


@pytest.mark.parametrize("layout", ["halves", "pairs"])
def test_a_hugging_face_llama_answers_the_same_here_and_after_the_way_back(theirs, layout, tmp_path):
    ours = from_hugging_face(theirs, layout=layout)
    assert close(ours(IDS).logits, theirs(IDS).logits, 1e-4) and torch.equal(greedy(ours, IDS[:1], 12), greedy(theirs, IDS[:1], 12))
    mask = torch.ones_like(IDS)
    mask[1, :7] = 0
    assert close(ours(IDS, attention_mask=mask).logits[1, 7:], theirs(IDS, attention_mask=mask).logits[1, 7:], 1e-4)
    to_hugging_face(ours).save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in theirs.state_dict().items())
    assert again.config.to_dict().items() >= {"num_key_value_heads": 2, "rms_norm_eps": theirs.config.rms_norm_eps}.items()
    assert close(from_hugging_face(tmp_path)(IDS).logits, theirs(IDS).logits, 1e-4)


def test_the_wrong_layout_gives_other_logits(theirs):
    right = from_hugging_face(theirs)
    wrong = filled(EtudeDecoderConfig(**right.config.to_dict() | {"mixer": right.config.mixer | {"layout": "pairs"}}), right.state_dict())
    assert not close(right(IDS).logits, wrong(IDS).logits, 1e-2)


def test_loading_copies_the_weights_of_a_model(theirs):
    ours = from_hugging_face(theirs)
    ours.model.norm.weight.data.zero_()
    assert theirs.model.norm.weight.any()
    back = to_hugging_face(from_hugging_face(theirs))
    assert back.model.norm.weight.data_ptr() != theirs.model.norm.weight.data_ptr()


def test_tied_heads_and_biases_go_both_ways():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, tie_word_embeddings=True)
    config.attention_bias = config.mlp_bias = True
    theirs = LlamaForCausalLM(config).eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    ours = from_hugging_face(theirs)
    assert ours.lm_head.weight is ours.model.embed_tokens.weight and close(ours(IDS).logits, theirs(IDS).logits)
    assert close(to_hugging_face(ours)(IDS).logits, theirs(IDS).logits)


def test_metas_tensors_have_its_names_and_come_back_exactly(theirs):
    ours = from_hugging_face(theirs)
    meta = from_ours(ours.state_dict(), ours.config, "meta")
    assert {"tok_embeddings.weight", "layers.0.attention.wq.weight", "layers.3.feed_forward.w2.weight", "output.weight"} <= meta.keys()
    assert torch.equal(meta["layers.0.attention.wk.weight"], halves_to_pairs(ours.model.layers[0].mixer.k_proj.weight, 2))
    back = to_ours(meta | {"rope.freqs": torch.zeros(8)}, ours.config, "meta")
    assert all(torch.equal(tensor, back[name]) for name, tensor in ours.state_dict().items())
    with pytest.raises(ValueError, match="a Llama has no tensor 'layers.0.attention.wz.weight'"):
        to_ours({"layers.0.attention.wz.weight": meta["norm.weight"]}, ours.config, "meta")
    assert renamed("model.layers.3.channel_mixer.down_proj.weight", "gguf") == "blk.3.ffn_down.weight"


def test_checkpoints_that_are_no_llama_are_refused(theirs, tmp_path):
    MistralConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'mistral' is no Llama"):
        from_hugging_face(tmp_path)
    with pytest.raises(ValueError, match="the tokenizer has 300 tokens and the checkpoint 256"):
        from_hugging_face(theirs, vocabulary=300)
    with pytest.raises(ValueError, match="only a decoder of Llama blocks"):
        config_to_llama(EtudeDecoderConfig(norm="layer"))


def test_smollm2_through_our_llama():
    whole, tokenizer = checkpoint("smollm2")
    ours = from_hugging_face(model_folder("smollm2"), vocabulary=len(tokenizer))
    ids = tokenizer("The capital of France is Paris, and", return_tensors="pt").input_ids
    with torch.inference_mode():
        assert close(ours(ids).logits, whole(ids).logits, 2e-3)


# ---- études ----


def test_every_row_of_the_sheet_is_claimed():
    assert {claim.row for experiment in EXPERIMENTS for claim in experiment.claims} == {"1", "2", "3", "4"}
    assert {field for experiment in EXPERIMENTS for field in experiment.scales} == {"smoke", "desk", "gpu"}


def test_the_compared_blocks_are_equally_large():
    sizes = [count(config) for config in Components.scales["desk"].configs().values()]
    assert max(sizes) / min(sizes) < 1.005


def test_the_search_for_a_rate_goes_on_while_the_best_is_the_outermost():
    tried = []

    def score(rate: float) -> float:
        tried.append(rate)
        if rate > 0.05:
            raise NotFinite("the loss is nan")
        return -rate

    found = tuned(score, 3e-3)
    assert found.rate == max(rate for rate in tried if rate < 0.05) and len(tried) <= 5 and len(set(tried)) == len(tried)


def test_options_survive_their_dictionary():
    assert Llama(**dataclasses.asdict(Llama(kv_heads=2, heads=4))) == Llama(kv_heads=2, heads=4)
    assert Llama().points(None, None) == [Llama()] and Context(IDS).real_BT is None
