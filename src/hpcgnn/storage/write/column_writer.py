"""A dataset written row by row in whole chunks."""

from __future__ import annotations

import h5py
import numpy as np

from hpcgnn.storage.fingerprint import MASK, fingerprint
from hpcgnn.storage.schema import chunk_rows
from hpcgnn.storage.write.atomic import OutputFile


class ColumnWriter:
    """A dataset written in whole chunks; holds one chunk and the rows being appended.

    Attributes:
        num_rows: the number of rows appended so far.
        dtype: the dtype of the dataset.
        tail: the shape of a row.
        fingerprint: the fingerprint of all rows appended so far.
    """

    def __init__(
        self,
        output: OutputFile,
        name: str,
        dtype: np.dtype,
        tail: tuple[int, ...],
        *,
        compress: bool = False,
    ) -> None:
        self.name = name
        self.dtype = np.dtype(dtype)
        self.tail = tail
        self.num_rows = 0
        self.fingerprint = 0
        self._output = output
        self._compress = compress
        self._chunk = chunk_rows(tail, self.dtype)
        self._waiting: list[np.ndarray] = []
        self._written = 0
        self._dataset: h5py.Dataset | None = None

    def append(self, rows: np.ndarray) -> None:
        """Append rows `[k, *tail]` of the column's dtype; they are written or copied."""
        self.fingerprint = (self.fingerprint + fingerprint(self.name, rows, self.num_rows)) & MASK
        self.num_rows += len(rows)
        full = (self.num_rows - self._written) // self._chunk * self._chunk
        if full == 0:
            self._waiting.append(rows.copy())
            return
        split = len(rows) - (self.num_rows - self._written - full)
        self._waiting.append(rows[:split])
        self._flush()
        self._waiting = [rows[split:].copy()]

    def finish(self) -> None:
        """Write the rows that are left."""
        if self._dataset is None or self.num_rows > self._written:
            self._flush()

    def drop(self) -> None:
        """Discard all rows appended and delete the dataset."""
        if self._dataset is not None:
            del self._output.h5[self.name]

    def _flush(self) -> None:
        rows = np.concatenate([np.empty((0, *self.tail), self.dtype), *self._waiting])
        if self._dataset is None:
            self._dataset = self._output.dataset(
                self.name, self.dtype, rows.shape, compress=self._compress, growing=True
            )
        else:
            self._dataset.resize(self._written + len(rows), axis=0)
        if rows.size:
            self._dataset[self._written : self._written + len(rows)] = rows
        self._written += len(rows)
        self._waiting = []
        self._output.check()
