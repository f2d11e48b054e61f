"""Documents and the stages they pass: in a stream, counted, and resumable by shards.

>>> stages = [only(is_code_file), DistinctTexts(), each(strip_header)]
>>> for document in Pipeline(stages)(documents): ...
>>> process({"part0": read0, "part1": read1}, Pipeline(stages), folder)       # killed and called again, it goes on
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Document:
    """A text, where it comes from, and what is known of it (licence, address...)."""

    text: str
    source: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)


Stage = Callable[[Iterable[Document]], Iterator[Document]]


class Remembering(Protocol):
    """A stage that drops what it has seen before: its memory is kept beside the finished shards."""

    def state(self) -> np.ndarray: ...

    def restore(self, state: np.ndarray) -> None: ...


def only(test: Callable[[str], bool]) -> Stage:
    """Keeps the documents whose text passes."""

    def stage(documents: Iterable[Document]) -> Iterator[Document]:
        return (document for document in documents if test(document.text))

    stage.__name__ = test.__name__
    return stage


def each(change: Callable[[str], str]) -> Stage:
    """Changes every text; what becomes empty is dropped."""

    def stage(documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            text = change(document.text)
            if text:
                yield replace(document, text=text)

    stage.__name__ = change.__name__
    return stage


@dataclass
class Count:
    """Documents and characters that reached a stage."""

    documents: int = 0
    characters: int = 0


class Pipeline:
    """Stages in a row.

    Attributes:
        counts: what came in, then what each stage let through, by name.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = list(stages)
        self.names = ["read", *(f"{place} {_name(stage)}" for place, stage in enumerate(self.stages, 1))]
        self.counts = {name: Count() for name in self.names}

    def __call__(self, documents: Iterable[Document]) -> Iterator[Document]:
        stream = self._counted(self.names[0], documents)
        for name, stage in zip(self.names[1:], self.stages, strict=True):
            stream = self._counted(name, stage(stream))
        return stream

    def _counted(self, name: str, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            self.counts[name].documents += 1
            self.counts[name].characters += len(document.text)
            yield document

    def memory(self) -> dict[str, np.ndarray]:
        """What the stages have seen."""
        return {name: stage.state() for name, stage in zip(self.names[1:], self.stages, strict=True) if hasattr(stage, "state")}

    def restore(self, memory: Mapping[str, np.ndarray], counts: Mapping[str, Mapping[str, int]]) -> None:
        """Go on from what `memory` and `counts` were."""
        for name, stage in zip(self.names[1:], self.stages, strict=True):
            if hasattr(stage, "restore"):
                stage.restore(memory[name])
        self.counts = {name: Count(**counts[name]) for name in self.names}


def process(shards: Mapping[str, Callable[[], Iterable[Document]]], pipeline: Pipeline, folder: Path) -> list[Path]:
    """Write every shard's documents as JSONL into the folder; shards that are finished there are not done again.

    A shard appears whole or not at all, and what the stages remember is that of the last finished one: a run that was killed and started again
    ends as an undisturbed one does.

    Raises:
        ValueError: the folder holds the work of other stages, or of other shards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    finished = _resume(list(shards), pipeline, folder)
    for name, read in list(shards.items())[len(finished) :]:
        partial = folder / f".{name}.partial"
        with partial.open("w", encoding="utf-8") as out:
            for document in pipeline(read()):
                out.write(json.dumps({"text": document.text, "source": document.source, **document.about}, ensure_ascii=False) + "\n")
        os.replace(partial, folder / f"{name}.jsonl")
        finished.append(name)
        _remember(finished, pipeline, folder)
    return [folder / f"{name}.jsonl" for name in finished]


def _resume(names: list[str], pipeline: Pipeline, folder: Path) -> list[str]:
    place = folder / "progress.json"
    if not place.is_file():
        return []
    about = json.loads(place.read_text())
    if about["stages"] != pipeline.names or about["finished"] != names[: len(about["finished"])]:
        raise ValueError(f"{folder} was begun with other stages or shards ({', '.join(about['stages'][1:])}): give another folder")
    with np.load(folder / about["memory"], allow_pickle=False) as memory:
        pipeline.restore(dict(memory), about["counts"])
    return list(about["finished"])


def _remember(finished: list[str], pipeline: Pipeline, folder: Path) -> None:
    """The memory first, under a name of its own; then the file that names it, in one step; then the old memory goes."""
    memory = folder / f"memory-{len(finished)}.npz"
    np.savez(memory, **pipeline.memory())
    about = {"stages": pipeline.names, "finished": finished, "memory": memory.name}
    (folder / "progress.partial").write_text(json.dumps(about | {"counts": {name: asdict(count) for name, count in pipeline.counts.items()}}))
    os.replace(folder / "progress.partial", folder / "progress.json")
    for old in folder.glob("memory-*.npz"):
        if old != memory:
            old.unlink()


def _name(stage: Any) -> str:
    return getattr(stage, "__name__", type(stage).__name__)
