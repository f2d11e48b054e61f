"""Any file becomes parts, in every disguise, whatever its size."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from data_files import LABELLED, file, fresh_home, joined, lines, load, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etude.data import formats, records, sources, split
from etude.data.contract import Rows, Split, Text


@pytest.fixture(autouse=True, scope="module")
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield from fresh_home(tmp_path_factory.mktemp("home"))


# Running text


def test_running_text_is_pieces_that_join_to_the_text(tmp_path: Path) -> None:
    text = "".join(f"line {i} of the text\n" for i in range(500))
    parts, _ = load(file(tmp_path, "a.txt", text))
    assert parts[Text].running and Rows not in parts
    assert joined(parts[Text]) == text
    assert all(len(piece.encode()) <= formats.PIECE and piece.endswith("\n") for piece in parts[Text].column("text"))


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=80), st.integers(1, 200), st.booleans(), st.booleans())
def test_pieces_join_to_the_normalised_text(line: str, times: int, bom: bool, packed: bool) -> None:
    text = (line + "\r\n") * times + line
    content = (b"\xef\xbb\xbf" if bom else b"") + text.encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.txt"
        path.write_bytes(gzip.compress(content) if packed else content)
        rows = list(formats.pieces(formats.Source(path, "text", packed)))
    expected = text.removeprefix("\ufeff") if not bom else text
    assert "".join(row["text"] for row in rows) == expected.replace("\r\n", "\n")
    assert all(0 < len(row["text"].encode()) <= formats.PIECE for row in rows)


@pytest.mark.parametrize("letter", ["x", "é", "漢", "🙂"])
def test_one_endless_line_is_cut_between_letters(tmp_path: Path, letter: str) -> None:
    parts, _ = load(file(tmp_path, "long.txt", letter * 5000))
    assert joined(parts[Text]) == letter * 5000
    assert len(parts[Text]) > 4


def test_bom_crlf_and_trailing_blank_lines_change_nothing(tmp_path: Path) -> None:
    plain, _ = load(file(tmp_path, "a.txt", "one\ntwo\n"))
    other, _ = load(file(tmp_path, "b.txt", b"\xef\xbb\xbfone\r\ntwo\r\n"))
    assert joined(plain[Text]) == joined(other[Text])
    for name, rows in (("a.jsonl", lines(LABELLED)), ("a.csv", "text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in LABELLED))):
        dressed = b"\xef\xbb\xbf" + rows.replace("\n", "\r\n").encode() + b"\r\n\r\n"
        plain, _ = load(file(tmp_path, name, rows))
        other, _ = load(file(tmp_path, "dressed" + name, dressed))
        assert plain[Rows].dataset.to_list() == other[Rows].dataset.to_list() == LABELLED


def test_text_where_rows_are_wanted(tmp_path: Path) -> None:
    assert "running text" in refused(file(tmp_path, "a.txt", "some text\n"), (Rows,))


# Forms


def test_a_json_array_named_txt(tmp_path: Path) -> None:
    parts, heard = load(file(tmp_path, "a.txt", json.dumps(LABELLED, indent=1)))
    assert parts[Rows].dataset.to_list() == LABELLED
    assert "text=text, label=label" in heard


def test_text_that_only_looks_like_json_is_text(tmp_path: Path) -> None:
    for start in ("[Music] He sings.\n", "{curly} begins\n", "[{broken\n"):
        parts, _ = load(file(tmp_path, "a.txt", start))
        assert joined(parts[Text]) == start


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.fixed_dictionaries({"text": st.text(max_size=60), "n": st.integers(-9, 9)}), min_size=1, max_size=20),
    indent=st.sampled_from([None, 2]),
)
def test_an_array_reads_the_same_through_any_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, object]], indent: int | None
) -> None:
    path = file(tmp_path, "a.json", " \n" + json.dumps(rows, indent=indent))
    for size in (3, 17, 1 << 16):
        monkeypatch.setattr(records, "PROBE", size)
        assert list(records.json_rows(formats.Source(path, "json"))) == rows


def test_parquet_and_gzip_of_everything(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(LABELLED), tmp_path / "a.parquet")
    table = io.StringIO()
    csv.DictWriter(table, ["text", "label"]).writerows([{"text": "text", "label": "label"}, *LABELLED])
    contents = {"a.jsonl": lines(LABELLED).encode(), "a.json": json.dumps(LABELLED).encode(), "a.csv": table.getvalue().encode()}
    contents["a.parquet"] = (tmp_path / "a.parquet").read_bytes()
    for name, content in contents.items():
        for path in (file(tmp_path, name, content), file(tmp_path, name + ".gz", gzip.compress(content))):
            parts, _ = load(path)
            assert parts[Rows].dataset.to_list() == LABELLED, path.name


def test_mixed_types_become_text_aloud(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"question": "a?", "answer": 12}, {"question": "b?", "answer": "12"}, {"question": "c?", "answer": ["x"]}]
    parts, heard = load(file(tmp_path, "a.jsonl", lines(rows)))
    assert parts[Rows].dataset["answer"][:] == ["12", "12", '["x"]']
    assert "answer mixes types" in heard


def test_keys_that_come_late_are_kept(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": f"t {i}"} for i in range(1500)] + [{"text": "late", "extra": 1.5}]
    parts, _ = load(file(tmp_path, "a.jsonl", lines(rows)))
    assert parts[Text].dataset[1500]["extra"] == 1.5 and parts[Text].dataset[0]["extra"] is None


def test_csv_types_and_quoting(tmp_path: Path) -> None:
    content = 'id,text,price,zip\n1,"a, ""quoted"" text\nin two lines",1.5,01234\n2,plain,,99999\n'
    parts, _ = load(file(tmp_path, "a.csv", content), (Text,))
    first, second = parts[Text].dataset.to_list()
    assert first == {"id": 1, "text": 'a, "quoted" text\nin two lines', "price": 1.5, "zip": "01234"}
    assert second["price"] is None and second["zip"] == "99999"


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_delimiters_are_told(tmp_path: Path, mark: str) -> None:
    rows = [["text", "label"], *([f"word{i} and more", str(i % 3)] for i in range(9))]
    parts, _ = load(file(tmp_path, "a.csv", "\n".join(mark.join(row) for row in rows)))
    assert parts[Rows].dataset["label"][:4] == [0, 1, 2, 0]


def test_quotes_in_a_tsv_are_letters_unless_they_enclose(tmp_path: Path) -> None:
    parts, heard = load(file(tmp_path, "a.tsv", '"so" he said\t1\nan inch is 1"\t0\n" open quote\t1\nfine\t0\n'))
    assert parts[Rows].dataset["column1"][2] == '" open quote'
    assert "no header" in heard and "column1, column2" in heard
    parts, _ = load(file(tmp_path, "b.tsv", 'text\tlabel\n"a\tb"\t1\n"c ""d"""\t0\n'))
    assert parts[Rows].dataset["text"][:] == ["a\tb", 'c "d"']


