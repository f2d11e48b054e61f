"""The catalogue: four sources of methods, read without importing them; options to and from text, JSON and dataclasses."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude import catalogue
from etude.options import attributes, fit_value, options_of_class, options_of_source, parse, spell

MINE = '''"""My way to shrink a model.

More of it.
"""

from __future__ import annotations

from dataclasses import dataclass

NEEDS = ("Text",)


@dataclass(frozen=True)
class MyMethod:
    """Options.

    Attributes:
        share: how much goes, in (0, 1);
            the rest stays.
        layers: which layers.
    """

    share: float = 0.5
    layers: tuple[int, ...] | None = None
    mode: str = "fast"

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share must lie in (0, 1), got {self.share}")

    def compress(self, model, data):
        return model
'''


@pytest.fixture
def mine(tmp_path: Path) -> catalogue.Entry:
    path = tmp_path / "my_file.py"
    path.write_text(MINE)
    return catalogue.from_file(path, "MyMethod", "compress")


def test_there_are_a_hundred_papers_in_nine_families_with_unique_names_and_ids() -> None:
    papers = catalogue.papers()
    assert len(papers) == len({p.id for p in papers}) == len({p.name for p in papers}) == 100
    assert len(catalogue.families()) == 9


def test_every_paper_folder_is_one_of_the_hundred() -> None:
    known = {(p.family, p.name): p.id for p in catalogue.papers()}
    for entry in catalogue.entries().values():
        if entry.source == "paper":
            assert known[entry.family, entry.name] == entry.paper, entry.name


def test_every_entry_is_whole() -> None:
    for entry in catalogue.entries().values():
        assert entry.role in catalogue.ROLES and entry.title and entry.path.is_file()
        assert set(entry.enters) <= set(catalogue.families()), entry.name


@pytest.mark.parametrize("name", sorted(catalogue.entries()))
def test_source_and_imported_class_tell_the_same_options(name: str) -> None:
    entry = catalogue.entries()[name]
    told = {o.name: (json.dumps(o.default, default=str), o.doc) for o in catalogue.option_docs(entry)}
    assert told == {o.name: (json.dumps(o.default, default=str), o.doc) for o in options_of_class(entry.load())}
    assert all(doc for _, doc in told.values()), f"every option of {name} has its line under Attributes:"


def test_reading_the_catalogue_imports_no_heavy_library() -> None:
    code = (
        "import sys; from etude import catalogue; catalogue.entries(); [catalogue.option_docs(e) for e in catalogue.entries().values()];"
        "print([m for m in ('torch', 'transformers', 'peft', 'datasets', 'scipy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_unknown_names_suggest_the_nearest_and_missing_papers_say_so() -> None:
    with pytest.raises(ValueError, match="did you mean mamba"):
        catalogue.find("mambo")
    with pytest.raises(ValueError, match="etude list"):
        catalogue.find("zzzzzzzz")
    missing = next((p for p in catalogue.papers() if p.name not in catalogue.entries()), None)
    if missing:
        with pytest.raises(ValueError, match="not implemented yet"):
            catalogue.find(missing.id)


def test_a_paper_is_found_by_name_id_and_versioned_id() -> None:
    for entry in catalogue.entries().values():
        if entry.source == "paper":
            found = {catalogue.find(spelling) for spelling in (entry.name, entry.paper, f"{entry.paper}v2", f"arXiv:{entry.paper}")}
            assert found == {entry}


def test_a_file_of_the_users_is_an_entry(mine: catalogue.Entry) -> None:
    assert (mine.name, mine.target, mine.source, mine.enters) == ("my_method", "with:MyMethod", "file", ("compress",))
    assert mine.needs == ("Text",) and mine.title == "My way to shrink a model"
    assert mine.load() is mine.load()
    shares = {o.name: o for o in catalogue.option_docs(mine)}
    assert shares["share"].doc == "how much goes, in (0, 1); the rest stays." and shares["share"].default == 0.5


def test_a_class_that_the_file_lacks_is_refused_with_those_it_has(mine: catalogue.Entry, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it defines MyMethod"):
        catalogue.from_file(mine.path, "Other", "compress")
    with pytest.raises(ValueError, match="there is no file"):
        catalogue.from_file(tmp_path / "none.py", "Other", "compress")
    (tmp_path / "broken.py").write_text("x = (\nclass A: pass")
    with pytest.raises(ValueError, match=r"broken\.py, line"):
        catalogue.from_file(tmp_path / "broken.py", "A", "compress")


def test_options_become_what_the_fields_want_and_come_back(mine: catalogue.Entry) -> None:
    method = catalogue.make(mine, {"layers": [1, 2], "share": 0.25})
    assert method.layers == (1, 2)
    assert catalogue.make(mine, {"layers": 3}).layers == (3,)
    assert catalogue.to_options(method) == {"share": 0.25, "layers": [1, 2], "mode": "fast"}
    assert catalogue.make(mine, catalogue.to_options(method)) == method


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shar": 1}, "did you mean share"),
        ({"xyz": 1}, "it has share, layers, mode"),
        ({"share": "half"}, "share must be a number, got 'half'"),
        ({"share": True}, "share must be a number"),
        ({"layers": ["a"]}, "layers must be"),
        ({"share": 7}, r"share must lie in \(0, 1\), got 7"),
    ],
)
def test_bad_options_are_refused_by_name(mine: catalogue.Entry, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        catalogue.make(mine, options)


def test_specs_are_read() -> None:
    assert parse("laser:layers=[20,21],rho=0.1") == ("laser", {"layers": [20, 21], "rho": 0.1})
    assert parse("laser") == ("laser", {})
    assert parse('a:b="x,y",c=word,d=null') == ("a", {"b": "x,y", "c": "word", "d": None})
    with pytest.raises(ValueError, match="not option=value"):
        parse("laser:0.1")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), st.lists, max_leaves=5
)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), VALUES, max_size=4))
def test_specs_round_trip(options: dict[str, object]) -> None:
    assert parse(spell("name", options)) == ("name", options)


def test_literals_that_are_computed_or_missing_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text("NEEDS = tuple('a')\nclass A: pass\n")
    with pytest.raises(ValueError, match="line 1: NEEDS must be literals"):
        catalogue.from_file(path, "A", "compress")
    path.write_text("ROLE = 'winner'\nclass A: pass\n")
    with pytest.raises(ValueError, match="ROLE is 'winner'"):
        catalogue.from_file(path, "A", "compress")
    path.write_text("NEEDS = ('Text')\nclass A: pass\n")
    with pytest.raises(ValueError, match="tuple of strings"):
        catalogue.from_file(path, "A", "compress")


def test_a_package_announces_a_method_by_an_entry_point(tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "theirs").mkdir(parents=True)
    (site / "theirs/__init__.py").write_text('PAPER, ROLE, CLASS = "", "contender", "MyMethod"\nENTERS = ("compress",)\nimport not_there\n' + "")
    (site / "theirs/method.py").write_text(
        'ROLE, CLASS, ENTERS = "contender", "MyMethod", ("compress",)\n' + MINE.replace("from __future__ import annotations\n", "")
    )
    info = site / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[etude.techniques]\ntheirs = theirs.method:MyMethod\ngone = theirs.gone:Gone\n")
    code = "from etude import catalogue; print(catalogue.entries()['theirs'].source, [p for p in catalogue.plugins() if isinstance(p, str)])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(site)}, check=True)
    assert run.stdout.startswith("plugin") and "gone" in run.stdout and "cannot be read" in run.stdout


def test_contests_are_asked_by_family() -> None:
    with pytest.raises(ValueError, match="no family is called 'compres'; did you mean compress"):
        catalogue.contests("compres")
    assert catalogue.contests("train") == [] or catalogue.contests("train")
    for family in catalogue.with_contests():
        assert catalogue.contest(family).family == family
        with pytest.raises(ValueError, match="has no contest 'Nope'"):
            catalogue.contest(family, "Nope")


def test_values_fit_nested_types() -> None:
    assert fit_value([[1, 2], [3]], tuple[tuple[int, ...], ...], "x") == ((1, 2), (3,))
    assert fit_value(2.0, int, "x") == 2 and isinstance(fit_value(2, float, "x"), float)
    assert fit_value(None, float | None, "x") is None
    assert fit_value("7", int | str, "x") == "7" and fit_value(7, int | str, "x") == 7
    with pytest.raises(ValueError, match="x must hold 2 values"):
        fit_value([1], tuple[int, int], "x")
    with pytest.raises(ValueError, match="a whole number"):
        fit_value(2.5, int, "x")


def test_attributes_end_where_the_next_section_begins() -> None:
    docs = attributes(
        "One line.\n\n    Attributes:\n        a: first.\n        b (int): second: with\n            a colon.\n\n    Raises:\n        c: no.\n    "
    )
    assert docs == {"a": "first.", "b": "second: with a colon."}


def test_computed_defaults_and_bases_need_the_class() -> None:
    assert options_of_source(ast.parse("class A(B):\n    x: int = 1\n"), "A") is None
    assert options_of_source(ast.parse("class A:\n    x: int = f()\n"), "A") is None

    @dataclass(frozen=True)
    class Base:
        """Base.

        Attributes:
            x: of the base.
        """

        x: int = 1

    @dataclass(frozen=True)
    class Child(Base):
        """Child.

        Attributes:
            y: own.
        """

        y: float = 2.0

    assert [(o.name, o.doc) for o in options_of_class(Child)] == [("x", "of the base."), ("y", "own.")]
