"""Invariants of Tied-LoRA on models of a few thousand parameters, and parity with PEFT's LoRA and VeRA."""

import json
import math
import re
from itertools import chain, combinations

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from torch import distributed
from transformers import AutoModelForCausalLM, BertConfig, BertForSequenceClassification, LlamaConfig

from etude import catalogue
from etude.adapt._rows import Example
from etude.adapt.tied_lora import TiedLora, benchmark, groups, target_layers
from etude.adapt.tied_lora.arms import fitted, grouped
from etude.adapt.tied_lora.experiment import EXPERIMENTS
from etude.adapt.tied_lora.pair import Store, bundles, count, draw
from etude.data.contract import Budget, Data, Split
from etude.fit.loop import by_shape
from etude.nn.adapted import AdaptedLayer
from etude.nn.surgery import weight_of
from etude.nn.tiny import tiny_gpt2, tiny_llama
from etude.nn.tuner import EtudeConfig

IDS = (torch.arange(40).reshape(2, 20) * 7) % 256
NOTHING = Data(Split(), Split())


def tiny_bert(layers: int = 2) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=256, hidden_size=32, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=48, num_labels=3)
    return BertForSequenceClassification(config).eval()


TINY = {"llama": tiny_llama, "gpt2": tiny_gpt2, "bert": tiny_bert}
ARCHITECTURES = pytest.mark.parametrize("make", list(TINY.values()), ids=list(TINY))


def subsets(kinds: str) -> list[tuple[str, ...]]:
    return list(chain.from_iterable(combinations(kinds, size) for size in range(len(kinds) + 1)))


FEASIBLE = [train for train in subsets("ABuv") if {"B", "v"} & set(train)]


def adapted(make=tiny_llama, seed: int = 0, stirred: bool = True, **options) -> PeftModel:
    model = TiedLora(**options).attach(make(), Data(Split(), Split(), seed))
    dice = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in store(model).parameters() if stirred else ():
            parameter.add_(torch.randn(parameter.shape, generator=dice).to(parameter) / 4)
    return model


def store(model: PeftModel) -> Store:
    return model.base_model.etude_shared["default"]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def loss(model) -> torch.Tensor:
    return model(input_ids=IDS).logits.double().logsumexp(-1).mean()


def layers(model) -> dict[str, AdaptedLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLayer)}


@given(st.sampled_from(sorted(TINY)), st.sampled_from(FEASIBLE), st.sampled_from(subsets("AB")), st.sampled_from(["qkv", "attn", "mlp", "all"]))
@settings(max_examples=12, deadline=None)
def test_the_start_is_the_base_bit_for_bit_and_every_combination_can_move(name, train, tie, target):
    make = TINY[name]
    model = adapted(make, stirred=False, rank=2, train=train, tie=tie, target=target)
    assert torch.equal(logits(model), logits(make()))
    found = bundles(target_layers(make(), target))
    assert sum(p.numel() for p in store(model).parameters()) == count(found, 2, train, tie)
    loss(model).backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in store(model).parameters())


@pytest.mark.parametrize("train", [train for train in subsets("ABuv") if train not in FEASIBLE])
def test_what_could_never_move_is_refused(train):
    with pytest.raises(ValueError, match="nothing would be trained" if not train else "can never move"):
        TiedLora(train=train)


@ARCHITECTURES
def test_the_count_is_the_formula_s(make):
    """4 d r + L (r + 3 d), with d_q + d_k + d_v outputs where they differ."""
    model, rank = adapted(make, rank=5), 5
    shapes = {"llama": (64, 128, 4), "gpt2": (64, 192, 4), "bert": (32, 96, 2)}
    d, out, L = next(shape for name, shape in shapes.items() if TINY[name] is make)
    trained = sum(p.numel() for p in store(model).parameters())
    assert trained == (d + out) * rank + L * (rank + out)
    found = bundles(target_layers(make(), "qkv"))
    assert count(found, rank, "uv", "AB") == L * (rank + out) and count(found, rank, "AB", "AB") == (d + out) * rank
    assert count(found, rank, "AB", "") == L * (d + out) * rank  # fused LoRA


