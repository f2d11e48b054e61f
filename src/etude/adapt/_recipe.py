"""What is equal for all contenders: how long they train, how their rates are found."""

from __future__ import annotations

STEPS, SIZE = 24, 8  # optimizer steps, where the user sets no others, and rows a batch
TRIALS = 3  # rates tried
START = 1e-3  # where the search for a rate begins, for a contender that names no `start`
HEAD = 20.0  # the label head's rate as a multiple of the others'
EVERY = 12  # steps between checkpoints
JUDGED = 96  # validation rows that judge a rate at most
