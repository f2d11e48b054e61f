"""Invariants of LASER, on random models of a few thousand parameters."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from etude.compress.laser import Laser, reduced_size, size_of, sweep
from etude.compress.laser.analysis import (
    complement_answers,
    fitted,
    gain_by_frequency,
    generation_hits,
    heat_map,
    magnitude,
    noised,
    robust_hits,
    same_rank,
)
from etude.compress.laser.experiment import EXPERIMENTS
from etude.compress.laser.facts import relation
from etude.compress.laser.matrices import matrices
from etude.compress.laser.rank import Intervention, complement, decompose, factors, intervened, low_rank, rank_of, reduce
from etude.compress.laser.search import candidates, search, validation_score
from etude.compress.laser.world import World, ask, corpus, train_world
from etude.data.contract import Budget, Data, Journal, Rows, Split, Text
from etude.measure.contract import Items
from etude.nn.factored import FactoredLinear
from etude.nn.matrices import all_matrices, type_of
from etude.nn.surgery import weight_of
from etude.nn.tiny import byte_tokenizer, tiny_text

IDS = torch.arange(40).reshape(2, 20) % 50
STYLES = ("llama", "gpt2", "opt", "neox")


def tiny(style: str = "llama", layers: int = 4) -> torch.nn.Module:
    torch.manual_seed(0)
    if style == "llama":
        config = LlamaConfig(
            vocab_size=256, hidden_size=16, intermediate_size=40, num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1
        )
        return LlamaForCausalLM(config).eval()
    if style == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=256, n_embd=16, n_layer=layers, n_head=2)).eval()
    if style == "opt":
        config = OPTConfig(vocab_size=256, hidden_size=16, ffn_dim=40, num_hidden_layers=layers, num_attention_heads=2, word_embed_proj_dim=16)
        return OPTForCausalLM(config).eval()
    config = GPTNeoXConfig(vocab_size=256, hidden_size=16, intermediate_size=40, num_hidden_layers=layers, num_attention_heads=2)
    return GPTNeoXForCausalLM(config).eval()


def rows(count: int = 6) -> Rows:
    table = {"prompt": [f"question {i}" for i in range(count)], "answer": [f" {i}" for i in range(count)]}
    return Rows(Dataset.from_dict(table), {"prompt": "prompt", "answer": "answer"})


def data(*parts: Rows | Text, journal: Journal | None = None) -> Data:
    return Data(Split(), Split(*parts), 0, byte_tokenizer(), journal or Journal())


matrix = st.builds(
    lambda m, n, seed: torch.randn(m, n, generator=torch.Generator().manual_seed(seed)), st.integers(2, 12), st.integers(2, 12), st.integers(0, 999)
)


@given(matrix, st.floats(0.05, 1))
@settings(max_examples=100, deadline=None)
def test_eckart_young(weight, rho):
    parts, rank = decompose(weight), rank_of(rho, *weight.shape)
    kept = low_rank(parts, rank)
    assert torch.linalg.matrix_rank(kept, rtol=1e-4) <= rank
    torch.testing.assert_close((weight - kept).pow(2).sum(), parts.S[rank:].pow(2).sum(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(kept + complement(parts, rank), weight, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(low_rank(decompose(kept), rank), kept, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(low_rank(decompose(weight.T), rank), kept.T, atol=1e-4, rtol=1e-3)
    A, B = factors(parts, rank)
    torch.testing.assert_close(A @ B, kept, atol=1e-5, rtol=1e-4)
    errors = [(weight - low_rank(parts, r)).norm() for r in range(len(parts.S) + 1)]
    assert all(later <= earlier + 1e-5 for earlier, later in pairwise(errors))


@given(matrix, st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_a_rotation_of_the_rows_commutes(weight, seed):
    turn, _ = torch.linalg.qr(torch.randn(len(weight), len(weight), generator=torch.Generator().manual_seed(seed)))
    torch.testing.assert_close(low_rank(decompose(turn @ weight), 1), turn @ low_rank(decompose(weight), 1), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("rho", "rank"), [(1.0, 16), (0.5, 8), (0.3, 4), (0.01, 1), (0.9999, 15)])
def test_rho_is_a_share_of_the_largest_rank_and_at_least_one_direction_stays(rho, rank):
    assert rank_of(rho, 16, 40) == rank
    assert rank_of(0.29, 100, 100) == 29  # not 28 by rounding


@pytest.mark.parametrize("style", STYLES)
def test_every_type_and_group_is_found_by_name(style):
    model = tiny(style)
    every = all_matrices(model)
    assert {each.type for each in every} == ({"qkv", "o", "in", "out"} if style in ("gpt2", "neox") else {"q", "k", "v", "o", "in", "out"})
    assert matrices(model, "all") == every
    assert {each.name for each in matrices(model, "mlp")} | {each.name for each in matrices(model, "attn")} == {each.name for each in every}
    assert [each.layer for each in matrices(model, "out", (1, -1))] == [1, 3]
    end = matrices(model, "out")[0].end
    assert matrices(model, end, "all") == matrices(model, "out")


def test_names_of_other_families_have_their_type():
    known = {"attention.self.query": "q", "attention.output.dense": "o", "intermediate.dense": "in", "output.dense": "out", "mlp.router": ""}
    assert {end: type_of(end) for end in known} == known


@pytest.mark.parametrize("style", STYLES)
def test_factored_and_dense_answer_alike_and_only_smaller_factors_are_stored(style):
    dense = Laser("mlp", "all", 0.5, dense=True).compress(tiny(style), data())
    thin = Laser("mlp", "all", 0.5).compress(tiny(style), data())
    torch.testing.assert_close(thin(IDS).logits, dense(IDS).logits, atol=1e-5, rtol=1e-4)
    assert any(isinstance(module, FactoredLinear) for module in thin.modules()) and not any(isinstance(m, FactoredLinear) for m in dense.modules())
    assert size_of(thin) == reduced_size(tiny(style), matrices(tiny(style), "mlp"), 0.5) < size_of(dense)
    wide = Laser("mlp", "all", 0.9).compress(tiny(style), data())
    assert size_of(wide) == size_of(dense)


def test_conv1d_is_reduced_as_the_linear_layer_of_its_transpose():
    model = tiny("gpt2")
    name = matrices(model, "in", (0,))[0].name
    module = model.get_submodule(name)
    expected = low_rank(decompose(module.weight.detach().T.contiguous()), rank_of(0.3, *module.weight.shape)).T
    reduce(model, Intervention(name, 0.3), dense=True)
    torch.testing.assert_close(module.weight, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("style", STYLES)
def test_rho_one_and_undo_leave_the_weights_bit_equal(style):
    model = tiny(style).to(torch.bfloat16)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    Laser("all", "all", 1.0).compress(model, data())
    with pytest.raises(RuntimeError, match="inside"), intervened(model, [Intervention(each.name, 0.2) for each in all_matrices(model)]):
        assert any(not torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
        raise RuntimeError("inside")
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("style", ["llama", "gpt2"])
@pytest.mark.parametrize("part", [rows(), tiny_text(200)], ids=["rows", "text"])
def test_the_search_is_never_worse_than_untouched_on_validation(style, part):
    journal = Journal()
    score = validation_score(data(part), tokens=128)
    before = score(tiny(style))
    model = Laser(trials=6, tokens=128).compress(tiny(style), data(part, journal=journal))
    assert score(model) <= before + 1e-4  # factors round otherwise than their product
    assert journal.trials[0]["options"] == {"interventions": []} and len(journal.trials) <= 7
    assert min(trial["score"] for trial in journal.trials) <= before


def test_a_search_without_gain_leaves_the_model_untouched():
    model = tiny()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    grid = candidates(matrices(model, "mlp"), (0.5, 0.05))

    def harm(model):
        return float(sum((weight - before[name]).abs().sum() for name, weight in model.state_dict().items()))

    assert search(model, grid, harm, Journal(), 12) == []
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_composition_adds_what_helps_and_keeps_one_rho_a_matrix():
    model = tiny()
    grid = candidates(matrices(model, "out"), (0.5, 0.1))
    target = {each.name for each in grid[:3]}

    def score(model):  # one point for each reduced matrix of the target
        return -float(sum(torch.linalg.matrix_rank(weight_of(model.get_submodule(name)), rtol=1e-4) < 16 for name in target))

    chosen = search(model, grid, score, Journal(), 40)
    assert {each.name for each in chosen} >= target and len({each.name for each in chosen}) == len(chosen)


def test_a_search_that_was_cut_off_goes_on_where_it_stopped(tmp_path: Path):
    calls = []

    def score(model):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return float(weight_of(matrices(model, "out", (3,))[0].module).abs().sum())

    model, path = tiny(), tmp_path / "journal.jsonl"
    grid = candidates(matrices(model, "mlp"), (0.5, 0.05))
    with pytest.raises(KeyboardInterrupt):
        search(model, grid, score, Journal(path), 8)
    chosen = search(model, grid, score, Journal(path), 8)
    assert len(calls) <= 4 + 9 - 3  # three trials were kept
    assert chosen == search(tiny(), grid, lambda model: float(weight_of(matrices(model, "out", (3,))[0].module).abs().sum()), Journal(), 8)


@given(st.integers(1, 9), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_the_grid_is_whole_without_repeats_and_starts_spread_over_layers(layers, rhos):
    found = matrices(tiny(layers=layers), "mlp")
    grid = candidates(found, (0.5, 0.05, 0.2)[:rhos])
    assert len(grid) == len(set(grid)) == 3 * layers * rhos
    assert len({each.name.split(".")[2] for each in grid[:layers]}) == layers


def test_validation_rows_are_scored_by_choice_label_or_answer():
    table = {"text": ["a b", "c d"], "label": ["up", "down"], "choices": [["x", "y"]] * 2, "index": [0, 1]}
    labelled = Rows(Dataset.from_dict(table), {"text": "text", "label": "label"})
    offered = Rows(Dataset.from_dict(table), {"prompt": "text", "choices": "choices", "label": "index"})
    for part in (labelled, offered, rows()):
        assert 0 < validation_score(data(part))(tiny()) < 20


def test_points_meet_the_budget_in_bytes():
    model = tiny()
    reference = float(size_of(model))
    for share in (0.9, 0.7):
        found = Laser().points(Budget("bytes", share * reference, reference), model)
        assert found[0] == Laser() and len(found) == 3
        sizes = [size_of(point.compress(tiny(), data())) for point in found[1:]]
        assert sizes[0] > sizes[1] and sizes[1] <= share * reference
    hopeless = Laser().points(Budget("bytes", 0.01 * reference, reference), model)[-1]
    assert (hopeless.layers, hopeless.rho) == ("all", 0.01)
    free = Laser().points(Budget("bytes", float("inf"), reference), model)
    assert [point.rho for point in free] == [None, 0.5, 0.25]
    fixed = Laser("out", (1,), 0.1)
    assert fixed.points(Budget("bytes", 1.0, reference), model) == [fixed]


@pytest.mark.parametrize(
    "options", [{"rho": 7}, {"rho": 0.0}, {"rho": float("nan")}, {"layers": "some"}, {"layers": ()}, {"trials": 0}, {"module": ""}]
)
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Laser(**options)


def test_what_cannot_be_done_is_refused_by_name():
    with pytest.raises(ValueError, match=r"no .*matches 'mlp.c_fc'.*down_proj"):
        Laser("mlp.c_fc", (0,), 0.5).compress(tiny(), data())
    with pytest.raises(ValueError, match=r"no matrix of the blocks matches 'q'.*attn.c_attn \(qkv\)"):
        Laser("q", (0,), 0.5).compress(tiny("gpt2"), data())
    with pytest.raises(ValueError, match="layer 9 is out of range: this model has layers 0 to 3"):
        Laser("out", (9,), 0.5).compress(tiny(), data())
    broken = tiny()
    broken.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"layers.1.mlp.down_proj holds NaN"):
        Laser("out", (1,), 0.5).compress(broken, data())
    shared = tiny()
    shared.model.layers[1].mlp.down_proj.weight = shared.model.layers[0].mlp.down_proj.weight
    with pytest.raises(ValueError, match="shares its weight"):
        Laser("out", (1,), 0.5).compress(shared, data())
    with pytest.raises(ValueError, match="needs Text"):
        Laser().compress(tiny(), data())


@given(matrix, st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_ablations_change_as_much_as_they_say(weight, seed):
    parts = decompose(weight)
    torch.testing.assert_close((noised(weight, parts, 1, seed) - weight).norm(), parts.S[1:].norm(), atol=1e-4, rtol=1e-3)
    pruned = magnitude(weight, 1)
    assert int((pruned != 0).sum()) <= sum(weight.shape)
    assert torch.equal(pruned[pruned != 0], weight[pruned != 0])
    assert not same_rank(weight, 0.5, "zero").any()


def test_a_fitted_product_stays_behind_the_exact_one():
    weight = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))
    best = (weight - low_rank(decompose(weight), 4)).norm()
    early, late = ((weight - fitted(weight, 4, 0, steps=steps, lr=1e-2)).norm() for steps in (5, 500))
    assert best <= late < early
    with pytest.raises(ValueError, match="no ablation 'other'"):
        same_rank(weight, 0.5, "other")


def test_analyses():
    model, tokenizer = tiny(), byte_tokenizer()
    grid = candidates(matrices(model, "out"), (0.5,))
    changes = heat_map(model, grid, lambda model: float(weight_of(model.get_submodule(grid[0].name)).norm()))
    assert changes[grid[0]] < 0 and changes[grid[1]] == 0
    before, after = Items.of("abcdef", [0, 0, 0, 1, 1, 1]), Items.of("abcdef", [1, 1, 0, 1, 1, 1])
    assert gain_by_frequency(before, after, dict(zip("abcdef", range(6), strict=True))) == [(0.5, 1.0), (2.5, 0.0), (4.5, 0.0)]
    assert robust_hits([before, after]).top == (0, 0, 0, 1, 1, 1)
    with pytest.raises(ValueError, match="paraphrases"):
        robust_hits([])
    answers = complement_answers(model, tokenizer, ["ab", "c"], grid[0], top=2)
    assert [len(each) for each in answers] == [2, 2]
    assert set(generation_hits(model, tokenizer, ["ab"], [" no such answer"], tokens=2).top) == {0.0}


def test_the_choice_never_looks_at_held_out_facts():
    asked = sweep.questions(10)
    for seed in range(5):
        validation, held_out = asked.halves(seed)
        assert sorted(validation + held_out) == list(range(len(asked))) and abs(len(validation) - len(held_out)) <= 1
    validation, held_out = asked.halves(0)

    def table(noise: float) -> list[sweep.Answers]:
        """`good` is better on the validation half; the held-out half may say anything."""
        base, good = [2.0] * len(asked), [1.0 if i in validation else 2.0 + noise for i in range(len(asked))]
        ranks = (0,) * len(asked)
        return [sweep.Answers(sweep.Setting("untouched"), tuple(base), ranks), sweep.Answers(sweep.Setting("laser", "good", 0.5), tuple(good), ranks)]

    for noise in (-1.0, 0.0, 99.0):
        assert sweep.chosen(table(noise), validation, ("laser", "untouched")).setting.name == "good"


def test_the_grid_holds_every_ablation_and_leaves_the_model_bit_equal():
    model, asked = tiny(), sweep.questions(2)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    grid = sweep.settings(model, "out", (0, 3), (0.5, 0.1), ("noise", "zero", "magnitude"))
    kinds = [each.kind for each in grid]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"untouched": 1, "laser": 4, "noise": 4, "zero": 2, "magnitude": 4}
    for setting in grid[:6]:
        found = sweep.answered(model, byte_tokenizer(), asked, setting)
        assert len(found.nats) == len(asked) == 4 and found.nll([1, 3]).ids == ("1", "3")
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_every_row_of_the_claims_is_there():
    claims = [claim for experiment in EXPERIMENTS for claim in experiment.claims]
    assert {claim.row for claim in claims} == {"1", "2", "3", "4"}
    assert all(claim.overlap == 1.0 for claim in EXPERIMENTS[0].claims)  # halves of one set overlap
    assert all({"smoke", "desk", "gpu"} <= set(experiment.scales) for experiment in EXPERIMENTS)


def test_the_invented_world_is_written_about_as_often_as_it_says():
    world = World(subjects=30, relations=2, objects=5, noise=0.25)
    triples, shown = corpus(world, 4000)
    assert sum(shown.values()) == len(triples) == 4000 and triples.max() < world.vocabulary
    truth = {(s, world.form(r, f)): world.thing(r, world.truth[s][r]) for s in range(30) for r in range(2) for f in range(world.forms)}
    wrong = sum(truth[s, f] != o for s, f, o in triples.tolist()) / 4000
    assert abs(wrong - 0.25) < 0.03
    found = ask(train_world(triples[:100], world.vocabulary, steps=2), world)
    assert len(found.nats.ids) == 60 and set(found.hits.top) <= {0.0, 1.0}


def test_facts_are_whole():
    capitals, currencies = relation("capital"), relation("currency")
    assert (
        len(capitals.subjects) == 64 == len(set(capitals.subjects))
        and dict(zip(capitals.subjects, capitals.objects, strict=True))["India"] == "New Delhi"
    )
    assert len(set(currencies.subjects)) == len(currencies.subjects) >= 40 and all(currencies.objects)
    world = World(subjects=20, relations=2, objects=5)
    assert world == World(subjects=20, relations=2, objects=5) and abs(sum(world.weights) - 1) < 1e-9
    assert world.thing(1, 4) == world.vocabulary - 1 and world.form(0, 0) == 20
