"""What a data file is, by content first and name second; and running text in pieces, so that memory does not grow with the file."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

PIECE = 1024  # bytes of running text in a row, at most
PROBE = 1 << 16
BLOCK = 1 << 20
TABLES = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
BOM = codecs.BOM_UTF8
Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A file and how it is to be read.

    Attributes:
        path: where it lies.
        form: "text", "jsonl", "json", "csv" or "parquet".
        gzipped: its bytes are compressed.
        delimiter: of a CSV.
    """

    path: Path
    form: str
    gzipped: bool = False
    delimiter: str = ","

    def open(self) -> BinaryIO:
        """The bytes, decompressed, behind a byte order mark."""
        stream = cast(BinaryIO, gzip.GzipFile(self.path) if self.gzipped else self.path.open("rb"))
        if stream.read(len(BOM)) != BOM:
            stream.seek(0)
        return stream

    def lines(self) -> io.TextIOWrapper:
        """The text, as UTF-8, with line ends as they are."""
        return io.TextIOWrapper(self.open(), encoding="utf-8", newline="")


def detect(path: Path) -> Source:
    """What a file is.

    Raises:
        ValueError: it is empty or binary.
    """
    with path.open("rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    name = path.name.lower().removesuffix(".gz") if gzipped else path.name.lower()
    suffix = Path(name).suffix
    with readable(path), Source(path, "text", gzipped).open() as stream:
        probe = stream.read(PROBE)
    if not probe.strip():
        raise ValueError(f"data {path} is empty")
    if probe.startswith(b"PAR1"):
        return Source(path, "parquet", gzipped)
    if probe.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"data {path} is UTF-16: save it as UTF-8 (`iconv -f UTF-16 -t UTF-8`)")
    if b"\0" in probe:
        raise ValueError(f"data {path} is binary (it holds zero bytes): give text, JSONL, JSON, CSV, TSV or Parquet, or gzip of these")
    if suffix in TABLES:
        head = probe.decode("utf-8", "ignore")
        return Source(path, "csv", gzipped, TABLES[suffix] if suffix != ".csv" else _delimiter(head))
    form = _json_form(probe)
    if suffix in (".jsonl", ".ndjson"):
        return Source(path, form if form == "json" else "jsonl", gzipped)
    if suffix == ".json":
        return Source(path, "json" if probe.lstrip().startswith(b"[") else "jsonl", gzipped)
    return Source(path, form or "text", gzipped)


def _json_form(probe: bytes) -> str:
    """ "json" for an array of rows, "jsonl" for objects line by line, "" for neither; the name of the file does not matter."""
    text = probe.decode("utf-8", "ignore").lstrip()
    if text.startswith("["):
        inside = text[1:].lstrip()
        return "json" if inside.startswith("{") and _element(inside, len(probe) == PROBE) else ""
    if not text.startswith("{"):
        return ""
    lines = [line for line in text.split("\n") if line.strip()]
    return "jsonl" if _element(lines[0], len(lines) == 1 and len(probe) == PROBE) else ""


def _element(text: str, cut: bool) -> bool:
    """Does the text begin with a JSON object (one with text keys at least, where the probe cut it)?"""
    try:
        json.JSONDecoder().raw_decode(text)
    except ValueError:
        return cut and text[1:].lstrip().startswith('"')
    return True


def _delimiter(head: str) -> str:
    """Which of , ; tab | parts the first lines into the same number of fields, most of them."""
    best, most = ",", 1
    for mark in ",;\t|":
        rows = list(csv.reader(io.StringIO(head, newline=""), delimiter=mark, skipinitialspace=True))[:21]
        widths = {len(row) for row in (rows[:-1] or rows) if row}
        if len(widths) == 1 and max(widths) > most:
            best, most = mark, max(widths)
    return best


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what can go wrong in the bytes of a file into one sentence with its name."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"data {path} is a broken or truncated gzip file ({error}): fetch it again") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"data {path} is no UTF-8 text ({error.reason}): it is binary, or save it as UTF-8 (`iconv -f LATIN1 -t UTF-8`)") from error


def pieces(source: Source) -> Iterator[Row]:
    """A text as rows {"text"} of at most `PIECE` bytes, cut at line ends (inside a line only where it is longer): joined, they are the text.

    CRLF becomes LF.
    """
    with source.open() as stream:
        rest, ended = b"", False
        while not ended:
            block = stream.read(BLOCK)
            ended, text = not block, rest + block
            if b"\0" in block:
                raise ValueError(f"data {source.path} is binary: it holds zero bytes")
            held = b"\r" if text.endswith(b"\r") and not ended else b""  # perhaps cut in the middle of CRLF
            text, start = text.removesuffix(held).replace(b"\r\n", b"\n"), 0
            while len(text) - start > PIECE or (ended and start < len(text)):
                end = _cut(text, start)
                yield {"text": text[start:end].decode()}
                start = end
            rest = text[start:] + held


def _cut(text: bytes, start: int) -> int:
    """Where the piece that begins here ends: behind the last line end that fits, else between two letters."""
    end = start + PIECE
    if end >= len(text):
        return len(text)
    if line_end := text.rfind(b"\n", start, end) + 1:
        return line_end
    while end > start + 1 and text[end] & 0xC0 == 0x80:  # inside a letter of several bytes
        end -= 1
    return end
