"""What holds for the contest of adapters beyond the conformance suite: its judge, its folders, what it says of bad rows."""

import json
import math
import random
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from sklearn.metrics import f1_score
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

from etude import catalogue
from etude.adapt import planted
from etude.adapt._cost import latency, merged, training, typical
from etude.adapt._folders import about_of, load, save, weights_bytes
from etude.adapt._judge import answer_nats, best_choices, forgotten, judge, macro_f1, said_labels, walked
from etude.adapt._rows import SILENT, examples
from etude.adapt._subject import kind_of, labels_of, load_subject
from etude.adapt._train import train
from etude.adapt.baselines.full import Full
from etude.adapt.baselines.lora import Lora
from etude.adapt.contest import FineTuning
from etude.data.cache import store_folder
from etude.data.contract import Data, Journal, Rows, Split
from etude.harness.contract import Run
from etude.nn.loading import load_tokenizer
from etude.nn.tiny import byte_tokenizer, tiny_llama

KINDS = pytest.mark.parametrize("kind", ["encoder", "decoder", "gpt2"])


def subject(kind):
    make, data = planted.tiny()[kind]
    return make(), data


def rows_of(**columns):
    return Rows(Dataset.from_dict(columns), {name: name for name in columns})


def run_on(folder, rows, **inputs):
    """A run as the harness would make it, on a tiny model's folder."""
    digests = {name: store_folder(Split(part).save) for name, part in {"train": rows, **inputs}.items()}
    return Run("contest:adapt/FineTuning", "lora", "user", 0, inputs=(("model", folder.name), *digests.items()))


# The judge --------------------------------------------------------------------------------------------------------------


def test_a_decoder_says_the_likeliest_label_that_there_is():
    model, data = subject("gpt2")
    rows, names = data.train[Rows].take(list(range(6))), labels_of(model)
    told = said_labels(model, data.tokenizer, rows)
    for text, label in zip(rows.column("text"), told, strict=True):
        ids = data.tokenizer(text + "\n")["input_ids"]
        left = {name: data.tokenizer(name + "\n")["input_ids"] for name in names}
        for place in range(100):  # token by token, one row at a time, without batches
            allowed = {tokens[place] for tokens in left.values()}
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1]
            best = max(allowed, key=lambda token: float(logits[token]))
            left, ids = {name: tokens for name, tokens in left.items() if tokens[place] == best}, [*ids, best]
            if len(left) == 1:
                break
        assert list(left) == [label]


@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple), min_size=1, max_size=12, unique=True), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_every_walk_ends_at_a_label(labels, seed):
    tree = {}
    for label in labels:  # 0 ends a label, so that none begins another
        node = tree
        for token in label:
            node = node.setdefault(token, {})
        node[0] = str(label)
    model = _random_model()
    dice = random.Random(seed)
    prompts = [[dice.randrange(256) for _ in range(dice.randrange(1, 6))] for _ in range(4)]
    told = walked(model, prompts, tree)
    assert told == [walked(model, [prompt], tree)[0] for prompt in prompts] and set(told) <= {str(label) for label in labels}


def _random_model(made=[]):  # noqa: B006 -- made once
    if not made:
        made.append(tiny_llama(layers=1, width=16))
    return made[0]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd")), min_size=1, max_size=30))
@settings(deadline=None, max_examples=40)
def test_macro_f1_is_scikit_learns(pairs):
    gold, told = [a for a, _ in pairs], [b for _, b in pairs]
    assert macro_f1(gold, told) == pytest.approx(f1_score(gold, told, average="macro", zero_division=0))


def test_the_loss_is_that_of_transformers():
    model, data = subject("decoder")
    read = examples(data.train[Rows].take([0, 1, 2]), model, data.tokenizer)
    for row, (nats, tokens) in zip(read, answer_nats(model, read), strict=True):
        with torch.no_grad():
            theirs = model(torch.tensor([row.ids]), labels=torch.tensor([row.targets])).loss
        assert nats / tokens == pytest.approx(float(theirs), rel=1e-5) and tokens == sum(target != SILENT for target in row.targets)


