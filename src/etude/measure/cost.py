"""What a model costs: bytes on disk, load time, prefill and decode tokens a second, by medians, alone and warm.

A speed holds for the device, thread count, batch and lengths it was measured with: they are recorded beside it.
"""

from __future__ import annotations

import gc
import inspect
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from etude.measure.contract import Metrics
from etude.measure.quality import context_of
from etude.nn.surgery import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below the folder; a file linked twice counts once.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: nothing to weigh")
    sizes = {(stat.st_dev, stat.st_ino): stat.st_size for path in folder.rglob("*") if path.is_file() for stat in [path.stat()]}
    return sum(sizes.values())


def prefill_speed(model: PreTrainedModel, tokens: int = 512, seconds: float = 2.0) -> float:
    """Tokens a second of one forward pass over a prompt of `tokens` tokens, batch 1, logits of the last token only where the model can."""
    ids = _prompt(model, context_of(model, tokens))
    keep = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}

    def once() -> None:
        model(input_ids=ids, use_cache=False, **keep)
        _wait(ids.device)

    with evaluating(model), torch.inference_mode(), _quiet():
        once()
        return ids.shape[1] / statistics.median(_repeat(once, seconds, 200))


def decode_speed(model: PreTrainedModel, prompt: int = 64, seconds: float = 2.0, most: int = 256) -> float:
    """Tokens a second of greedy decoding, batch 1, after a prompt of `prompt` tokens: the median over single steps.

    A model that hands back no cache is run over the whole sequence at each step, as generation would.
    """
    context = context_of(model, prompt + most)
    prompt = min(prompt, max(1, context // 2, context - most))
    with evaluating(model), torch.inference_mode(), _quiet():
        ids = _prompt(model, prompt)
        output = model(input_ids=ids, use_cache=True)
        name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        cache, steps, stop = getattr(output, "past_key_values", None), list[float](), time.perf_counter() + seconds
        while ids.shape[1] < context and (len(steps) < 4 or time.perf_counter() < stop):
            ids = torch.cat([ids, output.logits[:, -1:].argmax(-1)], 1)
            before = time.perf_counter()
            output = model(input_ids=ids if cache is None else ids[:, -1:], use_cache=True, **{name: cache})
            _wait(ids.device)
            steps.append(time.perf_counter() - before)
    warm = steps[2:] or steps
    if not warm:
        raise ValueError(f"a context of {context} tokens leaves no step to decode after a prompt of {prompt}")
    return 1 / statistics.median(warm)


def state_bytes(model: PreTrainedModel, tokens: int) -> float:
    """Bytes of what the model remembers of a text of `tokens` tokens, batch 1 (keys and values, or a recurrent state); 0 if it keeps nothing.

    Raises:
        ValueError: the model's positions allow fewer tokens.
    """
    if context_of(model, tokens) < tokens:
        raise ValueError(f"the model reads at most {context_of(model, tokens)} tokens, not {tokens}")
    with evaluating(model), torch.inference_mode():
        output = model(input_ids=_prompt(model, tokens), use_cache=True)
    found = {tensor.data_ptr(): tensor.nbytes for tensor in _tensors(getattr(output, "past_key_values", None), set())}
    return float(sum(found.values()))


def _tensors(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    """Every tensor that is reached from an object through its attributes, lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        yield value
    elif id(value) not in seen and not isinstance(value, str | bytes | type | torch.nn.Module):
        seen.add(id(value))
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else getattr(value, "__dict__", {}).values()
        for one in inside:
            yield from _tensors(one, seen)


def training_speed(model: PreTrainedModel, length: int, batch: int, seconds: float = 2.0) -> float:
    """Tokens a second of training steps (forward, backward, AdamW) on `batch` rows of `length` tokens; the model's weights are changed by them."""
    ids = _prompt(model, context_of(model, length)).expand(batch, -1).contiguous()
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-6)
    was_training = model.training

    def once() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        _wait(ids.device)

    try:
        model.train()
        with torch.enable_grad(), _quiet():
            once()
            return ids.numel() / statistics.median(_repeat(once, seconds, 200))
    finally:
        model.train(was_training)


def timings(model: PreTrainedModel, seconds: float = 4.0) -> Metrics:
    """Prefill and decode speed within about `seconds`, with the thread count they were measured with."""
    return Metrics(
        prefill_speed=prefill_speed(model, seconds=seconds / 2),
        decode_speed=decode_speed(model, seconds=seconds / 2),
        threads=float(torch.get_num_threads()),
    )


def _repeat(action: Callable[[], Any], seconds: float, most: int) -> list[float]:
    times, stop = list[float](), time.perf_counter() + seconds
    while not times or (time.perf_counter() + times[-1] < stop and len(times) < most):
        before = time.perf_counter()
        action()
        times.append(time.perf_counter() - before)
    return times


def _prompt(model: PreTrainedModel, tokens: int) -> torch.Tensor:
    vocabulary = min(1000, int(model.config.get_text_config().vocab_size))
    return (torch.arange(tokens, device=model.device) * 7 % vocabulary)[None]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _quiet() -> Iterator[None]:
    """No garbage collection inside a timing."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
