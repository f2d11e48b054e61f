"""The flags of every command. Those of `compare` and `apply` come from what contests ask for and from a technique's own fields."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from etude import catalogue
from etude.catalogue import Entry
from etude.cli.texts import ABOUT, EXAMPLES
from etude.harness.contract import Need
from etude.options import Option, value_of


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ValueError, and suggests the nearest flag for an unknown one."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; `{self.prog} --help` shows how")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments; names may stand before, between and after flags."""
        options, rest = self.parse_known_intermixed_args(list(argv))
        if rest:
            flag = rest[0].partition("=")[0]
            if flag in (f"--{one.name}" for one in brought_by(catalogue.with_contests())):
                self.error(f"this contest takes no {flag}")
            close = difflib.get_close_matches(flag, [*self._option_string_actions], n=1)
            self.error(f"unknown {'flag' if flag.startswith('-') else 'argument'} {flag}" + (f", did you mean {close[0]}?" if close else ""))
        return options


def parser_of(command: str, argv: Sequence[str]) -> Parser:
    """The parser of one command, given what the user wrote after it."""
    parser = Parser(
        prog=f"etude {command}",
        description=ABOUT[command][0].upper() + ABOUT[command][1:] + ".",
        epilog="\n".join(["examples:", *(f"  {line}" for line in EXAMPLES[command])]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    BUILDERS[command](parser, argv)
    always = parser.add_argument_group("everywhere")
    always.add_argument("--json", action="store_true", help="one JSON document on stdout, and nothing else there")
    always.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def counting(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def pair(text: str) -> tuple[str, str]:
    """ROLE=NAME."""
    role, equals, name = text.partition("=")
    if not (role and equals and name):
        raise argparse.ArgumentTypeError(f"{text!r} is not ROLE=NAME, for instance text=body")
    return role, name


# --- what is brought --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Brought:
    """A flag that contests ask for, and what each family says of it."""

    name: str
    needs: tuple[tuple[str, Need], ...]

    @property
    def help(self) -> str:
        """One sentence, or one a family."""
        said = dict.fromkeys(need.help + (f" (default {spoken(need.default)})" if need.default else "") for _, need in self.needs)
        if len(said) == 1:
            return _safe(next(iter(said)))
        return _safe("; ".join(f"{family}: {words}" for (family, _), words in zip(self.needs, said, strict=False)))


def spoken(default: str) -> str:
    """A default as it is said: a file of the installation's own by its name."""
    return f"the embedded {Path(default).name}" if Path(default).is_absolute() else default


def brought_by(families: Sequence[str]) -> list[Brought]:
    """The flags of these families' contests, those asked for first standing first."""
    asked: dict[str, list[tuple[str, Need]]] = {}
    for family in families:
        for contest in catalogue.contests(family):
            for need in contest.brings:
                asked.setdefault(need.name, []).append((family, need))
    return [Brought(name, tuple(needs)) for name, needs in asked.items()]


def families_in(argv: Sequence[str]) -> tuple[str, ...]:
    """The families that the command line is about, as far as it says; all that hold contests when it does not."""
    for position, word in enumerate(argv):
        family = (
            word.partition("=")[2] if word.startswith("--family=") else argv[position + 1] if word == "--family" and position + 1 < len(argv) else ""
        )
        if family in catalogue.with_contests():
            return (family,)
    known = [entry for entry in map(_entry_in, argv) if entry]
    entered = [family for family in catalogue.with_contests() if any(family in entry.enters for entry in known)]
    return tuple(entered) or catalogue.with_contests()


def _entry_in(word: str) -> Entry | None:
    try:
        return catalogue.find(word.partition(":")[0])
    except ValueError:
        return None


def _safe(text: str) -> str:
    return text.replace("%", "%%")


def add_brought(parser: Parser, families: Sequence[str]) -> None:
    """What the user brings, and how it is read."""
    group = parser.add_argument_group("what you bring")
    for one in brought_by(families):
        group.add_argument(f"--{one.name}", metavar=one.name.upper(), help=one.help)
    for name, purpose in (("validation", "for the methods' own choices"), ("calibration", "from which methods draw samples, instead of DATA")):
        group.add_argument(f"--{name}", metavar="DATA", help=f"a file of your own {purpose}")
    group.add_argument(
        "--column", action="append", type=pair, default=[], metavar="ROLE=NAME", help="which column plays a role: text, label, prompt..."
    )


def add_running(parser: Parser, dry: bool = True) -> None:
    """How it is run."""
    group = parser.add_argument_group("how it runs")
    group.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    group.add_argument("--dtype", help="of the weights: float32, bfloat16... (default: bfloat16 where the processor computes with it, else float32)")
    group.add_argument("--revision", help="a hub model's branch, tag or commit")
    group.add_argument("--force", action="store_true", help="write into an --out that holds something else")
    if dry:
        group.add_argument("--dry-run", action="store_true", help="say what would be done and what it takes, then stop")


# --- one builder a command --------------------------------------------------------------------------------------------


def _list(parser: Parser, argv: Sequence[str]) -> None:
    parser.add_argument("--family", help=f"one of {', '.join(catalogue.families())}")


def _show(parser: Parser, argv: Sequence[str]) -> None:
    parser.add_argument("paper", metavar="PAPER", help="name or arXiv id; a baseline's name serves too")


def _compare(parser: Parser, argv: Sequence[str]) -> None:
    families = families_in(argv)
    parser.add_argument("names", nargs="*", metavar="NAME[:option=value,...]", help="contenders; without, all implemented ones of the family")
    parser.add_argument("--family", help=f"whose contest: {', '.join(catalogue.with_contests())}")
    parser.add_argument("--with", dest="with_file", metavar="FILE.py:CLASS", help="a method of your own: a dataclass with the family's verb")
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave a baseline out")
    add_brought(parser, families)
    parser.add_argument("--test", metavar="DATA", help="a file of your own on which the report's numbers are measured")
    judging = parser.add_argument_group("what wins")
    budget = f"limit of a cost, repeatable; {limits_of(families)}; default: no limit but --max-loss"
    judging.add_argument("--budget", action="append", default=[], metavar="LIMIT", help=budget)
    judging.add_argument(
        "--max-loss", metavar="SHARE", help=f"quality that may be lost against the reference, for instance 5%%; default {_safe(losses(families))}"
    )
    judging.add_argument("--prefer", choices=("size", "speed"), help="the cheapest within --max-loss, instead of the best within the budget")
    judging.add_argument(
        "--metric",
        metavar="FILE.py:FUNCTION",
        help="a quality measure of your own: FUNCTION(model, tokenizer, texts) returns one number, or one a text; more is better",
    )
    judging.add_argument("--seeds", type=counting, help="seeds to report, after the one that chooses (default: the contest's own, 2 or 3)")
    judging.add_argument("--dev", action="store_true", help="stop before the test part is opened")
    judging.add_argument("--with-samples", action="store_true", help="show two samples a contender; the report then holds text of yours")
    add_running(parser)
    parser.add_argument("--jobs", type=counting, help="quality runs at once, one thread each (default: the cores there are)")
    parser.add_argument("--out", metavar="DIR", help="for results.json and report.html; the same contest resumes (default: etude-out/...)")


def limits_of(families: Sequence[str]) -> str:
    """The limits that each family's contest knows, as a user writes them."""
    examples = {"share": "0.5 (of the reference)", "bytes": "120MB", "seconds": "60s", "faster": "'2x faster'", "tokens": "5000tokens"}
    known = {contest.family: [examples[form] for form in contest.budget_axes] for family in families for contest in catalogue.contests(family)}
    return "; ".join(f"{family}: {', '.join(forms)}" for family, forms in known.items())


def losses(families: Sequence[str]) -> str:
    """The loss that each family's contest allows where neither a loss nor a budget is asked for."""
    known = {contest.family: contest.max_loss for family in families for contest in catalogue.contests(family)}
    return ", ".join(f"{family}: {'none' if loss is None else f'{100 * loss:g} % without a budget'}" for family, loss in known.items())


def _apply(parser: Parser, argv: Sequence[str]) -> None:
    entry = named_in(argv)
    parser.add_argument("name", nargs="?", metavar="NAME", help="the method; `etude apply NAME --help` shows its options")
    parser.add_argument("--from", dest="results", metavar="results.json", help="apply what this contest recommends, as it was measured")
    parser.add_argument("--out", metavar="DIR", required=not {"-h", "--help"} & set(argv), help="a new folder, written whole or not at all")
    add_brought(parser, [f for f in entry.enters if f in catalogue.with_contests()] if entry else catalogue.with_contests())
    add_running(parser)
    if entry:
        add_options(parser, entry)


def named_in(argv: Sequence[str]) -> Entry | None:
    """The method that `apply` is about: the first word that is no flag's value and names one."""
    for position, word in enumerate(argv):
        before = argv[position - 1] if position else ""
        if not word.startswith("-") and (not before.startswith("--") or "=" in before or before in ("--force", "--dry-run", "--json", "--debug")):
            found = _entry_in(word)
            if found:
                return found
    return None


def add_options(parser: Parser, entry: Entry) -> None:
    """A technique's own options: its dataclass's fields, with the lines of its docstring."""
    group = parser.add_argument_group(f"options of {entry.name} (JSON values)")
    for option in catalogue.option_docs(entry):
        group.add_argument(*flags_of(parser, entry, option), dest=f"option:{option.name}", default=argparse.SUPPRESS, **_shape(option))


def flags_of(parser: Parser, entry: Entry, option: Option) -> list[str]:
    """--drop-highest-losses for drop_highest_losses; --NAME-option where the plain flag is taken."""
    flag = f"--{option.name.replace('_', '-')}"
    if flag in parser._option_string_actions or flag in ("--json", "--debug"):
        flag = f"--{entry.name.replace('_', '-')}-{flag[2:]}"
    return [flag] if "_" not in option.name else [flag, f"--{option.name}"] if flag == f"--{option.name.replace('_', '-')}" else [flag]


def _shape(option: Option) -> dict[str, Any]:
    default = "required" if option.required else f"default {json.dumps(option.default, default=str)}"
    found: dict[str, Any] = {"help": _safe(f"{option.doc} ({option.type}, {default})".strip()), "type": value_of, "metavar": _metavar(option)}
    return found | ({"nargs": "?", "const": True} if option.type == "bool" else {})


def _metavar(option: Option) -> str:
    kind = option.type.lower()
    listed = kind.startswith(("tuple", "list"))
    return "[...]" if listed else "INT" if kind.startswith("int") else "NUMBER" if kind.startswith("float") else "VALUE"


def _play(parser: Parser, argv: Sequence[str]) -> None:
    parser.add_argument("names", nargs="*", metavar="PAPER", help="names or arXiv ids")
    parser.add_argument("--family", help="every implemented paper of this family")
    parser.add_argument("--all", action="store_true", help="every implemented paper")
    parser.add_argument("--scale", choices=("smoke", "desk", "gpu"), default="smoke", help="smoke: seconds; desk: minutes, recorded (default smoke)")
    parser.add_argument("--seeds", type=counting, help="seeds (default: the étude's)")
    parser.add_argument("--jobs", type=counting, help="arms at once (default: 2, or the cores there are)")
    parser.add_argument("--fresh", action="store_true", help="run again what is recorded already")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--require", action="store_true", help="exit code 1 when a first claim does not hold")


def _report(parser: Parser, argv: Sequence[str]) -> None:
    parser.add_argument("--out", metavar="DIR", default="etude-report", help="where index.html goes (default etude-report)")
    parser.add_argument("--force", action="store_true", help="write into a folder that holds something else")


def _verify(parser: Parser, argv: Sequence[str]) -> None:
    parser.add_argument("files", nargs="*", metavar="FILE", help="results.json or desk.json; without, all recorded verdicts of the installation")


def _cache(parser: Parser, argv: Sequence[str]) -> None:
    parser.add_argument(
        "--clear", action="append", default=[], metavar="KIND", help="remove one kind (artifacts, memo, wheels...), or all; repeatable"
    )


def _doctor(parser: Parser, argv: Sequence[str]) -> None:
    """No flags of its own."""


BUILDERS = {
    "list": _list,
    "show": _show,
    "compare": _compare,
    "apply": _apply,
    "play": _play,
    "report": _report,
    "verify": _verify,
    "cache": _cache,
    "doctor": _doctor,
}
