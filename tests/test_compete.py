"""The contest runner on a tiny trained model: resuming, refusals, methods and metrics of the user's own, what is handed over."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from etude.compress import planted
from etude.harness.compete import apply_from, compete
from etude.harness.request import Request, claim_out, parse_budget, parse_share

METHOD = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Halve:
    share: float = 0.5

    def compress(self, model, data):
        blocks = model.transformer.h if hasattr(model, "transformer") else model.model.layers
        keep = max(1, round(len(blocks) * self.share))
        del blocks[keep:]
        model.config.num_hidden_layers = keep
        if getattr(model.config, "layer_types", None):
            model.config.layer_types = model.config.layer_types[:keep]
        return model

class NoDataclass:
    def compress(self, model, data):
        return model

@dataclass(frozen=True)
class NoVerb:
    share: float = 0.5

@dataclass(frozen=True)
class Raises:
    def compress(self, model, data):
        raise RuntimeError("no luck")

def blocks_gone(model, tokenizer, texts):
    return -float(model.config.num_hidden_layers)
"""
WITHOUT = ("magnitude", "gptq", "svd", "block_drop", "round_to_nearest")


@pytest.fixture(scope="module")
def request_(tmp_path_factory):
    room = tmp_path_factory.mktemp("compete")
    (room / "my_file.py").write_text(METHOD)
    brought = planted.plant(room, steps=60)
    return Request(
        out=room / "out",
        names=("untouched",),
        family="compress",
        with_file=f"{room / 'my_file.py'}:Halve",
        without=WITHOUT,
        brought=brought,
        seeds=1,
        dtype="float32",
    )


@pytest.fixture(scope="module")
def results(request_):
    return compete(request_, lambda line: None)


class Count:
    """Progress that counts what really ran."""

    def __init__(self):
        self.ran = 0

    def started(self, job):
        self.ran += 1

    def finished(self, record): ...
    def expect(self, total): ...
    def forecast(self, total): ...
    def standing(self, rows): ...


def stable(results):
    return {key: value for key, value in results.items() if key not in ("created", "seal")}


def test_the_same_contest_again_does_no_work_and_says_the_same(request_, results):
    count = Count()
    again = compete(request_, lambda line: None, count)
    assert count.ran == 0
    assert stable(again) == stable(results)


def test_a_method_from_a_file_competes_and_is_in_the_report(request_, results):
    own = next(one for one in results["contenders"] if one["source"] == "file")
    assert (
        own["name"] == "halve" and own["error"] is None and own["summary"]["bytes"]["value"] < results["contenders"][0]["summary"]["bytes"]["value"]
    )
    assert "halve" in (request_.out / "report.html").read_text()


@pytest.mark.parametrize(
    ("cls", "reason"),
    [("NoDataclass", "no dataclass"), ("NoVerb", "lacks the verb"), ("Raises", "no luck"), ("Absent", "defines no class")],
)
def test_a_broken_method_is_refused_with_the_reason(request_, cls, reason, tmp_path):
    path = request_.with_file.rpartition(":")[0]
    with pytest.raises(ValueError, match=reason):
        compete(replace(request_, with_file=f"{path}:{cls}", out=tmp_path / "out"), lambda line: None)


def test_a_metric_of_the_users_own_decides(request_, results, tmp_path):
    path = request_.with_file.rpartition(":")[0]
    told = compete(replace(request_, metric=f"{path}:blocks_gone", out=tmp_path / "out"), lambda line: None)
    assert told["quality"] == "blocks_gone"
    assert told["recommendation"]["name"] == "halve"


def test_a_metric_that_takes_other_arguments_is_told_which_it_gets(request_, tmp_path):
    (tmp_path / "short.py").write_text("def score(model, data):\n    return 1.0\n")
    with pytest.raises(ValueError, match=r"write def score\(model, tokenizer, texts\)"):
        compete(replace(request_, out=tmp_path / "out", metric=f"{tmp_path / 'short.py'}:score"), print)


def test_a_contest_that_never_finished_makes_room_for_another(request_, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "contest.json").write_text('{"identity": "of another"}')
    claim_out(replace(request_, out=out), "mine")
    assert json.loads((out / "contest.json").read_text())["identity"] == "mine"


def test_an_out_that_holds_anything_else_is_refused(request_, results, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="holds other things"):
        compete(replace(request_, out=tmp_path), lambda line: None)
    assert (tmp_path / "thesis.tex").read_text() == "mine"
    with pytest.raises(ValueError, match="another contest"):
        compete(replace(request_, seeds=3), lambda line: None)


def test_what_is_recommended_is_handed_over_as_it_was_measured(request_, results):
    digest, about = apply_from(request_.out / "results.json", request_, lambda line: None)
    assert digest in {seed["built"] for seed in about["contender"]["seeds"]}


def test_a_dry_run_writes_nothing(request_, results, tmp_path):
    said = []
    compete(replace(request_, out=tmp_path / "none", dry_run=True), said.append)
    assert not (tmp_path / "none").exists()
    assert any("min" in line and "memory" in line and "disk" in line for line in said)


@pytest.mark.parametrize("text", ["fast", "-1", "2", "0", "60s", "5000tokens", "nan", "120 parsecs"])
def test_a_budget_that_the_contest_does_not_know_is_refused(text):
    from etude.compress.contest import LanguageModels

    with pytest.raises(ValueError, match="--budget"):
        parse_budget(text, LanguageModels())


@pytest.mark.parametrize(("text", "axis", "amount"), [("0.5", "bytes", 0.5), ("120MB", "bytes", 1.2e8), ("2x faster", "prefill", 2.0)])
def test_budgets_are_read(text, axis, amount):
    from etude.compress.contest import LanguageModels

    found = parse_budget(text, LanguageModels())
    assert (found["axis"], found["amount"]) == (axis, amount)


@pytest.mark.parametrize("text", ["much", "-2%", "120%", ""])
def test_a_loss_that_is_no_share_is_refused(text):
    with pytest.raises(ValueError, match="--max-loss"):
        parse_share(text, "--max-loss")


def test_results_on_disk_are_plain_json(request_, results):
    assert json.loads(Path(request_.out / "results.json").read_text())["schema"] == 1
