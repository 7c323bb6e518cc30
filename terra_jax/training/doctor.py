"""How fast each stage of a run is on this machine, which of them holds up the others, and what to change."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import count, islice
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines import records
from data_pipelines.loader import Loader
from data_pipelines.memory import allocator, keep_freed_memory
from data_pipelines.recipes.spec import check_batch
from data_pipelines.replication import native_or_fine
from data_pipelines.sample import Sample
from terra_jax.errors import ConfigError
from terra_jax.parallel.mesh import make_mesh
from terra_jax.training.build import Program, build
from terra_jax.training.experiment import Experiment
from terra_jax.training.optimiser import AdamW

_KEPT = 16  # samples that transforms and formats are timed on
_PORTION = 8  # examples at once where the loader is timed: a run's batches can take minutes


@dataclass(frozen=True)
class Stage:
    """One stage's speed.

    Attributes:
        name: of the stage.
        rate: samples a second.
        cpu: milliseconds of one core a sample, where one thread did it.
        faults: page faults a sample, likewise.
        note: under what conditions.
    """

    name: str
    rate: float
    cpu: float | None = None
    faults: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        stages: by name, in the order of the data's way.
        bottleneck: "data" or "step".
        share: of the time in which a run would wait for data, measured or reckoned.
        advice: what to change, one line each, the most useful first.
        facts: machine, batch, memory and formats.
    """

    stages: Mapping[str, Stage]
    bottleneck: str
    share: float
    advice: tuple[str, ...]
    facts: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def diagnose(experiment: Experiment, config: ConfigDict, seconds: float = 2.0) -> Diagnosis:
    """Measure every stage of a run with its own source, recipe, program and batch size.

    Args:
        experiment: of the run.
        config: of the run.
        seconds: about so long for each measurement; reading, compiling and one step may take longer.

    Raises:
        ConfigError: if the run's batches do not come from a `Loader`, or there are several processes.
    """
    stream = experiment.loader(0, 0, 1)
    if not isinstance(stream, Loader) or jax.process_count() > 1:
        raise ConfigError(
            f"{config.model} cannot be diagnosed here; use one process and a config that has a data section"
        )
    stages: dict[str, Stage] = {}
    stream.close()
    samples, used, formats = _host_stages(stages, stream, config, seconds)
    _loader_stages(stages, stream, config, used, seconds)
    facts: dict[str, Any] = {
        "model": config.model,
        "source": config.data.mixture or config.data.source,
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": os.getloadavg()[0],
        "batch_size": config.batch_size,
        "threads": config.data.threads,
        "allocator": allocator(),
        "records": formats,
        "sample_bytes": int(np.mean([_size(sample) for sample in samples])),
        "samples": len(stream.indices),
    }
    facts |= _device_stages(stages, experiment, stream, samples, config, seconds)
    bottleneck, share = verdict(stages, facts)
    if bottleneck == "data":
        facts["thread_rates"] = _sweep(stream, config, used, seconds)
    return Diagnosis(stages, bottleneck, share, tuple(advice(stages, facts, config, bottleneck)), facts)


# ---- the host -----------------------------------------------------------------------------------------------------


def _host_stages(
    stages: dict[str, Stage], stream: Loader, config: ConfigDict, seconds: float
) -> tuple[list[Sample], int, dict[str, Any]]:
    """One thread reads and transforms, before and after the allocator is told to keep what is freed."""
    stream.read(0)  # opens files, imports what decodes
    samples: list[Sample] = []

    def read(position: int) -> None:
        sample = stream.read(position)
        if len(samples) < _KEPT:
            samples.append(sample)

    positions = count(1)
    source = config.data.mixture or config.data.source
    stages["decode"] = _timed("decode", read, positions, seconds, f"{source}, one thread")
    if keep_freed_memory():
        note = "the allocator keeps freed memory, as train has it"
        stages["decode, tuned"] = _timed("decode, tuned", read, positions, seconds, note)

    def transform(position: int) -> None:
        stream.recipe(samples[position % len(samples)], position)

    stages["transform"] = _timed("transform", transform, count(), seconds / 2, "the recipe, one thread")
    return samples, next(positions), _formats(samples[:4], seconds / 2)