def test_choices_are_judged_by_what_their_tokens_cost():
    model, data = subject("decoder")
    rows = rows_of(prompt=["Who?", "What?"], choices=[["a", "b", "cc"], ["d", "e"]], label=[0, 1])
    told = best_choices(model, data.tokenizer, rows)
    found = judge(model, data.tokenizer, rows, range(2))
    assert found.accuracy == sum(a == b for a, b in zip(told, [0, 1], strict=True)) / 2 and math.isfinite(found.loss)


@pytest.mark.parametrize("kind", ["encoder", "gpt2"])
def test_a_label_that_training_never_saw_counts_as_a_miss(kind):
    model, data = subject(kind)
    seen = data.train[Rows].take([0, 1, 2])
    strange = rows_of(text=[*seen.column("text"), "new"], label=[*said_labels(model, data.tokenizer, seen), "never seen"])
    assert judge(model, data.tokenizer, strange, range(4)).accuracy == 0.75


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_thousand_classes_work(name):
    folder = planted.kept(name, {"bert": planted.tiny_bert, "llama": tiny_llama}[name])
    rows = rows_of(text=[f"row {i}" for i in range(1000)], label=[f"class {i}" for i in range(1000)])
    model, data = load_subject(folder, rows), Data(Split(rows), Split(rows), 0, byte_tokenizer())
    train(Full().attach(model, data), data, 1e-3, steps=2)
    told = said_labels(model, data.tokenizer, rows.take(list(range(20))))
    assert len(labels_of(model)) == 1000 and set(told) <= set(labels_of(model))


# Folders ----------------------------------------------------------------------------------------------------------------


def built(kind, contender, folder, steps=4, seed=1):
    _, data = subject(kind)
    data = Data(data.train, data.validation, seed, data.tokenizer)
    model = load_subject(planted.kept(*_tiny(kind)), data.train[Rows], seed=seed)  # its label head is another one than that of seed 0
    made = contender.attach(model, data)
    train(made, data, 1e-2, steps=steps)
    folder.mkdir()
    save(made, data.tokenizer, folder)
    return made, data


@KINDS
def test_an_adapter_answers_alike_reloaded_merged_and_in_plain_peft(kind, tmp_path):
    made, data = built(kind, Lora(), tmp_path / "out")
    answers = FineTuning().answers
    said = answers(made)
    again = load(tmp_path / "out")
    assert abs(answers(again) - said).max() < 1e-5
    assert labels_of(again) == labels_of(made) == about_of(tmp_path / "out")["labels"]
    base = load_subject(planted.kept(*_tiny(kind)), data.train[Rows])
    assert abs(answers(PeftModel.from_pretrained(base, str(tmp_path / "out"))) - said).max() < 1e-5
    assert abs(answers(merged(again)) - said).max() < 1e-4
    assert load_tokenizer(tmp_path / "out").get_vocab() == data.tokenizer.get_vocab()


def _tiny(kind):
    return {"encoder": ("bert", planted.tiny_bert), "decoder": ("llama", tiny_llama), "gpt2": ("gpt2", planted.tiny_gpt2)}[kind]


def test_a_whole_model_is_a_plain_folder(tmp_path):
    built("encoder", Full(), tmp_path / "out")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert type(theirs).__module__.startswith("transformers.") and theirs.config.id2label[0] == labels_of(load(tmp_path / "out"))[0]
    assert FineTuning().describe(tmp_path / "out")["loads in"] == "plain transformers"


