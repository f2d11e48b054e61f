"""The contest of compressed language models: the smallest within a limit of quality, or the best within a budget."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from etude.data.contract import Data, Part, Rows, Split, Text
from etude.harness.contract import Axis, Contest, Estimate, Need, Run
from etude.measure.contract import Metrics

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


SHARES = (0.7, 0.1, 0.1, 0.1)  # train, validation, choice, test
ROTATED = ("smollm2-rotated",)  # embedded models off their grid: a rotation moves the grid's rounding noise, it does not remove it
ROWS = 200  # labelled rows that are judged at most
SETTINGS = {"tokens": 4096, "window": 512, "block": 128}


class LanguageModels(Contest["PreTrainedModel", "Compressor"]):
    """Decoders of transformers, judged on held-out text (bits per byte) or labelled rows (accuracy)."""

    family, name, title, verb = "compress", "LanguageModels", "Compressed language models", "compress"
    brings = (
        Need("model", "model", "what to compress: a Hugging Face folder, a GGUF file, a hub name, smollm2 or smollm2-rotated", "smollm2-rotated"),
        Need("data", "data", "text it should stay good at (any text file, JSONL with a text column...) or labelled rows", "english"),
    )
    kinds = (Rows, Text)
    field = ("untouched", "magnitude", "round_to_nearest", "gptq", "svd", "block_drop")
    reference = "untouched"
    quality = "bits_per_byte"
    costs = ("bytes", "load", "memory", "prefill", "decode")
    axes: ClassVar[Mapping[str, Axis]] = {
        "bits_per_byte": Axis("bits/byte", "lower", "bits per byte"),
        "accuracy": Axis("share", "higher", "accuracy"),
        "perplexity": Axis("per token", "lower", "perplexity"),
        "divergence": Axis("nats/token", "lower", "divergence from the untouched model"),
        "agreement": Axis("share", "higher", "top-1 agreement with the untouched model"),
        "bytes": Axis("bytes", "lower", "bytes on disk"),
        "load": Axis("s", "lower", "load time"),
        "memory": Axis("bytes", "lower", "peak memory"),
        "prefill": Axis("tokens/s", "higher", "prefill speed"),
        "decode": Axis("tokens/s", "higher", "decode speed"),
    }
    budget_axes: ClassVar[Mapping[str, str]] = {"share": "bytes", "bytes": "bytes", "faster": "prefill"}
    max_loss = 0.02
    trials = 16

    def split(self, parts: Split, seed: int) -> tuple[Split, Split, Split, Split]:
        from etude.data.split import by_hash, by_span

        def cut(part: Part) -> tuple[Part, ...]:
            return tuple(by_span(part, SHARES) if part.running else by_hash(part, SHARES, seed))

        columns = [cut(part) for part in parts.parts.values()]
        train, validation, choice, test = (Split(*row) for row in zip(*columns, strict=True))
        return train, validation, choice, test

    def decides(self, parts: Split) -> str:
        return "accuracy" if Rows in parts else self.quality

    def subject(self, run: Run) -> PreTrainedModel:
        return load_model(run.path("model"), run)

    def data(self, run: Run) -> Data:
        from etude.nn.loading import load_tokenizer

        train, validation = Split.load(run.path("train")), Split.load(run.path("validation"))
        return Data(train, validation, run.seed, load_tokenizer(run.path("model")))

    def save(self, made: PreTrainedModel, data: Data, folder: Path) -> None:
        from etude.nn.saving import save

        save(made, data.tokenizer, folder)

    def load(self, folder: Path, run: Run) -> PreTrainedModel:
        return load_model(folder, run)

    def answers(self, made: PreTrainedModel) -> np.ndarray:
        import torch

        ids = torch.arange(32)[None] * 7 % int(made.config.get_text_config().vocab_size)
        with torch.inference_mode():
            logits: np.ndarray = made(ids.to(made.device)).logits.float().cpu().numpy()
        return logits

    def tiny(self) -> Mapping[str, tuple[Callable[[], PreTrainedModel], Data]]:
        from etude.nn.tiny import byte_tokenizer, tiny_gpt2, tiny_llama, tiny_text

        text, tokenizer = tiny_text(), byte_tokenizer()
        data = Data(Split(text), Split(text), 0, tokenizer)
        return {"llama": (tiny_llama, data), "gpt2": (tiny_gpt2, data)}

    def measure(self, folder: Path, held_out: Split, run: Run) -> Metrics:
        import math

        from etude.measure import cost, quality
        from etude.nn.loading import load_tokenizer

        model, tokenizer = load_model(folder, run), load_tokenizer(folder)
        metrics = Metrics(bytes=float(cost.folder_bytes(folder)))
        if Text in held_out:
            reference = run.path("reference") if "reference" in dict(run.inputs) else None
            metrics.update(quality.language(model, tokenizer, held_out[Text], reference=reference, **SETTINGS))
        if Rows in held_out:
            metrics["accuracy"] = accuracy(model, tokenizer, held_out[Rows])
        if any(isinstance(value, float) and math.isnan(value) for value in metrics.values()):
            raise ValueError("the compressed model answers NaN")
        return metrics

    def remember(self, folder: Path, held_out: Split, run: Run, out: Path) -> None:
        from etude.measure.quality import store_reference
        from etude.nn.loading import load_tokenizer

        if Text in held_out:
            sizes = {key: SETTINGS[key] for key in ("tokens", "window")}
            store_reference(load_model(folder, run), load_tokenizer(folder), held_out[Text], out, **sizes)

    def time(self, folder: Path, held_out: Split, run: Run) -> Metrics:
        from time import perf_counter

        from etude.measure import cost

        start = perf_counter()
        model = load_model(folder, run)
        load = perf_counter() - start
        return Metrics(load=load, prefill=cost.prefill_speed(model, seconds=3.0), decode=cost.decode_speed(model, seconds=3.0))

    def floor(self, train: Split, held_out: Split, run: Run) -> float:
        from collections import Counter

        from etude.measure.quality import unigram_entropy

        if Rows in held_out:
            rows = held_out[Rows]
            labels = Counter(list(rows.column("label" if "label" in rows.roles else "answer"))[:ROWS])
            chance = [1 / len(offered) for offered in rows.column("choices")[:ROWS]] if "choices" in rows.roles else []
            return max([max(labels.values()) / sum(labels.values()), *([sum(chance) / len(chance)] if chance else [])])
        return unigram_entropy(held_out[Text])

    def reference_cost(self, run: Run) -> float | None:
        return 2.0 * float(self.facts(run)["parameters"])

    def facts(self, run: Run) -> dict[str, Any]:
        from etude.data.assets import on_grid
        from etude.nn import loading

        folder = run.path("model")
        return {
            "parameters": loading.parameters(folder),
            "architecture": loading.architecture(folder),
            "grid": on_grid(folder),
            "licence": loading.licence(folder),
        }

    def marks(self, facts: Mapping[str, Any], traits: tuple[str, ...]) -> str:
        if facts.get("grid") and "quantises" in traits:
            return f"the model's weights already lie on a quantisation grid ({facts['grid']}), so that quantising costs less than on a float model"
        if (facts.get("grid") or facts.get("name") in ROTATED) and "low rank" in traits:
            return "the model's weights carry the rounding noise of a quantisation grid, which low rank may strip"
        return ""

    def loaded(self, folder: Path, run: Run) -> tuple[Any, ...]:
        from etude.nn.loading import load_tokenizer

        return load_model(folder, run), load_tokenizer(folder)

    def describe(self, folder: Path) -> dict[str, str]:
        method = json.loads((folder / "config.json").read_text()).get("quantization_config", {}).get("quant_method", "")
        return {"loads in": "transformers after `import etude`" if method == "etude" else "plain transformers"}

    def samples(self, folder: Path, held_out: Split, run: Run) -> list[str]:
        import torch

        from etude.nn.loading import load_tokenizer

        model: Any = load_model(folder, run)
        tokenizer = load_tokenizer(folder)
        part: Part = held_out[Text] if Text in held_out else held_out[Rows]
        texts = [text for text in part.column("text" if "text" in part.roles else "prompt")[:50] if len(text) > 80][:2]
        outputs = []
        for text in texts:
            ids = torch.tensor([list(tokenizer(text)["input_ids"])[:24]])
            made: Any = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False, pad_token_id=0)
            outputs.append(str(tokenizer.decode(made[0])))
        return outputs

    def estimate(self, facts: Mapping[str, Any], step: str) -> Estimate:
        size = float(facts["parameters"])
        forward = SETTINGS["tokens"] * size * 2 / float(facts["flops"])  # one thread
        seconds = {"build": 3 * forward + size / 2e7, "measure": 1.5 * forward + 3, "time": 8.0, "search": self.trials * forward / 2}
        return Estimate(seconds[step], 6 * size + 6e8, 2.5 * size if step == "build" else 0.0)

    def check(self, parts: Split, run: Run) -> list[str]:
        from etude.measure.quality import longer_than, windows_of
        from etude.nn.loading import context_length, load_tokenizer

        tokenizer, context, notes = load_tokenizer(run.path("model")), context_length(run.path("model")), list[str]()
        window = min(SETTINGS["window"], context)
        if Text in parts:
            windows_of(tokenizer, parts[Text], window, window)
        if Rows in parts:
            rows = parts[Rows]
            notes = [f"labels and answers are judged on {ROWS} of the {len(rows)} rows"] if len(rows) > ROWS else []
            long = longer_than(tokenizer, rows.column("text" if "text" in rows.roles else "prompt")[:ROWS], context)
            notes += [f"{long} texts are longer than the model's context of {context} tokens: their beginnings are cut off"] if long else []
        return notes


def load_model(folder: Path, run: Run) -> PreTrainedModel:
    """The folder's decoder in the run's dtype on its device."""
    from etude.nn.loading import load_decoder

    return load_decoder(folder, run.dtype, run.device)


def accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows) -> Any:
    """Share of rows whose right answer is the likeliest of the candidates, as Items by row."""
    from etude.measure.quality import choice_accuracy

    if "choices" in rows.roles:
        prompts, choices, right = list(rows.column("prompt")), list(rows.column("choices")), list(rows.column("label"))
    else:
        prompts = list(rows.column("text" if "text" in rows.roles else "prompt"))
        labels = [str(label) for label in rows.column("label" if "label" in rows.roles else "answer")]
        names = sorted(set(labels))
        choices, right = [names] * len(prompts), [names.index(label) for label in labels]
    return choice_accuracy(model, tokenizer, prompts[:ROWS], choices[:ROWS], right[:ROWS])


CONTESTS = (LanguageModels,)
