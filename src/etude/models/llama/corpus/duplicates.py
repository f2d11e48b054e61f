"""What was seen before goes: lines, spans of sentences, whole files, and books that hold 90 % of another."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np

from etude.models.llama.corpus.documents import Document


def mark(text: str) -> int:
    """64 bits that stand for a text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class Seen:
    """Marks of what came by, as a stage remembers them."""

    def __init__(self) -> None:
        self.marks: set[int] = set()

    def new(self, text: str) -> bool:
        """Whether this is the first time; it is remembered."""
        found = mark(text)
        if found in self.marks:
            return False
        self.marks.add(found)
        return True

    def state(self) -> np.ndarray:
        return np.array(sorted(self.marks), dtype=np.uint64)

    def restore(self, state: np.ndarray) -> None:
        self.marks = set(state.tolist())


def bare(line: str) -> str:
    """A line as CCNet compares them: lower case, no accents, digits as 0, no punctuation, single spaces."""
    plain = "".join(letter for letter in unicodedata.normalize("NFD", line.lower()) if unicodedata.category(letter)[0] not in "MP")
    return " ".join(re.sub(r"\d", "0", plain).split())


class DistinctLines(Seen):
    """CCNet: a line that any earlier document, or this one, had is dropped; a document that loses all is dropped."""

    def __call__(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            text = "\n".join(line for line in document.text.split("\n") if not (plain := bare(line)) or self.new(plain)).strip("\n")
            if text.strip():
                yield replace(document, text=text)


class DistinctTexts(Seen):
    """GitHub: of equal files the first stays; `key` says what is compared."""

    def __init__(self, key: Callable[[str], str] = str.strip) -> None:
        super().__init__()
        self.key = key

    def __call__(self, documents: Iterable[Document]) -> Iterator[Document]:
        return (document for document in documents if self.new(self.key(document.text)))


class DistinctSpans(Seen):
    """C4: of any three sentences in a row that came before, none stays."""

    def __init__(self, sentences: int = 3) -> None:
        super().__init__()
        self.sentences = sentences

    def __call__(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            text = self._fresh(document.text)
            if text.strip():
                yield replace(document, text=text)

    def _fresh(self, text: str) -> str:
        pieces = re.findall(r".+?(?:[.!?]+[\"')\]]*\s+|\n+|$)", text, flags=re.DOTALL)
        plain, stale = [bare(piece) for piece in pieces], set[int]()
        for start in range(len(pieces) - self.sentences + 1):
            if not self.new("\n".join(plain[start : start + self.sentences])):
                stale |= set(range(start, start + self.sentences))
        return "".join(piece for place, piece in enumerate(pieces) if place not in stale).strip()


class DistinctBooks:
    """Books: one that shares `overlap` of its runs of words with an earlier one, or holds so much of it, is dropped.

    Runs of `words` words are marked, and of the marks every `every`-th kept (those divisible by it): a fair sample for texts of a book's length.
    """

    def __init__(self, overlap: float = 0.9, words: int = 8, every: int = 16) -> None:
        if not 0 < overlap <= 1:
            raise ValueError(f"overlap is a share in (0, 1], got {overlap}")
        self.overlap, self.words, self.every = overlap, words, every
        self.books = list[set[int]]()
        self.where: dict[int, list[int]] = {}

    def __call__(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            marks = self.sample(document.text)
            if not self._known(marks):
                self._add(marks)
                yield document

    def sample(self, text: str) -> set[int]:
        """The sampled marks of a text's runs of words."""
        words = bare(text).split()
        marks = {mark(" ".join(words[start : start + self.words])) for start in range(max(1, len(words) - self.words + 1))}
        return {one for one in marks if one % self.every == 0} or {min(marks)}

    def _known(self, marks: set[int]) -> bool:
        shared: dict[int, int] = {}
        for one in marks:
            for book in self.where.get(one, ()):
                shared[book] = shared.get(book, 0) + 1
        return any(count >= self.overlap * min(len(marks), len(self.books[book])) for book, count in shared.items())

    def _add(self, marks: set[int]) -> None:
        for one in marks:
            self.where.setdefault(one, []).append(len(self.books))
        self.books.append(marks)

    def state(self) -> np.ndarray:
        rows = [(book, one) for book, marks in enumerate(self.books) for one in sorted(marks)]
        return np.array(rows, dtype=np.uint64).reshape(-1, 2)

    def restore(self, state: np.ndarray) -> None:
        self.books, self.where = [], {}
        books: dict[int, set[int]] = {}
        for book, one in state.tolist():
            books.setdefault(book, set()).add(one)
        for book in sorted(books):
            self._add(books[book])
