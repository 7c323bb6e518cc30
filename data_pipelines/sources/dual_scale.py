"""Pixels and tokens of the same places: a source of samples joined to a corpus of tokens by the samples' keys."""

from dataclasses import dataclass

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.sample import Sample
from data_pipelines.sources import Source
from data_pipelines.sources.tokens import TokenCorpus
from data_pipelines.tokens import TokenRecord


@dataclass(frozen=True)
class DualScaleSample(Sample):
    """A sample with its tokens.

    Attributes:
        records: one for each crop setting; pixels cut by a record's crop lie on its tokens.
    """

    records: tuple[TokenRecord, ...] = ()


class DualScaleSource:
    """Samples that have pixels and tokens, in the order of the tokens.

    Args:
        pixels: where the pixels are read.
        corpus: their tokens.

    Attributes:
        index: of the samples that are in both.

    Raises:
        DataError: if they have no sample in common.
    """

    def __init__(self, pixels: Source, corpus: TokenCorpus):
        _, mine, theirs = np.intersect1d(corpus.index.keys, pixels.index.keys, return_indices=True)
        if not len(mine):
            one, other = (str(index.keys[0]) if len(index) else "nothing" for index in (corpus.index, pixels.index))
            raise DataError(
                f"no sample of {pixels.name} has tokens (keys such as {other} there, {one} in the corpus); "
                "give the data that was tokenised"
            )
        order = np.argsort(mine)
        self.name = pixels.name
        self.index = corpus.index.take(mine[order])
        self._pixels, self._corpus = pixels, corpus
        self._tokens_at, self._pixels_at = mine[order], theirs[order]

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.index)

    def __getitem__(self, i: int) -> DualScaleSample:
        """Read sample `i`.

        Raises:
            DataError: naming the file at fault, or a sample that changed since it was tokenised.
        """
        sample = self._pixels[int(self._pixels_at[i])]
        records = self._corpus.read_all(int(self._tokens_at[i]))
        if sample.shape != records[0].shape:
            (height, width), (rows, columns) = sample.shape, records[0].shape
            raise DataError(
                f"sample {sample.key} is {width} x {height} pixels and was {columns} x {rows} when it was tokenised; "
                "give the same tiles"
            )
        return DualScaleSample(**vars(sample), records=records)
