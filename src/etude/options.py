"""A method's options: from the command line's text, from a dataclass and its docstring, and to the types that its fields want."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Union


@dataclass(frozen=True)
class Option:
    """One option of a method: its type as written, its default, its sentence of the class docstring."""

    name: str
    type: str
    default: Any
    doc: str
    required: bool = False


# --- from text --------------------------------------------------------------------------------------------------------


def parse(spec: str) -> tuple[str, dict[str, Any]]:
    """`laser:layers=[20,21],rho=0.1` as ("laser", {"layers": [20, 21], "rho": 0.1}); values are JSON, bare words are strings."""
    name, _, rest = spec.partition(":")
    options: dict[str, Any] = {}
    for piece in _pieces(rest):
        key, equals, value = piece.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"{spec!r}: {piece!r} is not option=value; write for instance {name}:rho=0.1,layers=[20,21]")
        options[key.strip().replace("-", "_")] = value_of(value)
    return name.strip(), options


def spell(name: str, options: typing.Mapping[str, Any]) -> str:
    """The inverse of `parse`."""
    pairs = ",".join(f"{key}={value if _bare(value) else json.dumps(value, separators=(',', ':'))}" for key, value in options.items())
    return f"{name}:{pairs}" if pairs else name


def value_of(text: str) -> Any:
    """A JSON value; what is no JSON is a string."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text.strip()


def _bare(value: Any) -> bool:
    return isinstance(value, str) and value == value.strip() != "" and not re.search(r'[,\[\]{}"]', value) and value_of(value) == value


def _pieces(text: str) -> Iterator[str]:
    """The text between commas that stand outside brackets and quotes."""
    depth, quoted, escaped, start = 0, False, False, 0
    for position, sign in enumerate(text):
        if escaped:
            escaped = False
        elif quoted:
            escaped, quoted = sign == "\\", sign != '"'
        elif sign == '"':
            quoted = True
        else:
            depth += (sign in "[{") - (sign in "]}")
            if sign == "," and depth == 0:
                yield text[start:position]
                start = position + 1
    if text[start:].strip():
        yield text[start:]


# --- to the types of the fields ---------------------------------------------------------------------------------------


def hints_of(cls: type) -> dict[str, Any]:
    """The fields' types; none where an annotation names what only a type checker sees."""
    try:
        return typing.get_type_hints(cls)
    except (NameError, TypeError):
        return {}


def fit_value(value: Any, hint: Any, name: str) -> Any:
    """The value as a field of this type wants it: lists become tuples, whole numbers floats, one value a tuple of one.

    Raises:
        ValueError: it does not fit.
    """
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _fit_union(value, inside, hint, name)
    if origin is Literal:
        if value in inside:
            return value
        raise ValueError(f"{name} must be one of {', '.join(map(str, inside))}, got {value!r}")
    if hint is tuple or origin is tuple:
        return _fit_tuple(value, inside, hint, name)
    if origin is list or hint is list:
        return [fit_value(v, inside[0] if inside else Any, name) for v in _sequence(value, hint, name)]
    if origin is dict or hint is dict:
        if isinstance(value, dict):
            return value
        raise ValueError(f"{name} must be a JSON object, got {value!r}")
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return hint(**{key: fit_value(v, hints_of(hint).get(key, Any), f"{name}.{key}") for key, v in value.items()})
    return _fit_plain(value, hint, name)


