"""What a frozen model makes of pairs: summed log-probabilities, kept on disk for the reference, and the pairs that a policy gets right."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from etude.align._pairs import Pair
from etude.data.cache import digest_json, memo
from etude.measure.contract import NotFinite
from etude.nn.surgery import evaluating

# Dimensions: N pairs, S sequences (N chosen ones, then N rejected ones), T tokens, K positions that are scored, V vocabulary.
LOGITS = 1 << 27  # bytes of float32 logits that a batch holds at most
LAYOUT = 1  # of what is kept


@dataclass(frozen=True)
class Scores:
    """Summed log-probabilities of both completions of each pair, float32."""

    chosen: Float[Tensor, " N"]
    rejected: Float[Tensor, " N"]

    def ratio(self, reference: Scores) -> Float[Tensor, " N"]:
        r"""\(h = \log \frac{\pi(y_w)}{\pi_{ref}(y_w)} - \log \frac{\pi(y_l)}{\pi_{ref}(y_l)}\): above 0 where the policy leans to the chosen one."""
        return (self.chosen - reference.chosen) - (self.rejected - reference.rejected)


def score(model: PreTrainedModel, pairs: Sequence[Pair]) -> Scores:
    """Log-probabilities of every completion after its prompt; the vocabulary is opened at completion tokens only."""
    sequences = [(pair.prompt, pair.chosen) for pair in pairs] + [(pair.prompt, pair.rejected) for pair in pairs]
    summed_S = torch.zeros(len(sequences))
    with evaluating(model), torch.inference_mode():
        for rows in _batches(sequences, int(model.config.get_text_config().vocab_size)):
            summed_S[rows] = _log_probabilities(model, [sequences[row] for row in rows])
    if not torch.isfinite(summed_S).all():
        raise NotFinite("the model's log-probabilities are not finite (NaN or infinity): its weights or its dtype are broken")
    return Scores(*summed_S.chunk(2))


def reference_scores(model: PreTrainedModel, pairs: Sequence[Pair], key: str) -> Scores:
    """`score` of a frozen model, computed once on this disk for these pairs.

    Args:
        key: `digest_of_model(model)`; it is asked for since one model serves many sets of pairs.
    """
    about = digest_json([LAYOUT, key, [[pair.prompt, pair.chosen, pair.rejected] for pair in pairs]])
    kept = memo(f"preference scores {about}", lambda: vars(score(model, pairs)))
    return Scores(kept["chosen"], kept["rejected"])


def digest_of_model(model: PreTrainedModel) -> str:
    """Digest of a model's weights where and as they are: device and dtype change the last bits of what it answers."""
    running = hashlib.sha256(f"{model.device.type} {model.config.get_text_config().model_type}".encode())
    for name, weight in model.named_parameters():
        running.update(f"{name} {weight.dtype} {tuple(weight.shape)};".encode())
        running.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return running.hexdigest()


def _batches(sequences: Sequence[tuple[list[int], list[int]]], vocabulary: int) -> Iterator[list[int]]:
    """Rows of like prompts together, so that few positions are scored in vain; as many as `LOGITS` allows."""
    batch, first, last = list[int](), 0, 0
    for row in sorted(range(len(sequences)), key=lambda i: (len(sequences[i][0]), len(sequences[i][1]))):
        prompt, completion = map(len, sequences[row])
        low, high = (min(first, prompt), max(last, prompt + completion)) if batch else (prompt, prompt + completion)
        if batch and 4 * vocabulary * (len(batch) + 1) * (high - low) > LOGITS:
            yield batch
            batch, low, high = [], prompt, prompt + completion
        batch.append(row)
        first, last = low, high
    if batch:
        yield batch


def _log_probabilities(model: PreTrainedModel, sequences: Sequence[tuple[list[int], list[int]]]) -> Float[Tensor, " S"]:
    """One batch, padded on the right under an attention mask."""
    longest = max(len(prompt) + len(completion) for prompt, completion in sequences)
    ids_ST, mask_ST = torch.zeros(len(sequences), longest, dtype=torch.long), torch.zeros(len(sequences), longest, dtype=torch.long)
    told_ST = torch.zeros(len(sequences), longest, dtype=torch.bool)
    for row, (prompt, completion) in enumerate(sequences):
        length = len(prompt) + len(completion)
        ids_ST[row, :length] = torch.tensor(prompt + completion)
        mask_ST[row, :length] = 1
        told_ST[row, max(1, len(prompt)) : length] = True
    target_SK, told_SK, keep_K = ids_ST[:, 1:], told_ST[:, 1:], told_ST[:, 1:].any(0).nonzero()[:, 0]
    target_SK, told_SK = target_SK[:, keep_K].to(model.device), told_SK[:, keep_K].to(model.device)
    keep = kept(model, keep_K.to(model.device))
    logits_SKV = model(input_ids=ids_ST.to(model.device), attention_mask=mask_ST.to(model.device), use_cache=False, **keep).logits
    if not keep:
        logits_SKV = logits_SKV[:, keep_K.to(model.device)]
    logprobs_MV = logits_SKV[told_SK].float().log_softmax(-1)
    summed_SK = torch.zeros(told_SK.shape, dtype=torch.float64, device=model.device)
    summed_SK[told_SK] = logprobs_MV.gather(-1, target_SK[told_SK][:, None])[:, 0].double()
    return summed_SK.sum(1).float().cpu()


def kept(model: PreTrainedModel, places: int | Tensor) -> dict[str, int | Tensor]:
    """The argument with which the vocabulary is opened at these places only (a number counts from the end); nothing where the model cannot."""
    inner = getattr(model, "get_base_model", lambda: model)()
    return {"logits_to_keep": places} if "logits_to_keep" in inspect.signature(inner.forward).parameters else {}


def lost(after: Scores, before: Scores, pairs: Sequence[Pair]) -> float:
    """Nats a token by which the chosen answers became less likely: what a policy loses that runs away from both answers."""
    return float((before.chosen - after.chosen).double().sum()) / sum(len(pair.chosen) for pair in pairs)


def error_rate(ratio_N: Float[Tensor, " N"]) -> float:
    r"""Share of pairs that a normal distribution of these log-ratios gets wrong, \(\Phi(-\bar h / s_h)\): smooth where a count of few is not."""
    spread = float(ratio_N.double().std(correction=0))
    if not spread:
        return 0.5
    return float(torch.special.ndtr(-ratio_N.double().mean() / spread))
