"""Études are played, judged, recorded and verified: a toy étude in a package of its own."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etude import catalogue
from etude.harness import play, verify
from etude.harness.runner import Runner
from etude.harness.store import Store
from etude.measure.contract import Items

SOURCE = '''
"""A toy étude."""

import random
from dataclasses import dataclass
from functools import partial

from etude.harness.contract import Claim, Experiment
from etude.harness.verdict import above, beats, exact
from etude.measure.contract import Items, Metrics


@dataclass(frozen=True)
class Scale:
    blocks: int


class Sure(Experiment[Scale]):
    claims = (
        beats("good", "bad", "loss", by=0.5, row="1"),
        Claim("the same on every block", lambda m: m["bad"].loss - m["good"].loss, above(0.5), over="blocks", row="2"),
        Claim("two parameters", lambda m: m["good"].parameters, exact(2, 0), over="none", row="3"),
    )
    scales = {"smoke": Scale(4), "desk": Scale(12)}

    def prepare(self, run, scale, folder):
        (folder / "teacher").write_text("0.1")

    def prepare_seed(self, run, scale, folder):
        (folder / "start").write_text((run.path("prepared") / "teacher").read_text() + str(run.seed))

    def arms(self, scale):
        return {"good": partial(measure, 1.0), "bad": partial(measure, 2.0)}

    def plot(self, runs):
        from matplotlib.figure import Figure

        figure = Figure()
        figure.add_subplot().plot([m.loss for m in runs.values()])
        return figure


class Unsure(Experiment[Scale]):
    claims = (beats("left", "right", "loss"),)
    scales = {"smoke": Scale(4), "desk": Scale(12)}

    def arms(self, scale):
        return {"left": noise, "right": noise}

    def plot(self, runs):
        from matplotlib.figure import Figure

        return Figure()


class Broken(Experiment[Scale]):
    claims = (beats("one", "other", "loss"),)
    scales = {"smoke": Scale(4), "desk": Scale(4)}

    def arms(self, scale):
        return {"one": fails, "other": noise}

    def plot(self, runs):
        return None


def measure(base, run, scale):
    start = float((run.path("seed") / "start").read_text())
    dice = random.Random(f"{run.arm}{run.seed}")
    losses = [base + start / 1e3 + dice.gauss(0, 0.05) for _ in range(scale.blocks)]
    return Metrics(loss=Items.of(range(scale.blocks), losses), parameters=2.0, curve=[1.0, float("nan")])


def noise(run, scale):
    return Metrics(loss=random.Random(f"a{run.arm}{run.seed}").gauss(0, 1))


def fails(run, scale):
    raise ValueError("the toy is broken")


EXPERIMENTS = (Sure, Unsure)
'''


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("toys")
    folder = root / "toy_package" / "toy"
    folder.mkdir(parents=True)
    (root / "toy_package" / "__init__.py").touch()
    (folder / "__init__.py").touch()
    (folder / "experiment.py").write_text(textwrap.dedent(SOURCE))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root))
        patch.setenv("ETUDE_HOME", str(root / "home"))
        yield folder


def toy(folder: Path, *names: str) -> play.Study:
    import importlib

    module = importlib.import_module("toy_package.toy.experiment")
    return play.Study("toy", "compress", "0000.00000", folder, {name: getattr(module, name)() for name in names})


def runner(folder: Path) -> Runner:
    return Runner(Store(folder.parent.parent / "home" / "etude.sqlite"), jobs=2, preload=())


@pytest.fixture(scope="module")
def desk(package: Path) -> dict[str, Any]:
    return play.play_study(toy(package, "Sure", "Unsure"), runner(package), "desk")


def test_desk_records_verdicts_runs_and_plots(desk: dict[str, Any], package: Path) -> None:
    assert desk["failures"] == [] and desk["path"] == str(package / "desk.json")
    record = json.loads((package / "desk.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    sure, unsure = record["experiments"]["Sure"], record["experiments"]["Unsure"]
    assert record["verdict"] == "reproduced" and (record["name"], record["paper"], record["scale"]) == ("toy", "0000.00000", "desk")
    assert [claim["status"] for claim in sure["claims"]] == ["reproduced"] * 3
    assert [claim["row"] for claim in sure["claims"]] == ["1", "2", "3"]
    assert sure["conditional"] and not unsure["conditional"]
    assert len(sure["runs"]) == 6 and set(sure["runs"][0]["metrics"]["loss"]) == {"ids", "top"}
    assert sure["runs"][0]["metrics"]["curve"] == [1.0, "nan"]
    assert all((package / name).read_bytes().startswith(b"\x89PNG") for name in ("desk.png", "desk_Unsure.png"))


def test_seeds_are_added_where_a_claim_is_open(desk: dict[str, Any]) -> None:
    assert desk["experiments"]["Sure"]["claims"][0]["seeds"] == 3
    claim = desk["experiments"]["Unsure"]["claims"][0]
    assert claim["seeds"] == 10 and claim["status"] == "inconclusive" and claim["needed"] > 10 and claim["half_width"] > 0


def test_playing_again_runs_nothing_and_records_the_same(desk: dict[str, Any], package: Path) -> None:
    before = (package / "desk.json").read_text()
    again = runner(package)
    played = play.play_study(toy(package, "Sure", "Unsure"), again, "desk")
    assert (package / "desk.json").read_text() == before and played["seal"] == desk["seal"]


def test_smoke_returns_and_writes_nothing(package: Path) -> None:
    found = play.play_study(toy(package, "Sure", "Unsure"), runner(package), "smoke")
    assert found["failures"] == [] and found["path"] is None and not (package / "smoke.json").exists()
    assert {len(e["runs"]) for e in found["experiments"].values()} == {2}


def test_a_failed_arm_is_named_and_nothing_is_written(package: Path, tmp_path: Path) -> None:
    one = play.Study("toy", "compress", "", tmp_path, toy(package, "Broken").experiments)
    found = play.play_study(one, runner(package), "desk")
    assert found["path"] is None and not list(tmp_path.iterdir())
    assert {(f["arm"], f["error"]) for f in found["failures"]} == {("one", "the toy is broken")}
    assert found["verdict"] == "inconclusive"


def test_seeds_can_be_given(package: Path, tmp_path: Path) -> None:
    one = play.Study("toy", "compress", "", tmp_path, toy(package, "Unsure").experiments)
    assert play.play_study(one, runner(package), "desk", seeds=2)["experiments"]["Unsure"]["claims"][0]["seeds"] == 2


def test_an_unknown_scale_is_refused(package: Path) -> None:
    with pytest.raises(ValueError, match="no scale 'gpu': it has smoke, desk"):
        play.check_scale(toy(package, "Sure"), "gpu")


# ---- verify ----


@pytest.fixture
def copy(desk: dict[str, Any], package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(catalogue, "experiments", lambda name: toy(package, "Sure", "Unsure").experiments)
    path = tmp_path / "desk.json"
    path.write_text((package / "desk.json").read_text())
    return path


def test_an_honest_record_verifies(copy: Path) -> None:
    found = verify.verify([copy])
    assert found.checked == [str(copy)] and found.differences == [] and found.stale == []


@pytest.mark.parametrize("field", ["estimate", "low", "high", "status", "needed", "half_width", "p", "seeds", "title"])
def test_a_changed_field_of_a_claim_is_named(copy: Path, field: str) -> None:
    record = json.loads(copy.read_text())
    claim = record["experiments"]["Unsure"]["claims"][0]
    claim[field] = claim[field] + "x" if isinstance(claim[field], str) else float(f"{claim[field] * 1.00001:.6g}")
    copy.write_text(json.dumps(verify.sealed(record)))
    (difference,) = verify.verify([copy]).differences
    assert f"experiments.Unsure.claims[0].{field}: recorded" in difference


def test_a_changed_digit_anywhere_is_found(copy: Path) -> None:
    text = copy.read_text()
    places = [m.start() for m in re.finditer(r"\d", text)]
    for place in places[:: max(1, len(places) // 40)]:
        changed = text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]
        copy.write_text(changed)
        try:
            record = verify.read(copy)
        except ValueError:
            continue  # no JSON any more, or a newer form: refused
        assert list(verify.check_seal(record)), changed[place - 30 : place + 30]


def test_a_changed_run_changes_the_claims(copy: Path) -> None:
    record = json.loads(copy.read_text())
    record["experiments"]["Sure"]["runs"][0]["metrics"]["loss"]["top"][0] += 0.01
    del record["seal"]
    assert any("experiments.Sure.claims[0].estimate" in text for text in verify.check_record(record, catalogue.experiments("toy")))


def test_changed_code_makes_a_record_stale_not_wrong(copy: Path) -> None:
    record = json.loads(copy.read_text()) | {"closure": "other"}
    copy.write_text(json.dumps(verify.sealed(record)))
    found = verify.verify([copy])
    assert found.differences == [] and len(found.stale) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"experiments": ', "not JSON"),
        ("[1, 2]", "neither"),
        ('{"a": 1}', "neither"),
        ('{"schema": 2, "name": "toy", "experiments": {}}', "newer etude"),
        ('{"schema": 99, "contenders": []}', "newer etude"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "desk.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        verify.verify([path])


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        verify.verify([tmp_path / "none.json"])


def test_rounding_is_idempotent() -> None:
    items = Items.of("ab", [1.23456789, 2.0], [1.0, 3.0])
    once = play.rounded(items)
    assert once == {"ids": ["a", "b"], "top": [1.23457, 2.0], "bottom": [1.0, 3.0]}
    assert play.rounded(Items.of(**once)) == once
