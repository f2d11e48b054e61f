"""What the flags of a contest do to it, on a tiny model, with nothing in the place of the runner."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from etude.compress import planted
from etude.data.cache import artifact
from etude.data.contract import Split, Text
from etude.harness.compete import compete
from etude.harness.inputs import adopt
from etude.harness.referee import Measured
from etude.harness.request import Request
from etude.harness.store import lock
from etude.measure.contract import Metrics
from etude.nn.tiny import tiny_sentences

FEW = ("magnitude", "gptq", "svd", "block_drop")


@pytest.fixture(scope="module")
def request_(tmp_path_factory):
    room = tmp_path_factory.mktemp("flags")
    brought = planted.plant(room, steps=40)
    return Request(out=room / "out", names=("untouched",), family="compress", without=FEW, brought=brought, seeds=1, dtype="float32")


@pytest.fixture(scope="module")
def said(request_):
    lines = []
    return compete(request_, lines.append), lines


def texts(results, name, request):
    """The held-out text of a part, from the store's own folders."""
    lines = []
    inputs = gathered(request, lines)
    return "".join(Split.load(artifact(inputs.digests[name]))[Text].column("text"))


def gathered(request, lines):
    from etude.harness.inputs import gather
    from etude.harness.request import contest_for

    return gather(request, contest_for(request), lines.append)


def test_the_four_parts_share_no_text(request_, said):
    parts = [texts(said[0], name, request_) for name in ("train", "validation", "choice", "test")]
    whole = Path(request_.brought["data"]).read_text()
    assert all(part in whole for part in parts) and sum(map(len, parts)) < len(whole)
    places = sorted((whole.index(part), len(part)) for part in parts)
    assert all(start + length <= after for (start, length), (after, _) in pairwise(places))


@pytest.mark.parametrize(("flag", "part"), [("validation", "validation"), ("test", "test"), ("calibration", "train")])
def test_a_file_of_the_users_own_takes_a_parts_place(request_, said, tmp_path, flag, part):
    (tmp_path / "own.txt").write_text("".join(tiny_sentences(900, seed=7)))
    asked = replace(request_, out=tmp_path / "out", **{flag: str(tmp_path / "own.txt")})
    assert texts(None, part, asked) == (tmp_path / "own.txt").read_text()
    others = {"train", "validation", "choice", "test"} - {part}
    before, after = gathered(request_, []), gathered(asked, [])
    assert all(before.digests[name] == after.digests[name] for name in others)


