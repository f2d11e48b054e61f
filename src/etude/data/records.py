"""Rows of JSON lines, of a JSON array, of CSV and TSV, one at a time; what is broken is refused with its line."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

from etude.data.formats import PROBE, Row, Source

MISSING = {"", "nan", "na", "n/a", "null", "none"}
LOOKED_AT = 200  # records from which a header is told


def json_rows(source: Source) -> Iterator[Row]:
    """The objects of JSON lines or of one JSON array.

    Raises:
        ValueError: names the line that is no valid JSON, or no object.
    """
    for line, value in _array(source) if source.form == "json" else _lines(source):
        if not isinstance(value, dict):
            raise ValueError(f"data {source.path}, line {line}: a row must be an object {{...}}, this is {json.dumps(value)[:60]}")
        yield value


def _lines(source: Source) -> Iterator[tuple[int, Any]]:
    with source.lines() as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                raise _broken(source, number, error) from error
            yield number, value


def _broken(source: Source, line: int, error: ValueError) -> ValueError:
    reason = getattr(error, "msg", str(error))
    return ValueError(f"data {source.path}, line {line} is no valid JSON ({reason}): give one object a line, or one array of objects")


def _array(source: Source) -> Iterator[tuple[int, Any]]:
    """The elements with their lines, decoded one by one from a buffer that is filled as needed."""
    decoder = json.JSONDecoder()
    with source.lines() as stream:
        buffer, line, ended = stream.read(PROBE), 1, False
        opening = buffer.index("[") + 1
        line, buffer = line + buffer[:opening].count("\n"), buffer[opening:]
        while True:
            rest = buffer.lstrip(" \t\r\n,")
            line, buffer = line + buffer[: len(buffer) - len(rest)].count("\n"), rest
            if buffer.startswith("]"):
                return
            try:
                value, end = decoder.raw_decode(buffer)
            except ValueError as error:
                more = "" if ended else stream.read(max(PROBE, len(buffer)))
                if not more:
                    raise _broken(source, line + buffer[: getattr(error, "pos", 0)].count("\n"), error) from error
                buffer += more
                continue
            yield line, value
            line, buffer = line + buffer[:end].count("\n"), buffer[end:]
            if not ended and not buffer.strip():
                more = stream.read(PROBE)
                ended, buffer = not more, buffer + more


def csv_records(source: Source) -> Iterator[list[str]]:
    """The records, blank lines left out, a header among them.

    Raises:
        ValueError: a record has more or fewer fields than the first one.
    """
    csv.field_size_limit(1 << 30)
    tabs = source.delimiter == "\t"
    plain = tabs and not _quoted(source)
    with source.lines() as stream:
        reader = csv.reader(stream, delimiter=source.delimiter, skipinitialspace=not tabs, quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL)
        width = 0
        try:
            for row in reader:
                if not any(cell.strip() for cell in row):
                    continue
                width = width or len(row)
                if len(row) != width:
                    raise ValueError(f"data {source.path}, line {reader.line_num} has {len(row)} fields, the first has {width}")
                yield row
        except csv.Error as error:
            raise ValueError(f"data {source.path}, line {reader.line_num}: {error}") from error


def _quoted(source: Source) -> bool:
    """Does a TSV quote its fields, or are quotes plain characters?

    It does where each quote that begins a field also ends it, or where only so all records have the same number of fields.
    """
    with source.lines() as stream:
        lines = stream.read(PROBE).splitlines()
    lines = lines[:-1] or lines
    fields = [field for line in lines for field in line.split("\t") if field.startswith('"')]
    if all(len(field) > 1 and field.endswith('"') and field[1:-1].count('"') % 2 == 0 for field in fields):
        return bool(fields)
    widths = {len(row) for row in csv.reader(lines, delimiter="\t") if row}
    return len(widths) == 1 < len({line.count("\t") for line in lines if line})


def header_of(source: Source, known: Callable[[str], bool]) -> list[str] | None:
    """The column names of a CSV, or None where its first record is a row like the others.

    A header has no numbers, no long cells, no cell twice, and no cell that its own column repeats; names that are known settle it.
    """
    rows = list(itertools.islice(csv_records(source), LOOKED_AT))
    first, rest = [cell.strip() for cell in rows[0]], rows[1:]
    named = first[1:] if not first[0] else first  # pandas leaves the name of its index empty
    if any(_number(cell) is not None for cell in named):
        return None
    if any(known(cell) for cell in named):
        return first
    repeated = any(cell == row[i].strip() for i, cell in enumerate(first) for row in rest)
    odd = any(not cell or len(cell) > 64 or len(cell.split()) > 6 for cell in named)
    return None if odd or repeated or len(set(named)) < len(named) else first


def _number(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


class Csv:
    """A CSV's columns, each with the one type (int, float or str) that a first pass over the file found.

    Attributes:
        names: of the columns; `column1`, `column2`... where the file has no header.
        kinds: their types.
        headless: there was no header.
    """

    def __init__(self, source: Source, known: Callable[[str], bool]) -> None:
        header = header_of(source, known)
        width = len(next(csv_records(source)))
        self.source, self.headless, self.names = source, header is None, list[str]()
        for i, name in enumerate(header or [""] * width, 1):
            self.names.append(name if name and name not in self.names else f"{name or 'column'}{i}")
        found: list[type] = [type(None)] * width
        for row in self._body():
            found = [_widened(kind, cell.strip()) for kind, cell in zip(found, row, strict=True)]
        self.kinds = [str if kind is type(None) else kind for kind in found]

    def _body(self) -> Iterator[list[str]]:
        return itertools.islice(csv_records(self.source), int(not self.headless), None)

    def rows(self) -> Iterator[Row]:
        """The records with their types; a number that is missing is None."""
        for row in self._body():
            yield {name: _cell(kind, cell) for name, kind, cell in zip(self.names, self.kinds, row, strict=True)}


def _widened(kind: type, cell: str) -> type:
    """The type that holds the cells so far and this one: None, int, float, str in this order."""
    if kind is str or cell.lower() in MISSING:
        return kind
    digits = cell.removeprefix("-")
    if digits.isascii() and digits.isdigit() and len(digits) < 19 and (digits == "0" or not digits.startswith("0")):
        return int if kind is type(None) else kind
    plain = digits if "." not in digits else ""
    leading_zero = len(plain) > 1 and plain.startswith("0") and plain.isdigit()
    return float if _number(cell) is not None and not leading_zero else str


def _cell(kind: type, cell: str) -> Any:
    if kind is str:
        return cell
    return None if cell.strip().lower() in MISSING else kind(cell)
