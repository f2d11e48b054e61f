"""The family's one trainer: TRL's DPOTrainer on pairs of token ids, with losses of our own where TRL has none.

A technique names one of TRL's losses in the words of its DPOConfig,

    train(policy, data, settings, loss_type=["ipo"], beta=tau)

or hands over a function of the pairs' log-probabilities:

    train(policy, data, settings, lambda batch: (batch.ratio - 1 / (2 * tau)) ** 2)

Everything else is the same for all of them: pairs and their order, epochs, batches, schedule, LoRA, reference log-probabilities (computed once on
this disk), checkpoints, and the learning rate, which is tuned on a few pairs where the user gave none.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from etude.align._pairs import TUNING, Pair, encode
from etude.align._score import Scores, digest_of_model, error_rate, lost, reference_scores, score
from etude.align._traces import WHOLE, as_it_was, below, last, restore, room_of
from etude.data.contract import Data, Preferences
from etude.fit.tune import climb
from etude.measure.contract import NotFinite
from etude.measure.quality import context_of

if TYPE_CHECKING:
    from peft import PeftModel

# Dimensions: P pairs of a batch.
Loss = Callable[["Batch"], Tensor]
RUNAWAY = 0.25  # of the logarithm of the vocabulary: nats a token that the chosen answers may lose in a trial


@dataclass(frozen=True)
class Settings:
    """How a policy is trained, whatever the loss.

    Attributes:
        rate: peak learning rate of AdamW; None tunes it.
        start: where tuning starts.
        trials: how many rates are tried.
        epochs: passes over the pairs.
        batch: pairs of a step.
        rank: of the LoRA adapter on every linear layer; 0 trains all weights.
        every: steps between checkpoints.
    """

    rate: float | None = None
    start: float = 5e-4
    trials: int = 3
    epochs: int = 2
    batch: int = 4
    rank: int = 8
    every: int = 10

    def __post_init__(self) -> None:
        for name in ("rate", "start"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ValueError(f"{name} must lie in (0, 1), got {value}: it is a learning rate")
        for name, least in (("trials", 1), ("epochs", 1), ("batch", 1), ("rank", 0), ("every", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Batch:
    r"""What a loss sees of a batch of pairs: summed log-probabilities, float32, those of the policy with their gradient.

    Attributes:
        chosen, rejected: \(\log \pi(y_w | x)\) and \(\log \pi(y_l | x)\); `rejected` is empty where the trainer reads chosen completions only.
        reference_chosen, reference_rejected: the same of the reference.
        chosen_tokens, rejected_tokens: of the completions, end token included.
        weight: of the pairs; rate: share of annotators who prefer the chosen one.
    """

    chosen: Float[Tensor, " P"]
    rejected: Float[Tensor, " R"]
    reference_chosen: Float[Tensor, " P"]
    reference_rejected: Float[Tensor, " P"]
    chosen_tokens: Float[Tensor, " P"]
    rejected_tokens: Float[Tensor, " P"]
    weight: Float[Tensor, " P"]
    rate: Float[Tensor, " P"]

    @property
    def ratio(self) -> Float[Tensor, " P"]:
        r"""\(h_\pi(y_w, y_l)\), summed over the tokens of each completion."""
        return (self.chosen - self.reference_chosen) - (self.rejected - self.reference_rejected)

    @property
    def mean_ratio(self) -> Float[Tensor, " P"]:
        """The same of log-ratios averaged over the tokens of each completion."""
        return (self.chosen - self.reference_chosen) / self.chosen_tokens - (self.rejected - self.reference_rejected) / self.rejected_tokens


def train(
    policy: PreTrainedModel, data: Data, settings: Settings, loss: Loss | None = None, *, chosen_only: bool = False, **config: Any
) -> PreTrainedModel | PeftModel:
    """The policy trained on the pairs of `data.train`: a PEFT model around it, or itself where `settings.rank` is 0; in evaluation mode.

    Args:
        loss: a function of a `Batch` to the mean or the losses of its pairs; None takes TRL's own, which `config` names.
        chosen_only: the policy reads the chosen completions only, `Batch.rejected` is empty.
        config: of TRL's DPOConfig: `loss_type`, `beta`, ...

    Raises:
        ValueError: TRL is not installed, the data holds no preferences or the folder no tokenizer, or the loss is no number at some step (the last
            good checkpoint stays).
    """
    tokenizer = data.tokenizer
    if tokenizer is None:
        raise ValueError("training needs a tokenizer: the model folder holds none")
    context, digest = context_of(policy, 1 << 30), digest_of_model(policy)
    pairs = encode(tokenizer, data.train[Preferences], context, tokens=None).pairs
    reference = None if chosen_only else reference_scores(policy, pairs, digest)
    job = Job(policy, tokenizer, settings, loss, chosen_only, config, data.seed, pairs, reference)
    if settings.rate is None:
        held_out = encode(tokenizer, data.validation[Preferences], context, tokens=None, most=TUNING).pairs
        settings = replace(settings, rate=tuned(job, held_out, reference_scores(policy, held_out, digest), data))
    return fit(replace(job, settings=settings), below(data.journal.checkpoints, "final"))


@dataclass(frozen=True)
class Job:
    """One training to be done, all but its pairs."""

    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    settings: Settings
    loss: Loss | None
    chosen_only: bool
    config: dict[str, Any]
    seed: int
    pairs: list[Pair]
    reference: Scores | None

    def first(self, count: int) -> Job:
        """The same on the first pairs only."""
        before = self.reference
        kept = Scores(before.chosen[:count], before.rejected[:count]) if before else None
        return replace(self, pairs=self.pairs[:count], reference=kept)


def tuned(job: Job, held_out: list[Pair], reference: Scores, data: Data) -> float:
    """The rate whose short run, on half of the pairs or `TUNING`, prefers the chosen ones of `held_out` most clearly; trials are in the journal."""
    short = job.first(min(TUNING, max(1, len(job.pairs) // 2)))
    far = RUNAWAY * math.log(job.policy.config.get_text_config().vocab_size)

    def trial(rate: float) -> float:
        before = None if job.settings.rank else copy.deepcopy(job.policy.state_dict())
        try:
            after = score(fit(replace(short, settings=replace(job.settings, rate=rate)), data.journal.room({"rate": rate})), held_out)
            return error_rate(after.ratio(reference)) if lost(after, reference, held_out) < far else 1.0
        except NotFinite:
            return 1.0  # as if every pair were wrong
        finally:
            restore(job.policy, before)

    found = climb(job.settings.start, lambda rate: data.journal.once({"rate": rate}, lambda: trial(rate)), job.settings.trials)
    data.journal.settle(rate=found.rate)
    data.journal.chosen = found.words()
    return found.rate


def fit(job: Job, checkpoints: Path | None) -> PreTrainedModel | PeftModel:
    """One training at a given rate, resumed where `checkpoints` holds a whole checkpoint of it."""
    with as_it_was(job.policy), compact_head(), room_of(checkpoints) as room:
        if not job.settings.rank:
            job.policy.float()  # what is trained is float32: updates vanish below bfloat16's grid
        trainer = trainer_class()(job, rows_of(job), room, saves=checkpoints is not None)
        trainer.train(resume_from_checkpoint=last(room))
        made: PreTrainedModel | PeftModel = trainer.model
    return made.eval()


def order_of(count: int, epochs: int, seed: int) -> list[int]:
    """The rows of all epochs in the order in which they are read: each epoch a permutation of its own."""
    dice = torch.Generator().manual_seed(seed)
    return [int(row) for _ in range(epochs) for row in torch.randperm(count, generator=dice)]


def rows_of(job: Job) -> Any:
    """The data set that the trainer reads from its first row to its last: all epochs, in the columns of TRL's collator."""
    from datasets import Dataset

    pairs, reference = job.pairs, job.reference
    order, columns = order_of(len(pairs), job.settings.epochs, job.seed), dict[str, list[Any]]()
    for name, values in {
        "prompt_ids": [pair.prompt for pair in pairs],
        "chosen_ids": [pair.chosen for pair in pairs],
        "rejected_ids": [pair.rejected for pair in pairs],
        "ref_chosen_logps": (reference.chosen.tolist() if reference else [0.0] * len(pairs)),
        "ref_rejected_logps": (reference.rejected.tolist() if reference else [0.0] * len(pairs)),
        "weight": [pair.weight for pair in pairs],
        "rate": [pair.rate for pair in pairs],
    }.items():
        columns[name] = [values[row] for row in order]
    return Dataset.from_dict(columns)


