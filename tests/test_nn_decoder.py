"""The decoder skeleton: its configuration, its cache, padding, and what transformers and PEFT expect of a model."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from etude.models.baselines.gpt2_block import Gpt2Block
from etude.models.llama import Llama
from etude.nn.cache import DecoderCache
from etude.nn.decoder import Context, EtudeDecoder, RMSNorm
from etude.nn.decoder_config import EtudeDecoderConfig

IDS = torch.arange(24).reshape(2, 12) * 7 % 50
STYLES = ("llama", "gpt2")


def tiny(style: str = "llama", **options) -> EtudeDecoder:
    torch.manual_seed(0)
    shape = Llama(layers=2, width=32, heads=4, kv_heads=2, context=64) if style == "llama" else Gpt2Block(layers=2, width=32, context=64)
    return EtudeDecoder(EtudeDecoderConfig(**shape.shape(50).to_dict() | {"initializer_range": 0.2} | options)).eval()


@pytest.fixture(params=STYLES, scope="module")
def model(request) -> EtudeDecoder:
    return tiny(request.param)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return float((a - b).detach().abs().max()) <= tolerance


# ---- configuration ----


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"norm": "batch"}, "rms, layer, got 'batch'"),
        ({"positions": "sine"}, "none, learned, got 'sine'"),
        ({"positions": "learned", "max_position_embeddings": None}, "need max_position_embeddings"),
        ({"hidden_size": 0}, "hidden_size must be at least 1"),
        ({"mixer": {"heads": 2}}, "mixer is"),
        ({"mixer": [{"method": "llama"}]}, "lists 1 fillings for 2 layers"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        EtudeDecoderConfig(**options)


def test_only_names_of_the_catalogue_fill_a_slot():
    with pytest.raises(ValueError, match="no method or paper is called 'os'"):
        EtudeDecoder(EtudeDecoderConfig(mixer={"method": "os"}))
    with pytest.raises(ValueError, match="untouched fills no mixer"):
        EtudeDecoder(EtudeDecoderConfig(mixer={"method": "untouched"}))


def test_layers_may_differ_and_a_slot_may_be_left_out():
    fillings = [{"method": "llama", "heads": 2}, {"method": "gpt2_block", "heads": 2}]
    model = EtudeDecoder(EtudeDecoderConfig(vocab_size=50, hidden_size=16, mixer=fillings, channel_mixer=None)).eval()
    assert [hasattr(block.mixer, "q_proj") for block in model.model.layers] == [True, False]
    assert model.model.layers[0].channel_mixer is None and model(IDS).logits.shape == (2, 12, 50)


def test_a_saved_folder_reloads_bit_equal_by_the_auto_classes(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_dict()["mixer"] == model.config.mixer
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is EtudeDecoder and torch.equal(again(IDS).logits, model(IDS).logits)
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == model.config.tie_word_embeddings


# ---- forward ----


def test_the_loss_is_the_mean_over_labels_that_are_not_masked(model):
    labels = IDS.clone()
    labels[0, :5] = -100
    out = model(IDS, labels=labels)
    wanted = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert close(out.loss, wanted)


def test_logits_to_keep_hidden_states_embeddings_and_tuples(model):
    out = model(IDS, output_hidden_states=True)
    assert len(out.hidden_states) == 3 and close(model.lm_head(out.hidden_states[-1]), out.logits)
    assert close(model(IDS, logits_to_keep=2).logits, out.logits[:, -2:]) and close(
        model(IDS, logits_to_keep=torch.tensor([3])).logits, out.logits[:, 3:4]
    )
    assert close(model(inputs_embeds=model.get_input_embeddings()(IDS)).logits, out.logits)
    assert close(model(IDS, return_dict=False)[0], out.logits)
    with pytest.raises(ValueError, match="one of the two"):
        model(IDS, inputs_embeds=out.hidden_states[0])


def test_no_token_sees_a_later_one_to_the_last_bit(model):
    changed = IDS.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 50
    assert torch.equal(model(IDS).logits[:, :7], model(changed).logits[:, :7])


def test_a_sequence_longer_than_the_positions_is_refused(model):
    with pytest.raises(ValueError, match="65 tokens and the model 64 positions"):
        model(torch.zeros(1, 65, dtype=torch.long))
    with pytest.raises(ValueError, match=r"attention_mask is \(batch, 0 tokens before"):
        model(IDS, attention_mask=torch.ones(2, 5))


def test_root_mean_square_norm_casts_before_it_multiplies_the_gain():
    norm, x = RMSNorm(8, eps=1e-5), torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    norm.weight.data = torch.linspace(0.5, 2, 8)
    by_hand = norm.weight * (x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt())
    assert close(norm(x), by_hand, 1e-6)
    half, wide = norm.bfloat16(), x.bfloat16().float()
    assert torch.equal(half(x.bfloat16()), half.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).bfloat16())


def test_the_residual_stream_stays_in_float32_where_it_is_asked():
    model = tiny("llama", residual_float32=True).bfloat16()
    seen = []
    model.model.layers[1].register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    assert model(IDS).logits.dtype == torch.bfloat16 and seen == [torch.float32]


# ---- memory and padding ----


def test_with_memory_each_token_gets_the_logits_it_gets_without(model):
    whole, cache, parts = model(IDS).logits, None, []
    for start, stop in ((0, 5), (5, 6), (6, 9), (9, 12)):
        out = model(IDS[:, start:stop], cache=cache, use_cache=True)
        cache = out.cache
        parts.append(out.logits)
    assert isinstance(cache, DecoderCache) and cache.get_seq_length() == 12
    assert close(torch.cat(parts, 1), whole)


def test_attention_works_with_other_caches_of_transformers_too(model):
    cache = DynamicCache()
    first = model(IDS[:, :6], past_key_values=cache, use_cache=True).logits
    assert close(torch.cat([first, model(IDS[:, 6:], past_key_values=cache, use_cache=True).logits], 1), model(IDS).logits)
    with pytest.raises(ValueError, match="it makes its own cache"):
        Context(IDS, cache=cache).state(0)
    with pytest.raises(ValueError, match="leave the cache to the model"):
        model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=3, cache_implementation="static")


def test_memory_is_cut_reordered_repeated_and_emptied(model):
    cache = model(IDS, use_cache=True).cache
    cache.crop(-4)
    cache.batch_select_indices(torch.tensor([1]))
    cache.batch_repeat_interleave(2)
    wanted = model(IDS[1:].repeat(2, 1)).logits[:, 8:]
    assert cache.get_seq_length() == 8 and cache.is_croppable and close(model(IDS[1:, 8:].repeat(2, 1), cache=cache).logits, wanted)
    cache.reset()
    assert cache.get_seq_length() == 0 and close(model(IDS, cache=cache).logits, model(IDS).logits)


def test_a_state_of_fixed_size_is_not_cut():
    state = DecoderCache(1).layers[0]
    state["ssm"] = torch.zeros(2, 3)
    assert "ssm" in state and not state.is_croppable
    with pytest.raises(ValueError, match="ssm cannot be cut back"):
        state.crop(-1)
    with pytest.raises(ValueError, match="negative number, got 2"):
        state.crop(2)


def test_padding_on_the_left_changes_nothing(model):
    mask = torch.tensor([[1] * 12, [0] * 4 + [1] * 8])
    padded = torch.where(mask.bool(), IDS, 0)
    out = model(padded, attention_mask=mask)
    assert close(out.logits[1, 4:], model(IDS[1:, 4:]).logits[0]) and bool(torch.isfinite(out.logits).all())
    both = model.generate(padded, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
    alone = model.generate(IDS[1:, 4:], attention_mask=torch.ones(1, 8), max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(both[1, 4:], alone[0])


def test_generate_greedily_by_beams_and_by_looking_up_the_prompt(model):
    options = {"attention_mask": torch.ones_like(IDS[:1]), "max_new_tokens": 8, "pad_token_id": 0, "do_sample": False}
    greedy = model.generate(IDS[:1], **options)
    by_hand = IDS[:1]
    for _ in range(8):
        by_hand = torch.cat([by_hand, model(by_hand).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(greedy, by_hand) and torch.equal(model.generate(IDS[:1], use_cache=False, **options), by_hand)
    assert torch.equal(model.generate(IDS[:1], prompt_lookup_num_tokens=3, **options), by_hand)
    beams = {"num_beams": 3, "early_stopping": False} | options
    assert torch.equal(model.generate(IDS[:1], **beams), model.generate(IDS[:1], use_cache=False, **beams))


# ---- training ----


def gradients(model: EtudeDecoder) -> list[torch.Tensor]:
    model.zero_grad()
    model.train()
    model(IDS, labels=IDS).loss.backward()
    model.eval()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_checkpointed_blocks_give_the_same_gradients(model):
    plain = gradients(model)
    model.activation_checkpointing_enable({"use_reentrant": False})
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), plain, strict=True))
    assert model.train()(IDS, use_cache=True).cache is None and model.eval()(IDS, use_cache=True).cache is not None
    model.activation_checkpointing_disable()


def test_lora_of_peft_trains_saves_and_reloads(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    tuned = get_peft_model(tiny(), LoraConfig(target_modules=["q_proj", "v_proj"], r=2, task_type="CAUSAL_LM"))
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        tuned(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    tuned.eval().save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny(), tmp_path).eval()
    assert close(again(IDS).logits, tuned(IDS).logits, 1e-6) and not close(again(IDS).logits, tiny()(IDS).logits, 1e-3)
