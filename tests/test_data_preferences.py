"""Preference rows: every form becomes one, and what teaches nothing is left out aloud or refused by its row."""

import json
import os
from pathlib import Path

import pytest
from data_files import fresh_home

from etude.data.contract import Preferences
from etude.data.sources import load

HH = Path(os.environ.get("ETUDE_DATA", "/nowhere")) / "preferences/hh_harmless_test.jsonl.gz"
GOOD = {"prompt": "Q: one\nA:", "chosen": " yes", "rejected": " no"}
OTHER = {"prompt": "Q: two\nA:", "chosen": " no", "rejected": " yes"}


@pytest.fixture(autouse=True, scope="module")
def own_home(tmp_path_factory):
    yield from fresh_home(tmp_path_factory.mktemp("home"))


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def read(rows, tmp_path, columns=None):
    """The preferences of these rows, and what was said of them."""
    path, said = tmp_path / "rows.jsonl", list[str]()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load(str(path), (Preferences,), columns or {}, said.append)[Preferences], "\n".join(said)


def test_plain_rows_stay_as_they_are(tmp_path):
    part, said = read([GOOD, OTHER], tmp_path)
    assert [dict(row) for row in part.dataset] == [GOOD, OTHER] and "left out" not in said
    assert part.roles == {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}


def test_columns_are_found_by_their_names_or_given(tmp_path):
    rows = [{"question": "Q", "winner": " a", "loser": " b", "agreement": 0.75}, {"question": "R", "winner": " c", "loser": " d", "agreement": None}]
    part, said = read(rows, tmp_path)
    assert list(part.column("chosen")) == [" a", " c"] and list(part.column("rate")) == [0.75, 1.0] and "rejected=loser" in said
    swapped, _ = read(rows, tmp_path, {"chosen": "loser", "rejected": "winner"})
    assert list(swapped.column("chosen")) == [" b", " d"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [user("hi")], "chosen": [assistant("yes")], "rejected": [assistant("no")]},
        {"chosen": [user("hi"), assistant("yes")], "rejected": [user("hi"), assistant("no")]},
        {"prompt": "hi", "chosen": [user("hi"), assistant("yes")], "rejected": [user("hi"), assistant("no")]},
        {"prompt": [user("hi")], "chosen": "yes", "rejected": "no"},
        {"prompt": "hi", "chosen": [assistant("yes")], "rejected": [assistant("no")]},
    ],
    ids=["explicit", "implicit", "prompt repeated", "texts as answers", "text as prompt"],
)
def test_chats_become_prompt_and_two_answers(row, tmp_path):
    part, _ = read([row, row | {"chosen": [*row["chosen"][:-1], assistant("well")] if isinstance(row["chosen"], list) else "well"}], tmp_path)
    first = {name: [dict(message) for message in part.dataset[0][name]] for name in ("prompt", "chosen", "rejected")}
    assert first == {"prompt": [user("hi")], "chosen": [assistant("yes")], "rejected": [assistant("no")]}


def test_turns_that_an_explicit_prompt_lacks_are_added_to_it(tmp_path):
    later = [assistant("what?"), user("again")]
    row = {"prompt": [user("hi")], "chosen": [*later, assistant("yes")], "rejected": [*later, assistant("no")]}
    part, _ = read([row, row | {"prompt": [user("ho")]}], tmp_path)
    assert [message["content"] for message in part.dataset[0]["prompt"]] == ["hi", "what?", "again"]


def test_dialogues_share_everything_up_to_the_last_answer(tmp_path):
    head = "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: go on\n\nAssistant:"
    part, _ = read([{"chosen": f"{head} I do", "rejected": f"{head} I do not"}, {"chosen": f"{head} a", "rejected": f"{head} b"}], tmp_path)
    assert dict(part.dataset[0]) == {"prompt": head, "chosen": " I do", "rejected": " I do not"}


def test_texts_without_a_prompt_share_their_beginning_up_to_a_word(tmp_path):
    part, _ = read([{"chosen": "The sky is blue today", "rejected": "The sky is black"}, {"chosen": "One two", "rejected": "One three"}], tmp_path)
    assert dict(part.dataset[0]) == {"prompt": "The sky is", "chosen": " blue today", "rejected": " black"}