def _loader_stages(stages: dict[str, Stage], stream: Loader, config: ConfigDict, start: int, seconds: float) -> None:
    threads = config.data.threads
    rate, batches = _loader_rate(stream, threads, start, seconds, 2 * seconds)
    stages["loader"] = Stage("loader", rate, note=f"{threads} threads, samples read for the first time")
    if config.data.cache:
        rate, _ = _loader_rate(stream, threads, start, seconds, 2 * seconds, batches)
        stages["loader, again"] = Stage("loader, again", rate, note=f"{threads} threads, from memory (data.cache)")


def _loader_rate(
    stream: Loader, threads: int, start: int, seconds: float, longest: float, most: int | None = None
) -> tuple[float, int]:
    """Samples a second of the loader, and the batches taken."""
    with stream.reopened(batch_size=_PORTION, threads=threads, start=start) as loader:
        next(loader)
        began, done, ahead = time.perf_counter(), 0, threads + 1
        for done, _ in enumerate(islice(loader, None if most is None else max(most - 1, 1)), 1):
            passed = time.perf_counter() - began
            if passed > longest or (passed > seconds and done > 3 * ahead):
                break
        return done * _PORTION / (time.perf_counter() - began), done + 1


def _sweep(stream: Loader, config: ConfigDict, start: int, seconds: float) -> dict[int, float]:
    """Samples a second by number of threads."""
    cores = os.cpu_count() or 1
    numbers = sorted({1, 2, 4, 8, cores, 2 * cores, config.data.threads})
    start += 1_000_000 if not config.data.cache else 0
    return {
        threads: _loader_rate(stream, threads, start + 10_000 * n, seconds / 2, seconds)[0]
        for n, threads in enumerate(numbers)
        if threads <= max(2 * cores, config.data.threads)
    }


def _formats(samples: list[Sample], seconds: float) -> dict[str, Any]:
    """How fast the same samples are as records of either compression, and how large."""
    native = [
        Sample(**{**vars(s), "rasters": {name: native_or_fine(name, raster) for name, raster in s.rasters.items()}})
        for s in samples
    ]
    found = {}
    for compression in ("lz4", "zstd"):
        blobs = [records.encode_sample(sample, compression) for sample in native]

        def decode(position: int, blobs: list[bytes] = blobs) -> None:
            records.decode_sample(blobs[position % len(blobs)])

        stage = _timed(compression, decode, count(), seconds / 2)
        found[compression] = {"rate": stage.rate, "bytes": int(np.mean([len(blob) for blob in blobs]))}
    return found


def _timed(
    name: str, function: Callable[[int], None], positions: Iterator[int], seconds: float, note: str = ""
) -> Stage:
    """Call a function with one position after the other for about so long, at least twice."""
    cpu, faults, began, done = time.thread_time(), _faults(), time.perf_counter(), 0
    while done < 2 or time.perf_counter() - began < seconds:
        function(next(positions))
        done += 1
    passed = time.perf_counter() - began
    return Stage(name, done / passed, 1e3 * (time.thread_time() - cpu) / done, max(_faults() - faults, 0) / done, note)


def _faults() -> int:
    try:
        import resource
    except ImportError:  # no such counter on this system
        return 0
    return resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)).ru_minflt


def _size(sample: Sample) -> int:
    return sum(grid.nbytes for raster in sample.rasters.values() for grid in raster.grids.values())


# ---- the device ---------------------------------------------------------------------------------------------------


def _device_stages(
    stages: dict[str, Stage],
    experiment: Experiment,
    stream: Loader,
    samples: list[Sample],
    config: ConfigDict,
    seconds: float,
) -> dict[str, Any]:
    """Copy to the device, and steps on the same batch; then steps as a run takes them, if that does not take long."""
    mesh = make_mesh(**config.mesh)
    optimiser = AdamW.from_config(config.optimizer, config.steps)
    program = build(experiment.objective, optimiser, mesh, accumulation=config.accumulation, seed=config.seed)
    examples = [stream.recipe(sample, n) for n, sample in enumerate(samples)]
    few = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    batch = {name: np.resize(array, (config.batch_size, *array.shape[1:])) for name, array in few.items()}
    check_batch(batch, experiment.objective.batch_spec, (config.batch_size,))

    size, nbytes = config.batch_size, sum(array.nbytes for array in batch.values())
    copying = _repeated(lambda: jax.block_until_ready(program.place(batch)), seconds / 2)
    rate = f"{nbytes / copying / 1e9:.2f} GB/s, {nbytes / 1e6:.1f} MB a batch"
    stages["host to device"] = Stage("host to device", size / copying, note=rate)

    began = time.perf_counter()
    compiled = program.step.lower(program.abstract_state, program.abstract_batch(size)).compile()  # type: ignore[attr-defined]
    compiling = time.perf_counter() - began
    placed, held = program.place(batch), [program.init()]

    def step() -> None:
        state, metrics = compiled(held.pop(), placed)
        held.append(state)
        jax.block_until_ready(metrics)

    step()
    taking = _repeated(step, seconds)
    stages["step"] = Stage("step", size / taking, note=f"batch {size}, compiled in {compiling:.1f} s")
    together = _together(stages, program, compiled, held, stream, config, taking, seconds)
    return {
        "batch_bytes": nbytes,
        "compile_seconds": compiling,
        "step_seconds": taking,
        **together,
        **_memory(compiled),
    }


