"""The contest of fine-tuning methods: equal steps and equal tuning for all, the fewest bytes within a limit of quality."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from etude.adapt._recipe import JUDGED, SIZE, START, STEPS, TRIALS
from etude.data.contract import Data, Rows, Split
from etude.harness.contract import Axis, Contest, Estimate, Need, Run
from etude.measure.contract import Metrics

if TYPE_CHECKING:
    import numpy as np
    from peft import PeftModel
    from transformers import PreTrainedModel

    from etude.adapt import Adapter  # noqa: F401 -- what the contenders are

SHARES = (0.7, 0.1, 0.1, 0.1)  # train, validation, choice, test
ROWS = {"encoder": 256, "decoder": 200}  # held-out rows that are judged at most
EFFICIENCY, ELEMENTWISE = 0.8, 2e11  # share of a processor's peak that products of matrices reach; operations a second that all the rest allows


class FineTuning(Contest["PreTrainedModel", "Adapter"]):
    """Encoders and decoders of transformers, adapted to labelled rows or to instructions."""

    family, name, title, verb = "adapt", "FineTuning", "Fine-tuned models", "attach"
    brings = (
        Need("model", "model", "what to adapt: a Hugging Face folder, a hub name, minilm (an encoder) or smollm2 (a decoder)", "minilm"),
        Need("data", "data", "rows to learn: text and label, prompt and answer, or chat messages (JSONL, CSV, Parquet...)", "python-areas"),
        Need("steps", "number", f"optimizer steps, of {SIZE} rows each, that every contender trains", str(STEPS)),
    )
    kinds = (Rows,)
    field = ("full", "head_only", "lora", "rslora", "dora", "lora_4bit", "few_shot_prompt")
    reference, fallback = "full", "lora"
    quality = "accuracy"
    costs = ("bytes", "parameters", "train", "train_memory", "memory", "load", "latency", "merged_latency", "forgetting", "drift")
    axes: ClassVar[Mapping[str, Axis]] = {
        "accuracy": Axis("share", "higher", "accuracy"),
        "f1": Axis("share", "higher", "macro F1"),
        "loss": Axis("nats/token", "lower", "answer loss"),
        "bytes": Axis("bytes", "lower", "bytes a task"),
        "parameters": Axis("", "lower", "trained parameters"),
        "train": Axis("s", "lower", "training time"),
        "train_memory": Axis("bytes", "lower", "memory in training"),
        "memory": Axis("bytes", "lower", "memory in use"),
        "load": Axis("s", "lower", "load time"),
        "latency": Axis("s", "lower", "latency of a row"),
        "merged_latency": Axis("s", "lower", "latency of a row, merged"),
        "forgetting": Axis("bits/byte", "lower", "forgetting of general text"),
        "drift": Axis("1 - cosine", "lower", "forgetting: drift of general text's embeddings"),
    }
    budget_axes: ClassVar[Mapping[str, str]] = {"share": "bytes", "bytes": "bytes", "seconds": "train"}
    max_loss = 0.02
    trials = TRIALS
    seeds = 3

    def split(self, parts: Split, seed: int) -> tuple[Split, Split, Split, Split]:
        from etude.data.split import by_hash

        train, validation, choice, test = (Split(part) for part in by_hash(parts[Rows], SHARES, seed))
        return train, validation, choice, test

    def whole(self, parts: Split, seed: int) -> tuple[Split, Split]:
        from etude.data.split import by_hash

        train, validation = (Split(part) for part in by_hash(parts[Rows], (0.9, 0.1), seed))
        return train, validation

    def decides(self, parts: Split) -> str:
        return "accuracy" if "label" in parts[Rows].roles else "loss"

    def subject(self, run: Run) -> PreTrainedModel:
        from etude.adapt._subject import load_subject, remember

        rows: Rows = Split.load(run.path("train"))[Rows]
        model = load_subject(run.path("model"), rows, run.dtype, run.device, run.seed)
        remember(model, steps=steps_of(run))
        return model

    def data(self, run: Run) -> Data:
        from etude.nn.loading import load_tokenizer

        train, validation = Split.load(run.path("train")), Split.load(run.path("validation"))
        return Data(train, validation, run.seed, load_tokenizer(run.path("model")))

    def build(self, contender: Any, subject: PreTrainedModel, data: Data, folder: Path) -> None:
        """Attach, tune the rate where the contender leaves it open, train, save."""
        from etude.adapt._subject import recall
        from etude.adapt._train import train, trained, tune

        steps = recall(subject, "steps") or STEPS
        model = self.call(contender, subject, data)
        if trained(model):
            if not hasattr(contender, "rate"):
                raise ValueError(f"{type(contender).__name__} has no option rate: add `rate: float | None = None`, so that it is tuned like all")
            rate = contender.rate
            if rate is None:
                rate = tune(model, data, getattr(contender, "start", START), trials=self.trials, steps=steps)
            train(model, data, rate, steps=steps, checkpoints=data.journal.room({"rate": rate}))
        self.save(model, data, folder)

    def save(self, made: Any, data: Data, folder: Path) -> None:
        from etude.adapt._folders import save

        save(made, data.tokenizer, folder)

    def load(self, folder: Path, run: Run) -> PreTrainedModel | PeftModel:
        from etude.adapt._folders import load

        made: PreTrainedModel | PeftModel = load(folder, run.dtype, run.device)
        return made

    def answers(self, made: Any) -> np.ndarray:
        """Logits of fixed tokens; examples of a prompt enter as their digest, since they change what is answered."""
        import hashlib

        import numpy as np
        import torch

        from etude.adapt._subject import recall
        from etude.adapt._train import computing

        ids = torch.arange(32)[None] * 7 % int(made.config.get_text_config().vocab_size)
        with torch.inference_mode(), computing(made):
            logits: np.ndarray = made(input_ids=ids.to(made.device)).logits.float().cpu().numpy()
        told = hashlib.sha256(json.dumps(recall(made, "shots")).encode()).digest() if recall(made, "shots") else b""
        return np.concatenate([logits.reshape(-1), np.frombuffer(told, np.uint8).astype(logits.dtype)])

    def tiny(self) -> Mapping[str, tuple[Callable[[], PreTrainedModel], Data]]:
        from etude.adapt import planted

        return planted.tiny()

    def measure(self, folder: Path, held_out: Split, run: Run) -> Metrics:
        from etude.adapt import _folders
        from etude.adapt._judge import forgotten, judge
        from etude.adapt._rows import is_classifier, spread
        from etude.nn.loading import load_tokenizer

        model, tokenizer = self.load(folder, run), load_tokenizer(folder)
        rows: Rows = held_out[Rows]
        picks, about = spread(len(rows), ROWS["encoder" if is_classifier(model) else "decoder"]), _folders.about_of(folder)
        metrics = judge(model, tokenizer, rows.take(picks), picks)
        metrics["bytes"], metrics["parameters"] = float(_folders.weights_bytes(folder)), float(about["trained"])
        if about["base"]:
            metrics |= forgotten(model, tokenizer, about, run.dtype, run.device)
        return metrics

    def time(self, folder: Path, held_out: Split, run: Run) -> Metrics:
        from peft import PeftModel

        from etude.adapt import _cost, _folders
        from etude.adapt._rows import examples, spread
        from etude.adapt._subject import load_subject
        from etude.harness.machine import rss_anon
        from etude.harness.steps import contender_of
        from etude.nn.loading import load_tokenizer

        model, load = _cost.load_seconds(lambda place: self.load(place, run), folder)
        about, tokenizer, rows = _folders.about_of(folder), load_tokenizer(folder), held_out[Rows]
        sample = rows.take(spread(len(rows), 64))
        row = _cost.typical(examples(sample, model, tokenizer))
        metrics = Metrics(load=load, latency=_cost.latency(model, row))
        metrics["merged_latency"] = _cost.latency(_cost.merged(model), row) if isinstance(model, PeftModel) else metrics["latency"]
        del model
        subject = load_subject(Path(about["base"]), None, run.dtype, run.device, labels=about["labels"])
        data = Data(Split(sample), Split(sample), run.seed, tokenizer)
        return Metrics(metrics | _cost.training(contender_of(run).attach, subject, data, steps_of(run), rss_anon))

    def floor(self, train: Split, held_out: Split, run: Run) -> float:
        """The share of the most common label or of a guess among the choices; the entropy of the answers' words where answers are text."""
        import math

        from etude.adapt._rows import dialogues
        from etude.nn.loading import load_tokenizer

        rows: Rows = held_out[Rows]
        if "choices" in rows.roles:
            shares = [1 / len(choices) for choices in rows.column("choices")]
            return sum(shares) / len(shares)
        if "label" in rows.roles:
            labels = Counter(map(str, rows.column("label")))
            return max(labels.values()) / sum(labels.values())
        tokenizer, counts = load_tokenizer(run.path("model")), Counter[int]()
        for dialogue in dialogues(rows):
            counts.update(tokenizer(dialogue[-1].content, add_special_tokens=False, verbose=False)["input_ids"])
        return -sum(count / counts.total() * math.log(count / counts.total()) for count in counts.values())

    def reference_cost(self, run: Run) -> float | None:
        from etude.adapt._subject import outline

        return 2.0 * outline(run.path("model")).num_parameters()

    def reference_memory(self, facts: Mapping[str, Any]) -> float:
        return 20.0 * float(facts["parameters"]) + 2e9  # weights, gradient, two moments and where tuning began in float32; the rest

    def facts(self, run: Run) -> dict[str, Any]:
        from etude.adapt._rows import examples, names_of, spread
        from etude.adapt._subject import has_labels, kind_of, outline, reading
        from etude.data.assets import on_grid
        from etude.nn.loading import architecture, licence, load_tokenizer

        folder, rows = run.path("model"), Split.load(run.path("train"))[Rows]
        lengths = [len(row.ids) for row in examples(rows.take(spread(len(rows), 64)), reading(folder, rows), load_tokenizer(folder))]
        model, decoder = outline(folder), kind_of(folder) == "decoder"
        total = model.num_parameters()
        embedding = model.get_input_embeddings().weight
        tied = decoder and model.get_output_embeddings().weight is embedding
        return {
            "kind": kind_of(folder),
            "parameters": total,
            "active": total if tied else total - embedding.numel(),  # what each token is multiplied with
            "architecture": architecture(folder),
            "grid": on_grid(folder),
            "licence": licence(folder),
            "labels": len(names_of(rows)) if has_labels(rows) else 0,
            "steps": steps_of(run),
            "tokens a row": round(sum(lengths) / len(lengths), 1),
        }

    def marks(self, facts: Mapping[str, Any], traits: tuple[str, ...]) -> str:
        if facts.get("grid") and "quantises" in traits:
            return f"the model's weights already lie on a quantisation grid ({facts['grid']}), so that rounding the base costs less than on others"
        return ""

    def unfit(self, facts: Mapping[str, Any], traits: tuple[str, ...]) -> str:
        return "an encoder reads no prompt" if "prompts" in traits and facts.get("kind") == "encoder" else ""

    def loaded(self, folder: Path, run: Run) -> tuple[Any, ...]:
        from etude.nn.loading import load_tokenizer

        return self.load(folder, run), load_tokenizer(folder)

    def describe(self, folder: Path) -> dict[str, str]:
        from etude.adapt._folders import about_of

        about, adapter = about_of(folder), (folder / "adapter_config.json").is_file()
        found = {"loads in": loads_in(folder, about), "trained": f"{about['trained']:,} parameters"}
        if about["labels"]:
            found["labels"] = ", ".join(about["labels"][:20]) + (f" and {len(about['labels']) - 20} more" if len(about["labels"]) > 20 else "")
        if adapter or about["shots"]:
            found["base model"] = Path(about["base"]).name if about["base"] else "the one brought"
        return found

    def samples(self, folder: Path, held_out: Split, run: Run) -> list[str]:
        from etude.adapt._judge import samples
        from etude.nn.loading import load_tokenizer

        return samples(self.load(folder, run), load_tokenizer(folder), held_out[Rows].take([0, 1]))

    def estimate(self, facts: Mapping[str, Any], step: str) -> Estimate:
        operations = 2 * float(facts["active"]) * float(facts["tokens a row"])
        row = operations / (EFFICIENCY * float(facts["flops"])) + operations / ELEMENTWISE  # seconds of a forward pass
        one = 2.5 * row * float(facts["steps"]) * SIZE + row * JUDGED + 1
        trainings = (self.trials + self.seeds) / (1 + self.seeds)  # a build, on average over the seeds
        judged = ROWS[facts["kind"]] * (1.5 if facts["kind"] == "decoder" else 1.0)  # a prompt of examples is read with every row
        seconds = {"build": trainings * one + 2.5, "measure": row * judged + 3, "time": 2.5 * row * SIZE * 9 + 2, "search": 0.0}
        size = float(facts["parameters"])
        return Estimate(seconds[step], (20 * size if step == "build" else 4 * size) + 1.2e9, 14 * size if step == "build" else 0.0)

    def check(self, parts: Split, run: Run) -> list[str]:
        from etude.adapt._rows import examples, spread
        from etude.adapt._subject import has_labels, kind_of, reading
        from etude.nn.loading import load_tokenizer

        rows, train, folder = parts[Rows], Split.load(run.path("train"))[Rows], run.path("model")
        how, notes, most = reading(folder, train), list[str](), ROWS[kind_of(folder)]
        seen = steps_of(run) * SIZE
        shown = f"{seen} of the {len(train)} training rows, drawn by the seed (--steps sees more)"
        if len(train) <= seen:
            shown = f"the {len(train)} training rows {seen / len(train):.1f} times"
        notes.append(f"each contender trains {steps_of(run)} steps of {SIZE} rows: {shown}")
        if len(rows) > most:
            notes.append(f"{most} of the {len(rows)} rows are judged")
        if has_labels(rows):
            notes += unseen(train, rows) + many(train, seen)
        read = examples(rows.take(spread(len(rows), most)), how, load_tokenizer(folder))
        refuse_unknown(folder, max(max(row.ids) for row in read))
        cut = sum(row.cut > 0 for row in read)
        if cut:
            side = "the beginning of the prompt is cut off, the answer stays" if kind_of(folder) == "decoder" else "the end of the text is cut off"
            notes.append(f"{cut} rows are longer than {how.limit} tokens: {side}")
        return notes


