"""The console script: parsing, errors in one line, exit codes (0 ran, 1 a run failed, 2 wrong usage, 130 interrupted)."""

from __future__ import annotations

import difflib
import os
import re
import sys
import traceback
from collections.abc import Sequence

from etude.cli.output import Output
from etude.cli.texts import ABOUT, overview

QUIET = {  # libraries that would draw over our lines, or call home
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
FULL = re.compile(r"(os error|Errno) (27|28|122)\b")  # EFBIG, ENOSPC, EDQUOT
EXTRAS = {
    "trl": "align",
    "sentence_transformers": "retrieve",
    "bm25s": "retrieve",
    "faiss": "retrieve",
    "ir_measures": "retrieve",
    "pyoxigraph": "retrieve",
    "qdrant_client": "retrieve",
    "ray": "scale",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    out = Output(as_json="--json" in words)
    try:
        return dispatch(words, out)
    except SystemExit as leaving:  # argparse after --help
        return int(leaving.code or 0)
    except KeyboardInterrupt:
        out.error("interrupted; what was finished is kept, the same command goes on from there")
        return 130
    except BrokenPipeError:  # `etude list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Exception as error:
        if "--debug" in words:
            traceback.print_exc(file=out.stderr)
        out.error(sentence(error))
        return 2 if isinstance(error, ValueError | ModuleNotFoundError) else 1


def dispatch(words: list[str], out: Output) -> int:
    """Find the command, read its flags, run it."""
    if not words or words[0] in ("-h", "--help", "help"):
        out.stdout.write(overview())
        return 0 if words else 2
    if words[0] == "--version":
        from importlib.metadata import version

        out.stdout.write(f"etude {version('etude')}\n")
        return 0
    command, rest = words[0], words[1:]
    if command not in ABOUT:
        close = difflib.get_close_matches(command, ABOUT, n=1)
        raise ValueError(f"there is no command {command!r}" + (f"; did you mean {close[0]}?" if close else "; `etude --help` shows all"))
    from etude.cli import run
    from etude.cli.parser import parser_of

    options = parser_of(command, rest).read(rest)
    return run.COMMANDS[command](options, out, words)


def sentence(error: BaseException) -> str:
    """An error in one line: what was wrong and, where a missing extra is the reason, how to get it."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        extra = EXTRAS.get(error.name.partition(".")[0])
        how = f"-e '.[{extra}]' in your clone" if extra else error.name
        return f"{error.name} is not installed: pip install {how}"
    text = " ".join(str(error).split())
    if FULL.search(text):
        way = "free space, or set ETUDE_HOME and --out to another disk; the same command goes on"
        return f"the disk is full, or a file may not grow further ({text}): {way}"
    if isinstance(error, MemoryError):
        return "out of memory: lower --jobs, or bring a smaller model"
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    sys.exit(main())