def test_chats_in_a_table_are_read_from_their_json(tmp_path):
    quoted = [json.dumps(json.dumps([assistant(answer)])) for answer in ("a", "b")]
    (tmp_path / "rows.tsv").write_text(
        "prompt\tchosen\trejected\n" + "".join(f"ask {i}\t{quoted[0]}\t{quoted[1]}\n".replace('\\"', '""') for i in range(3))
    )
    part = load(str(tmp_path / "rows.tsv"), (Preferences,), {}, lambda line: None)[Preferences]
    assert [dict(message) for message in part.dataset[2]["prompt"]] == [user("ask 2")] and part.dataset[2]["chosen"][0]["content"] == "a"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (GOOD | {"rejected": None}, "1 have no rejected answer"),
        (GOOD | {"rejected": ""}, "1 have no rejected answer"),
        (GOOD | {"chosen": None}, "1 have no chosen answer"),
        (GOOD | {"rejected": "  "}, "1 have an empty answer"),
        (GOOD | {"rejected": " yes "}, "1 have a chosen answer equal to the rejected one"),
        (GOOD | {"prompt": " "}, "1 have no prompt"),
    ],
)
def test_a_text_row_that_teaches_nothing_is_left_out_with_its_reason(row, reason, tmp_path):
    part, said = read([GOOD, row, OTHER], tmp_path)
    assert len(part) == 2 and f"1 of 3 rows are left out: {reason}" in said


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": [assistant("hello")], "chosen": [user("hi"), assistant("a")], "rejected": [user("hi"), assistant("b")]}, None),
        ({"prompt": [assistant("hello"), user("x")], "chosen": [assistant("a")], "rejected": [assistant("b")]}, "first turn is the assistant's"),
        ({"prompt": [user("x")], "chosen": [user("a")], "rejected": [assistant("b")]}, "do not begin with the assistant's turn"),
        ({"prompt": [user("x")], "chosen": [assistant("a")], "rejected": [assistant("a ")]}, "equal to the rejected one"),
        ({"prompt": [], "chosen": [assistant("a")], "rejected": [assistant("b")]}, "share no turn"),
    ],
)
def test_a_chat_that_teaches_nothing_is_left_out_with_its_reason(row, reason, tmp_path):
    good = {"prompt": [user("x")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
    part, said = read([good, row, good | {"prompt": [user("y")]}], tmp_path)
    assert len(part) == (2 if reason else 3) and (not reason or reason in said)


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (
            "\n\nAssistant: hi\n\nHuman: a\n\nAssistant: x",
            "\n\nAssistant: hi\n\nHuman: a\n\nAssistant: y",
            "are dialogues whose first turn is the assistant's",
        ),
        ("\n\nAssistant: x", "\n\nAssistant: y", "are dialogues whose first turn is the assistant's"),
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d", "\n\nHuman: a\n\nAssistant: e", "are dialogues that part ways"),
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: z\n\nAssistant: b", "are dialogues that share no turn up to an answer"),
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: b", "have a chosen answer equal to the rejected one"),
    ],
)
def test_a_dialogue_that_teaches_nothing_is_left_out_with_its_reason(chosen, rejected, reason, tmp_path):
    head = "\n\nHuman: hi\n\nAssistant:"
    good = {"chosen": f"{head} a", "rejected": f"{head} b"}
    part, said = read([good, {"chosen": chosen, "rejected": rejected}, good | {"chosen": f"{head} c"}], tmp_path)
    assert len(part) == 2 and f"1 of 3 rows are left out: 1 {reason}" in said


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"prompt": "a", "chosen": "b"}] * 2, "holds chosen answers .* and no rejected ones"),
        ([{"text": "a", "label": 1}] * 2, "holds no preferences, its columns are text, label"),
        ([GOOD, GOOD | {"rejected": None}], "holds 1 preference rows that can be used .1 have no rejected answer"),
        ([GOOD, OTHER | {"rejected": [assistant("x")]}], "row 2: chosen and rejected must both be texts or both be chats"),
        ([GOOD | {"weight": 1.0}, OTHER | {"weight": -1.0}], "row 2: weight must be 0 or more, got -1"),
        ([GOOD | {"rate": 1.5}, OTHER | {"rate": 0.5}], r"row 1: rate must lie in \[0, 1\], got 1.5"),
        (
            [{"prompt": [{"role": "robot", "content": "x"}], "chosen": [assistant("a")], "rejected": [assistant("b")]}] * 2,
            "row 1: a message needs a role",
        ),
    ],
)
def test_what_cannot_be_used_at_all_is_refused_by_its_row(rows, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        read(rows, tmp_path)


def test_running_text_is_no_preference(tmp_path):
    (tmp_path / "a.txt").write_text("some words\n" * 50)
    with pytest.raises(ValueError, match="running text; wanted are Preferences"):
        load(str(tmp_path / "a.txt"), (Preferences,), {}, print)


@pytest.mark.skipif(not HH.is_file(), reason="ETUDE_DATA holds no hh_harmless_test.jsonl.gz")
def test_hh_is_read_whole_but_for_empty_answers():
    said = list[str]()
    part = load(str(HH), (Preferences,), {}, said.append)[Preferences]
    assert len(part) == 2308 and "4 of 2312 rows are left out: 4 have an empty answer" in said
    assert all(prompt.endswith("\n\nAssistant:") and prompt.startswith("\n\nHuman:") for prompt in part.column("prompt"))
    assert not any("\n\nHuman:" in answer for answer in part.column("chosen"))


def test_the_embedded_rows_ask_for_what_was_asked(tmp_path):
    part = load("python-answers", (Preferences,), {}, lambda line: None)[Preferences]
    asked, right, wrong = (list(part.column(role)) for role in ("prompt", "chosen", "rejected"))
    assert len(part) == len(set(asked)) == len(set(right)) == 160 and sorted(right) == sorted(wrong)
    assert all(prompt.startswith("Q: What ") and prompt.endswith("\nA:") for prompt in asked)
    assert all(4 <= len(answer.split()) <= 10 and answer.startswith(" ") for answer in right)