@pytest.mark.parametrize(
    ("first", "header"),
    [
        ("text,label", True),
        ("Foo,Bar", True),
        (",text,label", True),
        ("I liked it,3", False),
        ("I liked it a lot and would see it again,good", False),
        ("liked,good", False),
    ],
)
def test_headers_are_told_from_rows(tmp_path: Path, first: str, header: bool) -> None:
    width = first.count(",") + 1
    body = [["0", "it was dull", "good"][-width:] for _ in range(2)] + [["1", "it was fine", "bad"][-width:] for _ in range(2)]
    table = records.Csv(
        formats.Source(file(tmp_path, "a.csv", "\n".join([first, *map(",".join, body)])), "csv"), lambda name: name in ("text", "label")
    )
    assert table.headless != header
    assert header or table.names == ["column1", "column2"]


def test_saved_folders(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    dataset = Dataset.from_list(LABELLED)
    dataset.save_to_disk(tmp_path / "one")
    DatasetDict({"test": dataset.select([0, 1]), "train": dataset}).save_to_disk(tmp_path / "many")
    assert load(tmp_path / "one")[0][Rows].dataset.to_list() == LABELLED
    parts, heard = load(tmp_path / "many")
    assert len(parts[Rows]) == 6 and "part train" in heard
    assert len(load(tmp_path / "many" / "test")[0][Rows]) == 2
    assert sources.source_digest(str(tmp_path / "one")) == sources.source_digest(str(tmp_path / "one"))


def test_hub_sets_are_pinned_to_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset, DatasetDict

    asked = list[object]()

    def load_dataset(name: str, configuration: str | None, revision: str) -> DatasetDict:
        asked.append((name, configuration, revision))
        return DatasetDict({"train": Dataset.from_list(LABELLED), "test": Dataset.from_list(LABELLED[:2])})

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr(sources, "_commit", lambda spec: "c0ffee")
    parts, heard = load(Path("some/set:main"))
    assert asked == [("some/set", "main", "c0ffee")] and len(parts[Rows]) == 6
    assert "commit c0ffee" in heard and "part train of train, test" in heard
    assert sources.source_digest("some/set:main") != sources.source_digest("some/set")


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(self: object, name: str) -> object:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", offline)
    message = refused(Path("nobody/nothing"))
    assert "cannot be reached" in message and "sst2" in message


# Size, cache, identity


def test_what_was_read_is_not_read_again_and_still_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file(tmp_path, "a.tsv", "".join(f"text number {i}\t{i % 2}\n" for i in range(9)))
    first, heard = load(path)
    monkeypatch.setattr(sources, "_write", None)
    second, again = load(path)
    assert heard == again and first[Rows].dataset.to_list() == second[Rows].dataset.to_list()


def test_saved_splits_are_the_same_bytes_on_every_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from etude.data.cache import artifact, store_folder

    digests = set[str]()
    for name in ("a", "b"):
        monkeypatch.setenv("ETUDE_HOME", str(tmp_path / name))
        parts, _ = load(file(tmp_path, f"{name}.jsonl", lines(LABELLED * 20)))
        half, *_ = split.by_hash(split.deduplicate(parts[Rows], lambda line: None), (1, 1), 0)
        digests.add(store_folder(Split(half).save))
        assert Split.load(artifact(max(digests)))[Rows].dataset.to_list() == half.dataset.to_list()
    assert len(digests) == 1


BIG = """
import threading, time
from pathlib import Path
import datasets, pyarrow, pyarrow.compute, numpy
from etude.data import sources, split
from etude.data.contract import Rows, Text
def anonymous():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) * 1024
before, peak, done = anonymous(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.01)
thread = threading.Thread(target=watch)
thread.start()
parts = sources.load({path!r}, (Rows, Text), {{}}, lambda line: None)
part = next(iter(parts.parts.values()))
pieces = split.by_span(part, (7, 1, 1, 1)) if part.running else split.by_hash(split.deduplicate(part, lambda line: None), (7, 1, 1, 1), 0)
done = True
thread.join()
print(peak - before, sum(map(len, pieces)))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("form", ["big.txt", "big.jsonl", "big.csv", "big.json"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, form: str) -> None:
    size = 48 << 20
    path = tmp_path / form
    with path.open("w") as out:
        rows = range(size // 1000)
        if form == "big.txt":
            out.writelines(f"{i} {'word ' * 198}\n" for i in rows)
        elif form == "big.csv":
            out.writelines(["text,label\n", *(f"{i} {'word ' * 198},{i % 2}\n" for i in rows)])
        elif form == "big.jsonl":
            out.writelines(json.dumps({"text": f"{i} {'word ' * 198}", "label": i % 2}) + "\n" for i in rows)
        else:
            out.write("[")
            out.writelines(json.dumps({"text": f"{i} {'word ' * 198}", "label": i % 2}) + ",\n" for i in rows)
            out.write('{"text": "last", "label": 0}]')
    done = subprocess.run([sys.executable, "-c", BIG.format(path=str(path))], capture_output=True, text=True, check=True)
    grown, kept = map(int, done.stdout.split())
    assert grown < size / 2 and kept > 40_000  # about 15 MB whatever the file's size


def test_a_full_disk_stops_cleanly(tmp_path: Path) -> None:
    path = file(tmp_path, "a.txt", "some words in a line\n" * 400_000)
    code = f"""
import resource, datasets, pyarrow
from etude.data import sources
from etude.data.contract import Text
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    sources.load({str(path)!r}, (Text,), {{}})
except OSError as error:
    print("stopped", error)
"""
    home = tmp_path / "home"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"ETUDE_HOME": str(home)})
    assert "stopped" in done.stdout and not (home / "artifacts").exists() and not list((home / "tmp").iterdir())
