"""Invariants of the compute-optimal law: recovery, optimum, symmetries, intervals, refusals. Seconds, no downloads but the packaged table."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime, minimize_scalar

from etude.study._law import Law, evaluate
from etude.study._robust import bootstrap_weights, huber, minimise
from etude.study._runs import read, trainer_history
from etude.study._synthetic import CONSTANTS, isoflop_table
from etude.study.chinchilla import Chinchilla
from etude.study.chinchilla.approaches import fit_frontier, isoflop
from etude.study.chinchilla.law import ChinchillaLaw, Frontier
from etude.study.chinchilla.parametric import FORMULA, fit_grid, fit_projection, lse_model, objective, paper_starts
from etude.study.chinchilla.planner import buildable, ladder

LAWS = st.fixed_dictionaries(
    {
        "E": st.floats(0.5, 3),
        "A": st.floats(50, 2000),
        "B": st.floats(100, 5000),
        "alpha": st.floats(0.25, 0.5),
        "beta": st.floats(0.25, 0.5),
    }
)


def clean(constants=CONSTANTS, **options):
    return isoflop_table(constants, noise=0.0, **options)


def relative(found, truth):
    return max(abs(found[name] / truth[name] - 1) for name in truth)


# ---- the fit ----


@given(LAWS)
@settings(max_examples=8, deadline=None)
def test_a_noise_free_table_is_recovered(truth):
    law = Chinchilla(bootstrap=0).fit(clean(truth, budgets=11, lowest=1e17))
    assert relative(law.parameters, truth) < 1e-3


def test_grid_and_projection_reach_the_same_optimum():
    runs = read(isoflop_table(seed=3, budgets=6, sizes=6))
    fast, slow = fit_projection(runs), fit_grid(runs, every=150)
    assert abs(slow.objective / fast.objective - 1) < 1e-8
    assert relative(slow.constants, fast.constants) < 1e-4
    assert slow.starts == 30 and 0 < slow.share <= 1
    assert len(paper_starts()) == 4500


def test_grid_recovers_a_noise_free_table():
    fit = fit_grid(read(clean(budgets=6, sizes=6)), every=225)
    assert relative(fit.constants, CONSTANTS) < 1e-3


def test_sum_and_mean_of_the_objective_agree():
    runs = read(isoflop_table(seed=5, budgets=5, sizes=6))
    total, mean = (fit_grid(runs, reduction=reduction, every=300) for reduction in ("sum", "mean"))
    assert relative(mean.constants, total.constants) < 1e-4


@given(st.integers(0, 1000))
@settings(max_examples=4, deadline=None)
def test_row_order_and_a_duplicate_table_change_nothing(seed):
    table = isoflop_table(seed=seed, budgets=5, sizes=6)
    order = np.random.default_rng(seed).permutation(len(table["loss"]))
    once = Chinchilla(bootstrap=0).fit(table).parameters
    assert relative(Chinchilla(bootstrap=0).fit({k: v[order] for k, v in table.items()}).parameters, once) < 1e-5
    assert relative(Chinchilla(bootstrap=0).fit({k: np.tile(v, 2) for k, v in table.items()}).parameters, once) < 1e-5


@given(st.floats(0.1, 10), st.integers(0, 100))
@settings(max_examples=4, deadline=None)
def test_rescaling_sizes_moves_a_alone_and_rescaling_the_loss_moves_three(k, seed):
    table = isoflop_table(seed=seed, budgets=6, sizes=6)
    base = Chinchilla(bootstrap=0).fit(table).parameters
    sized = Chinchilla(bootstrap=0).fit({**{n: table[n] for n in ("tokens", "loss")}, "parameters": k * table["parameters"]}).parameters
    assert relative(sized, {**base, "A": base["A"] * k ** base["alpha"]}) < 2e-4
    louder = Chinchilla(bootstrap=0).fit({**table, "loss": k * table["loss"]}).parameters
    assert relative(louder, {**base, **{n: k * base[n] for n in ("E", "A", "B")}}) < 2e-4


@given(st.lists(st.floats(-3, 3), min_size=5, max_size=5), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_derivatives_equal_finite_differences(theta, seed):
    dice = np.random.default_rng(seed)
    model = lse_model(dice.normal(size=7), dice.normal(size=7))
    theta, psi = np.array(theta), dice.normal(size=(1, 7))
    value, jacobian, curvature = model(theta[None])
    slope = approx_fprime(theta, lambda t: float(psi[0] @ model(t[None])[0][0]), 1e-6)
    np.testing.assert_allclose(psi[0] @ jacobian[0], slope, atol=1e-4)
    bend = approx_fprime(theta, lambda t: psi[0] @ model(t[None])[1][0], 1e-6)
    np.testing.assert_allclose(curvature(psi)[0], bend, atol=1e-4)
    assert value.shape == (1, 7)


def test_the_lse_form_equals_the_direct_one_and_does_not_overflow():
    n, d = np.array([1e6, 1e9, 1e12]), np.array([1e9, 1e10, 1e13])
    theta = np.array([[math.log(420.0), 0.34, math.log(1500.0), 0.345, math.log(1.75)]])
    direct = np.log(1.75 + 420 / n**0.34 + 1500 / d**0.345)
    np.testing.assert_allclose(lse_model(np.log(n), np.log(d))(theta)[0][0], direct, rtol=1e-12)
    for a in (25.0, 900.0):
        wild = np.array([[a, 0.0, 25.0, 2.0, 1.0]])
        assert all(np.isfinite(part).all() for part in lse_model(np.log(n), np.log(d))(wild)[:2])


def test_the_optimiser_stops_at_a_stationary_point():
    runs = read(isoflop_table(seed=9))
    fit = fit_projection(runs)
    u, v = (np.log(x) - np.log(x).mean() for x in (runs.parameters, runs.tokens))
    predicted, jacobian, _ = lse_model(u, v)(fit.theta[None])
    psi = np.clip(predicted[0] - np.log(runs.loss), -1e-3, 1e-3)
    assert np.abs(psi @ jacobian[0]).max() < 1e-6 * np.abs(psi[:, None] * jacobian[0]).sum(0).max()
    again, reached = minimise(lse_model(u, v), fit.theta[None] + 0.01, np.log(runs.loss), 1e-3)
    assert abs(reached[0] / fit.objective - 1) < 1e-8 and np.allclose(again[0], fit.theta, atol=1e-4)
    assert objective(fit.constants, runs) == pytest.approx(fit.objective, rel=1e-9)


def test_huber_is_quadratic_then_linear():
    assert huber(np.array([0.5, 2.0, -2.0]), 1.0).tolist() == [0.125, 1.5, 1.5]


# ---- the optimum ----


@given(LAWS, st.floats(18, 26))
@settings(max_examples=50, deadline=None)
def test_the_plan_is_the_constrained_minimum(constants, exponent):
    law, compute = ChinchillaLaw(FORMULA, constants), 10.0**exponent
    n, d = law.optimum(compute)
    assert n * d == pytest.approx(compute / 6, rel=1e-9)
    slope = -constants["alpha"] * constants["A"] * n ** -constants["alpha"] + constants["beta"] * constants["B"] * d ** -constants["beta"]
    assert abs(slope) < 1e-8 * law.predict(n, d)
    best = minimize_scalar(lambda x: float(law.predict(math.exp(x), compute / 6 / math.exp(x))), bracket=(math.log(n) - 1, math.log(n) + 1))
    assert best.x == pytest.approx(math.log(n), abs=1e-3)
    (a, *_), (b, *_) = law.exponents().values()
    assert a + b == pytest.approx(1)
    doubled = law.optimum(100 * compute)[0] / n
    assert math.log(doubled) / math.log(100) == pytest.approx(a)


def test_inverse_uses_agree_with_the_law():
    law = ChinchillaLaw(FORMULA, CONSTANTS)
    n, d = law.optimum(1e21)
    loss = float(law.predict(n, d))
    assert law.tokens_for(loss, n) == pytest.approx(d)
    assert law.iso_loss(loss, [n, n / 1e4])[0] == pytest.approx(d) and np.isinf(law.iso_loss(loss, [n / 1e4])[0])
    assert law.penalty(1e21, 1.0) == pytest.approx(1) and law.penalty(1e21, 2.0) > 1 and law.penalty(1e21, 0.5) > 1
    assert law.penalty(1e21, 1e-6) == math.inf
    with pytest.raises(ValueError, match=r"never gets below .* take a larger one"):
        law.tokens_for(1.7, n)


def test_plans_carry_intervals_configurations_and_a_warning_far_out():
    law = Chinchilla(bootstrap=50).fit(isoflop_table())
    largest = law.about["compute"][1]
    near, far = law.plan(2 * largest), law.plan(100 * largest)
    for plan in (near, far):
        for value, low, high in (plan.parameters, plan.tokens, plan.loss):
            assert low <= value <= high
        assert abs(math.log(plan.config.parameters / plan.parameters[0])) < 0.1
        assert plan.config.flops > 6 * plan.config.body * plan.tokens[0]
    assert not near.note and "100 times the largest run" in far.note
    with pytest.raises(ValueError, match="-1"):
        law.plan(-1)


@given(st.floats(6.1, 12))
@settings(max_examples=30, deadline=None)
def test_a_buildable_decoder_has_the_parameters_it_says(exponent):
    config = buildable(10**exponent, 1e9)
    assert config.hidden_size % config.num_attention_heads == 0 and config.num_hidden_layers >= 1
    assert abs(math.log(config.parameters / 10**exponent)) < 0.2
    with pytest.raises(ValueError, match="too few"):
        buildable(10.0, 1e9)


def test_a_buildable_decoder_is_what_transformers_builds():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = buildable(3e7, 6e8)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **{name: getattr(config, name) for name in names}))
    assert sum(p.numel() for p in model.parameters()) == config.parameters


def test_a_ladder_tells_its_cost_and_can_be_fitted():
    steps = ladder(1e18, budgets=5, sizes=6)
    assert len(steps.rungs) == 30 and steps.compute == pytest.approx(sum(6 * r.parameters * r.tokens for r in steps.rungs))
    assert steps.hours(1e14) == pytest.approx(steps.compute / 3.6e17) and "30 runs" in str(steps)
    n, d = (np.array([getattr(r, name) for r in steps.rungs]) for name in ("parameters", "tokens"))
    loss = ChinchillaLaw(FORMULA, CONSTANTS).predict(n, d)
    assert relative(Chinchilla(bootstrap=0).fit({"parameters": n, "tokens": d, "loss": loss}).parameters, CONSTANTS) < 1e-3
    with pytest.raises(ValueError, match="1 budgets"):
        ladder(1e18, budgets=1)


# ---- approaches 1 and 2 ----


def test_isoflop_is_exact_where_alpha_equals_beta_on_a_centred_grid_and_biased_elsewhere():
    def error(alpha, beta, width):
        truth = {"E": 1.7, "A": 400.0, "B": 400.0, "alpha": alpha, "beta": beta}
        law, rows = ChinchillaLaw(FORMULA, truth), {"parameters": [], "compute": [], "loss": []}
        for compute in np.geomspace(1e18, 1e21, 5):
            for n in law.optimum(compute)[0] * np.geomspace(1 / width, width, 9):
                rows["parameters"].append(n)
                rows["compute"].append(compute)
                rows["loss"].append(float(law.predict(n, compute / (6 * n))))
        found = Chinchilla(approach=2, bootstrap=0).fit(rows)
        return abs(found.plan(1e21).parameters[0] / law.optimum(1e21)[0] - 1), abs(found.exponent - law.exponent)

    assert max(error(0.35, 0.35, 8)) < 1e-6
    narrow, wide = error(0.45, 0.25, 2)[0], error(0.45, 0.25, 16)[0]
    assert 1e-4 < narrow < wide


@pytest.mark.parametrize("approach", [1, 2])
def test_frontiers_find_the_exponent_and_know_no_loss_off_it(approach, tmp_path):
    law = Chinchilla(approach=approach, bootstrap=60).fit(wide_table())
    a, low, high = law.exponents()["a"]
    assert low <= a <= high and abs(a - 0.5036) < 0.06
    with pytest.raises(ValueError, match="approach=3"):
        law.predict(1e9, 1e10)
    law.save(tmp_path)
    assert json.loads((tmp_path / "fit.json").read_text())["a"]["value"] == pytest.approx(a)
    again = Frontier.load(tmp_path)
    assert again.plan(1e21).parameters == pytest.approx(law.plan(1e21).parameters)
    assert (tmp_path / "fit.png").stat().st_size > 1000


def wide_table():
    """Five IsoFLOP budgets and, for the envelope, eight sizes at seven horizons."""
    law, dice = ChinchillaLaw(FORMULA, CONSTANTS), np.random.default_rng(0)
    budgets = [(n, c / (6 * n)) for c in np.geomspace(1e18, 1e21, 5) for n in law.optimum(c)[0] * np.geomspace(0.3, 3, 9)]
    curves = [(n, d) for n in np.geomspace(3e7, 1e10, 8) for d in n * np.geomspace(1, 300, 7)]
    n, d = np.array(budgets + curves).T
    return {"parameters": n, "tokens": d, "loss": law.predict(n, d) * np.exp(0.002 * dice.normal(size=len(n)))}


def test_a_vertex_outside_the_sampled_sizes_is_left_out_and_told():
    law, rows = ChinchillaLaw(FORMULA, CONSTANTS), []
    for compute, shift in ((1e18, 1.0), (1e19, 1.0), (1e20, 30.0)):
        rows += [(n, compute / (6 * n)) for n in shift * law.optimum(compute)[0] * np.geomspace(0.4, 2.5, 7)]
    n, d = np.array(rows).T
    found = Chinchilla(approach=2, bootstrap=0).fit({"parameters": n, "tokens": d, "loss": law.predict(n, d)})
    assert any("no minimum inside the sampled sizes" in note for note in found.about["notes"]) and len(found.points) == 2
    runs = read({"parameters": n, "tokens": d, "loss": law.predict(n, d)})
    with pytest.raises(ValueError, match="found 1"):
        isoflop(runs, [np.arange(7), np.arange(14, 21)])
    assert fit_frontier(isoflop(runs, [np.arange(7), np.arange(7, 14)]))["exponent"] == pytest.approx(found.exponent)


# ---- intervals, runs, files ----


def test_whole_runs_are_drawn():
    weights = bootstrap_weights(["a", "a", "b", "c"], 40, seed=1)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, [0, 2, 3]].sum(1) == 3).all()
    inside = bootstrap_weights(list("abcd"), 40, seed=1, strata=[0, 0, 1, 1])
    assert (inside[:, :2].sum(1) == 2).all() and (inside[:, 2:].sum(1) == 2).all()


def test_checkpoints_count_only_under_a_constant_schedule_and_never_as_runs_of_their_own():
    table = isoflop_table(seed=2, budgets=5, sizes=5)
    ends = {**table, "run": np.array([f"r{i}" for i in range(25)])}
    early = {**ends, "tokens": ends["tokens"] / 3, "compute": ends["compute"] / 3, "loss": ends["loss"] * 1.4}
    both = {name: np.concatenate([early[name], ends[name]]) for name in ends}
    finished = Chinchilla(bootstrap=20).fit(both)
    assert relative(finished.parameters, Chinchilla(bootstrap=0).fit(table).parameters) < 1e-9
    assert any("25 intermediate rows left out" in note for note in finished.about["notes"])
    assert Chinchilla(bootstrap=20, schedule="constant").fit(both).about["rows"] == 50
    few = {name: values[np.r_[0:5, 25:30]] for name, values in both.items()}
    with pytest.raises(ValueError, match="6"):
        Chinchilla(schedule="constant").fit(few)


def test_highest_losses_are_never_dropped_silently():
    table = isoflop_table(seed=1)
    table["loss"][[3, 40]] *= 1.5
    law = Chinchilla(bootstrap=0, drop_highest_losses=2).fit(table)
    assert law.about["rows"] == 70 and set(law.about["without_dropping"]) == set(CONSTANTS)
    assert any("2 highest losses left out" in note for note in law.about["notes"])
    whole = Chinchilla(bootstrap=0).fit(table)
    assert any("robust deviations" in note for note in whole.about["notes"])
    with pytest.raises(ValueError, match="drop_highest_losses=72"):
        Chinchilla(drop_highest_losses=72).fit(table)


def test_the_saved_folder_is_complete_and_loads_alike(tmp_path):
    law = Chinchilla(bootstrap=60, plan_for=(1e22,)).fit(isoflop_table())
    law.save(tmp_path)
    fit = json.loads((tmp_path / "fit.json").read_text())
    for name in ("E", "A", "B", "alpha", "beta", "a", "b"):
        assert fit[name]["low"] <= fit[name]["value"] <= fit[name]["high"]
    assert [plan["compute"] for plan in fit["plan"]] == [1e22] and fit["plan"][0]["parameters"]["low"] < fit["plan"][0]["parameters"]["high"]
    for name in ("plan.csv", "summary.md", "runs.csv", "fit.png", "draws.json"):
        assert (tmp_path / name).stat().st_size > 0
    plain, full = Law.load(tmp_path), ChinchillaLaw.load(tmp_path)
    for other in (plain, full):
        np.testing.assert_allclose(other.predict([1e8, 1e9], [1e9, 1e10]), law.predict([1e8, 1e9], [1e9, 1e10]), rtol=1e-12)
        np.testing.assert_allclose(other.predictive(1e9, 1e10), law.predictive(1e9, 1e10), rtol=1e-4)
    assert full.plan(1e22).parameters == pytest.approx(law.plan(1e22).parameters, rel=1e-6)
    full.plot()
    first = {path.name: path.read_bytes() for path in tmp_path.glob("*.json")}
    Chinchilla(bootstrap=60, plan_for=(1e22,)).fit(isoflop_table()).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.json")} == first


def test_without_a_bootstrap_there_is_no_interval(tmp_path):
    law = Chinchilla(bootstrap=0).fit(isoflop_table())
    law.save(tmp_path)
    assert json.loads((tmp_path / "fit.json").read_text())["alpha"]["low"] is None
    with pytest.raises(ValueError, match="bootstrap > 0"):
        law.predictive(1e9, 1e10)


def test_a_table_part_a_frame_and_arrays_give_the_same_law():
    import pandas as pd
    from datasets import Dataset

    from etude.data.contract import Table

    table = isoflop_table(budgets=4, sizes=5)
    part = Table(Dataset.from_dict({"size in N": table["parameters"], "T": table["tokens"], "y": table["loss"]}),
                 {"parameters": "size in N", "tokens": "T", "loss": "y"})  # fmt: skip
    frame = pd.DataFrame({"Model Size": table["parameters"], "Training FLOP": 6 * table["parameters"] * table["tokens"], "loss": table["loss"]})
    laws = [Chinchilla(bootstrap=0).fit(given).parameters for given in (table, part, frame)]
    assert relative(laws[1], laws[0]) < 1e-9 and relative(laws[2], laws[0]) < 1e-6


def test_flops_follow_the_table_or_the_user():
    table = isoflop_table(budgets=4, sizes=5)
    assert read({**table, "compute": 1.5 * table["compute"]}).flops == pytest.approx(9)
    assert read({k: v for k, v in table.items() if k != "compute"}, flops=8.0).compute[0] == pytest.approx(8 / 6 * table["compute"][0])
    law = Chinchilla(bootstrap=0, counts="non-embedding").fit({**table, "compute": 1.5 * table["compute"]})
    n, d = law.optimum(9e20)
    assert n * d == pytest.approx(1e20) and law.about["counts"] == "non-embedding"


def test_trainer_histories_become_columns():
    log = [{"step": 10 * k, "eval_loss": 5 - 0.1 * k, "num_input_tokens_seen": 1000 * k} for k in range(1, 4)] + [{"step": 30, "train_runtime": 3.0}]
    columns = trainer_history({"log_history": log, "total_flos": 6 * 500 * 3000}, "one")
    assert columns["parameters"] == [500.0] * 3 and columns["tokens"] == [1000, 2000, 3000] and columns["run"] == ["one"] * 3
    with pytest.raises(ValueError, match="include_num_input_tokens_seen"):
        trainer_history({"log_history": [{"loss": 1.0}]}, "two")
    with pytest.raises(ValueError, match="total_flos is 0"):
        trainer_history({"log_history": log, "total_flos": 0}, "three")


@given(st.floats(-5, 5), st.floats(0.1, 5))
@settings(max_examples=30, deadline=None)
def test_formulas_are_arithmetic_and_nothing_else(x, y):
    assert evaluate("exp(-x) * (x + 2) / y ** 2 - log(y)", {"x": x, "y": y}) == pytest.approx(math.exp(-x) * (x + 2) / y**2 - math.log(y))
    for bad in ("__import__('os')", "x.real", "[x]", "x if y else y", "z + 1", "'text'", "exp(x=1)", "True"):
        with pytest.raises(ValueError, match="formula"):
            evaluate(bad, {"x": x, "y": y})


# ---- refusals ----


def changed(name, row, value):
    table = {k: list(v) for k, v in isoflop_table(budgets=4, sizes=5).items()}
    table[name][row] = value
    return table


@pytest.mark.parametrize(
    ("value", "told"), [(-0.3, "-0.3"), (0.0, "0.0"), (float("nan"), "nan"), (None, "missing or not a number"), ("n/a", "n/a"), (math.inf, "inf")]
)
def test_a_loss_that_is_no_positive_number_is_refused_with_its_row(value, told):
    with pytest.raises(ValueError, match=rf"row 3: loss is {told}, .* correct or remove the row"):
        Chinchilla().fit(changed("loss", 2, value))
    with pytest.raises(ValueError, match=rf"row 1: parameters is {told}"):
        Chinchilla().fit(changed("parameters", 0, value))


def some(rows):
    return {name: values[rows] for name, values in isoflop_table(budgets=4, sizes=5).items()}


def test_too_few_runs_are_refused():
    with pytest.raises(ValueError, match="holds 5 runs, a law needs at least 6: add runs"):
        Chinchilla().fit(some(slice(0, 5)))


def test_too_few_sizes_or_token_counts_are_refused():
    n, d = np.repeat([1e8, 1e9], 4), np.tile([1e9, 2e9, 4e9, 8e9], 2)
    loss = ChinchillaLaw(FORMULA, CONSTANTS).predict(n, d)
    with pytest.raises(ValueError, match="2 distinct model sizes, a law needs at least 3: .* vary them"):
        Chinchilla().fit({"parameters": n, "tokens": d, "loss": loss})
    with pytest.raises(ValueError, match="2 distinct token counts"):
        Chinchilla().fit({"parameters": d, "tokens": n, "loss": loss})


def test_a_fixed_ratio_of_tokens_to_parameters_is_refused():
    n = np.geomspace(1e7, 1e10, 8)
    with pytest.raises(ValueError, match=r"D = 20 N: .* only L\(C\) can; add runs"):
        Chinchilla().fit({"parameters": n, "tokens": 20 * n, "loss": 2 + 400 * n**-0.3})


def test_an_accuracy_passed_as_loss_is_refused():
    table = isoflop_table()
    with pytest.raises(ValueError, match="rises with model size .* is it an accuracy"):
        Chinchilla().fit({**table, "loss": np.exp(-table["loss"])})


def test_missing_columns_are_named():
    table = isoflop_table(budgets=4, sizes=5)
    with pytest.raises(ValueError, match=r"no loss column \(it has parameters, tokens, compute\)"):
        Chinchilla().fit({k: v for k, v in table.items() if k != "loss"})
    with pytest.raises(ValueError, match="neither tokens nor compute"):
        Chinchilla().fit({k: table[k] for k in ("parameters", "loss")})


@pytest.mark.parametrize(
    "options",
    [
        {"approach": 4},
        {"delta": 0.0},
        {"delta": math.nan},
        {"bootstrap": -1},
        {"drop_highest_losses": -1},
        {"search": "guess"},
        {"schedule": "linear"},
        {"counts": "all"},
        {"budgets": (0.0,)},
        {"plan_for": (-1.0,)},
        {"flops": 0.0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Chinchilla(**options)


def test_what_cannot_be_told_is_told():
    table = isoflop_table({**CONSTANTS, "A": 1e-9}, noise=0.001)
    notes = Chinchilla(bootstrap=0).fit(table).about["notes"]
    assert any("A is not identified" in note or "alpha is" in note for note in notes), notes
    short = isoflop_table(budgets=2, sizes=5)
    notes = Chinchilla(bootstrap=0).fit(short).about["notes"]
    assert any("less than a decade" in note for note in notes) and any("10 runs for five constants" in note for note in notes)


# ---- the paper's own runs ----

FIGURE4 = Path(os.environ.get("ETUDE_DATA", "")) / "scaling" / "chinchilla_figure4.csv"


@pytest.mark.skipif(not FIGURE4.is_file(), reason="ETUDE_DATA has no scaling/chinchilla_figure4.csv")
def test_the_papers_runs_give_the_replications_constants():
    import pandas as pd

    from etude.study.chinchilla.experiment import parametric_exponent

    frame = pd.read_csv(FIGURE4)
    law = Chinchilla(drop_highest_losses=5, bootstrap=100).fit(frame)
    p = law.parameters
    assert abs(p["alpha"] - 0.348) < 0.02 and abs(p["beta"] - 0.366) < 0.03 and abs(p["E"] - 1.82) < 0.05
    assert law.about["objective"] == pytest.approx(0.00101827, rel=1e-5)
    assert 15 < law.plan(5.76e23).tokens_per_parameter < 25
    assert parametric_exponent(read(frame).without_highest_losses(5)) == pytest.approx(law.exponent, abs=1e-5)
