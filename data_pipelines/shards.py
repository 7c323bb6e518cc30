"""Random access to records that lie in several ArrayRecord files."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from data_pipelines.errors import DataError

T = TypeVar("T")

_READER_OPTIONS = "readahead_buffer_size:0"  # reads are at random
_READER_BUFFER = 32 * 1024


class ShardReader:
    """Records by their number over all shards; safe from several threads.

    Args:
        files: the shards, in order.
        counts: records of each.
    """

    def __init__(self, files: Sequence[Path], counts: Sequence[int]):
        self._files = tuple(files)
        self._ends = np.cumsum(counts)
        self._readers: dict[int, ArrayRecordReader] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, i: int, decode: Callable[[bytes], T]) -> T:
        """Record `i`, decoded.

        Raises:
            DataError: naming the file and the record that is corrupt.
        """
        shard = int(np.searchsorted(self._ends, i, side="right"))
        record = i - (int(self._ends[shard - 1]) if shard else 0)
        try:
            return decode(self._reader(shard).read([record])[0])
        except DataError as error:
            raise DataError(f"{self._files[shard]} record {record}: {error}") from error
        except (RuntimeError, ValueError, IndexError, KeyError) as error:
            reason = str(error).partition("(")[0].strip() or type(error).__name__
            message = f"{self._files[shard]} record {record} cannot be read: {reason}; restore the file from its source"
            raise DataError(message) from error

    def _reader(self, shard: int) -> ArrayRecordReader:
        with self._lock:
            if shard not in self._readers:
                self._readers[shard] = ArrayRecordReader(
                    str(self._files[shard]), options=_READER_OPTIONS, file_reader_buffer_size=_READER_BUFFER
                )
            return self._readers[shard]
