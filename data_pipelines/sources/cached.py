"""A source that keeps what it has read."""

from data_pipelines.sample import Sample
from data_pipelines.sources import Source


class CachedSource:
    """Another source's samples, each read once and kept in memory: for data that fits there and is read often."""

    def __init__(self, source: Source):
        self.name = source.name
        self.index = source.index
        self._source = source
        self._samples: dict[int, Sample] = {}

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._source)

    def __getitem__(self, i: int) -> Sample:
        """Read sample `i`; two threads that ask for it at once may both read it and get equal samples."""
        if i not in self._samples:
            self._samples[i] = self._source[i]
        return self._samples[i]
