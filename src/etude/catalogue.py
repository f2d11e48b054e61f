"""What there is: papers, and every method that can compete, from four sources (paper folders, baselines, other packages, `--with` files).

Nothing is imported to find out: literals, titles and options are read with `ast`. The only dynamic import is `Entry.load` and its two
companions for contests and experiments.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from etude.options import Option, fit_value, hints_of, options_of_class, options_of_source, plain
from etude.options import parse as read_spec

if TYPE_CHECKING:
    from etude.harness.contract import Contest, Experiment

ROOT = Path(__file__).parent
GROUP = "etude.techniques"  # the entry points by which other packages announce their methods
LITERALS = ("PAPER", "ROLE", "CLASS", "ENTERS", "NEEDS", "TRAITS", "LICENCE")
parse = read_spec  # `laser:layers=[20,21],rho=0.1` as (name, options)
ROLES = ("contender", "conversion", "component", "judge", "pipeline", "tool")


@dataclass(frozen=True)
class Paper:
    """One of the 100 papers."""

    id: str
    family: str
    name: str
    title: str


@dataclass(frozen=True)
class Entry:
    """One method, as its literals describe it.

    Attributes:
        name: what the command line calls it.
        family: the family it belongs to.
        role: one of ROLES.
        target: "etude.compress.laser:Laser", or "with:Class" for a file of the user's.
        paper: the arXiv id it implements; empty when there is none.
        source: "paper", "baseline", "plugin" or "file".
        enters: families in whose contests it competes.
        needs: parts of the data that it asks for, by name.
        traits: what a contest must know of it.
        licence: of the method's code.
        path: the file that holds its literals and its class.
        title: of the paper, else the first line of its page.
    """

    name: str
    family: str
    role: str
    target: str
    paper: str
    source: str
    enters: tuple[str, ...]
    needs: tuple[str, ...]
    traits: tuple[str, ...]
    licence: str
    path: Path
    title: str

    @property
    def cls(self) -> str:
        """The name of the class."""
        return self.target.partition(":")[2]

    @property
    def module(self) -> str:
        """The module that holds the class; "with" for a file of the user's."""
        return self.target.partition(":")[0]

    def load(self) -> type:
        """The class, imported."""
        module = _module_of_file(self.path) if self.module == "with" else importlib.import_module(self.module)
        found = getattr(module, self.cls, None)
        if not isinstance(found, type):
            raise ValueError(f"{self.path.name} defines no class {self.cls}")
        return found


# --- papers and entries -----------------------------------------------------------------------------------------------


@functools.cache
def papers() -> tuple[Paper, ...]:
    """The 100 papers, in the order of papers.json."""
    return tuple(Paper(**row) for row in json.loads((ROOT / "papers.json").read_text(encoding="utf-8")))


@functools.cache
def families() -> tuple[str, ...]:
    """The nine families, in the order of the papers."""
    return tuple(dict.fromkeys(paper.family for paper in papers()))


@functools.cache
def entries() -> dict[str, Entry]:
    """Every method of this installation by name: papers first, then baselines, then other packages'."""
    found: dict[str, Entry] = {}
    for entry in (*_folders("paper"), *_folders("baseline"), *(item for item in plugins() if isinstance(item, Entry))):
        if entry.name in found:
            raise ValueError(f"two methods are called {entry.name!r}: {found[entry.name].path} and {entry.path}; rename one")
        found[entry.name] = entry
    return found


def find(name_or_id: str) -> Entry:
    """The entry by its name or its paper's arXiv id (a version such as v2 is ignored).

    Raises:
        ValueError: there is none; the nearest names are suggested, and a paper without a folder is said to be missing yet.
    """
    known, plain_name = entries(), re.sub(r"^(arxiv:)?(\d{4}\.\d{4,5})(v\d+)?$", r"\2", name_or_id.strip(), flags=re.IGNORECASE)
    if plain_name in known:
        return known[plain_name]
    paper = next((p for p in papers() if plain_name in (p.id, p.name)), None)
    if paper is None or paper.name not in known:
        raise unknown(plain_name)
    return known[paper.name]


def unknown(name: str) -> ValueError:
    """What to raise for a name that stands for no method: the nearest names, or that the paper is not implemented yet."""
    paper = next((p for p in papers() if name in (p.id, p.name)), None)
    if paper is not None:
        return ValueError(f"{paper.name} ({paper.id}, {paper.title}) is not implemented yet: `etude list` shows what is")
    names = [*entries(), *(p.name for p in papers()), *(p.id for p in papers())]
    return ValueError(f"no method or paper is called {name!r}{nearest(name, names)}")