def config_of(job: Job, rows: int, room: Path, saves: bool) -> Any:
    """TRL's configuration: what is not said here is said by the technique or is the same for everyone."""
    from trl import DPOConfig

    settings = job.settings
    steps = -(-rows // settings.batch)
    return DPOConfig(
        **{
            "output_dir": str(room),
            "learning_rate": settings.rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": max(1, round(0.1 * steps)),
            "weight_decay": 0.0,
            "optim": "adamw_torch",
            "per_device_train_batch_size": settings.batch,
            "num_train_epochs": 1,  # the rows hold all epochs
            "precompute_ref_log_probs": True,
            "max_length": None,
            "remove_unused_columns": False,
            "gradient_checkpointing": False,
            "bf16": False,  # the weights have their dtype already
            "use_cpu": job.policy.device.type == "cpu",
            "seed": job.seed,
            "save_strategy": "steps" if saves else "no",
            "save_steps": settings.every,
            "save_total_limit": 2,
            "logging_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        | job.config
    )


@functools.cache
def trainer_class() -> Any:
    """The trainer's class; TRL is imported when it is wanted.

    Raises:
        ValueError: TRL is not installed.
    """
    try:
        from trl import DPOTrainer
        from trl.trainer.dpo_trainer import DataCollatorForPreference
        from trl.trainer.utils import add_fused_lm_head
    except ImportError as error:
        raise ValueError(f"preference training needs TRL ({error}): pip install 'etude[align]'") from error
    from peft import LoraConfig
    from torch.utils.data import SequentialSampler
    from transformers import PrinterCallback, Trainer

    class Collator(DataCollatorForPreference):  # type: ignore[misc]
        def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
            batch: dict[str, Any] = super().torch_call(examples)
            return batch | {name: torch.tensor([example[name] for example in examples]) for name in ("weight", "rate")}

    class PairTrainer(DPOTrainer):  # type: ignore[misc]
        def __init__(self, job: Job, rows: Any, room: Path, saves: bool) -> None:
            self.job, rank = job, job.settings.rank
            lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM") if rank else None
            super().__init__(
                model=job.policy,
                args=config_of(job, len(rows), room, saves),
                train_dataset=rows,
                data_collator=(Collator if job.loss else DataCollatorForPreference)(pad_token_id=job.tokenizer.pad_token_id or 0),
                processing_class=copy.deepcopy(job.tokenizer),
                peft_config=lora,
            )
            self.remove_callback(PrinterCallback)
            if job.loss:
                add_fused_lm_head(self.model.get_base_model() if rank else self.model)  # log-probabilities alone

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
            value = self.own_loss(model, inputs) if self.job.loss else super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if not torch.isfinite(value):
                step, rate = self.state.global_step + 1, self.job.settings.rate
                raise NotFinite(
                    f"the loss is {float(value)} at step {step} of {self.state.max_steps} (rate {rate:g}): lower the rate, or look at the pairs"
                )
            return value

        def own_loss(self, model: Any, inputs: Any) -> Tensor:
            assert self.job.loss is not None
            read = slice(len(inputs["weight"])) if self.job.chosen_only else slice(None)
            told = inputs["completion_mask"]
            labels = inputs["input_ids"].masked_fill(told == 0, -100)[read]
            output = model(
                input_ids=inputs["input_ids"][read], attention_mask=inputs["attention_mask"][read], labels=labels, use_cache=False, fused_lm_head=True
            )
            summed, tokens = output.log_probs.float().sum(1), told[:, 1:].sum(1).float().clamp(min=1)
            pairs = len(inputs["weight"])
            return self.job.loss(
                Batch(
                    summed[:pairs],
                    summed[pairs:],
                    inputs["ref_chosen_logps"],
                    inputs["ref_rejected_logps"],
                    tokens[:pairs],
                    tokens[pairs:],
                    inputs["weight"],
                    inputs["rate"],
                )
            ).mean()

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            """Written whole, marked afterwards; weights that are no numbers are not kept."""
            bad = [name for name, weight in self.model.named_parameters() if weight.requires_grad and not torch.isfinite(weight).all()]
            if bad:
                raise NotFinite(
                    f"the weights are no numbers after step {self.state.global_step} (rate {self.job.settings.rate:g}, {bad[0]}): lower the rate"
                )
            Trainer._save_checkpoint(self, model, trial)
            (Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / WHOLE).touch()

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset  # token ids already

        def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
            return dataset  # among the rows already

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(self.train_dataset)

        def _send_telemetry(self) -> None:
            """Nothing leaves this machine."""

    return PairTrainer


@contextmanager
def compact_head() -> Iterator[None]:
    """TRL opens the vocabulary at completion tokens only where it runs Triton, and at every token elsewhere, since some devices compile by shape.

    A processor does not: a third of a step is saved there. The losses are the same.
    """
    from trl.trainer import utils

    before = getattr(utils, "_use_triton", None)
    if before is not None:
        utils._use_triton = lambda device: device.type == "cpu" or before(device)
    try:
        yield
    finally:
        if before is not None:
            utils._use_triton = before
