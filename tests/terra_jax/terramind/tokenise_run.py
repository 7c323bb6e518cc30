"""A run of `tokenise` that takes a while, for tests that kill it: python tokenise_run.py OUT I/N SECONDS_A_SAMPLE."""

import sys
import time
from pathlib import Path

from small_tokenizers import small_tokenizer

from data_pipelines.sample import Sample
from data_pipelines.sources.procedural import ProceduralEarth
from terra_jax.terramind.coordinates import CoordinateTokenizer
from terra_jax.terramind.tokenise import tokenise

SAMPLES, SHARD, SETTINGS = 22, 4, 3
TOKENIZERS = {"lulc": ("LULC", 1), "s1rtc": ("S1RTC", 2)}


class SlowEarth(ProceduralEarth):
    """Drawn samples that take their time."""

    seconds = 0.0

    def __getitem__(self, i: int) -> Sample:
        time.sleep(self.seconds)
        return super().__getitem__(i)


def run(out: Path, process: tuple[int, int] = (0, 1), seconds: float = 0.0) -> bool:
    """Tokenise the same corpus, whatever the arguments."""
    source = SlowEarth(SAMPLES, tile=40, modalities=[name for name, _ in TOKENIZERS.values()])
    source.seconds = seconds
    tokenizers = {kind: small_tokenizer(kind, seed) for kind, (_, seed) in TOKENIZERS.items()}
    return tokenise(
        tokenizers,
        source,
        out,
        coordinates=CoordinateTokenizer.build(),
        settings=SETTINGS,
        batch_size=8,
        shard_size=SHARD,
        process=process,
        threads=2,
        say=lambda line: None,
    )


if __name__ == "__main__":
    index, count = sys.argv[2].split("/")
    run(Path(sys.argv[1]), (int(index), int(count)), float(sys.argv[3]))