def test_the_paper_s_numbers_at_7b():
    config = LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=64, vocab_size=8)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found = bundles(target_layers(model, "qkv"))
    numbers = [count(found, 8, train, tie) for train, tie in (("AB", ""), ("ABuv", "AB"), ("uv", "AB"), ("AB", "AB"))]
    assert numbers == [4 * 32 * 4096 * 8, 4 * 4096 * 8 + 32 * (8 + 3 * 4096), 32 * (8 + 3 * 4096), 4 * 4096 * 8]
    tuned = TiedLora().attach(model, NOTHING)
    assert tuned.get_nb_trainable_parameters()[0] == numbers[1] and all(p.is_meta for p in store(tuned).parameters())


@ARCHITECTURES
def test_the_tied_pair_is_one_parameter_in_the_optimiser_and_in_the_file(make, tmp_path):
    model = adapted(make)
    names = [name for name, p in model.named_parameters() if p.requires_grad and "etude" in name]
    assert sum(".etude_A." in name for name in names) == sum(".etude_B." in name for name in names) == 1
    assert not any("etude_parts" in name for name in names)  # the layers hold nothing themselves
    before = {name: layer.etude_parts["default"].delta() for name, layer in layers(model).items()}
    with torch.no_grad():
        next(iter(store(model).etude_A.parameters())).mul_(2)
    for name, layer in layers(model).items():
        torch.testing.assert_close(layer.etude_parts["default"].delta(), 2 * before[name])
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        stored = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys() if "etude_" in name)  # noqa: SIM118
    assert stored == sum(p.numel() for p in store(model).parameters())


@ARCHITECTURES
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 99))
def test_the_gradient_of_the_tied_pair_is_the_sum_over_untied_copies(make, seed):
    tied = adapted(make, seed, rank=3, train=("A", "B")).double()
    apart = adapted(make, seed, rank=3, train=("A", "B"), tie=(), stirred=False).double()
    for kind in ("etude_A", "etude_B"):
        (shared,) = getattr(store(tied), kind).parameters()
        for copy in getattr(store(apart), kind).parameters():
            copy.data = shared.data.clone()
    loss(tied).backward()
    loss(apart).backward()
    for kind in ("etude_A", "etude_B"):
        (shared,) = getattr(store(tied), kind).parameters()
        torch.testing.assert_close(shared.grad, sum(copy.grad for copy in getattr(store(apart), kind).parameters()), atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize(("make", "target"), [(tiny_gpt2, "attn.c_attn"), (tiny_llama, "self_attn.q_proj")], ids=["gpt2", "llama"])
def test_vectors_only_with_vera_s_matrices_is_vera(make, target):
    vera = get_peft_model(make(), peft.VeraConfig(r=6, target_modules=[target], fan_in_fan_out=make is tiny_gpt2)).eval()
    tied = adapted(make, rank=6, train=("u", "v"), target=target)
    (A,), (B,) = store(tied).etude_A.buffers(), store(tied).etude_B.buffers()
    A.copy_(vera.base_model.vera_A["default"])
    B.copy_(vera.base_model.vera_B["default"])
    with torch.no_grad():
        for name, layer in layers(tied).items():
            peer, part = vera.get_submodule(name), layer.etude_parts["default"]
            peer.vera_lambda_d["default"].copy_(store(tied).etude_u[part.bundle.key])
            peer.vera_lambda_b["default"].copy_(store(tied).etude_v[part.bundle.key])
    assert not torch.equal(logits(tied), logits(make()))
    torch.testing.assert_close(logits(tied), logits(vera), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("make", "target"), [(tiny_gpt2, "attn.c_attn"), (tiny_llama, "self_attn.q_proj")], ids=["gpt2", "llama"])
def test_untied_without_vectors_is_peft_s_lora(make, target):
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=[target], fan_in_fan_out=make is tiny_gpt2)
    lora = get_peft_model(make(), config).eval()
    ours = adapted(make, rank=4, alpha=6.0, train=("A", "B"), tie=(), target=target)
    with torch.no_grad():
        for name, layer in layers(ours).items():
            peer, key = lora.get_submodule(name), layer.etude_parts["default"].bundle.key
            peer.lora_A["default"].weight.copy_(store(ours).etude_A[key])
            peer.lora_B["default"].weight.copy_(store(ours).etude_B[key])
    torch.testing.assert_close(logits(ours), logits(lora), atol=1e-5, rtol=1e-5)
    bounds = [
        float(weight.abs().max()) for weight in adapted(make, rank=4, tie=(), target=target, stirred=False).base_model.etude_shared.parameters()
    ]
    assert max(bounds[:4]) <= 1 / math.sqrt(64)  # A starts as LoRA's does


