"""The contracts that authors of contests and études meet."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar

from etude.data.cache import artifact
from etude.data.contract import Data, Part, Split
from etude.measure.contract import Metrics

if TYPE_CHECKING:
    import numpy as np

Figure = Any  # matplotlib's
S = TypeVar("S")
Subject = TypeVar("Subject")
Contender = TypeVar("Contender")


class Rule(Protocol):
    """From an interval and an estimate to "reproduced", "not reproduced" or "inconclusive" (`etude.harness.verdict`)."""

    def __call__(self, low: float, estimate: float, high: float, /) -> str: ...


@dataclass(frozen=True)
class Need:
    """What a contest asks its user to bring; the command line makes a flag of it.

    Attributes:
        name: of the flag ("model", "tokenizer", "data", "parameters").
        kind: "model" (a Hugging Face folder, GGUF file, hub or embedded name), "tokenizer" (such a model's, or a folder that holds nothing else),
            "data", or "number" (above 0; it comes with every run's settings).
        help: one sentence for `--help`, with an example.
        default: the embedded example that runs when the flag is left out; without one a model, a tokenizer or a number is optional.
    """

    name: str
    kind: Literal["model", "tokenizer", "data", "number"]
    help: str
    default: str = ""


@dataclass(frozen=True)
class Axis:
    """One measured quantity: its unit and which way is better."""

    unit: str
    better: Literal["lower", "higher"] = "lower"
    title: str = ""


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take: seconds of one thread, bytes of memory, bytes of disk."""

    seconds: float
    memory: float
    disk: float


@dataclass(frozen=True)
class Run:
    """Identity, wire format and argument in one: strings, numbers and digests, no objects and no paths.

    Attributes:
        target: "contest:compress/LanguageModels" or "study:compress/laser/Intervention".
        arm: the contender's or the arm's name.
        scale: "user", or an étude's scale.
        options: JSON of the contender's options, keys sorted.
        inputs: (name, digest) pairs: model, train, validation, choice, test, built, prepared, with.
        settings: JSON of what else changes the outcome (windows, trials, metric).
        closure: digest of the sources that the outcome depends on.
    """

    target: str
    arm: str
    scale: str
    seed: int
    step: str = "arm"  # points, build, measure, time, prepare, arm
    options: str = "{}"
    settings: str = "{}"
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    processes: int = 1
    inputs: tuple[tuple[str, str], ...] = ()
    closure: str = ""

    def path(self, name: str) -> Path:
        """This machine's copy of an input."""
        return artifact(dict(self.inputs)[name])


@dataclass(frozen=True)
class Claim:
    """What a paper promises, as a number and a rule.

    Attributes:
        title: the claim in one sentence, margin included.
        value: from one seed's metrics of all arms to one number.
        holds: the rule (`etude.harness.verdict`: above, below, within, contains, exact, all_of).
        over: what the interval is over.
        row: the row of the sheet it stands for ("1", "2a"...).
        overlap: test rows over training rows where seeds are overlapping random splits of one set (Nadeau-Bengio correction).
    """

    title: str
    value: Callable[[Mapping[str, Metrics]], float]
    holds: Rule
    over: Literal["seeds", "items", "blocks", "none"] = "seeds"
    row: str = ""
    overlap: float = 0.0


class Experiment(Generic[S]):
    """One set-up of an étude; a paper has one or several. Arms are pure named functions (run, scale) -> Metrics."""

    claims: ClassVar[tuple[Claim, ...]]
    scales: ClassVar[Mapping[str, Any]]
    seeds: ClassVar[int] = 3
    deterministic: ClassVar[bool] = False  # one seed says all: claims over items, blocks or none only

    def arms(self, scale: S) -> Mapping[str, Callable[[Run, S], Metrics]]:
        raise NotImplementedError

    def prepare(self, run: Run, scale: S, folder: Path) -> None:
        """Made once and read by all seeds and arms through `run.path("prepared")`."""

    def prepare_seed(self, run: Run, scale: S, folder: Path) -> None:
        """Made once a seed and read by its arms through `run.path("seed")`."""

    def plot(self, runs: Mapping[tuple[str, int], Metrics]) -> Figure:
        raise NotImplementedError


class Contest(ABC, Generic[Subject, Contender]):
    """One kind of subject in which methods compete; a family has one or several.

    Class attributes:
        family, name: where it stands ("compress", "LanguageModels"); title for the report.
        verb: the method that contenders have.
        brings: what the user brings; kinds: the data parts it can use, in the order of preference.
        field: baselines by name, always run; reference: the one that loss and budgets refer to.
        fallback: the one that stands in for the reference where that needs more memory than the machine has; "" when there is none.
        quality: the metric that decides; axes: every metric of the table, costs after it, the main cost axis first among them.
        budget_axes: which axis each form of `--budget` limits: "share", "bytes", "seconds", "faster", "tokens".
        max_loss: the default limit on quality lost against the reference (0.02), when no budget is given.
        trials: what a technique that searches may try.
        seeds: that are measured by default, after the one on which operating points are chosen.
        dtype: of the weights where the user names none; "" leaves it to the machine.
    """

    family: ClassVar[str]
    name: ClassVar[str]
    title: ClassVar[str]
    verb: ClassVar[str]
    brings: ClassVar[tuple[Need, ...]]
    kinds: ClassVar[tuple[type[Part], ...]]
    field: ClassVar[tuple[str, ...]]
    reference: ClassVar[str]
    fallback: ClassVar[str] = ""
    quality: ClassVar[str]
    costs: ClassVar[tuple[str, ...]]
    axes: ClassVar[Mapping[str, Axis]]
    budget_axes: ClassVar[Mapping[str, str]] = {}
    max_loss: ClassVar[float | None] = None
    trials: ClassVar[int] = 16
    seeds: ClassVar[int] = 2
    dtype: ClassVar[str] = ""

    @abstractmethod
    def split(self, parts: Split, seed: int) -> tuple[Split, Split, Split, Split]:
        """Train, validation, choice and test of what the user brought."""

    def whole(self, parts: Split, seed: int) -> tuple[Split, Split]:
        """Train and validation when nothing is to be measured: for `etude apply`."""
        return self.split(parts, seed)[:2]

    @abstractmethod
    def subject(self, run: Run) -> Subject:
        """What a verb gets to work on, loaded from `run.path("model")` or the training part."""

    @abstractmethod
    def data(self, run: Run) -> Data:
        """What a verb sees, from `run.path("train")` and `run.path("validation")`."""

    @abstractmethod
    def save(self, made: Any, data: Data, folder: Path) -> None:
        """Write what a verb returned into `folder`, in the format that users of it read."""

    @abstractmethod
    def load(self, folder: Path, run: Run) -> Any:
        """What `save` wrote, ready to be used."""

    @abstractmethod
    def answers(self, made: Any) -> np.ndarray:
        """What the made or loaded thing answers on a fixed probe."""

    @abstractmethod
    def tiny(self) -> Mapping[str, tuple[Callable[[], Subject], Data]]:
        """Two small subjects of different kinds with data, made on the spot: for the conformance suite."""

    def call(self, contender: Contender, subject: Subject, data: Data) -> Any:
        """Run the verb and return what it made."""
        return getattr(contender, self.verb)(subject, data)

    def build(self, contender: Contender, subject: Subject, data: Data, folder: Path) -> None:
        """Run the verb, and what belongs to it (training), and save what came out in `folder`."""
        self.save(self.call(contender, subject, data), data, folder)

    def probe(self, folder: Path, run: Run) -> str:
        """A digest of the answers on the probe: equal digests mean bit-equal answers."""
        return hashlib.sha256(self.answers(self.load(folder, run)).tobytes()).hexdigest()

    @abstractmethod
    def measure(self, folder: Path, held_out: Split, run: Run) -> Metrics:
        """Quality of what lies in `folder` on held-out data: in a new process, from the folder alone."""

    def time(self, folder: Path, held_out: Split, run: Run) -> Metrics:
        """What is timed alone and warm, by medians; nothing by default."""
        return Metrics()

    @abstractmethod
    def floor(self, train: Split, held_out: Split, run: Run) -> float:
        """What a contender must beat in `quality`: chance, the majority class, the unigram entropy."""

    def decides(self, parts: Split) -> str:
        """The metric that decides on these parts of the data."""
        return self.quality

    def remember(self, folder: Path, held_out: Split, run: Run, out: Path) -> None:
        """Write into `out` what `measure` wants to know of the reference (its predictions), once."""

    def reference_cost(self, run: Run) -> float | None:
        """The reference's cost on the main axis where budgets count it by a formula instead of by measurement."""
        return None

    def reference_memory(self, facts: Mapping[str, Any]) -> float:
        """Bytes of memory that building the reference needs: where the machine has less, `fallback` stands in for it."""
        return 0.0

    def marks(self, facts: Mapping[str, Any], traits: tuple[str, ...]) -> str:
        """Why a contender with these traits is to be read with care on this subject; empty when not."""
        return ""

    def unfit(self, facts: Mapping[str, Any], traits: tuple[str, ...]) -> str:
        """Why a contender with these traits cannot take part with this subject; empty when it can."""
        return ""

    def facts(self, run: Run) -> dict[str, Any]:
        """What the report says of the subject: parameters, architecture, whether its weights lie on a quantisation grid; "notes" are said aloud."""
        return {}

    def loaded(self, folder: Path, run: Run) -> tuple[Any, ...]:
        """What lies in `folder`, loaded: the first arguments of a user's own metric."""
        raise ValueError(f"{self.title} takes no metric of your own")

    def describe(self, folder: Path) -> dict[str, str]:
        """What is to be said of the thing in `folder`: what loads it, what it kept."""
        return {}

    def samples(self, folder: Path, held_out: Split, run: Run) -> list[str]:
        """Two short samples of what the built thing makes, for `--with-samples`."""
        return []

    def estimate(self, facts: Mapping[str, Any], step: str) -> Estimate:
        """What one run of this step ("build", "measure", "time") is expected to take."""
        return Estimate(1.0, 0.5e9, 0.0)

    def check(self, parts: Split, run: Run) -> list[str]:
        """What is to be said aloud of this data with this subject; refuses, with a ValueError, what cannot be used (less text than one window)."""
        return []
