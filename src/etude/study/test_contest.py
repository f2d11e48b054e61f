"""The contest of laws: split by compute, known answers, seconds and coverage measured, bad tables refused before any work."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest

from etude.data.contract import Split, Table
from etude.harness.compete import compete
from etude.harness.contract import Run
from etude.harness.request import Request
from etude.study import planted
from etude.study._law import Law
from etude.study._synthetic import CONSTANTS, csv_text, isoflop_table
from etude.study.contest import EXAMPLE, ScalingLaws


def part(**options) -> Table:
    from datasets import Dataset

    columns = {name: values.tolist() for name, values in isoflop_table(**options).items()}
    return Table(Dataset.from_dict(columns), {name: name for name in columns})


def test_the_embedded_table_is_the_synthetic_one():
    with open(EXAMPLE) as file:
        assert file.read() == csv_text(isoflop_table(seed=2203))


def test_the_split_goes_up_by_compute_and_loses_no_run():
    table = part()
    pieces = [split[Table] for split in ScalingLaws().split(Split(table), 0)]
    spans = [(min(piece.column("compute")), max(piece.column("compute"))) for piece in pieces]
    assert all(below[1] <= above[0] * 1.0001 for below, above in pairwise(spans))
    assert sum(map(len, pieces)) == len(table) and len(pieces[3]) >= len(table) // 4


def test_rows_of_one_run_stay_together():
    table = part(budgets=6, sizes=4)
    names = [f"run{i // 2}" for i in range(len(table))]
    with_runs = Table(table.dataset.add_column("run", names), {**table.roles, "run": "run"})
    pieces = [set(split[Table].column("run")) for split in ScalingLaws().split(Split(with_runs), 0)]
    assert not any(a & b for i, a in enumerate(pieces) for b in pieces[i + 1 :])


def test_too_small_a_table_is_refused():
    with pytest.raises(ValueError, match="9 runs, a contest of laws needs 10"):
        ScalingLaws().split(Split(part(budgets=3, sizes=3)), 0)


def test_a_true_law_has_no_error_and_a_wrong_one_has_it(tmp_path):
    contest, run = ScalingLaws(), Run("contest:study/ScalingLaws", "true", "user", 0)
    table, held_out = part(noise=0.0), Split(part(noise=0.0, lowest=1e22, budgets=2))
    for name, floor in (("true", 1.0), ("worn", 1.05)):
        Law(planted.FORMULA, CONSTANTS | {"E": floor * CONSTANTS["E"]}).save(tmp_path / name)
    metrics = {name: contest.measure(tmp_path / name, held_out, run) for name in ("true", "worn")}
    assert metrics["true"].log_error < 1e-12 < 0.01 < metrics["worn"].log_error
    assert "coverage" not in metrics["true"] and metrics["true"].bytes > 100
    assert contest.floor(Split(table), held_out, run) > metrics["worn"].log_error


def test_a_law_that_predicts_no_loss_is_told(tmp_path):
    Law("E - N", {"E": 1.0}).save(tmp_path)
    with pytest.raises(ValueError, match="predicts a loss of -"):
        ScalingLaws().measure(tmp_path, Split(part()), Run("contest:study/ScalingLaws", "bad", "user", 0))


def test_intervals_cover_new_runs_of_the_same_kind(tmp_path):
    from etude.study.chinchilla import Chinchilla

    law = Chinchilla(bootstrap=200).fit(isoflop_table(seed=1))
    new = isoflop_table(seed=2)
    low, high = law.predictive(new["parameters"], new["tokens"])
    assert 0.85 <= np.mean((low <= new["loss"]) & (new["loss"] <= high)) <= 1


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    room = tmp_path_factory.mktemp("laws")
    request = Request(
        out=room / "out",
        names=("power_law",),
        family="study",
        with_file=f"{planted.__file__}:TrueForm,WornCopy,Twin,OtherTwin",
        without=("kaplan",),
        brought=planted.plant(room),
        seeds=2,
    )
    compete(request, lambda line: None)
    return json.loads((room / "out" / "results.json").read_text())


def test_the_planted_winner_wins_and_the_degraded_copy_loses(results):
    by_name = {one["name"]: one for one in results["contenders"]}
    value = {name: one["summary"]["log_error"]["value"] for name, one in by_name.items()}
    assert not any(one["error"] for one in by_name.values())
    assert results["recommendation"]["name"] in (planted.WINNER, *planted.TWINS) and value[planted.WINNER] < 0.02
    assert value[planted.LOSER] > 1.5 * value[planted.WINNER] and value["power_law"] > 1.5 * value[planted.WINNER]


def test_twins_tie(results):
    one, other = (next(c for c in results["contenders"] if c["name"] == name) for name in planted.TWINS)
    assert not one["deterministic"] and not other["deterministic"]
    assert one["summary"]["log_error"]["low"] <= other["summary"]["log_error"]["high"]
    assert other["summary"]["log_error"]["low"] <= one["summary"]["log_error"]["high"]


def test_what_is_timed_is_there(results):
    assert all(one["summary"]["seconds"]["value"] > 0 for one in results["contenders"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: {**t, "loss": np.r_[-1.0, t["loss"][1:]]}, "-1"),
        (lambda t: {**t, "loss": np.r_[0.0, t["loss"][1:]]}, "loss"),
        (lambda t: {**t, "loss": np.r_[np.nan, t["loss"][1:]]}, "loss"),
        (lambda t: {k: v[:5] for k, v in t.items()}, "5"),
        (lambda t: {k: v[np.isin(t["parameters"], np.unique(t["parameters"])[:2])] for k, v in t.items()}, "a law needs|runs"),
        (lambda t: {**t, "loss": np.exp(-t["loss"])}, "accuracy"),
    ],
    ids=["negative", "zero", "nan", "few rows", "few sizes", "accuracy"],
)
def test_bad_tables_are_refused_before_any_work(change, told, tmp_path):
    (tmp_path / "runs.csv").write_text(csv_text(change(isoflop_table(budgets=4, sizes=5))))
    request = Request(out=tmp_path / "out", family="study", names=("chinchilla",), brought={"data": str(tmp_path / "runs.csv")})
    with pytest.raises(ValueError, match=told):
        compete(request, lambda line: None)
    assert not (tmp_path / "out" / "results.json").exists()
