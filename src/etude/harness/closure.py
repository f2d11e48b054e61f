"""The sources that an outcome depends on: what a module imports, and what that imports, found without importing anything."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

APART = ("etude.harness", "etude.cli")  # they decide how runs are made and shown, not what comes out


def closure(modules: Iterable[str], edges: Iterable[str] = ()) -> str:
    """Digest of the sources of an import closure.

    Args:
        modules: where it starts ("etude.compress.laser").
        edges: modules that are loaded by name at run time, as the catalogue recorded them.

    Returns:
        A digest that changes when a module of the closure does.

    Raises:
        ValueError: a module is not there.
    """
    found = sources([*modules, *edges])
    return hashlib.sha256("\n".join(f"{name} {digest}" for name, digest in sorted(found.items())).encode()).hexdigest()


def sources(modules: Iterable[str]) -> dict[str, str]:
    """Each module of the closure with the digest of its source, within etude and the packages that `modules` come from."""
    roots = {"etude": _root("etude")} | {name.partition(".")[0]: _root(name.partition(".")[0]) for name in modules}
    waiting = [(name, "the caller", True) for name in modules]
    found: dict[str, str] = {}
    while waiting:
        name, importer, certain = waiting.pop()
        if name in found or apart(name) or name.partition(".")[0] not in roots:
            continue
        path = _path(name, roots)
        if path is None:
            if certain:
                raise ValueError(f"there is no module {name!r}, which {importer} names: correct the name or install what holds it")
            continue
        digest, imports = _read(name, path)
        found[name] = digest
        waiting += [(target, name, sure) for target, sure in imports]
        waiting += [(parent, name, True) for parent in _parents(name)]
    return found


def apart(name: str) -> bool:
    """Whether a module stays outside every closure."""
    return any(name == root or name.startswith(root + ".") for root in APART)


def _root(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or (spec.origin is None and not spec.submodule_search_locations):
        raise ValueError(f"there is no package {package!r}: install it")
    places = list(spec.submodule_search_locations or ())
    return Path(places[0]) if places else Path(str(spec.origin))


def _path(name: str, roots: dict[str, Path]) -> Path | None:
    first, *rest = name.split(".")
    root = roots[first]
    if root.is_file():
        return None if rest else root
    below = root.joinpath(*rest)
    if (below / "__init__.py").is_file():
        return below / "__init__.py"
    return below.with_name(below.name + ".py") if rest and below.with_name(below.name + ".py").is_file() else None


def _parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _read(name: str, path: Path) -> tuple[str, tuple[tuple[str, bool], ...]]:
    about = path.stat()
    return _parsed(name, path, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=4096)
def _parsed(name: str, path: Path, changed: int, size: int) -> tuple[str, tuple[tuple[str, bool], ...]]:
    text = path.read_bytes()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise ValueError(f"{path} is no Python (line {error.lineno}: {error.msg}): correct it") from error
    return hashlib.sha256(text).hexdigest(), tuple(dict.fromkeys(_imports(tree, package)))


def _imports(tree: ast.AST, package: str) -> Iterator[tuple[str, bool]]:
    """Imported names, wherever they stand in the source; what only type checkers read is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in node.orelse:
                yield from _imports(ast.Module([other], []), package)
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, True) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            yield base, True
            yield from ((f"{base}.{alias.name}", False) for alias in node.names)
        yield from _imports(node, package)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return str(node.module)
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