def _together(
    stages: dict[str, Stage],
    program: Program,
    compiled: Callable[..., Any],
    held: list[Any],
    stream: Loader,
    config: ConfigDict,
    taking: float,
    seconds: float,
) -> dict[str, float]:
    """Steps on fresh batches; nothing where a batch takes too long to come."""
    size, data = config.batch_size, stages.get("loader, again", stages["loader"])
    one = max(size / data.rate, taking)
    if one * 4 > 8 * seconds:
        return {}
    waited = 0.0
    with stream.reopened(batch_size=size, threads=config.data.threads) as loader:
        placed = program.place(next(loader))
        began = time.perf_counter()
        steps = max(3, min(30, int(3 * seconds / one)))
        for _ in range(steps):
            state, metrics = compiled(held.pop(), placed)
            held.append(state)
            before = time.perf_counter()
            batch = next(loader)
            waited += max(time.perf_counter() - before - taking, 0)  # meanwhile the step runs
            placed = program.place(batch)
        jax.block_until_ready(metrics)
        passed = time.perf_counter() - began
    stages["together"] = Stage("together", steps * size / passed, note=f"{steps} steps on fresh batches")
    return {"waited": waited / passed}


def _repeated(function: Callable[[], Any], seconds: float) -> float:
    """Median seconds of a call, of at least two."""
    times: list[float] = []
    while len(times) < 2 or (sum(times) < seconds and len(times) < 50):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def _memory(compiled: Any) -> dict[str, int]:
    """Bytes of one device that the step takes, and that there are; where the backend tells."""
    found = {}
    if (analysis := compiled.memory_analysis()) is not None:
        held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        found = {"state_bytes": int(held), "working_bytes": int(analysis.temp_size_in_bytes)}
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return found | ({"device_bytes": int(limit)} if limit else {})


# ---- what follows -------------------------------------------------------------------------------------------------


def verdict(stages: Mapping[str, Stage], facts: Mapping[str, Any]) -> tuple[str, float]:
    """What holds a run up, "data" or "step", and the share of the time in which it waits for data.

    Args:
        stages: at least "loader" and "step".
        facts: "waited" where it was measured.
    """
    data, step = stages.get("loader, again", stages["loader"]).rate, stages["step"].rate
    share = facts.get("waited", max(0.0, 1 - data / step))
    return ("data" if data < step or share > 0.1 else "step"), share


def advice(stages: Mapping[str, Stage], facts: Mapping[str, Any], config: ConfigDict, bottleneck: str) -> Iterator[str]:
    """Lines that say what to change, the most useful first.

    Args:
        stages: as measured.
        facts: as `Diagnosis` has them, with "thread_rates" where data hold the run up.
        config: of the run.
        bottleneck: as `verdict` says.
    """
    data, step = stages.get("loader, again", stages["loader"]).rate, stages["step"].rate
    if facts["load"] > 1.5 * (facts["cores"] or 1):
        yield f"the load is {facts['load']:.1f} on {facts['cores']} cores: other programs are in the way, measure again"
    if bottleneck == "data":
        yield from _data_advice(stages, facts, config)
    else:
        yield f"the data keep up: {data:,.0f} samples/s are read, {step:,.0f} are needed"
        yield from _step_advice(facts, config)
    if step > stages["host to device"].rate / 2:
        yield (
            f"copying to the device takes {step / stages['host to device'].rate:.0%} of a step's time, beside the "
            "step as long as it is shorter: ship smaller tiles (data.tile) or fewer modalities if it is not"
        )


