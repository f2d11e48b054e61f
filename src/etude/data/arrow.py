"""Rows to an Arrow file and back as a memory-mapped data set: memory holds one batch, whatever the size."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etude.data.formats import Row

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset
    from numpy.typing import NDArray

BATCH = 1000  # rows


def batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows in lists of at most `BATCH`."""
    stream = iter(rows)
    while batch := list(itertools.islice(stream, BATCH)):
        yield batch


def infer(rows: Iterable[Row]) -> tuple[pa.Schema, list[str]]:
    """The schema that holds all rows, and the columns that mix types and are kept as strings."""
    import pyarrow as pa

    types, mixed = dict[str, Any](), list[str]()
    for batch in batches(rows):
        for name in dict.fromkeys(key for row in batch for key in row):
            if name in mixed:
                continue
            try:
                found = pa.array([row.get(name) for row in batch]).type
                pair = [pa.schema([(name, kind)]) for kind in (types.get(name, pa.null()), found)]
                types[name] = pa.unify_schemas(pair, promote_options="permissive").field(name).type
            except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
                types[name] = pa.string()
                mixed.append(name)
    return pa.schema([(name, pa.string() if pa.types.is_null(kind) else kind) for name, kind in types.items()]), mixed


def write(rows: Iterable[Row], schema: pa.Schema, path: Path, mixed: Iterable[str] = ()) -> int:
    """Write rows as one Arrow stream; returns their number."""
    import pyarrow as pa

    as_text, count = list(mixed), 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches(rows):
            for name in as_text:
                batch = [row | {name: _text(row.get(name))} for row in batch]
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
            count += len(batch)
    return count


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def copy_parquet(source: Path, path: Path) -> int:
    """Copy a Parquet file batch by batch into one Arrow stream; returns the number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source) as file, pa.OSFile(str(path), "wb") as sink:
            schema = file.schema_arrow.remove_metadata()
            with pa.ipc.new_stream(sink, schema) as writer:
                for batch in file.iter_batches(BATCH):
                    writer.write_batch(batch.replace_schema_metadata(None))
            return int(file.metadata.num_rows)
    except pa.ArrowInvalid as error:
        raise ValueError(f"data {source} is a broken or truncated Parquet file ({error})") from error


def mapped(path: Path, fingerprint: str) -> Dataset:
    """The data set of an Arrow stream, memory-mapped."""
    from datasets import Dataset
    from datasets.table import MemoryMappedTable

    return Dataset(MemoryMappedTable.from_file(str(path)), fingerprint=fingerprint[:16])


def columns(dataset: Dataset, names: Iterable[str]) -> Iterator[list[pa.ChunkedArray]]:
    """Some columns as Arrow arrays, batch by batch, in the order of the rows."""
    wanted = list(dict.fromkeys(names))
    for table in dataset.select_columns(wanted).with_format("arrow").iter(batch_size=BATCH):
        yield [table.column(name) for name in names]


def select(dataset: Dataset, rows: NDArray[np.int64]) -> Dataset:
    """The rows at these positions; the fingerprint comes from the positions at once (`datasets` would pickle them one by one)."""
    name = hashlib.sha256(dataset._fingerprint.encode() + rows.tobytes()).hexdigest()[:16]
    return dataset.select(rows, new_fingerprint=name)


def keep(dataset: Dataset, names: list[str], wanted: Callable[[list[Any]], Any]) -> Dataset:
    """The rows for which `wanted`, called with the columns of a batch, gives true; the same object where all stay."""
    import numpy as np

    masks = [np.asarray(wanted(arrays)) for arrays in columns(dataset, names)]
    mask = np.concatenate(masks) if masks else np.zeros(0, bool)
    return dataset if mask.all() else select(dataset, np.flatnonzero(mask))
