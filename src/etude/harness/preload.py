"""What the fork server imports once, so that a worker starts in milliseconds.

It must stay one thread, or forking would not be safe: numpy's BLAS and pyarrow's allocator would start some while they are imported.
"""

import contextlib
import gc
import importlib
import os

HEAVY = (
    "numpy",
    "torch",
    "safetensors.torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "datasets",
    "peft",
    "compressed_tensors.compressors",
    "etude.harness.worker",
)


def load() -> None:
    """Import what nearly every run needs."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"
    for name in HEAVY:
        with contextlib.suppress(ImportError):  # a run that needs it says so
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a worker's collector leaves these objects alone, so that their pages stay shared


load()