def _data_advice(stages: Mapping[str, Stage], facts: Mapping[str, Any], config: ConfigDict) -> Iterator[str]:
    rates, plain, tuned = facts["thread_rates"], stages["decode"], stages.get("decode, tuned")
    best = max(rates, key=rates.__getitem__)
    if rates[best] > 1.15 * rates[config.data.threads]:
        yield (
            f"--config.data.threads={best} reads {rates[best]:,.0f} samples/s, "
            f"{config.data.threads} threads {rates[config.data.threads]:,.0f}"
        )
    lz4, read = facts["records"]["lz4"], (tuned or plain).rate
    if config.data.source != "records" and not config.data.mixture and lz4["rate"] > 1.5 * read:
        yield (
            f"as records the same samples are decoded at {lz4['rate']:,.0f}/s a thread instead of {read:,.0f} "
            f"({lz4['bytes'] / 1e6:.2f} MB each; zstd {facts['records']['zstd']['bytes'] / 1e6:.2f} MB at "
            f"{facts['records']['zstd']['rate']:,.0f}/s, for slow disks): terra-jax prepare writes them"
        )
    whole = facts["sample_bytes"] * facts["samples"]
    if not config.data.cache and whole < 0.5 * _free_memory():
        yield f"--config.data.cache=true keeps all samples in memory, {whole / 1e9:.1f} GB, after their first reading"
    if tuned is None and (plain.faults or 0) > 50:
        yield (
            f"{plain.faults:.0f} page faults a sample: the allocator ({facts['allocator']}) gives memory back; "
            "unset MALLOC_*, or preload tcmalloc"
        )
    elif tuned is not None and tuned.rate > 1.1 * plain.rate:
        yield (
            f"an allocator that keeps freed memory reads {tuned.rate / plain.rate:.2f} times as fast "
            f"({plain.faults:.0f} page faults a sample become {tuned.faults:.0f}); train sees to it, elsewhere set "
            "MALLOC_MMAP_THRESHOLD_=67108864 MALLOC_TRIM_THRESHOLD_=1073741824"
        )
    cpu = (tuned or plain).cpu or 0.0
    cpu += stages["transform"].cpu or 0.0
    yield (
        f"one core reads and transforms {1e3 / max(cpu, 1e-6):,.0f} samples/s, the step takes "
        f"{stages['step'].rate:,.0f}: {stages['step'].rate * cpu / 1e3:.1f} cores would keep up, "
        f"here are {facts['cores']}"
    )


def _step_advice(facts: Mapping[str, Any], config: ConfigDict) -> Iterator[str]:
    working, device = facts.get("working_bytes"), facts.get("device_bytes")
    if working and device:
        free = device - facts.get("state_bytes", 0) - working
        if config.remat != "none" and free > working:
            yield (
                f"the step works in {working / 1e9:.1f} GB and leaves {free / 1e9:.1f} GB free: "
                f"--config.remat=none saves computing activations twice, if they fit"
            )
        elif free > working:
            yield f"{free / 1e9:.1f} GB of the device are free: --config.batch_size={2 * config.batch_size} would fit"
    elif working:
        yield (
            f"the step works in {working / 1e9:.2f} GB with remat={config.remat}; "
            "what speeds it up are cores or an accelerator"
        )


def _free_memory() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not told on this system
        return 0


def diagnosis_table(diagnosis: Diagnosis) -> str:
    """What was found, as text for a terminal."""
    facts = diagnosis.facts
    lines = [
        f"{facts['model']} from {facts['source']}: {facts['devices']} x {facts['device']}, {facts['cores']} cores "
        f"(load {facts['load']:.1f}), {facts['allocator']}",
        "",
        f"{'stage':<15} {'samples/s':>12} {'ms/sample':>10} {'CPU ms':>8} {'faults':>7}",
    ]
    for stage in diagnosis.stages.values():
        cpu = "" if stage.cpu is None else f"{stage.cpu:.3f}"
        faults = "" if stage.faults is None else f"{stage.faults:.0f}"
        lines.append(
            f"{stage.name:<15} {stage.rate:>12,.1f} {1e3 / stage.rate:>10.3f} {cpu:>8} {faults:>7}  {stage.note}"
        )
    waits = f"a run waits for data {diagnosis.share:.0%} of the time"
    lines += ["", f"bottleneck: {diagnosis.bottleneck}; {waits}", *(f"- {line}" for line in diagnosis.advice)]
    return "\n".join(lines)
