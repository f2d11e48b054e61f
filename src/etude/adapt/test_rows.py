"""Rows as tokens: which of them are answers, which side is cut, which rows a step takes."""

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.adapt._rows import SILENT, Example, Reading, batch_of, dialogue_example, drawn, examples, rendered, spread
from etude.data.chat import Message
from etude.data.contract import Rows
from etude.nn.tiny import byte_tokenizer

CHATML = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
TALK = [Message("system", "short"), Message("user", "one?"), Message("assistant", "1"), Message("user", "two?"), Message("assistant", "22")]


def chatting():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML
    return tokenizer


def said(example, tokenizer):
    return tokenizer.decode([token for token in example.targets if token != SILENT])


def table(**columns):
    return Rows(Dataset.from_dict(columns), {name: name for name in columns})


@pytest.mark.parametrize("template", [CHATML, None])
def test_answers_alone_are_targets(template):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    (row,) = examples(table(prompt=["why?"], answer=["because"]), Reading(100), tokenizer)
    assert said(row, tokenizer).rstrip("\n") == ("because</>" if template else "because")
    assert tokenizer.decode(row.ids).startswith("<user>why?</>\n<assistant>because" if template else "why?\nbecause")


def test_every_answer_of_a_chat_is_learned_and_earlier_examples_are_not():
    tokenizer = chatting()
    assert said(dialogue_example(TALK, tokenizer, 500), tokenizer) == "1</>22</>"
    assert said(dialogue_example(TALK, tokenizer, 500, quiet=3), tokenizer) == "22</>"


def test_a_template_that_renders_earlier_turns_otherwise_still_gives_the_last_answer():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages | length }}:{{ messages[-1]['content'] }}"
    text, spans = rendered(TALK, tokenizer)
    assert text == "5:22" and [text[low:high] for low, high in spans] == ["22"]


def test_a_template_that_refuses_a_row_is_told():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    with pytest.raises(ValueError, match="chat template refuses a row .no system here"):
        dialogue_example(TALK, tokenizer, 100)


def test_the_beginning_of_a_long_prompt_is_cut_and_the_answer_stays():
    row = dialogue_example([Message("user", "x" * 50 + "why?"), Message("assistant", "because")], byte_tokenizer(), 20)
    text = byte_tokenizer().decode(row.ids)
    assert len(row.ids) == 20 and text.rstrip("\n").endswith("why?\nbecause") and row.cut == 43
    row = dialogue_example([Message("user", "why?"), Message("assistant", "b" * 50)], byte_tokenizer(), 20)
    assert len(row.ids) == 20 and row.targets[0] == SILENT and SILENT not in row.targets[1:]


def test_the_end_of_a_long_text_is_cut_for_a_label_head():
    (row,) = examples(table(text=["a" * 30], label=["x"]), Reading(10, {"x": 3}), byte_tokenizer())
    assert len(row.ids) == 10 and row.label == 3 and row.cut == 20 and not row.targets


def test_a_label_that_the_head_lacks_is_silent():
    known, other = examples(table(text=["a", "b"], label=[1, 2]), Reading(10, {"1": 0}), byte_tokenizer())
    assert known.label == 0 and other.label == SILENT


def test_choices_and_numbers_become_text():
    rows = Rows(Dataset.from_dict({"q": ["?"], "c": [["no", "yes"]], "l": [1]}), {"prompt": "q", "choices": "c", "label": "l"})
    (row,) = examples(rows, Reading(50), chatting())
    assert said(row, chatting()) == "yes</>"


def test_an_empty_answer_is_refused():
    with pytest.raises(ValueError, match="has no token"):
        dialogue_example([Message("user", "why?"), Message("assistant", "")], _endless(), 20)


def _endless():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    return tokenizer


def test_batches_are_padded_on_the_right_under_the_mask():
    batch = batch_of([Example((5, 6, 7), (SILENT, 6, 7)), Example((8,), (SILENT,))])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]] and batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[SILENT, 6, 7], [SILENT, SILENT, SILENT]]
    assert batch_of([Example((5, 6), label=2), Example((7,), label=0)])["labels"].tolist() == [2, 0]


@given(count=st.integers(1, 30), size=st.integers(1, 12), seed=st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_each_epoch_takes_every_row_once(count, size, seed):
    taken = [place for step in range(3 * count) for place in drawn(count, size, step, seed)]
    for epoch in range(3):
        assert sorted(taken[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert all(len(drawn(count, size, step, seed)) == size for step in range(4))


@given(count=st.integers(0, 50), most=st.integers(1, 60))
def test_spread_places_are_different_and_in_order(count, most):
    places = spread(count, most)
    assert len(places) == min(count, most) == len(set(places)) and places == sorted(places) and all(0 <= place < count for place in places)