def test_an_adapter_on_another_base_model_is_refused(tmp_path):
    built("encoder", Lora(), tmp_path / "out")

    def another():
        model = planted.tiny_bert()
        for weight in model.parameters():
            weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.02
        return model

    with pytest.raises(ValueError, match="another base model"):
        load(tmp_path / "out", base=planted.kept("another bert", another))
    with pytest.raises(ValueError, match="another base model"):
        load(tmp_path / "out", base=planted.kept("wide bert", lambda: planted.tiny_bert(width=32)))
    about = about_of(tmp_path / "out") | {"base": str(tmp_path / "gone")}
    (tmp_path / "out" / "etude.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"the base model .*gone.* is not there"):
        load(tmp_path / "out")
    assert load(tmp_path / "out", base=planted.kept("bert", planted.tiny_bert)) is not None


def test_bytes_are_those_of_the_task_and_not_of_the_tokenizer(tmp_path):
    built("encoder", Lora(), tmp_path / "out")
    weights = (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    assert weights < weights_bytes(tmp_path / "out") < weights + 20_000
    whole = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert weights_bytes(tmp_path / "out") + (tmp_path / "out" / "tokenizer.json").stat().st_size <= whole


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no etude\.json"):
        load(tmp_path)


# Costs ------------------------------------------------------------------------------------------------------------------


@KINDS
def test_costs_are_measured(kind, tmp_path):
    made, data = built(kind, Lora(), tmp_path / "out")
    row = typical(examples(data.train[Rows], made, data.tokenizer))
    assert 0 < latency(made, row) < 1
    fresh, _ = subject(kind)
    found = training(Lora().attach, fresh, data, 48, lambda: 7)
    assert found.train > 0 and found.train_memory == 7


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_forgetting_is_nothing_for_the_base_and_something_after_training(kind, tmp_path):
    folder = tmp_path / "out"
    made, data = built(kind, Full(), folder, steps=20)
    about = about_of(folder)
    axis = "drift" if kind == "encoder" else "forgetting"
    base, _ = subject(kind)
    assert abs(getattr(forgotten(base, data.tokenizer, about, "float32", "cpu"), axis)) < 1e-5
    assert abs(getattr(forgotten(made, data.tokenizer, about, "float32", "cpu"), axis)) > 1e-3


# The contest ------------------------------------------------------------------------------------------------------------


def test_what_is_to_be_said_of_the_rows_is_said():
    folder = planted.kept("bert", planted.tiny_bert)
    train_rows = rows_of(text=[f"text {i}" for i in range(40)], label=["a", "b"] * 20)
    rows = rows_of(text=["x" * 300, "short", "other"], label=["a", "b", "c"])
    notes = "; ".join(FineTuning().check(Split(rows), run_on(folder, train_rows)))
    assert "the 40 training rows 4.8 times" in notes and "1 rows have a label that training never saw (c)" in notes
    assert "1 rows are longer than 128 tokens: the end of the text is cut off" in notes
    llama = planted.kept("llama", tiny_llama)
    asked = rows_of(prompt=["x" * 600, "short"], answer=["a", "b"])
    assert "the beginning of the prompt is cut off, the answer stays" in "; ".join(FineTuning().check(Split(asked), run_on(llama, asked)))


def test_a_tokenizer_of_another_model_is_refused():
    folder = planted.kept("few tokens", lambda: BertModel(BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)))
    rows = planted.labelled()
    with pytest.raises(ValueError, match="and the model knows 50: the folder holds another model's tokenizer"):
        FineTuning().check(Split(rows), run_on(folder, rows))


def test_many_labels_are_said_aloud():
    rows = rows_of(text=[f"text {i}" for i in range(1000)], label=[str(i) for i in range(1000)])
    notes = FineTuning().check(Split(rows.take(list(range(10)))), run_on(planted.kept("bert", planted.tiny_bert), rows))
    assert any("1000 labels for 192 rows of training" in note for note in notes)


def test_an_encoder_does_not_answer_with_text():
    asked = rows_of(prompt=["a", "b"], answer=["c", "d"])
    with pytest.raises(ValueError, match="is an encoder: it answers with labels"):
        FineTuning().check(Split(asked), run_on(planted.kept("bert", planted.tiny_bert), asked))
    with pytest.raises(ValueError, match="is an encoder: it answers with labels"):
        load_subject(planted.kept("bert", planted.tiny_bert), asked)


def test_facts_say_what_is_adapted_and_what_it_will_take():
    contest = FineTuning()
    for name, make, kind in (("bert", planted.tiny_bert, "encoder"), ("llama", tiny_llama, "decoder")):
        rows = planted.labelled()
        facts = contest.facts(run_on(planted.kept(name, make), rows))
        model = make()
        assert facts["kind"] == kind and facts["parameters"] == model.num_parameters() and facts["labels"] == 5
        assert facts["active"] == model.num_parameters() - (0 if kind == "decoder" else model.get_input_embeddings().weight.numel())
        for step in ("build", "measure", "time", "search"):
            estimate = contest.estimate(facts | {"flops": 1e10}, step)
            assert estimate.seconds >= 0 and estimate.memory > 1e9
    assert contest.unfit({"kind": "encoder"}, ("prompts",)) and not contest.unfit({"kind": "decoder"}, ("prompts",))


def test_the_floor_is_the_most_common_label_or_the_entropy_of_the_answers():
    folder = planted.kept("llama", tiny_llama)
    rows = rows_of(text=["a", "b", "c", "d"], label=["x", "x", "x", "y"])
    assert FineTuning().floor(Split(rows), Split(rows), run_on(folder, rows)) == 0.75
    asked = rows_of(prompt=["a", "b"], answer=["x", "y"])
    assert FineTuning().floor(Split(asked), Split(asked), run_on(folder, asked)) == pytest.approx(math.log(2))


def test_a_contender_without_a_rate_is_refused(tmp_path):
    class Bare:
        def attach(self, model, data):
            return model.requires_grad_(True)

    model, data = subject("encoder")
    with pytest.raises(ValueError, match="Bare has no option rate"):
        FineTuning().build(Bare(), model, data, tmp_path)


def test_kinds_of_models_are_told(tmp_path):
    for config, kind in (
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "decoder"),
        ({"architectures": ["BertModel"], "model_type": "bert"}, "encoder"),
        ({"architectures": ["LlamaModel"], "model_type": "llama"}, "decoder"),
        ({"model_type": "roberta"}, "encoder"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert kind_of(tmp_path) == kind
    for config, why in (({"model_type": "t5", "is_encoder_decoder": True}, "an encoder and a decoder"), ({"model_type": "vit"}, "neither")):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=why):
            kind_of(tmp_path)


def test_a_context_shorter_than_the_rows_is_kept_to():
    folder = planted.kept("short bert", lambda: planted.tiny_bert(context=16))
    rows = planted.labelled()
    model = load_subject(folder, rows)
    assert max(len(row.ids) for row in examples(rows, model, byte_tokenizer())) == 16
    data = Data(Split(rows), Split(rows), 0, byte_tokenizer())
    assert all(map(math.isfinite, train(Lora().attach(model, data), data, 1e-3, steps=2)))


def test_every_contender_of_the_field_competes_here():
    assert all("adapt" in catalogue.find(name).enters for name in FineTuning.field) and FineTuning.reference in FineTuning.field


def test_the_user_says_how_many_steps_all_train(tmp_path):
    rows, folder = planted.labelled(), planted.kept("bert", planted.tiny_bert)
    run = replace(run_on(folder, rows), settings='{"steps": 5}')
    assert any("each contender trains 5 steps of 8 rows" in note for note in FineTuning().check(Split(rows), run))
    assert FineTuning().facts(run)["steps"] == 5
    data = Data(Split(rows), Split(rows), 0, load_tokenizer(folder), Journal(tmp_path / "trials.jsonl"))
    FineTuning().build(Lora(), FineTuning().subject(run), data, tmp_path / "built")
    losses = {len(json.loads(path.read_text())) for path in tmp_path.rglob("losses.json")}
    assert losses == {5}
    with pytest.raises(ValueError, match="--steps 2.5 is no whole number"):
        FineTuning().check(Split(rows), replace(run, settings='{"steps": 2.5}'))
