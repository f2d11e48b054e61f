"""A training step and the saved file of Tied-LoRA against PEFT's LoRA: same model, same layers (q, k and v), same rank, steps taken in turn.

    python -m etude.adapt.tied_lora.benchmark [--model smollm2] [--rank 8] [--batch 8] [--length 48] [--steps 15] [--device cpu] [--dtype bfloat16]

A step is forward, backward and AdamW on random tokens. Run it alone, with OMP_NUM_THREADS=1 on a CPU. Asked: the step at most 10 % slower, the file
at most 15 % of LoRA's.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from time import perf_counter

import torch
from peft import PeftModel

from etude.adapt._train import computing, trained, widen
from etude.adapt.tied_lora.arms import adapter_numbers, file_bytes, method_of
from etude.data.assets import model_folder
from etude.data.contract import Data, Split
from etude.nn.loading import load_decoder
from etude.nn.tiny import tiny_llama

TITLES = {"lora": "PEFT LoRA", "tl6": "Tied-LoRA"}


def main(arguments: list[str] | None = None) -> None:
    """Print both sides and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help='a folder, a hub name, smollm2, or "tiny"')
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=48)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args(arguments)
    models = {kind: made(kind, options) for kind in TITLES}
    seconds = in_turn({kind: stepper(model, options) for kind, model in models.items()}, options.steps)
    sizes = {kind: file_bytes(model) for kind, model in models.items()}
    for kind, title in TITLES.items():
        step = 1000 * statistics.median(seconds[kind])
        print(f"{title}: {step:.1f} ms a step, file of {sizes[kind]:,} bytes, {adapter_numbers(models[kind]):,} trained numbers")
    ratios = [ours / theirs for ours, theirs in zip(seconds["tl6"], seconds["lora"], strict=True)]
    print(f"step: {statistics.median(ratios):.3f} of PEFT LoRA's (median of {len(ratios)} pairs); file: {sizes['tl6'] / sizes['lora']:.3f} of it")


def made(kind: str, options: argparse.Namespace) -> PeftModel:
    """The model with one adapter."""
    model = tiny_llama() if options.model == "tiny" else load_decoder(model_folder(options.model), options.dtype, options.device)
    tuned: PeftModel = method_of(kind, options.rank, model).attach(model, Data(Split(), Split()))
    widen(tuned)
    return tuned.train()


def stepper(model: PeftModel, options: argparse.Namespace) -> Callable[[], None]:
    """One training step, finished when it returns."""
    dice = torch.Generator().manual_seed(0)
    ids = torch.randint(0, int(model.config.vocab_size), (options.batch, options.length), generator=dice).to(model.device)
    optimizer = torch.optim.AdamW([parameter for _, parameter in trained(model)], lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        with computing(model):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    return step


def in_turn(steps: dict[str, Callable[[], None]], count: int) -> dict[str, list[float]]:
    """Seconds of each side's steps, taken in turn and each round beginning with the other side, after two unmeasured ones."""
    seconds: dict[str, list[float]] = {kind: [] for kind in steps}
    for round_ in range(count + 2):
        for kind in list(steps)[:: -1 if round_ % 2 else 1]:
            start = perf_counter()
            steps[kind]()
            if round_ >= 2:
                seconds[kind].append(perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