def steps_of(run: Run) -> int:
    """How many steps every contender trains.

    Raises:
        ValueError: the user gave no whole number.
    """
    steps = json.loads(run.settings or "{}").get("steps", STEPS)
    if steps != int(steps):
        raise ValueError(f"--steps {steps} is no whole number: give for instance {STEPS}")
    return int(steps)


def many(train: Rows, seen: int) -> list[str]:
    """What is to be said where there are more labels than training can show."""
    from etude.adapt._rows import names_of

    count = len(names_of(train))
    return [f"{count} labels for {seen} rows of training: most labels are seen hardly once"] if 2 * count > seen else []


def refuse_unknown(folder: Path, token: int) -> None:
    """Refuse a tokenizer that knows tokens which the model lacks."""
    from etude.nn.loading import config_of

    count = config_of(folder).get("vocab_size")
    if count and token >= count:
        raise ValueError(f"the tokenizer writes token {token}, and the model knows {count}: the folder holds another model's tokenizer")


def unseen(train: Rows, rows: Rows) -> list[str]:
    """What is to be said of labels that training never saw."""
    known = {str(label) for label in train.column("label")}
    strange = [str(label) for label in rows.column("label") if str(label) not in known]
    if not strange:
        return []
    names = ", ".join(sorted(set(strange))[:5])
    return [f"{len(strange)} rows have a label that training never saw ({names}): they count as misses"]


def loads_in(folder: Path, about: Mapping[str, Any]) -> str:
    """What reads the folder."""
    if (folder / "adapter_config.json").is_file():
        from peft import PeftConfig

        ours = PeftConfig.from_pretrained(str(folder)).peft_type == "ETUDE"
        return (
            f"PeftModel.from_pretrained(base, FOLDER){' after `import etude`' if ours else ''}, or with its base by etude.adapt._folders.load(FOLDER)"
        )
    if about["shots"]:
        return "etude.adapt._folders.load(FOLDER): the base model, and the examples that go before each prompt"
    from etude.nn.loading import config_of

    return "transformers after `import etude`" if config_of(folder).get("model_type", "").startswith("etude") else "plain transformers"


CONTESTS = (FineTuning,)
