"""Shards made by Apache Beam, on whatever runner it is told: the extra "beam" installs it."""

from collections.abc import Iterator, Sequence

from data_pipelines.errors import DataError
from data_pipelines.prepare.plan import Plan, Preparation

try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
except ImportError as error:
    raise DataError('a runner needs Apache Beam: pip install "terra_jax[beam]"') from error

_IN_PROCESS = {"DirectRunner": "FnApiRunner"}
"""Beam's DirectRunner would download another runner first; what it falls back to does the same work in place."""


def run_pipeline(plan: Plan, shards: Sequence[int], runner: str, flags: Sequence[str]) -> None:
    """Make shards by a Beam pipeline, and wait for its end.

    Args:
        plan: what is prepared; paths and URLs in it must mean the same on every machine of the runner.
        shards: numbers of those to make.
        runner: Beam's name: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner ...
        flags: options of the pipeline, as Beam spells them.

    Raises:
        DataError: if the pipeline fails.
    """
    try:
        options = PipelineOptions([f"--runner={_IN_PROCESS.get(runner, runner)}", *flags])
        with beam.Pipeline(options=options) as pipeline:
            numbers = pipeline | "shards" >> beam.Create(list(shards)) | "spread" >> beam.Reshuffle()
            numbers | "make" >> beam.ParDo(MakeShard(plan))  # type: ignore[operator]
    except (Exception, SystemExit) as error:  # runners and parsers of options have exceptions of their own
        raise DataError(_reason(error, runner)) from error


class MakeShard(beam.DoFn):  # type: ignore[misc]
    """Makes the shards whose numbers it is given."""

    def __init__(self, plan: Plan):
        self._plan = plan
        self._samples = beam.metrics.Metrics.counter("prepare", "samples")

    def setup(self) -> None:
        """Open the plan, once a worker."""
        self._preparation = Preparation(self._plan)
        self._folder = self._preparation.folder()

    def process(self, shard: int) -> Iterator[int]:
        """Make one shard."""
        self._preparation.make(self._folder, shard, self._samples.inc)
        yield shard


def _reason(error: BaseException, runner: str) -> str:
    """One line on why a pipeline failed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = next((line for line in lines if "DataError: " in line), lines[0] if lines else type(error).__name__)
    return f"{runner}: {reason.rpartition('DataError: ')[2].partition(' [while running')[0]}"