@ARCHITECTURES
def test_merging_writes_each_layer_its_own_change(make):
    model, plain = adapted(make, target="all"), make()
    apart, changes = logits(model), {name: layer.etude_parts["default"].delta() for name, layer in layers(model).items()}
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), apart, atol=1e-5, rtol=1e-5)
    for name, change in changes.items():
        name = name.removeprefix("base_model.model.")
        before, after = (weight_of(each.get_submodule(name)) for each in (plain, merged))
        torch.testing.assert_close(after, before + change, atol=1e-6, rtol=1e-5)
    assert len({tuple(change.flatten()[:4].tolist()) for change in changes.values()}) == len(changes)


def test_frozen_matrices_are_drawn_again_alike_and_their_digest_guards_them(tmp_path):
    assert draw(2, 3, 1.0, 0, "A.x").flatten().tolist() == pytest.approx(DRAWN, abs=1e-7)
    base = tiny_llama()
    before = torch.get_rng_state()
    model = adapted(lambda: base, train=("u", "v"), seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    matrices = dict(store(model).named_buffers())
    assert {name.split(".")[0] for name in matrices} == {"etude_A", "etude_B"} and not any(name in store(model).state_dict() for name in matrices)
    alone = dict(adapted(train=("B", "v"), seed=7).base_model.etude_shared["default"].named_buffers())  # A is the same, whether B is drawn or not
    assert torch.equal(alone["etude_A.qkv_64x64_32_32"], matrices["etude_A.qkv_64x64_32_32"])
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()
    assert torch.equal(logits(again), logits(model))
    file = tmp_path / "adapter_config.json"
    file.write_text(file.read_text().replace('"seed": 7', '"seed": 8'))
    with pytest.raises(ValueError, match="frozen matrix A.qkv_64x64_32_32 is drawn otherwise"):
        PeftModel.from_pretrained(tiny_llama(), tmp_path)


DRAWN = (0.47356296, 0.55939937, 0.80423510, 0.79787695, -0.11989272, 0.94886351)  # by torch 2.13 on a CPU


def test_seeds_draw_apart_and_the_data_s_is_taken_unless_one_is_set():
    one, two = adapted(seed=1, stirred=False), adapted(seed=2, stirred=False)
    assert not torch.equal(next(store(one).parameters()), next(store(two).parameters()))
    fixed = TiedLora(seed=1).attach(tiny_llama(), Data(Split(), Split(), 2))
    assert torch.equal(next(store(fixed).parameters()), next(store(one).parameters())) and fixed.peft_config["default"].options["seed"] == 1


def test_layers_of_other_shapes_have_a_pair_of_their_own():
    found = bundles(target_layers(tiny_llama(), "all"))
    assert groups(found) == {"qkv_64x64_32_32": 4, "64x64": 4, "64x128": 8, "128x64": 4}
    pruned = tiny_llama()
    attention = pruned.model.layers[1].self_attn
    attention.v_proj = torch.nn.Linear(64, 16, bias=False)
    assert groups(bundles(target_layers(pruned, "qkv"))) == {"qkv_64x64_32_32": 3, "qkv_64x64_32_16": 1}
    assert groups(bundles(target_layers(tiny_llama(), "[qv]_proj|.*[qv]_proj"))) == {"qkv_64x64_32": 4}


def test_only_the_layers_that_are_meant_are_adapted(tmp_path):
    for make, target, number in ((tiny_bert, "mlp", 4), (tiny_llama, "model.layers.[02].self_attn.[qkv]_proj", 6), (tiny_gpt2, "attn.c_proj", 4)):
        model = adapted(make, target=target)
        assert len(layers(model)) == number
        model.save_pretrained(tmp_path / target)
        assert torch.equal(logits(PeftModel.from_pretrained(make(), tmp_path / target).eval()), logits(model))


@ARCHITECTURES
def test_checkpointed_gradients_are_the_same(make):
    model = adapted(make)
    loss(model).backward()
    before = [p.grad.clone() for p in store(model).parameters()]
    model.zero_grad()
    model.get_base_model().gradient_checkpointing_enable()
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    loss(model).backward()
    for parameter, gradient in zip(store(model).parameters(), before, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_data_parallel_training_reduces_the_pair_once(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        model = adapted()
        loss(model).backward()
        before = [p.grad.clone() for p in store(model).parameters()]
        model.zero_grad()
        parallel = torch.nn.parallel.DistributedDataParallel(model)
        for _ in range(2):
            parallel.zero_grad()
            loss(parallel).backward()
        assert all(torch.allclose(p.grad, g) for p, g in zip(store(model).parameters(), before, strict=True))
    finally:
        distributed.destroy_process_group()


def test_weight_decay_spares_the_vectors():
    model = adapted(stirred=False)
    optimizer = torch.optim.AdamW(by_shape([p for p in model.parameters() if p.requires_grad], decay=0.5), lr=0.1)
    before = {name: p.clone() for name, p in store(model).named_parameters()}
    for parameter in store(model).parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in store(model).named_parameters():
        assert torch.equal(parameter, before[name]) == (".etude_A." not in f".{name}")  # B is zero, u and v stay at 1


def test_small_steps_move_the_vectors_on_a_half_precision_base():
    model = adapted(lambda: tiny_llama().to(torch.bfloat16))
    vectors = [p for name, p in store(model).named_parameters() if "etude_u" in name]
    before = [p.clone() for p in vectors]
    optimizer = torch.optim.AdamW(vectors, lr=1e-4)
    loss(model).backward()
    optimizer.step()
    assert all(p.dtype == torch.float32 and not torch.equal(p, b) for p, b in zip(vectors, before, strict=True))


def test_dropout_is_on_the_input_and_in_training_only():
    model = adapted(dropout=0.5)
    assert torch.equal(logits(model), logits(model))
    model.train()
    torch.manual_seed(0)
    first = logits(model)
    assert not torch.equal(first, logits(model))
    torch.manual_seed(0)
    assert torch.equal(first, logits(model))
    assert any(isinstance(module, torch.nn.Dropout) and module.p == 0.5 for module in model.modules())


def test_a_label_head_is_trained_and_saved_with_the_adapter(tmp_path):
    model = adapted(tiny_bert)
    head = [name for name, p in model.named_parameters() if p.requires_grad and "classifier" in name]
    assert len(head) == 2
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in head:
                parameter.normal_()
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_bert(), tmp_path).eval()), logits(model))


