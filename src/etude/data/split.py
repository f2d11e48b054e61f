"""Splits that depend on nothing but the data: rows by a hash of their content or group, running text by spans with gaps; duplicates."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from etude.data.contract import Part

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

P = TypeVar("P", bound=Part)
Say = Callable[[str], None]
ENCODER = json.JSONEncoder(default=str, ensure_ascii=False)
GAP = 4096  # bytes between spans of running text


def by_hash(part: P, shares: Sequence[float], seed: int, group: str | None = None) -> tuple[P, ...]:
    """Parts of about these shares; a row's content and the seed alone say where it goes.

    Rows that ask the same (equal text, prompt or chat; in a table, equal in all) stay together, whatever their answers, and so do rows of one group.
    A part that would stay empty makes the split go by the order of the hashes, so that each part gets at least one.

    Args:
        shares: of each part; they are scaled to sum to 1.
        group: a column whose equal values stay together; None takes the part's role "group" if it has one.

    Raises:
        ValueError: there are fewer different rows (or groups) than parts.
    """
    import numpy as np

    hashes = _hashes(part, _question(part, group), seed)
    values, where = np.unique(hashes, return_inverse=True)
    if len(values) < len(shares):
        what = "groups" if group or "group" in part.roles else "different rows"
        raise ValueError(f"the data holds {len(values)} {what}, too few for {len(shares)} parts: bring more")
    edges = np.cumsum(np.asarray(shares, float) / sum(shares))[:-1]
    place = np.searchsorted(edges, values / 2.0**64, side="right")
    if len(np.unique(place)) < len(shares):
        cuts = _cuts(len(values), edges)
        place = np.searchsorted(cuts, np.arange(len(values)), side="right")
    chosen = place[where]
    return tuple(_take(part, np.flatnonzero(chosen == i)) for i in range(len(shares)))


def _cuts(count: int, edges: NDArray[np.float64]) -> list[int]:
    """Where to cut `count` things in order, each piece at least one."""
    cuts = list[int]()
    for i, edge in enumerate(edges):
        low, high = (cuts[-1] if cuts else 0) + 1, count - (len(edges) - i)
        cuts.append(min(max(round(float(edge) * count), low), high))
    return cuts


def by_span(part: P, shares: Sequence[float], gap: int = GAP) -> tuple[P, ...]:
    """Contiguous spans of a running text, of about these shares of its bytes, with at least `gap` bytes left out between them.

    Raises:
        ValueError: the text is too short for the spans and the gaps.
    """
    import numpy as np

    if not part.running:
        raise ValueError("only running text is cut into spans: rows are split by_hash")
    sizes = np.fromiter(_sizes(part), np.int64)
    ends = np.cumsum(sizes)
    starts, total = ends - sizes, int(ends[-1]) if len(ends) else 0
    usable = total - gap * (len(shares) - 1)
    spans, begin = list[tuple[int, int]](), 0
    for share in np.asarray(shares, float) / sum(shares):
        first = int(np.searchsorted(starts, begin))
        last = int(np.searchsorted(ends, starts[first] + share * max(usable, 0), side="right")) if first < len(starts) else first
        if len(spans) == len(shares) - 1:
            last = len(starts)
        if last <= first:
            raise ValueError(f"the text holds {total:,} bytes, too few for {len(shares)} parts with gaps of {gap:,} bytes: bring more text")
        spans.append((first, last))
        begin = int(ends[last - 1]) + gap
    return tuple(_take(part, np.arange(first, last)) for first, last in spans)


def _take(part: P, rows: NDArray[np.int64]) -> P:
    from etude.data import arrow

    return type(part)(arrow.select(part.dataset, rows), part.roles, part.running)


def deduplicate(part: P, say: Say = print) -> P:
    """The part without rows that repeat an earlier one in all roles (in a table: in all columns), counted aloud; running text stays."""
    import numpy as np

    if part.running:
        return part
    names = list(part.roles.values()) if part.roles and type(part).__name__ != "Table" else list(part.dataset.column_names)
    _, first = np.unique(_hashes(part, names, 0), return_index=True)
    gone = len(part) - len(first)
    if not gone:
        return part
    say(f"{gone} of {len(part)} rows repeat an earlier one and are left out")
    return _take(part, np.sort(first))


def _question(part: Part, group: str | None) -> list[str]:
    """The columns that say which rows stay together."""
    if group is not None:
        if group not in part.dataset.column_names:
            raise ValueError(f"there is no group column {group}; the data has {', '.join(part.dataset.column_names)}")
        return [group]
    for role in ("group", "text", "prompt", "messages"):
        if role in part.roles:
            return [part.roles[role]]
    return list(part.dataset.column_names)


def _hashes(part: Part, names: list[str], seed: int) -> NDArray[np.uint64]:
    """A 64-bit hash of each row's values in these columns."""
    import numpy as np

    return np.fromiter(_hash_stream(part, names, seed), np.uint64, len(part))


def _hash_stream(part: Part, names: list[str], seed: int) -> Iterator[int]:
    from etude.data import arrow

    key = seed.to_bytes(8, "little", signed=True)
    for arrays in arrow.columns(part.dataset, names):
        for row in zip(*(array.to_pylist() for array in arrays), strict=True):
            content = ENCODER.encode(row).encode("utf-8", "surrogatepass")
            yield int.from_bytes(hashlib.blake2b(content, digest_size=8, key=key).digest(), "little")


def _sizes(part: Part) -> Iterator[int]:
    import pyarrow.compute as pc

    from etude.data import arrow

    for (texts,) in arrow.columns(part.dataset, [part.roles["text"]]):
        yield from pc.binary_length(texts).to_pylist()
