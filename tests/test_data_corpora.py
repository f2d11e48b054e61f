"""Corpora by name: embedded ones, public ones from a folder or from their home, never other bytes than the published ones."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from etude.data import corpora, sources
from etude.data.contract import Rows, Text

CONTENT = b"the published bytes\n" * 5000


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


class Home(BaseHTTPRequestHandler):
    """A public home: /whole has the file, /half stops half-way, /other has other bytes, all else is missing."""

    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path not in ("/whole", "/half", "/other"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        body = CONTENT[::-1] if self.path == "/other" else CONTENT
        self.wfile.write(body[: len(body) // 2] if self.path == "/half" else body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("ETUDE_DATA", raising=False)
    Home.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Home)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def piece(url: str) -> corpora.Piece:
    return corpora.Piece("text/file.txt", url, hashlib.sha256(CONTENT).hexdigest())


def test_a_file_is_fetched_once(address: str) -> None:
    heard = list[str]()
    first = corpora.fetch(piece(f"{address}/whole"), heard.append)
    assert first.read_bytes() == CONTENT
    assert corpora.fetch(piece(f"{address}/whole"), heard.append) == first
    assert Home.asked == ["/whole"] and len(heard) == 1


@pytest.mark.parametrize(("path", "message"), [("half", "stopped after 50,000 of 100,000 bytes"), ("other", "instead of"), ("none", "404")])
def test_a_bad_download_is_refused_and_nothing_kept(address: str, own_home: Path, path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        corpora.fetch(piece(f"{address}/{path}"), lambda line: None)
    assert "ETUDE_DATA" in str(error.value)
    assert not [file for file in (own_home / "public").rglob("*") if file.is_file()]


def test_nobody_answers() -> None:
    with pytest.raises(ValueError, match="could not be fetched"):
        corpora.fetch(piece("http://127.0.0.1:9/whole"), lambda line: None)


def test_a_spoiled_copy_is_fetched_again(address: str) -> None:
    kept = corpora.fetch(piece(f"{address}/whole"), lambda line: None)
    kept.write_bytes(CONTENT[:100])
    assert corpora.fetch(piece(f"{address}/whole"), lambda line: None).read_bytes() == CONTENT


def test_the_folder_of_the_user_comes_first(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETUDE_DATA", str(tmp_path))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "file.txt").write_bytes(CONTENT)
    assert corpora.fetch(piece(f"{address}/none"), lambda line: None) == tmp_path / "text" / "file.txt"
    (tmp_path / "text" / "file.txt").write_bytes(b"others")
    with pytest.raises(ValueError, match="not the published file"):
        corpora.fetch(piece(f"{address}/whole"), lambda line: None)


def test_pieces_are_joined_below_a_header_even_without_a_last_newline(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETUDE_DATA", str(tmp_path))
    contents = [b"good film\t1\nbad film\t0", b"fair film\t1\n"]
    for i, content in enumerate(contents):
        (tmp_path / f"{i}.tsv").write_bytes(content)
    public = corpora.Public(
        "t", "l", tuple(corpora.Piece(f"{i}.tsv", "", hashlib.sha256(c).hexdigest()) for i, c in enumerate(contents)), "text\tlabel\n"
    )
    monkeypatch.setitem(corpora.PUBLIC, "sst2", public)
    rows = sources.load("sst2", (Rows,), {}, lambda line: None)[Rows]
    assert [(row["text"], row["label"]) for row in rows.dataset] == [("good film", 1), ("bad film", 0), ("fair film", 1)]


@pytest.mark.parametrize(("name", "least"), [("python-docs", 300_000), ("english", 200_000), ("python-source", 3_000_000)])
def test_embedded_texts_are_there(name: str, least: int) -> None:
    part = sources.load(name, (Rows, Text), {}, lambda line: None)[Text]
    text = "".join(part.column("text"))
    assert part.running and len(text) > least
    assert sources.source_digest(name) == sources.source_digest(name)


def test_python_areas_are_short_labelled_rows_in_no_order() -> None:
    rows = sources.load("python-areas", (Rows,), {}, lambda line: None)[Rows]
    assert dict(rows.roles) == {"text": "text", "label": "label"} and len(rows) > 2500
    assert set(rows.column("label")) == set(corpora.AREAS) and len(set(rows.column("text"))) == len(rows)
    assert all(corpora.WORDS[0] <= len(text.split()) <= corpora.WORDS[1] for text in rows.column("text"))
    assert len(set(rows.column("label")[:100])) == len(corpora.AREAS)


def test_english_is_english_prose() -> None:
    text = corpora.file_of("english").read_text()
    paragraphs = text.strip().split("\n\n")
    assert len(set(paragraphs)) == len(paragraphs) > 500
    words = text.lower().split()
    assert sum(word in ("the", "a", "is", "of", "to", "and", "in") for word in words) > 0.15 * len(words)


@pytest.fixture
def data() -> Path:
    if "ETUDE_DATA" not in os.environ:
        pytest.skip("ETUDE_DATA is not set: the public sets are not on this machine")
    return Path(os.environ["ETUDE_DATA"])


def test_wikitext2(data: Path) -> None:
    part = sources.load("wikitext2", (Text,), {}, lambda line: None)[Text]
    text = "".join(part.column("text"))
    assert text == (data / "text/wikitext2_valid.txt").read_text() + (data / "text/wikitext2_test.txt").read_text()


def test_sst2(data: Path) -> None:
    heard = list[str]()
    rows = sources.load("sst2", (Rows, Text), {}, heard.append)[Rows]
    assert len(rows) == 6920 + 872 + 1821 and set(rows.column("label")) == {0, 1}
    assert dict(rows.roles) == {"text": "text", "label": "label"}


def test_headerless_files_as_their_publishers_ship_them(data: Path) -> None:
    heard = list[str]()
    rows = sources.load(str(data / "classify/sst2_dev.tsv"), (Rows,), {}, heard.append)[Rows]
    assert len(rows) == 872 and "column1, column2" in heard[0]
    news = sources.load(str(data / "classify/ag_news_test.csv"), (Rows,), {"label": "column1", "text": "column3"}, heard.append)[Rows]
    assert len(news) == 7600 and set(news.column("label")) == {1, 2, 3, 4}
