"""The prompt shows training rows, each label in turn, and nothing is trained."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.adapt import planted
from etude.adapt._folders import load, save
from etude.adapt._judge import said_labels
from etude.adapt._rows import SILENT, examples
from etude.adapt._subject import recall
from etude.adapt.baselines.few_shot_prompt import FewShotPrompt
from etude.data.contract import Data, Rows


@given(shots=st.integers(1, 12), seed=st.integers(0, 20))
@settings(max_examples=8, deadline=None)
def test_labels_are_shown_in_turn(shots, seed):
    rows = planted.labelled()
    places = FewShotPrompt(shots=shots).drawn(rows, seed, labelled=True)
    labels = rows.take(places).column("label")
    counts = {label: labels.count(label) for label in set(rows.column("label"))}
    assert len(places) == shots == len(set(places)) and max(counts.values()) - min(counts.values()) <= 1


def test_another_seed_shows_other_rows():
    rows = planted.asked()
    assert FewShotPrompt().drawn(rows, 0, False) != FewShotPrompt().drawn(rows, 1, False)
    assert FewShotPrompt().drawn(rows, 1, False) == FewShotPrompt().drawn(rows, 1, False)


def test_long_rows_are_passed_over_while_there_are_short_ones():
    rows = planted.asked()
    lengths = [len(p) + len(a) for p, a in zip(rows.column("prompt"), rows.column("answer"), strict=True)]
    limit = sorted(lengths)[10]
    assert all(lengths[place] <= limit for place in FewShotPrompt(longest=limit).drawn(rows, 0, False))


@pytest.mark.parametrize("kind", ["decoder", "gpt2"])
def test_the_rows_stand_before_every_question_and_only_the_answer_counts(kind, tmp_path):
    make, data = planted.tiny()[kind]
    plain = examples(data.train[Rows].take([0]), make(), data.tokenizer)[0]
    made = FewShotPrompt(shots=2).attach(make(), data)
    (shown,) = examples(data.train[Rows].take([0]), made, data.tokenizer)
    assert shown.ids[-len(plain.ids) :] == plain.ids and len(shown.ids) > 2 * len(plain.ids)
    assert [t for t in shown.targets if t != SILENT] == [t for t in plain.targets if t != SILENT]
    assert not any(weight.requires_grad for weight in made.parameters())
    save(made, data.tokenizer, tmp_path)
    again = load(tmp_path)
    assert recall(again, "shots") == recall(made, "shots") and not list(tmp_path.glob("*.safetensors"))
    if kind == "gpt2":
        rows = data.train[Rows].take([0, 1])
        assert said_labels(again, data.tokenizer, rows) == said_labels(made, data.tokenizer, rows)


def test_an_encoder_is_refused():
    make, data = planted.tiny()["encoder"]
    with pytest.raises(ValueError, match="reads no prompt: bring a decoder"):
        FewShotPrompt().attach(make(), data)


def test_the_prompt_is_cut_before_the_question():
    make, data = planted.tiny()["decoder"]
    made = FewShotPrompt(shots=20, longest=10**6).attach(make(), Data(data.train, data.validation, 0, data.tokenizer))
    (row,) = examples(data.train[Rows].take([0]), made, data.tokenizer)
    assert row.cut > 0 and len(row.ids) == 512 and row.targets[-1] != SILENT


@pytest.mark.parametrize("options", [{"shots": 0}, {"longest": 0}])
def test_counts_below_one_are_refused(options):
    with pytest.raises(ValueError, match="counts of at least 1"):
        FewShotPrompt(**options)