def test_points_lie_around_the_rank_and_meet_a_limit_on_bytes(tmp_path):
    free = Budget("bytes", math.inf, 1e6)
    assert [one.rank for one in TiedLora().points(free, tiny_llama())] == [2, 8]
    assert [one.rank for one in TiedLora(rank=1, target="mlp").points(free, tiny_llama())] == [1]
    for limit in (8000, 16000):
        for point in TiedLora().points(Budget("bytes", limit, 1e6), tiny_llama()):
            adapted(rank=point.rank).save_pretrained(tmp_path / str(point.rank))
            assert (tmp_path / str(point.rank) / "adapter_model.safetensors").stat().st_size <= 1.1 * limit
    assert [one.rank for one in TiedLora().points(Budget("bytes", 10, 1e6), tiny_llama())] == [1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"alpha": 0.0}, "alpha must be above 0, got 0.0"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"rate": -1.0}, "rate must be above 0"),
        ({"train": ("A", "C")}, "train takes each of A, B, u, v once at most, got C"),
        ({"train": ("B", "B")}, "once at most, got B, B"),
        ({"tie": ("u",)}, "tie takes each of A, B once at most, got u"),
        ({"target": ""}, "target is empty"),
    ],
)
def test_bad_options_are_refused_by_name(options, said):
    with pytest.raises(ValueError, match=said):
        TiedLora(**options)


