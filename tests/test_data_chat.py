"""Chats: the forms that are about become turns, and what holds no answer to learn is left out aloud or refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from data_files import file, fresh_home, lines, load, refused
from hypothesis import given
from hypothesis import strategies as st

from etude.data.chat import Message, messages_of, problem, turns
from etude.data.contract import Rows, Text
from etude.data.split import by_hash

ASKED, TOLD, SYSTEM = {"role": "user", "content": "why?"}, {"role": "assistant", "content": "because"}, {"role": "system", "content": "be brief"}


@pytest.fixture(autouse=True, scope="module")
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield from fresh_home(tmp_path_factory.mktemp("home"))


def test_both_forms_of_messages_become_turns() -> None:
    sharegpt = [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "because"}]
    assert turns([ASKED, TOLD]) == turns(sharegpt) == [Message("user", "why?"), Message("assistant", "because")]
    assert turns([SYSTEM, ASKED, TOLD])[0] == Message("system", "be brief")


def test_what_follows_the_last_answer_is_left_out() -> None:
    assert turns([ASKED, TOLD, ASKED]) == turns([ASKED, TOLD])


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        ([TOLD, ASKED, TOLD], "begin with the assistant's turn"),
        ([SYSTEM, TOLD], "begin with the assistant's turn"),
        ([ASKED], "no turn of the assistant's"),
        ([ASKED, ASKED, TOLD], "two turns of one speaker"),
        ([ASKED, TOLD, SYSTEM, ASKED, TOLD], "later than first"),
        ([ASKED, TOLD | {"content": " \n"}], "empty answer"),
    ],
)
def test_a_chat_without_an_answer_to_learn_is_refused(chat: list[dict[str, str]], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        turns(chat)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hello", "must be a list"),
        ([{"role": "user"}], "role and content"),
        ([["user", "a"]], "role and content"),
        ([ASKED | {"role": "judge"}], "judge"),
    ],
)
def test_what_is_no_chat_is_refused(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        messages_of(value)


@given(st.lists(st.sampled_from(["system", "user", "assistant"]), max_size=8), st.booleans())
def test_a_chat_passes_only_where_it_takes_turns(roles: list[str], blank: bool) -> None:
    messages = [Message(role, " " if blank else "x") for role in roles]
    if not problem(messages):
        kept = turns([{"role": message.role, "content": message.content} for message in messages])
        spoken = [message.role for message in kept if message.role != "system"]
        assert spoken == ["user", "assistant"] * (len(spoken) // 2) and kept[-1].role == "assistant" and not blank


def test_chats_are_rows_and_bad_ones_are_counted_aloud(tmp_path: Path) -> None:
    good = [{"messages": [ASKED | {"content": f"why {i}?"}, TOLD], "category": i % 2} for i in range(4)]
    bad = [{"messages": [TOLD, ASKED], "category": 0}, {"messages": [ASKED], "category": 1}]
    parts, heard = load(file(tmp_path, "a.jsonl", lines([*good, *bad])), (Rows,))
    assert len(parts[Rows]) == 4 and dict(parts[Rows].roles) == {"messages": "messages"}
    assert "2 of 6 chats are left out: 1 begin with the assistant's turn; 1 hold no turn of the assistant's" in heard


def test_a_column_that_is_given_goes_before_chats(tmp_path: Path) -> None:
    rows = [{"messages": [ASKED, TOLD], "text": f"a text {i}", "topic": i % 2} for i in range(6)]
    path = file(tmp_path, "a.jsonl", lines(rows))
    assert dict(load(path, (Rows,), text="text", label="topic")[0][Rows].roles) == {"text": "text", "label": "topic"}
    assert Text in load(path, (Rows, Text))[0]  # where texts are wanted, chats are none


def test_only_chats_that_cannot_be_learned_from_are_refused(tmp_path: Path) -> None:
    path = file(tmp_path, "a.jsonl", lines([{"conversations": [TOLD, ASKED]}] * 3))
    assert "begin with the assistant's turn" in refused(path, (Rows,))
    path = file(tmp_path, "b.jsonl", lines([{"messages": [{"role": "user", "content": None}, TOLD]}] * 3))
    assert "row 1, column messages" in refused(path, (Rows,))


def test_equal_chats_stay_on_one_side(tmp_path: Path) -> None:
    rows = [{"messages": [ASKED | {"content": f"why {i % 5}?"}, TOLD], "id": i} for i in range(40)]
    part = load(file(tmp_path, "a.jsonl", lines(rows)), (Rows,))[0][Rows]
    left, right = by_hash(part, (0.5, 0.5), 0)
    asked = [{messages[0]["content"] for messages in half.column("messages")} for half in (left, right)]
    assert asked[0] and asked[1] and not asked[0] & asked[1]