def test_duplicate_rows_are_dropped_aloud(request_, tmp_path):
    rows = [{"text": f"row number {i % 60} says something", "label": "ab"[i % 60 % 2]} for i in range(120)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = []
    inputs = gathered(replace(request_, brought=request_.brought | {"data": str(tmp_path / "rows.jsonl")}), lines)
    assert [line for line in lines if "repeat" in line] == ["60 of 120 rows repeat an earlier one and are left out"]
    assert inputs.about["data"]["rows"]["Rows"] == 60


def test_the_same_bytes_read_in_another_form_are_other_data(request_, tmp_path):
    table = "text,label\n" + "".join(f"sentence number {i} of some length,{'ab'[i % 2]}\n" for i in range(2000))
    for name in ("d.csv", "d.txt"):
        (tmp_path / name).write_text(table)
    as_rows, as_text = (gathered(replace(request_, brought=request_.brought | {"data": str(tmp_path / name)}), []) for name in ("d.csv", "d.txt"))
    assert set(as_text.about["data"]["splits"]["test"]) == {"Text"} and "Rows" in as_rows.about["data"]["splits"]["test"]


def test_dev_leaves_the_test_part_closed(request_, tmp_path):
    results = compete(replace(request_, out=tmp_path / "out", dev=True), lambda line: None)
    assert results["openings"] == 0 and "--dev" in results["recommendation"]["provisional"]


def test_samples_are_there_only_when_asked_for(request_, said, tmp_path):
    spoken = compete(replace(request_, out=tmp_path / "out", with_samples=True), lambda line: None)
    assert spoken["samples"] and "samples" not in said[0]
    assert next(iter(spoken["samples"].values()))[0][:12] in (tmp_path / "out" / "report.html").read_text()


def test_a_budget_and_a_loss_decide(request_, tmp_path):
    tight = compete(replace(request_, out=tmp_path / "tight", budget=("0.45",)), lambda line: None)
    assert tight["recommendation"]["name"] != "untouched" and not next(c for c in tight["contenders"] if c["name"] == "untouched")["reached"]
    never = compete(replace(request_, out=tmp_path / "never", budget=("1KB",)), lambda line: None)
    assert never["recommendation"]["line"].startswith("No recommendation: no contender keeps the budget (1KB)")
    speed = compete(replace(request_, out=tmp_path / "speed", prefer="speed", max_loss="50%"), lambda line: None)
    assert "the fastest within 50 %" in speed["recommendation"]["line"] or speed["recommendation"]["status"] == "close"


def test_speed_chooses_the_faster_point_and_size_the_smaller():
    from etude import catalogue
    from etude.harness.referee import Referee

    referee = Referee.__new__(Referee)
    referee.contest, referee.limits, referee.max_loss, referee.reference_cost = catalogue.contest("compress"), [], 0.5, None
    referee.base = Metrics(bits_per_byte=1.0, bytes=10.0)
    tried = [Measured({}, 0, metrics=Metrics(bits_per_byte=1.0, bytes=b, decode=speed, prefill=1.0)) for b, speed in ((5.0, 10.0), (6.0, 1000.0))]
    for prefer, place in (("speed", 1), ("size", 0)):
        referee.request = Request(Path(), prefer=prefer)
        referee.inputs = type("Inputs", (), {"quality": "bits_per_byte"})()
        assert referee.choose(None, tried) == place


def test_a_second_process_on_the_same_contest_is_refused_and_changes_nothing(request_, said):
    before = {path.name: path.read_bytes() for path in request_.out.iterdir() if path.name != "lock"}
    with lock(request_.out), pytest.raises(ValueError, match="at work in"):
        compete(replace(request_, seeds=2, force=True), lambda line: None)
    assert {path.name: path.read_bytes() for path in request_.out.iterdir() if path.name != "lock"} == before


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"budget": ("abc",)}, "--budget"),
        ({"device": "gpu"}, "--device gpu: give cpu, cuda"),
        ({"dtype": "float99"}, "--dtype float99: give float32"),
        ({"revision": "main"}, "--revision main is of a model on the hub"),
        ({"metric": f"{__file__}:missing"}, "has no function 'missing'"),
    ],
)
def test_a_refused_command_loses_nothing(request_, said, wrong, told):
    before = {path.name: path.read_bytes() for path in request_.out.iterdir() if path.name != "lock"}
    with pytest.raises(ValueError, match=told):
        compete(replace(request_, force=True, **wrong), lambda line: None)
    assert {path.name: path.read_bytes() for path in request_.out.iterdir() if path.name != "lock"} == before


def test_less_text_than_one_window_and_a_model_without_all_its_tensors_are_refused(request_, tmp_path):
    from safetensors.torch import load_file, save_file

    (tmp_path / "short.txt").write_text("".join(tiny_sentences(6)))
    with pytest.raises(ValueError, match="window"):
        compete(replace(request_, out=tmp_path / "a", test=str(tmp_path / "short.txt")), lambda line: None)
    shutil.copytree(request_.brought["model"], tmp_path / "lacking")
    tensors = load_file(tmp_path / "lacking" / "model.safetensors")
    tensors.pop("model.layers.0.mlp.down_proj.weight")
    save_file(tensors, tmp_path / "lacking" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 tensors \(model.layers.0.mlp.down_proj.weight"):
        compete(replace(request_, out=tmp_path / "b", brought=request_.brought | {"model": str(tmp_path / "lacking")}), lambda line: None)


def test_texts_longer_than_the_context_are_counted_aloud(request_, tmp_path):
    rows = [{"text": f"row {i} " + "goes on and on " * (60 if i % 4 == 0 else 2), "label": "ab"[i % 2]} for i in range(400)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = []
    compete(replace(request_, out=tmp_path / "out", brought=request_.brought | {"data": str(tmp_path / "rows.jsonl")}, dry_run=True), lines.append)
    assert any("longer than the model's context of 512 tokens" in line for line in lines), lines


def test_a_folder_that_changed_is_not_taken_for_what_it_was(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text("the same")
    digest = adopt(tmp_path / "one")
    (tmp_path / "one" / "weights").write_text("changed")
    assert adopt(tmp_path / "other") == digest and (artifact(digest) / "weights").read_text() == "the same"
