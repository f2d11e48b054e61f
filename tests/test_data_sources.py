"""Any file becomes parts: what is right is read right in every disguise, what is wrong is refused with the place and the way out."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etude.data import formats, records, sources, split
from etude.data.contract import Part, Rows, Split, Table, Text

KINDS = (Rows, Text)
LABELLED = [{"text": f"sentence number {i}", "label": i % 2} for i in range(6)]


@pytest.fixture(autouse=True, scope="module")
def own_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["ETUDE_HOME"], before = str(tmp_path_factory.mktemp("home")), os.environ.get("ETUDE_HOME")
    yield
    os.environ.pop("ETUDE_HOME")
    if before is not None:
        os.environ["ETUDE_HOME"] = before


def load(path: Path, kinds: tuple[type[Part], ...] = KINDS, **columns: str) -> tuple[Split, str]:
    heard = list[str]()
    return sources.load(str(path), kinds, columns, heard.append), "\n".join(heard)


def refused(path: Path, kinds: tuple[type[Part], ...] = KINDS, **columns: str) -> str:
    with pytest.raises(ValueError) as error:
        load(path, kinds, **columns)
    return str(error.value)


def file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def joined(part: Part) -> str:
    return "".join(part.column("text"))


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


# Refused


@pytest.mark.parametrize("content", ["", "\n\n \n", b"\xef\xbb\xbf", gzip.compress(b"")])
def test_an_empty_file(tmp_path: Path, content: str | bytes) -> None:
    assert "is empty" in refused(file(tmp_path, "a.txt", content))


def test_a_header_without_rows(tmp_path: Path) -> None:
    assert "is empty" in refused(file(tmp_path, "a.csv", "text,label\n"))
    assert "is empty" in refused(file(tmp_path, "a.json", "[]"))


def test_a_missing_file(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "nowhere.txt")
    assert "did you mean wikitext2" in refused(Path("wikitext2.txt"))


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "text".encode("utf-16"), "caf\xe9 au lait\n".encode("latin-1") * 3, b"a" * 70_000 + b"\0"]
)
def test_a_binary_file(tmp_path: Path, content: bytes) -> None:
    assert any(word in refused(file(tmp_path, "a.txt", content)) for word in ("binary", "UTF-16"))


def test_a_folder_in_no_known_form(tmp_path: Path) -> None:
    file(tmp_path, "a.txt", "text")
    assert "no known form" in refused(tmp_path)


@pytest.mark.parametrize("at", [0, 3, 5])
def test_a_broken_json_line_is_numbered(tmp_path: Path, at: int) -> None:
    rows = lines(LABELLED).splitlines()
    rows[at] = rows[at][:-4]
    message = refused(file(tmp_path, "a.jsonl", "\n".join(rows)))
    assert f"line {at + 1} is no valid JSON" in message


def test_a_json_line_that_is_no_object(tmp_path: Path) -> None:
    assert "line 2: a row must be an object" in refused(file(tmp_path, "a.jsonl", '{"text": "a"}\n[1, 2]\n'))


@pytest.mark.parametrize(
    ("broken", "line"), [('[\n{"text": "a"},\n{"text": }\n]', 3), ('[\n{"text": "a"},\n{"text": "b"}\n', 4), ('[{"text": "a"}, 5]', 1)]
)
def test_a_broken_json_array_tells_the_line(tmp_path: Path, broken: str, line: int) -> None:
    assert f"line {line}" in refused(file(tmp_path, "a.json", broken))


def test_a_ragged_csv_tells_the_line(tmp_path: Path) -> None:
    assert "line 3 has 3 fields, the first has 2" in refused(file(tmp_path, "a.csv", "text,label\na,1\nb,2,3\n"))


def test_broken_archives_and_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = gzip.compress(os.urandom(1000).hex().encode() * 100)
    assert "truncated gzip" in refused(file(tmp_path, "a.txt.gz", whole[: len(whole) // 2]))
    pq.write_table(pa.Table.from_pylist(LABELLED), tmp_path / "whole.parquet")
    assert "truncated Parquet" in refused(file(tmp_path, "a.parquet", (tmp_path / "whole.parquet").read_bytes()[:-20]))


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    path = file(tmp_path, "a.jsonl", lines(LABELLED))
    message = refused(path, text="sentence")
    assert "no column sentence" in message and "text, label" in message
    assert "did you mean label" in refused(path, labl="label")
    assert "no text" in refused(path, text="label")


def test_nothing_that_is_wanted_is_there(tmp_path: Path) -> None:
    path = file(tmp_path, "a.jsonl", lines([{"x": i, "y2": i} for i in range(5)]))
    message = refused(path)
    assert "x, y2" in message and "--column" in message


def test_one_row(tmp_path: Path) -> None:
    assert "holds 1 row" in refused(file(tmp_path, "a.jsonl", lines(LABELLED[:1])))
    assert "holds 1 row with text" in refused(file(tmp_path, "b.jsonl", lines([{"text": "a", "label": 0}, {"text": "", "label": 1}])))
    assert "holds 1 row" in refused(file(tmp_path, "a.csv", "n,d,loss\n1,2,3\n"), (Table,))


def test_only_one_label(tmp_path: Path) -> None:
    assert "the label 'yes'" in refused(file(tmp_path, "a.jsonl", lines([row | {"label": "yes"} for row in LABELLED])))


@pytest.mark.parametrize("hole", [None, math.nan, "", "NaN"])
def test_missing_labels(tmp_path: Path, hole: object) -> None:
    filled = "x" if isinstance(hole, str) else 1
    rows = [row | {"label": hole if i == 3 else filled} for i, row in enumerate(LABELLED)]
    rows[0]["label"] = "z" if isinstance(hole, str) else 0
    message = refused(file(tmp_path, "a.jsonl", lines(rows)))
    assert "missing or NaN in 1 of 6 rows, first in row 4" in message


def test_missing_labels_in_a_csv(tmp_path: Path) -> None:
    assert "first in row 2" in refused(file(tmp_path, "a.csv", "text,label\na a,1\nb b,nan\nc c,0\nd d,\n"))


def test_labels_outside_the_choices(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"question": f"q{i}", "choices": ["a", "b"], "label": i} for i in range(3)]
    assert "row 3: label 2 is no index of its 2 choices" in refused(file(tmp_path, "a.jsonl", lines(rows)), label="label")


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


# Roles


@pytest.mark.parametrize(
    ("row", "roles"),
    [
        ({"sentence": "a b", "label": 0}, {"text": "sentence", "label": "label"}),
        ({"idx": 7, "review": "a b", "sentiment": "x"}, {"text": "review", "label": "sentiment"}),
        ({"question": "a?", "answer": "b"}, {"prompt": "question", "answer": "answer"}),
        ({"instruction": "do", "output": "done"}, {"prompt": "instruction", "answer": "output"}),
        ({"ctx": "a", "endings": ["x", "y"], "label": 0}, {"prompt": "ctx", "choices": "endings", "label": "label"}),
    ],
)
def test_roles_from_names(tmp_path: Path, row: dict[str, object], roles: dict[str, str]) -> None:
    def other(value: object, i: int) -> object:
        return i % 2 if isinstance(value, int) else f"{value} {i % 2}" if isinstance(value, str) and value == "x" else value

    rows = [{name: other(value, i) if name != "question" else f"{value}{i}" for name, value in row.items()} for i in range(6)]
    parts, heard = load(file(tmp_path, "a.jsonl", lines(rows)))
    assert dict(parts[Rows].roles) == roles
    assert all(f"{role}={name}" in heard for role, name in roles.items())
    assert parts[Text].roles["text"] == roles.get("text", roles.get("prompt"))


def test_roles_from_content_and_given(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"aa": i % 3, "bb": f"some longer text {i}", "cc": f"k{i}"} for i in range(12)]
    path = file(tmp_path, "a.jsonl", lines(rows))
    assert dict(load(path, (Rows,))[0][Rows].roles) == {"text": "bb", "label": "aa"}
    assert Rows not in load(path)[0]  # a column of few values makes no labelled rows where text is wanted as well
    parts, heard = load(path, text="cc", label="aa")
    assert dict(parts[Rows].roles) == {"text": "cc", "label": "aa"} and "columns taken" not in heard


def test_a_label_whose_values_are_all_different_is_no_label(tmp_path: Path) -> None:
    parts, _ = load(file(tmp_path, "a.jsonl", lines([{"text": f"t {i}", "label": f"a title {i}"} for i in range(9)])))
    assert Rows not in parts and Text in parts


def test_a_group_column_travels_along(tmp_path: Path) -> None:
    rows = [row | {"author": i // 2} for i, row in enumerate(LABELLED)]
    parts, _ = load(file(tmp_path, "a.jsonl", lines(rows)), group="author")
    assert parts[Rows].roles["group"] == parts[Text].roles["group"] == "author"


def test_empty_texts_are_left_out_aloud(tmp_path: Path) -> None:
    rows = [*LABELLED, {"text": "", "label": 0}, {"text": None, "label": 1}, {"text": " \n\t", "label": 1}]
    parts, heard = load(file(tmp_path, "a.jsonl", lines(rows)))
    assert parts[Rows].dataset.to_list() == LABELLED
    assert "3 of 9 rows are empty" in heard


# Tables


def table(parts: Split, role: str) -> list[float]:
    return list(parts[Table].column(role))


def test_scaling_tables_get_their_roles(tmp_path: Path) -> None:
    content = "color,Model Size,Training FLOP,loss\n#fff,10,600,3.0\n#000,20,2400,2.5\n"
    parts, heard = load(file(tmp_path, "a.csv", content), (Table,))
    assert table(parts, "tokens") == [10.0, 20.0] and table(parts, "parameters") == [10, 20]
    assert "tokens = compute / (6 parameters)" in heard and "parameters=Model Size" in heard


@pytest.mark.parametrize("names", ["N,D,loss", "params,tokens,val_loss", "n_params,n_tokens,final loss", "Parameters,Training tokens,Loss"])
def test_names_of_scaling_columns(tmp_path: Path, names: str) -> None:
    parts, _ = load(file(tmp_path, "a.csv", f"{names}\n1,2,3.5\n2,3,3.0\n"), (Table,))
    assert table(parts, "parameters") == [1, 2] and table(parts, "tokens") == [2, 3] and table(parts, "loss") == [3.5, 3.0]


def test_tables_of_other_kinds_are_left_alone(tmp_path: Path) -> None:
    parts, heard = load(file(tmp_path, "a.csv", "age,job\n31,baker\n44,cook\n"), (Table,))
    assert parts[Table].dataset.to_list() == [{"age": 31, "job": "baker"}, {"age": 44, "job": "cook"}]
    assert "columns taken" not in heard
    assert "no numbers" in refused(tmp_path / "a.csv", (Table,), loss="job")


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
    size = 24 << 20
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
    assert grown < 16 << 20 and kept > 20_000


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