def nearest(word: str, names: Iterable[str]) -> str:
    """ "; did you mean ...?" for an error's end, or "; `etude list` shows all" when nothing is near."""
    close = difflib.get_close_matches(word.lower(), {name.lower(): name for name in names}, n=3, cutoff=0.6)
    spelled = {name.lower(): name for name in names}
    return f"; did you mean {' or '.join(spelled[c] for c in close)}?" if close else "; `etude list` shows all"


def from_file(path: Path, cls: str, enters: str) -> Entry:
    """An entry for a class in a file of the user's, which competes in the contests of family `enters`; literals are optional."""
    if not path.is_file():
        raise ValueError(f"--with {path}:{cls}: there is no file {path}")
    tree = _parse(path.read_text(encoding="utf-8-sig"), path)
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    if cls not in classes:
        raise ValueError(f"{path} defines no class {cls!r}; it defines {', '.join(classes) or 'no class'}")
    literals = _literals(tree, path)
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls).lower()
    if name in entries():
        name = f"{name}_{path.stem}"
    return _entry({"ROLE": "contender", "ENTERS": (enters,), **literals, "CLASS": cls}, tree, name, enters, "file", "with", path)


def plugins() -> Iterator[Entry | str]:
    """What other packages announce by an entry point: an Entry, or a sentence saying why it cannot be read."""
    for point in importlib.metadata.entry_points(group=GROUP):
        module, _, cls = point.value.partition(":")
        try:
            path = _file_of_module(module, point.dist)
            tree = _parse(path.read_text(encoding="utf-8-sig"), path)
            literals = {"CLASS": cls, **_literals(tree, path)}
            family = str((literals.get("ENTERS") or ("",))[0])
            yield _entry(literals, tree, point.name, family, "plugin", module, path)
        except (ValueError, OSError, ImportError) as error:
            yield f"{point.name} ({point.value}), announced by {point.dist.name if point.dist else 'a package'}, cannot be read: {error}"


def _folders(source: str) -> Iterator[Entry]:
    for family in families():
        base = ROOT / family / "baselines" if source == "baseline" else ROOT / family
        for path in sorted(base.glob("*/__init__.py")):
            name = path.parent.name
            if name == "baselines" or name.startswith("_"):
                continue
            module = ".".join(("etude", *path.parent.relative_to(ROOT).parts))
            tree = _head(path)
            yield _entry(_literals(tree, path), tree, name, family, source, module, path)


def _entry(literals: Mapping[str, Any], tree: ast.Module, name: str, family: str, source: str, module: str, path: Path) -> Entry:
    for literal in ("ROLE", "CLASS"):
        if not literals.get(literal):
            raise ValueError(f"{path}: the literal {literal} is missing above the class")
    if literals["ROLE"] not in ROLES:
        raise ValueError(f"{path}: ROLE is {literals['ROLE']!r}, but it must be one of {', '.join(ROLES)}")
    for literal in ("ENTERS", "NEEDS", "TRAITS"):
        value = literals.get(literal, ())
        if not isinstance(value, tuple) or not all(isinstance(word, str) for word in value):
            raise ValueError(f"{path}: {literal} must be a tuple of strings, got {value!r}")
    page = (ast.get_docstring(tree) or "").strip().split("\n")[0].rstrip(".")
    paper = str(literals.get("PAPER") or "")
    title = next((p.title for p in papers() if source == "paper" and p.id == paper), page or name)
    words = {key.lower(): tuple(literals.get(key, ())) for key in ("ENTERS", "NEEDS", "TRAITS")}
    licence = str(literals.get("LICENCE") or ("Apache-2.0" if source in ("paper", "baseline") else "not stated"))
    return Entry(name, family, literals["ROLE"], f"{module}:{literals['CLASS']}", paper, source, licence=licence, path=path, title=title, **words)


def _parse(source: str, path: Path) -> ast.Module:
    try:
        return ast.parse(source)
    except SyntaxError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from error


@functools.cache
def _head(path: Path) -> ast.Module:
    """What stands above the first class or function: the page and the literals, without the cost of parsing the rest."""
    source = path.read_text(encoding="utf-8")
    cut = re.search(r"^(@|class |def |async def )", source, flags=re.MULTILINE)
    try:
        tree = ast.parse(source[: cut.start()] if cut else source)
    except SyntaxError:  # such a line stood inside the page
        return _parse(source, path)
    return tree if {"ROLE", "CLASS"} <= _literals(tree, path).keys() else _parse(source, path)


