"""The contest of architectures: decoders trained from scratch on the user's text, at equal parameters, equal tokens and equal tuning."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from etude.data.contract import Data, Part, Split, Text
from etude.harness.contract import Axis, Contest, Estimate, Need, Run
from etude.measure.contract import Metrics

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from etude.models import Builder  # noqa: F401 -- what the contenders are
    from etude.models._train import Terms

SHARES = (0.7, 0.1, 0.1, 0.1)  # train, validation, choice, test
PARAMETERS, CONTEXT = 300_000, 256
LEAST = 64  # parameters a token of the vocabulary: at fewer the embedding is more than half of a model 32 wide
JUDGED, BLOCK = 32_768, 128  # held-out tokens at most, and the tokens of an item
LONG = 4  # times the trained context: what decoding costs there tells how it grows
SECONDS = 0.7  # that a speed is measured; training, whose steps are longer, twice as long
EFFICIENCY = 0.4  # of a processor's peak, that small models reach in training


class Decoders(Contest["Terms", "Builder"]):
    """Architectures of causal language models, judged on held-out text (bits per byte) and on associative recall.

    The yardstick is a Llama block of the same size: it is what one would train today without asking.
    """

    family, name, title, verb = "models", "Decoders", "Language models trained from scratch", "build"
    brings = (
        Need("data", "data", "the text to learn: any text file, JSONL with a text column, or a corpus by name", "english"),
        Need("tokenizer", "tokenizer", "its tokenizer: a folder, or a model whose tokenizer it is; bytes when left out"),
        Need("parameters", "number", "how large every contender is (within 2 %)", str(PARAMETERS)),
        Need("tokens", "number", "how many tokens every contender is trained on; as many as it has parameters when left out"),
        Need("context", "number", "tokens of a training window", str(CONTEXT)),
    )
    kinds = (Text,)
    field = ("llama", "gpt2_block")
    reference = "llama"
    quality = "bits_per_byte"
    costs = ("decode", "long_decode", "prefill", "training", "state", "long_state", "memory", "bytes")
    axes: ClassVar[Mapping[str, Axis]] = {
        "bits_per_byte": Axis("bits/byte", "lower", "bits per byte"),
        "recall": Axis("share", "higher", "associative recall (a guess: 0.125)"),
        "state": Axis("bytes", "lower", "state at the trained context"),
        "long_state": Axis("bytes", "lower", f"state at {LONG} times the context"),
        "memory": Axis("bytes", "lower", "peak memory"),
        "bytes": Axis("bytes", "lower", "bytes on disk"),
        "training": Axis("tokens/s", "higher", "training speed"),
        "prefill": Axis("tokens/s", "higher", "prefill speed"),
        "long_decode": Axis("tokens/s", "higher", f"decode speed at {LONG} times the context"),
        "decode": Axis("tokens/s", "higher", "decode speed at the trained context"),
    }
    budget_axes: ClassVar[Mapping[str, str]] = {"share": "state", "bytes": "state", "faster": "decode"}
    trials = 3
    seeds = 2
    dtype = "float32"  # as it is trained

    @property
    def every(self) -> int:
        """Steps between checkpoints."""
        from etude.models._train import EVERY

        return EVERY

    def split(self, parts: Split, seed: int) -> tuple[Split, Split, Split, Split]:
        train, validation, choice, test = (Split(part) for part in cut(parts[Text], SHARES, seed))
        return train, validation, choice, test

    def whole(self, parts: Split, seed: int) -> tuple[Split, Split]:
        train, validation = (Split(part) for part in cut(parts[Text], (0.9, 0.1), seed))
        return train, validation

    def subject(self, run: Run) -> Terms:
        return terms_of(run)

    def data(self, run: Run) -> Data:
        return Data(Split.load(run.path("train")), Split.load(run.path("validation")), run.seed, tokenizer_of(run))

    def call(self, contender: Any, subject: Terms, data: Data) -> PreTrainedModel:
        """An untrained model whose weights are drawn by the seed.

        Raises:
            ValueError: it is not as large as all others, or knows fewer tokens than there are.
        """
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(data.seed)
            made: PreTrainedModel = reading(contender, subject.context).build(subject.vocabulary, subject.parameters)
        check_size(made, subject)
        made.to(torch.device(subject.device))
        return made.eval()

    def build(self, contender: Any, subject: Terms, data: Data, folder: Path) -> None:
        """Tune the rate where the contender leaves it open, train, save; for seeds that are reported also a small model that learns recall."""
        from etude.models._train import trained, tune

        def make() -> PreTrainedModel:
            return self.call(contender, subject, data)

        rate = getattr(contender, "rate", None)
        if rate is None:
            rate = tune(make, subject, data, self.trials, settle=hasattr(contender, "rate"))
        self.save(trained(make, subject, data, rate), data, folder)
        if data.seed:  # seed 0 chooses, and `apply` builds with it: nobody asks for its recall
            self.recall(contender, subject, data, folder / "recall")

    def recall(self, contender: Any, subject: Terms, data: Data, folder: Path) -> None:
        """Let a small model of the contender learn associative recall, and save it; nothing is saved where its options fix another size."""
        from etude.models import _recall

        length, kept = 3 * _recall.PAIRS, data.journal.checkpoints
        terms = replace(subject, vocabulary=_recall.VOCABULARY, parameters=min(_recall.PARAMETERS, subject.parameters), context=length)
        try:
            model = self.call(reading(contender, length, exactly=True), terms, data)
        except ValueError:
            return
        _recall.learn(model, subject.tokens, data.seed, kept and kept / "recall")
        model.save_pretrained(folder)

    def save(self, made: PreTrainedModel, data: Data, folder: Path) -> None:
        from etude.nn.saving import save

        save(made, data.tokenizer, folder)

    def load(self, folder: Path, run: Run) -> PreTrainedModel:
        from etude.nn.loading import load_decoder

        return load_decoder(folder, run.dtype, run.device)

    def answers(self, made: PreTrainedModel) -> np.ndarray:
        import torch

        ids = torch.arange(32)[None] * 7 % int(made.config.get_text_config().vocab_size)
        with torch.inference_mode():
            logits: np.ndarray = made(input_ids=ids.to(made.device), use_cache=False).logits.float().cpu().numpy()
        return logits

    def tiny(self) -> Mapping[str, tuple[Callable[[], Terms], Data]]:
        from etude.models.planted import tiny

        return tiny()

    def measure(self, folder: Path, held_out: Split, run: Run) -> Metrics:
        from etude.measure import cost, quality
        from etude.models import _recall
        from etude.nn.loading import load_tokenizer

        model, context, small = self.load(folder, run), context_asked(run), folder / "recall"
        check_causal(model, context)
        metrics = quality.language(model, load_tokenizer(folder), held_out[Text], tokens=JUDGED, window=context, block=BLOCK)
        metrics["bytes"] = float(cost.folder_bytes(folder) - (cost.folder_bytes(small) if small.is_dir() else 0))
        metrics |= {name: cost.state_bytes(model, length) for name, length in within(model, context, "state")}
        if small.is_dir():
            metrics["recall"] = _recall.accuracy(self.load(small, run))
        return metrics

    def time(self, folder: Path, held_out: Split, run: Run) -> Metrics:
        from etude.measure import cost
        from etude.models._train import Terms

        model, context = self.load(folder, run), context_asked(run)
        batch, steps = Terms(0, 0, 0, context).batch, context // 4
        metrics = Metrics(prefill=cost.prefill_speed(model, context, seconds=SECONDS))
        for name, length in within(model, context, "decode"):
            metrics[name] = cost.decode_speed(model, prompt=length - steps, seconds=SECONDS, most=steps)
        return Metrics(metrics | {"training": cost.training_speed(model, context, batch, seconds=2 * SECONDS)})

    def floor(self, train: Split, held_out: Split, run: Run) -> float:
        from etude.measure.quality import unigram_entropy

        return unigram_entropy(held_out[Text])

    def facts(self, run: Run) -> dict[str, Any]:
        terms = terms_of(run)
        ratio = terms.tokens / terms.parameters
        told = f"each contender has {terms.parameters:,} parameters and is trained on {terms.tokens:,} tokens in windows of {terms.context}"
        if ratio < 20:
            told += f": {ratio:.2g} a parameter, where 20 would suit the size; with more the order may change"
        return {"parameters": terms.parameters, "vocabulary": terms.vocabulary, "tokens": terms.tokens, "context": terms.context, "notes": [told]}

    def loaded(self, folder: Path, run: Run) -> tuple[Any, ...]:
        from etude.nn.loading import load_tokenizer

        return self.load(folder, run), load_tokenizer(folder)

    def describe(self, folder: Path) -> dict[str, str]:
        from etude.nn.loading import config_of, parameters

        config = config_of(folder)
        ours = str(config.get("model_type", "")).startswith("etude")
        shape = f"{config.get('num_hidden_layers', '?')} layers, {config.get('hidden_size', '?')} wide, {parameters(folder):,} parameters"
        found = {"shape": shape, "loads in": "transformers after `import etude`" if ours else "plain transformers"}
        return found | ({"recall/": "the small model of its kind that learned associative recall"} if (folder / "recall").is_dir() else {})

    def samples(self, folder: Path, held_out: Split, run: Run) -> list[str]:
        import torch

        model, tokenizer = self.loaded(folder, run)
        texts = [text for text in held_out[Text].column("text")[:50] if len(text) > 80][:2]
        outputs = []
        for text in texts:
            ids = torch.tensor([list(tokenizer(text)["input_ids"])[:48]], device=model.device)
            made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False, pad_token_id=0)
            outputs.append(str(tokenizer.decode(made[0])))
        return outputs

    def estimate(self, facts: Mapping[str, Any], step: str) -> Estimate:
        from etude.models import _recall

        size, tokens, speed = float(facts["parameters"]), float(facts["tokens"]), EFFICIENCY * float(facts["flops"])
        one, recall = 6 * size * tokens / speed, 6 * _recall.PARAMETERS * min(tokens, _recall.TOKENS) / (speed / 4)
        trainings = (self.trials + self.seeds) / (1 + self.seeds)  # a build, on average over the seeds: the best trial is not repeated
        seconds = {"build": trainings * one + recall + 2, "measure": 2 * size * JUDGED / speed + 3, "time": 5 * SECONDS + 3, "search": 0.0}
        return Estimate(seconds[step], 24 * size + 8e8, 8 * size if step == "build" else 0.0)

    def check(self, parts: Split, run: Run) -> list[str]:
        from etude.measure.quality import windows_of

        terms, tokenizer = terms_of(run), tokenizer_of(run)
        for name, part in {"held-out": parts[Text], "training": Split.load(run.path("train"))[Text]}.items():
            try:
                windows_of(tokenizer, part, terms.context, terms.context)
            except ValueError as error:
                raise ValueError(f"the {name} text is shorter than a window of {terms.context} tokens: bring more, or a smaller --context") from error
        return []


def cut(part: Part, shares: tuple[float, ...], seed: int) -> tuple[Part, ...]:
    """Running text by spans, documents by hash."""
    from etude.data.split import by_hash, by_span

    return tuple(by_span(part, shares) if part.running else by_hash(part, shares, seed))


def tokenizer_of(run: Run) -> PreTrainedTokenizerBase:
    """The tokenizer that was brought, else bytes."""
    from etude.nn.loading import load_tokenizer
    from etude.nn.tiny import byte_tokenizer

    return load_tokenizer(run.path("tokenizer")) if "tokenizer" in dict(run.inputs) else byte_tokenizer()


def context_asked(run: Run) -> int:
    """Tokens of a window, as the user set it."""
    return int(json.loads(run.settings).get("context", CONTEXT))


def terms_of(run: Run) -> Terms:
    """What all contenders get alike.

    Raises:
        ValueError: a window of one token, or a vocabulary too large for the size.
    """
    from etude.models._train import Terms

    asked, vocabulary = json.loads(run.settings), 1 + max(tokenizer_of(run).get_vocab().values())
    parameters = int(asked.get("parameters", PARAMETERS))
    if vocabulary * LEAST > parameters:
        raise ValueError(
            f"a vocabulary of {vocabulary:,} tokens would fill models of {parameters:,} parameters: "
            f"give --parameters of at least {vocabulary * LEAST:,}, or another --tokenizer"
        )
    if context_asked(run) < 2:
        raise ValueError(f"--context {context_asked(run)}: a window needs 2 tokens, one of them to be foretold")
    return Terms(vocabulary, parameters, int(asked.get("tokens", parameters)), context_asked(run), run.device)


def reading(contender: Any, context: int, exactly: bool = False) -> Any:
    """The contender, with its option `context`, where it has one, raised to what it is to be trained on, or set to it."""
    if not is_dataclass(contender) or "context" not in {field.name for field in fields(contender)}:
        return contender
    return replace(contender, context=context if exactly else max(context, contender.context))  # type: ignore[type-var]


def check_size(model: PreTrainedModel, terms: Terms) -> None:
    """Refuse a model that is larger or smaller than all others, whatever it calls its weights, or that knows too few tokens."""
    from etude.models._size import TOLERANCE

    count = sum({tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}.values())
    off = count / terms.parameters - 1
    if abs(off) > TOLERANCE:
        raise ValueError(f"it holds {count:,} numbers, {off:+.1%} off the {terms.parameters:,} that all get (within {TOLERANCE:.0%})")
    known = int(model.config.get_text_config().vocab_size)
    if known < terms.vocabulary:
        raise ValueError(f"it knows {known:,} tokens of the {terms.vocabulary:,} that there are")


def check_causal(model: PreTrainedModel, context: int) -> None:
    """Refuse a model that sees the future: with other tokens from some place on, its logits before that place must stay.

    Raises:
        ValueError: they do not.
    """
    import torch

    from etude.measure.quality import context_of

    length, vocabulary = context_of(model, context), int(model.config.get_text_config().vocab_size)
    places = sorted({1, length // 3, length // 2, length - 1} - {0})
    ids_NT = (torch.arange(length) * 7 % vocabulary).repeat(1 + len(places), 1)
    for row, place in enumerate(places, 1):
        ids_NT[row, place:] = (ids_NT[row, place:] + 1 + torch.arange(length - place) % 5) % vocabulary
    with torch.inference_mode():
        logits_NTV = model(input_ids=ids_NT.to(model.device), use_cache=False).logits.float()
    for row, place in enumerate(places, 1):
        change, largest = float((logits_NTV[row, :place] - logits_NTV[0, :place]).abs().max()), float(logits_NTV[0].abs().max())
        if not change <= 1e-3 * largest:
            raise ValueError(f"it sees the future: with other tokens from place {place} on, its logits before them change by {change:.2g}")


def within(model: PreTrainedModel, context: int, name: str) -> list[tuple[str, int]]:
    """(metric, tokens) at the trained context and at `LONG` times it, where the model's positions reach so far."""
    from etude.measure.quality import context_of

    both = ((name, context), (f"long_{name}", LONG * context))
    return [(metric, length) for metric, length in both if context_of(model, length) == length]


CONTESTS = (Decoders,)
