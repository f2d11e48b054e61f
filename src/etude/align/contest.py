"""The contest of preference training: which policy prefers the chosen answers of pairs that it never saw, and how far it went for it.

Everything is held against the model that the user brought. The reference contender is DPO, with which people would align today: the model itself
prefers nothing over itself (every log-ratio is 0), so that no loss could be counted against it; it is where divergence starts from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from etude.align._pairs import PAIRS, TOKENS, TUNING
from etude.data.contract import Data, Preferences, Split
from etude.harness.contract import Axis, Contest, Estimate, Need, Run
from etude.measure.contract import Items, Metrics

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

    from etude.align._pairs import Encoded

SHARES = (0.3, 0.15, 0.15, 0.4)  # train, validation, choice, test: judging a pair costs a tenth of training on it
JUDGED = 100  # held-out pairs that are judged at most
PROMPTS, SPOKEN = 24, 24  # prompts that are answered to see how far a policy went, and tokens of an answer
TIMED = 8  # pairs that the timed training reads
SECONDS = 5.0  # after which no further timing begins
HELD = 64  # pairs that `etude apply` keeps back for tuning
UNLIMITED = "unlimited"  # a role of the rows of `etude apply`
FIRST = 1000  # rows that it looks at to say what is cut


class PreferencePairs(Contest["PreTrainedModel", "Aligner"]):
    """Chat models of transformers, trained on preferred and rejected answers."""

    family, name, title, verb = "align", "PreferencePairs", "Preference training", "train"
    brings = (
        Need("model", "model", "the chat model to align: a Hugging Face folder, a GGUF file, a hub name or smollm2", "smollm2"),
        Need(
            "data", "data", "preference rows: prompt, chosen and rejected, as texts, chats or whole dialogues (JSONL, Parquet...)", "python-answers"
        ),
    )
    kinds = (Preferences,)
    field = ("sft", "dpo")
    reference = "dpo"
    quality = "accuracy"
    costs = ("kl", "drift", "bytes", "seconds", "memory")
    axes: ClassVar[Mapping[str, Axis]] = {
        "accuracy": Axis("share", "higher", "preference accuracy, by log-ratios to the model brought"),
        "likelihood": Axis("share", "higher", "preference accuracy by likelihood alone"),
        "margin": Axis("nats", "higher", "margin of log-ratios"),
        "kl": Axis("nats/token", "lower", "divergence from the model brought, on own samples"),
        "drift": Axis("tokens", "lower", "change of the length of samples"),
        "bytes": Axis("bytes", "lower", "bytes of the adapter or the weights"),
        "seconds": Axis("s", "lower", f"time to train on {TIMED} pairs"),
        "memory": Axis("bytes", "lower", "peak memory"),
    }
    budget_axes: ClassVar[Mapping[str, str]] = {"share": "kl", "bytes": "bytes", "seconds": "seconds"}
    trials = 3

    def split(self, parts: Split, seed: int) -> tuple[Split, Split, Split, Split]:
        """By a hash of the prompt: all pairs of one prompt stay together."""
        from etude.data.split import by_hash

        train, validation, choice, test = (Split(part) for part in by_hash(parts[Preferences], SHARES, seed))
        return train, validation, choice, test

    def whole(self, parts: Split, seed: int) -> tuple[Split, Split]:
        """All rows to train on, and a role that says that no limit of the contest holds for them."""
        part = parts[Preferences]
        return Split(Preferences(part.dataset, {**part.roles, UNLIMITED: part.roles["prompt"]})), Split()

    def subject(self, run: Run) -> PreTrainedModel:
        from etude.nn.loading import load_decoder

        return load_decoder(run.path("model"), run.dtype, run.device)

    def data(self, run: Run) -> Data:
        """In a contest the first pairs that keep to its limits; for `etude apply` all of them, a few kept back to tune the rate."""
        from etude.nn.loading import load_tokenizer

        tokenizer = load_tokenizer(run.path("model"))
        train, held_out = Split.load(run.path("train"))[Preferences], Split.load(run.path("validation"))
        if UNLIMITED not in train.roles:
            used, tuning = within(train, run, PAIRS).rows, within(held_out[Preferences], run, TUNING).rows
            return Data(Split(train.take(used)), Split(held_out[Preferences].take(tuning)), run.seed, tokenizer)
        if Preferences in held_out:
            return Data(Split(train), held_out, run.seed, tokenizer)
        kept, rows = max(1, min(HELD, len(train) // 10)), list(range(len(train)))
        return Data(Split(train.take(rows[:-kept])), Split(train.take(rows[-kept:])), run.seed, tokenizer)

    def save(self, made: Any, data: Data, folder: Path) -> None:
        from etude.align._folders import save

        save(made, data.tokenizer, folder)

    def load(self, folder: Path, run: Run) -> Any:
        from etude.align._folders import load

        return load(folder, run.dtype, run.device)

    def answers(self, made: Any) -> np.ndarray:
        import torch

        ids = torch.arange(32)[None] * 7 % int(made.config.get_text_config().vocab_size)
        with torch.inference_mode():
            logits: np.ndarray = made(input_ids=ids.to(made.device)).logits.float().cpu().numpy()
        return logits

    def tiny(self) -> Mapping[str, tuple[Callable[[], PreTrainedModel], Data]]:
        from etude.align._tiny import data_of, saved
        from etude.nn.loading import load_decoder
        from etude.nn.tiny import tiny_gpt2, tiny_llama

        data = data_of(count=24)
        return {name: (lambda make=make: load_decoder(saved(make)), data) for name, make in (("llama", tiny_llama), ("gpt2", tiny_gpt2))}

    def measure(self, folder: Path, held_out: Split, run: Run) -> Metrics:
        from peft import PeftModel

        from etude.align import _folders
        from etude.align._judge import ends_of, judge, reference_length
        from etude.align._score import digest_of_model, reference_scores, score
        from etude.nn.loading import load_decoder, load_tokenizer

        tokenizer = load_tokenizer(folder)
        reference = load_decoder(_folders.base_of(folder), run.dtype, run.device)
        key, found = digest_of_model(reference), self.pairs(folder, held_out, run)
        before = reference_scores(reference, found.pairs, key)
        prompts, ends = [pair.prompt for pair in found.pairs[:PROMPTS]], ends_of(reference, tokenizer)
        usual = reference_length(reference, prompts, SPOKEN, ends, key)
        policy = _folders.load(folder, run.dtype, run.device, reference)  # one model in memory where it is an adapter
        after = score(policy, found.pairs)
        spoken = judge(policy, prompts, SPOKEN, ends, None if isinstance(policy, PeftModel) else reference)
        ids, ratio = [str(row) for row in found.rows], after.ratio(before)
        length = Metrics(length=spoken.length).length
        return Metrics(
            accuracy=Items.of(ids, preferred(ratio)),
            likelihood=Items.of(ids, preferred(after.chosen - after.rejected)),
            margin=Items.of(ids, ratio.tolist()),
            kl=spoken.divergence,
            length=spoken.length,
            drift=abs(length - usual),
            bytes=float(_folders.weights_bytes(folder)),
        )

    def pairs(self, folder: Path, held_out: Split, run: Run) -> Encoded:
        """The held-out pairs that are judged, the same for every contender."""
        from etude.align import _folders

        return within(held_out[Preferences], run, JUDGED, _folders.base_of(folder))

    def time(self, folder: Path, held_out: Split, run: Run) -> Metrics:
        """Seconds of the verb on `TIMED` pairs, rate given, the reference's log-probabilities known: the median of runs after a first one."""
        from dataclasses import fields, replace
        from statistics import median
        from time import perf_counter

        from etude.align import _folders
        from etude.harness.steps import contender_of
        from etude.nn.loading import load_decoder, load_tokenizer

        contender, base, spent = contender_of(run), _folders.base_of(folder), list[float]()
        if getattr(contender, "rate", 0.0) is None and "rate" in {field.name for field in fields(contender)}:
            contender = replace(contender, rate=1e-5)  # how fast it is does not depend on it
        part = held_out[Preferences]
        few = part.take(within(part, run, TIMED, base).rows)
        data = Data(Split(few), Split(few), run.seed, load_tokenizer(folder))
        while len(spent) < 2 or (len(spent) < 4 and sum(spent) < SECONDS):
            policy = load_decoder(base, run.dtype, run.device)
            start = perf_counter()
            getattr(contender, self.verb)(policy, data)
            spent.append(perf_counter() - start)
        return Metrics(seconds=median(spent[1:]))

    def floor(self, train: Split, held_out: Split, run: Run) -> float:
        """Chance: a policy that learned nothing prefers either answer."""
        return 0.5

    def facts(self, run: Run) -> dict[str, Any]:
        from etude.data.assets import on_grid
        from etude.nn import loading

        folder, train = run.path("model"), Split.load(run.path("train"))[Preferences]
        about = {
            "parameters": loading.parameters(folder),
            "architecture": loading.architecture(folder),
            "grid": on_grid(folder),
            "licence": loading.licence(folder),
        }
        if "choice" not in dict(run.inputs):
            return about | {"notes": [f"trained on {line}" for line in self.unlimited(train, run)]}
        used = within(train, run, PAIRS)
        unused = [role for role in ("weight", "rate") if role in train.roles]
        return about | {
            "pairs": len(used.rows),
            "tokens a pair": round(sum(pair.tokens for pair in used.pairs) / len(used.pairs), 1),
            "columns": unused,
            "notes": [f"trained on {line}" for line in told(used, train, PAIRS, loading.context_length(folder))],
        }

    def unlimited(self, train: Preferences, run: Run) -> list[str]:
        """What is to be said where `etude apply` trains on all rows, from the first of them."""
        from etude.nn.loading import context_length

        few = train.take(list(range(min(FIRST, len(train)))))
        return told(within(few, run, len(few), tokens=None), few, len(few), context_length(run.path("model")))

    def marks(self, facts: Mapping[str, Any], traits: tuple[str, ...]) -> str:
        columns = facts.get("columns") or []
        if columns and "hard labels" in traits:
            return f"it reads no {' and no '.join(columns)} column: every pair counts alike and its chosen answer as preferred by all"
        return ""

    def loaded(self, folder: Path, run: Run) -> tuple[Any, ...]:
        from etude.nn.loading import load_tokenizer

        return self.load(folder, run), load_tokenizer(folder)

    def describe(self, folder: Path) -> dict[str, str]:
        from etude.align._folders import ADAPTER

        return {"loads in": "PEFT, around the model brought" if (folder / ADAPTER).is_file() else "plain transformers"}

    def samples(self, folder: Path, held_out: Split, run: Run) -> list[str]:
        from etude.align._judge import ends_of, sample

        policy, tokenizer = self.loaded(folder, run)
        prompts = [pair.prompt for pair in self.pairs(folder, held_out, run).pairs[:2]]
        answers = sample(policy, prompts, 40, ends_of(policy, tokenizer))
        return [str(tokenizer.decode(prompt + answer)) for prompt, answer in zip(prompts, answers, strict=True)]

    def estimate(self, facts: Mapping[str, Any], step: str) -> Estimate:
        """From the tokens that a run trains on and judges, at the products of matrices that this machine does in a second."""
        size, pairs, tokens = float(facts["parameters"]), int(facts.get("pairs", JUDGED)), float(facts.get("tokens a pair", 100.0))
        token, epochs = 2 * size / (EFFICIENCY * float(facts["flops"])), 2  # seconds that one thread reads a token
        trial, prompt = min(TUNING, max(1, pairs // 2)), tokens / 3
        judged = JUDGED * tokens + PROMPTS * (SAMPLING * SPOKEN + 2 * (prompt + SPOKEN))
        seconds = {
            "build": LOADING + TRAINING * token * epochs * pairs * tokens,
            "measure": LOADING + token * judged,
            "time": 3 * (LOADING / 2 + TRAINING * token * epochs * TIMED * tokens),
            "search": self.trials * token * tokens * (TRAINING * epochs * trial + min(TUNING, pairs)),
        }
        return Estimate(seconds[step], 6 * size + 1.5e9, 0.08 * size)

    def check(self, parts: Split, run: Run) -> list[str]:
        from etude.nn.loading import context_length

        part = parts[Preferences]
        lines = told(within(part, run, JUDGED), part, JUDGED, context_length(run.path("model")))
        return [f"judged on {line}" for line in lines]


LOADING = 6.0  # seconds: the model, TRL
EFFICIENCY = 0.6  # of a square product's speed that small batches reach
TRAINING, SAMPLING = 5.0, 4.0  # what a token costs that is trained on or sampled, times one that is read


def within(part: Preferences, run: Run, most: int, model: Path | None = None, tokens: int | None = TOKENS) -> Encoded:
    """The first `most` pairs that hold no more tokens than the contest allows."""
    from etude.align._pairs import encode
    from etude.nn.loading import context_length, load_tokenizer

    folder = model or run.path("model")
    return encode(load_tokenizer(folder), part, context_length(folder), tokens, most)


def told(found: Encoded, part: Preferences, most: int, context: int) -> list[str]:
    """What is to be said aloud of the pairs that are used."""
    lines = list[str]()
    if len(found.rows) < len(part):
        long = f"; {found.long} of more than {TOKENS} tokens (both sequences) among the first {len(found.rows) + found.long} are left out"
        lines.append(f"{len(found.rows)} of {len(part)} pairs (at most {most})" + (long if found.long else ""))
    if found.cut:
        lines.append(f"{found.cut} prompts without their beginnings, since they are longer than the model's context of {context} tokens allows")
    return lines


def preferred(ratio_N: Any) -> list[float]:
    """1 where the chosen answer is preferred, 0 where the rejected one is, 1/2 for neither."""
    return [0.5 * (1.0 + float(sign)) for sign in ratio_N.sign().tolist()]


CONTESTS = (PreferencePairs,)