def test_a_target_that_matches_nothing_lists_the_candidates():
    with pytest.raises(ValueError, match="no linear layer matches 'no_proj'; this model has .*self_attn.q_proj"):
        TiedLora(target="no_proj").attach(tiny_llama(), NOTHING)
    bare = tiny_llama()
    for block in bare.model.layers:
        block.mlp.gate_proj = block.mlp.up_proj = block.mlp.down_proj = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"no linear layer matches the target 'mlp'; this model has self_attn.k_proj \(k\)"):
        TiedLora(target="mlp").attach(bare, NOTHING)


def test_every_row_of_the_sheet_is_a_claim():
    assert {claim.row for experiment in EXPERIMENTS for claim in experiment.claims} == set("12345")


@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(1, 9), st.integers(1, 3), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_an_epoch_takes_every_row_once_in_batches_of_like_length(lengths, size, epochs, seed):
    batches = grouped(lengths, size, epochs, seed)
    assert batches == grouped(lengths, size, epochs, seed) and max(map(len, batches)) <= size
    per = len(batches) // epochs
    for epoch in range(epochs):
        assert sorted(place for batch in batches[epoch * per : (epoch + 1) * per] for place in batch) == list(range(len(lengths)))


def test_the_head_has_one_rate_in_all_arms_and_the_adapter_its_own():
    model, seen = adapted(tiny_bert, stirred=False), {}
    read = [Example(tuple(range(1, 9)), label=place % 3) for place in range(8)]
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    fitted(model, read, [list(range(8))], rate=1e-4, head_rate=1e-2, seed=0)  # one step of AdamW moves each number by about its rate
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            moved = float((parameter - before[name]).abs().max())
            seen.setdefault("classifier" in name, []).append(moved)
    assert all(5e-3 < moved < 1.1e-2 for moved in seen[True])
    assert max(seen[False]) < 1.1e-4 and any(moved > 5e-5 for moved in seen[False])


def test_the_benchmark_prints_both_ratios(capsys):
    benchmark.main(["--model", "tiny", "--dtype", "float32", "--steps", "2", "--batch", "2", "--length", "8"])
    told = capsys.readouterr().out
    assert "Tied-LoRA: " in told and re.search(r"step: \d\.\d{3} of PEFT LoRA's \(median of 2 pairs\); file: 0\.\d{3} of it", told), told


def test_options_come_back_from_the_saved_configuration(tmp_path):
    made = TiedLora(rank=4, train=("B", "v"), tie=("B",), alpha=2.0, seed=3)
    made.attach(tiny_llama(), NOTHING).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert catalogue.make(catalogue.find("tied_lora"), config["options"]) == made and config["peft_type"] == "ETUDE"
    assert EtudeConfig.from_pretrained(tmp_path).facts["method"]["groups"] == {"qkv_64x64_32_32": 4}