def _literals(tree: ast.Module, path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for node in tree.body:
        if not isinstance(node, ast.Assign) or len(node.targets) != 1:
            continue
        target = node.targets[0]
        names = [n.id for n in (target.elts if isinstance(target, ast.Tuple) else [target]) if isinstance(n, ast.Name)]
        if not set(names) & set(LITERALS):
            continue
        try:
            value = ast.literal_eval(node.value)
        except ValueError as error:
            raise ValueError(f"{path}, line {node.lineno}: {', '.join(names)} must be literals, they are read without importing the file") from error
        found.update(zip(names, value, strict=True) if isinstance(target, ast.Tuple) else {names[0]: value}.items())
    return found


def _file_of_module(module: str, dist: importlib.metadata.Distribution | None) -> Path:
    """The source file of a module, without importing it where the distribution's file list tells."""
    parts = module.replace(".", "/")
    for candidate in (f"{parts}/__init__.py", f"{parts}.py"):
        path = Path(str(dist.locate_file(candidate))) if dist else Path(candidate)
        if path.is_file():
            return path
    spec = importlib.util.find_spec(module)  # an editable install: its parent packages are imported
    if spec is None or not spec.origin:
        raise ValueError(f"there is no module {module}")
    return Path(spec.origin)


def _module_of_file(path: Path) -> ModuleType:
    name = f"etude_with_{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ValueError(f"{path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up there
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return sys.modules[name]


# --- contests and experiments -----------------------------------------------------------------------------------------


def contests(family: str) -> list[Contest[Any, Any]]:
    """The family's contests, the first named first; none when it has no contest.py."""
    if family not in families():
        raise ValueError(f"no family is called {family!r}{nearest(family, families())} (families: {', '.join(families())})")
    if not (ROOT / family / "contest.py").is_file():
        return []
    return [contest() for contest in importlib.import_module(f"etude.{family}.contest").CONTESTS]


def contest(family: str, name: str | None = None) -> Contest[Any, Any]:
    """The family's first contest, or the one of this name."""
    there = contests(family)
    if not there:
        raise ValueError(f"{family} has no contest yet; {', '.join(with_contests())} have")
    for one in there:
        if name in (None, one.name):
            return one
    raise ValueError(f"{family} has no contest {name!r}; it has {', '.join(one.name for one in there)}")


def with_contests() -> tuple[str, ...]:
    """The families that hold contests."""
    return tuple(family for family in families() if (ROOT / family / "contest.py").is_file())


def experiments(name: str) -> dict[str, Experiment[Any]]:
    """The études of a paper by class name, the one that gives its verdict first."""
    entry = find(name)
    if entry.module == "with" or not (entry.path.parent / "experiment.py").is_file():
        raise ValueError(f"{entry.name} has no étude (no experiment.py beside {entry.path.name})")
    module = importlib.import_module(f"{entry.module}.experiment")
    return {experiment.__name__: experiment() for experiment in module.EXPERIMENTS}


# --- options ----------------------------------------------------------------------------------------------------------


def make(entry: Entry, options: Mapping[str, Any]) -> Any:
    """The method with these options.

    Raises:
        ValueError: an unknown option (the nearest is suggested), a value of the wrong type, or one that the method itself refuses.
    """
    cls = entry.load()
    if not dataclasses.is_dataclass(cls):
        raise ValueError(f"{entry.name}: {entry.cls} is no dataclass: its fields would be its options")
    hints, names = hints_of(cls), [field.name for field in dataclasses.fields(cls) if field.init]
    for key in options:
        if key not in names:
            close = difflib.get_close_matches(key, names, n=1)
            way = f"; did you mean {close[0]}?" if close else f"; it has {', '.join(names) or 'none'}"
            raise ValueError(f"{entry.name} has no option {key!r}{way}")
    try:
        return cls(**{key: fit_value(value, hints.get(key, Any), key) for key, value in options.items()})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{entry.name}: {error}") from error


def to_options(method: Any) -> dict[str, Any]:
    """All options of a method as JSON-able values: tuples become lists."""
    options = {field.name: getattr(method, field.name) for field in dataclasses.fields(method) if field.init}
    return cast(dict[str, Any], json.loads(json.dumps(options, default=plain)))


def option_docs(entry: Entry | type) -> list[Option]:
    """The options with types and defaults as the source writes them; imports the class only where the source alone cannot tell."""
    if isinstance(entry, type):
        return options_of_class(entry)
    tree = _parse(entry.path.read_text(encoding="utf-8-sig"), entry.path)
    found = options_of_source(tree, entry.cls)
    return options_of_class(entry.load()) if found is None else found