def _fit_plain(value: Any, hint: Any, name: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return json.dumps(value)  # a name that looks like a number
    wrong_bool = isinstance(value, bool) and hint in (int, float)
    if hint is type(None) or hint in (bool, int, float, str, Path):
        kind = type(None) if hint is type(None) else hint
        if not isinstance(value, kind) or wrong_bool:
            raise ValueError(f"{name} must be {_said(hint)}, got {value!r}")
    return value


def _fit_union(value: Any, inside: tuple[Any, ...], hint: Any, name: str) -> Any:
    if value is None and type(None) in inside:
        return None
    exact = [one for one in inside if isinstance(one, type) and type(value) is one]
    for one in [*exact, *(one for one in inside if one is not type(None))]:
        try:
            return fit_value(value, one, name)
        except ValueError:
            continue
    raise ValueError(f"{name} must be {_said(hint)}, got {value!r}")


def _fit_tuple(value: Any, inside: tuple[Any, ...], hint: Any, name: str) -> tuple[Any, ...]:
    if len(inside) == 2 and inside[1] is Ellipsis:
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(fit_value(v, inside[0], name) for v in values)
    values = _sequence(value, hint, name)
    if inside and len(values) != len(inside):
        raise ValueError(f"{name} must hold {len(inside)} values, got {value!r}")
    return tuple(fit_value(v, inside[i] if inside else Any, name) for i, v in enumerate(values))


def _sequence(value: Any, hint: Any, name: str) -> list[Any] | tuple[Any, ...]:
    if isinstance(value, list | tuple):
        return value
    raise ValueError(f"{name} must be {_said(hint)}, got {value!r}")


def _said(hint: Any) -> str:
    """A type in words."""
    names = {int: "a whole number", float: "a number", str: "a word", bool: "true or false", type(None): "null", Path: "a path"}
    if hint in names:
        return names[hint]
    inside = typing.get_args(hint)
    if typing.get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_said(one) for one in inside)
    if typing.get_origin(hint) in (tuple, list) and inside:
        return f"a list such as [{', '.join(_said(one) for one in inside if one is not Ellipsis)}]"
    return str(hint)


# --- from a dataclass -------------------------------------------------------------------------------------------------


def options_of_source(tree: ast.Module, cls: str) -> list[Option] | None:
    """The options as the source writes them; None where only the imported class can tell (a base is a dataclass, or a default is computed)."""
    node = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == cls), None)
    if node is None or not all(_brings_none(tree, ast.unparse(base).partition("[")[0]) for base in node.bases):
        return None
    docs, found = attributes(ast.get_docstring(node) or ""), list[Option]()
    for field in node.body:
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        kind, name = ast.unparse(field.annotation), field.target.id
        if kind.startswith("ClassVar"):
            continue
        try:
            default = ast.literal_eval(field.value) if field.value is not None else None
        except ValueError:
            return None
        found.append(Option(name, kind, default, docs.get(name, ""), required=field.value is None))
    return found


def _brings_none(tree: ast.Module, base: str) -> bool:
    """Whether a base class is known to bring no options: a family's private class that is no dataclass."""
    if base in ("Protocol", "Generic", "object"):
        return True
    private = [i for i in tree.body if isinstance(i, ast.ImportFrom) and (i.module or "").rpartition(".")[2].startswith("_")]
    module = next((str(i.module) for i in private if base in [alias.name for alias in i.names]), "")
    spec = find_spec(module) if module else None
    if spec is None or spec.origin is None:
        return False
    body = ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
    found = next((n for n in body if isinstance(n, ast.ClassDef) and n.name == base), None)
    return found is not None and not found.bases and not found.decorator_list


def options_of_class(cls: type) -> list[Option]:
    """The options of an imported dataclass; its bases' docstrings count too."""
    docs = {name: doc for base in reversed(cls.__mro__) for name, doc in attributes(base.__doc__ or "").items()}
    found = list[Option]()
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        default, required = field.default, False
        if default is dataclasses.MISSING:
            required = field.default_factory is dataclasses.MISSING
            default = field.default_factory() if field.default_factory is not dataclasses.MISSING else None
        kind = field.type.__name__ if isinstance(field.type, type) else str(field.type)
        found.append(Option(field.name, kind, default, docs.get(field.name, ""), required))
    return found


def attributes(docstring: str) -> dict[str, str]:
    """name -> sentence, from a docstring's "Attributes:" section."""
    section = re.search(r"^Attributes:[ ]*\n(.*?)(?=^\w|\Z)", inspect.cleandoc(docstring), flags=re.MULTILINE | re.DOTALL)
    docs: dict[str, str] = {}
    last, outer = "", 0
    for line in section.group(1).split("\n") if section else []:
        head, indent = re.match(r"^\s+(\w+)\s*(?:\([^)]*\))?:\s+(\S.*)$", line), len(line) - len(line.lstrip())
        if head and (not last or indent <= outer):
            last, outer = head.group(1), indent
            docs[last] = head.group(2).strip()
        elif last and line.strip():
            docs[last] += " " + line.strip()
    return docs


def plain(value: Any) -> Any:
    """What JSON does not know: nested dataclasses as objects, the rest by its text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)
