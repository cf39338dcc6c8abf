"""One column of a parquet table, a few rows at a time; pyarrow is imported inside."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from darkmatter.errors import FileFormatError, InputError

_ROWS = 256


def parquet_rows(file: Path, column: str) -> Iterator[tuple[str, Any]]:
    """Read one column.

    Args:
        file: The file.
        column: The column.

    Yields:
        The place of each value, for messages, and the value.

    Raises:
        InputError: pyarrow is missing.
        FileFormatError: Not parquet, no such column, or a column of something else than strings.
    """
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise InputError(
            f"{file} needs pyarrow, which cannot be imported ({error}): run `pip install 'darkmatter[datasets]'`"
        ) from None
    try:
        with parquet.ParquetFile(file, pre_buffer=False) as table:
            schema = table.schema_arrow
            if column not in schema.names:
                names = ", ".join(schema.names)
                raise FileFormatError(f"{file} has no column {column!r}, expected one of {names}", file)
            kind = schema.field(column).type
            kind = kind.value_type if arrow.types.is_dictionary(kind) else kind
            if not (arrow.types.is_string(kind) or arrow.types.is_large_string(kind)):
                raise FileFormatError(f"{file} column {column!r} holds {kind}, expected strings", file)
            row = 0
            for batch in table.iter_batches(batch_size=_ROWS, columns=[column]):
                for value in batch.column(0):
                    yield f"row {row}", value.as_py()
                    row += 1
    except (arrow.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileFormatError(
            f"{file} cannot be read as parquet ({reason}): it is truncated or foreign", file
        ) from None
