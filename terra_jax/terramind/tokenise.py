"""A corpus of samples to a corpus of tokens: read, cut, tokenise, write, shard by shard.

The host reads and decides where to cut; one compiled function a modality cuts, resizes and tokenises on the device.
"""

import difflib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from data_pipelines import radiometry
from data_pipelines.errors import DataError
from data_pipelines.jobs import digest_of
from data_pipelines.modalities import Unit, modality
from data_pipelines.recipes.tiles import tile_arrays
from data_pipelines.sample import Sample
from data_pipelines.sources import Source
from data_pipelines.tokens import TokenJob, TokenRecord, TokenWriter
from data_pipelines.transforms.crops import Crop, crop_setting
from data_pipelines.work import Progress, SoundReader
from terra_jax.errors import ConfigError
from terra_jax.nn.resizing import band_order, crop_resize
from terra_jax.parallel.mesh import make_mesh
from terra_jax.parallel.shardings import batch_sharding, replicated
from terra_jax.terramind.coordinates import CoordinateTokenizer
from terra_jax.terramind.fingerprint import fingerprint
from terra_jax.terramind.tokenizer import Tokenizer
from terra_jax.terramind.variants import TOKENIZERS, TokenizerVariant

COORDINATES = "coords"


def tokenise(
    tokenizers: Mapping[str, Tokenizer],
    source: Source,
    out: str | Path,
    *,
    coordinates: CoordinateTokenizer | None = None,
    origin: Mapping[str, str | int] | None = None,
    settings: int = 1,
    scale: float = 0.8,
    seed: int = 0,
    size: int | None = None,
    batch_size: int = 32,
    shard_size: int = 256,
    process: tuple[int, int] = (0, 1),
    threads: int = 4,
    partial: bool = False,
    strict: bool = False,
    say: Callable[[str], Any] = print,
) -> bool:
    """Tokenise a source, or go on where an earlier call, killed or not, stands; the records are the same.

    Args:
        tokenizers: model name -> tokenizer, one a modality.
        source: samples that have all of these modalities, or, with `partial`, some of them.
        out: folder of the corpus (`data_pipelines.tokens`).
        coordinates: tokenises the samples' centres too.
        origin: what the samples depend on beside their keys, such as the tile of a drawn source.
        settings: crops a sample: the centre, then random ones (`data_pipelines.transforms.crops`).
        scale: least area of a random crop, as a fraction of the tile's.
        seed: of the random crops.
        size: pixels per side that crops are resized to; default what the tokenizers are usually given.
        batch_size: samples that are on this process's devices at once.
        shard_size: samples a shard; a killed run loses what it has of its last one.
        process: (index, count): of several processes that share `out`, each makes its own shards.
        threads: that read samples.
        partial: tokenise what a sample has, where it lacks some of the modalities; one that has none is left out.
        strict: raise on a sample that cannot be read instead of leaving it out, named in the manifest.
        say: takes each line for the user.

    Returns:
        Whether the corpus is whole; with several processes it is so once the last of them ends.

    Raises:
        ConfigError, DataError: options that do not fit, another corpus in `out`, or unreadable samples.
    """
    by_modality = _by_modality(tokenizers)
    size = common_size({name: tokenizer.variant for name, tokenizer in tokenizers.items()}, size)
    _check_options({"settings": settings, "shard-size": shard_size, "threads": threads}, scale, seed, process)
    mesh = make_mesh(devices=jax.local_devices())
    if batch_size < 1 or batch_size % mesh.size:
        raise ConfigError(f"--batch-size {batch_size} does not divide among {mesh.size} devices; use a multiple of it")
    job = TokenJob(
        source={"name": source.name, "keys": digest_of(source.index.keys.tolist()), **(origin or {})},
        tokenizers=_cards(tokenizers, coordinates),
        size=size,
        settings=settings,
        scale=scale,
        seed=seed,
        samples=len(source),
        shard_size=shard_size,
        partial=partial,
    )
    writer = TokenWriter(out, job)
    mine = range(process[0], job.shards, process[1])
    missing = [shard for shard in mine if not writer.has(shard)]
    samples = {shard: len(job.positions(shard)) for shard in mine}
    done = sum(samples.values()) - sum(samples[shard] for shard in missing)
    batches = _Batches(by_modality, coordinates, job, batch_size, mesh)
    with Progress(sum(samples.values()), done, say) as progress, ThreadPoolExecutor(threads) as pool:
        for shard in missing:
            reader = SoundReader(
                functools.partial(_prepare, source, job, tuple(by_modality)), source.index.keys, strict
            )
            records: list[TokenRecord] = []
            with closing(reader.read(job.positions(shard), pool, ahead=2 * batch_size)) as prepared:
                for batch in _grouped(prepared, batch_size):
                    records += batches.records(batch)
                    progress.add(len(batch))
            writer.commit(shard, source.index.take(reader.kept), records, reader.left_out)
            progress.add(len(reader.left_out))
    return _finished(writer, say)


def parse_models(texts: Sequence[str]) -> tuple[dict[str, str], CoordinateTokenizer | None]:
    """Reads "NAME=WEIGHTS" arguments, "coords=FILE" (a vocabulary) and "coords" (the built one).

    Returns:
        Image tokenizer's name -> weights, and the tokenizer of coordinates, if one is asked for.

    Raises:
        ConfigError: an unknown name, one given twice, or one without weights.
    """
    given: dict[str, str] = {}
    for text in texts:
        name, _, path = text.partition("=")
        if name not in (COORDINATES, *TOKENIZERS):
            near = difflib.get_close_matches(name, (COORDINATES, *TOKENIZERS), n=3) or (*TOKENIZERS,)
            raise ConfigError(f"unknown tokenizer {name!r}; did you mean {', '.join(near)}?")
        if name in given:
            raise ConfigError(f"{name} is given twice; give it once")
        if not path and name != COORDINATES:
            raise ConfigError(f"{text}: no weights are given; write {name}=PATH")
        given[name] = path
    vocabulary = given.pop(COORDINATES, None)
    if vocabulary is None:
        return given, None
    return given, CoordinateTokenizer.from_json(vocabulary) if vocabulary else CoordinateTokenizer.build()


def common_size(variants: Mapping[str, TokenizerVariant], size: int | None = None) -> int:
    """The side of the images that all tokenizers are given.

    Args:
        variants: model name -> sizes.
        size: a wish, checked; None: the tokenizers' own.

    Raises:
        ConfigError: if their own differ, or one cannot take the size, or there is none.
    """
    if not variants:
        raise ConfigError("no image tokenizer is given; name one, such as terramind_v1_tokenizer_s2l2a=PATH")
    own = {variant.image: name for name, variant in variants.items()}
    if size is None and len(own) > 1:
        (one, first), (other, second) = list(own.items())[:2]
        raise ConfigError(f"{first} takes images of {one} pixels, {second} of {other}; choose one --size for all")
    size = next(iter(own)) if size is None else size
    for name, variant in variants.items():
        if size < 1 or size % variant.multiple:
            raise ConfigError(f"--size {size} does not suit {name}; use a multiple of {variant.multiple}")
    return size


# ---- host: samples ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Prepared:
    """A sample as the device takes it."""

    key: str
    lon: float
    lat: float
    shape: tuple[int, int]
    crops: tuple[Crop, ...]
    present: frozenset[str]
    arrays: Mapping[str, np.ndarray]


def _prepare(source: Source, job: TokenJob, modalities: Sequence[str], i: int) -> _Prepared:
    """Read sample `i` and decide where it is cut."""
    sample = source[i]
    crops = (
        crop_setting(sample.key, setting, sample.shape, job.size, scale=job.scale, seed=job.seed)
        for setting in range(job.settings)
    )
    present = frozenset(name for name in modalities if name in sample.rasters or not job.partial)
    if not present:
        raise DataError(f"sample {sample.key} has none of {', '.join(modalities)}")
    for name in present:
        _check_pixels(sample, name)
    arrays = tile_arrays(sample, modalities, min(sample.shape))
    return _Prepared(sample.key, sample.lon, sample.lat, sample.shape, tuple(crops), present, arrays)


def _check_pixels(sample: Sample, name: str) -> None:
    """Refuse what would be turned into tokens without a word: absent rasters, NaN, numbers of another unit."""
    if name not in sample.rasters:
        raise DataError(f"sample {sample.key} has no {name}; it has {', '.join(sample.rasters) or 'nothing'}")
    raster = sample.rasters[name]
    if not all(np.isfinite(grid).all() for grid in raster.grids.values()):
        raise DataError(f"sample {sample.key}: {name} has NaN; fill or remove the sample")
    radiometry.check_plausible(f"sample {sample.key}: {name}", raster)


def _grouped(prepared: Iterable[_Prepared], count: int) -> Iterator[list[_Prepared]]:
    """Lists of up to `count` neighbours whose arrays are of one shape."""
    for _, alike in groupby(prepared, key=lambda p: {name: a.shape for name, a in p.arrays.items()}):
        while batch := list(islice(alike, count)):
            yield batch


# ---- device: tokens -----------------------------------------------------------------------------------------------


class _Batches:
    """Batches of samples to records."""

    def __init__(
        self,
        tokenizers: Mapping[str, Tokenizer],
        coordinates: CoordinateTokenizer | None,
        job: TokenJob,
        batch_size: int,
        mesh: jax.sharding.Mesh,
    ):
        self._tokenizers = jax.device_put(dict(tokenizers), replicated(mesh))
        self._coordinates, self._job, self._size = coordinates, job, batch_size
        self._place = functools.partial(jax.device_put, device=batch_sharding(mesh))
        self._fingerprints = {name: str(card["fingerprint"]) for name, card in job.tokenizers.items()}

    def records(self, batch: Sequence[_Prepared]) -> Iterator[TokenRecord]:
        """All settings of the first sample, then of the second, and so on."""
        full = [*batch, *[batch[-1]] * (self._size - len(batch))]  # one shape, one program
        tiles = self._place({name: np.stack([p.arrays[name] for p in full]) for name in batch[0].arrays})
        ids = []
        for setting in range(self._job.settings):
            crops = [prepared.crops[setting] for prepared in full]
            boxes = self._place(np.array([crop.box for crop in crops], np.float32))
            flips = self._place(np.array([[False, crop.flip] for crop in crops]))
            ids.append(self._encode(tiles, boxes, flips))
        ids = jax.device_get(ids)
        for i, prepared in enumerate(batch):
            for setting, crop in enumerate(prepared.crops):
                # What a sample lacks went through the tokenizer as zeros, so that one program serves all.
                tokens = {name: values[i] for name, values in ids[setting].items() if name in prepared.present}
                if self._coordinates:
                    tokens[COORDINATES] = self._coordinates.tokenize(prepared.lon, prepared.lat)
                made_by = {name: self._fingerprints[name] for name in tokens}
                yield TokenRecord(prepared.key, setting, crop, prepared.shape, tokens, made_by)

    def _encode(self, tiles: Mapping[str, Array], boxes: Array, flips: Array) -> dict[str, Array]:
        return {
            name: _tokens_of_crops(
                tokenizer, {gsd: tiles[f"{name}/{gsd}"] for gsd in modality(name).grids}, boxes, flips, self._job.size
            )
            for name, tokenizer in self._tokenizers.items()
        }


@functools.partial(jax.jit, static_argnames="size")
def _tokens_of_crops(
    tokenizer: Tokenizer,
    grids: Mapping[int, Num[Array, "b c y x"]],
    boxes: Float[Array, "b 4"],
    flips: Bool[Array, "b 2"],
    size: int,
) -> Int[Array, "b h w"]:
    table = modality(tokenizer.variant.modality)
    order = band_order(table.name, tuple(grids), table.band_names)
    nearest = table.unit is Unit.CLASS
    return tokenizer.tokenize(crop_resize(grids, boxes[:, None], size, order, flips[:, None], nearest=nearest)[:, 0])


# ---- the run ------------------------------------------------------------------------------------------------------


def _finished(writer: TokenWriter, say: Callable[[str], Any]) -> bool:
    manifest = writer.finish()
    if manifest is None:
        say(f"{writer}: this process is done, others are not; the last one writes the manifest")
        return False
    left_out = f"; {len(manifest['left_out'])} left out, named in manifest.json" if manifest["left_out"] else ""
    say(f"{writer}: {manifest['records']} records of {manifest['samples']} samples{left_out}")
    return True


def _by_modality(tokenizers: Mapping[str, Tokenizer]) -> dict[str, Tokenizer]:
    found: dict[str, str] = {}
    for name, tokenizer in tokenizers.items():
        other = found.setdefault(tokenizer.variant.modality, name)
        if other != name:
            raise ConfigError(f"{name} and {other} are both of {tokenizer.variant.modality}; give only one of them")
    return {kind: tokenizers[found[kind]] for kind in sorted(found)}


def _check_options(counts: Mapping[str, int], scale: float, seed: int, process: tuple[int, int]) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"--{name} {count} is too small; use 1 or more")
    if seed < 0:
        raise ConfigError(f"--seed {seed} is negative; use 0 or more")
    if not 0 < scale <= 1:
        raise ConfigError(f"--scale {scale:g} is no share of a tile's area; use more than 0, at most 1")
    if not 0 <= process[0] < process[1]:
        raise ConfigError(f"--process {process[0]}/{process[1]} does not exist; count from 0, as in 0/2 and 1/2")


def _cards(
    tokenizers: Mapping[str, Tokenizer], coordinates: CoordinateTokenizer | None
) -> dict[str, dict[str, str | int]]:
    """Modality -> which tokenizer, as the job states it."""
    made_by = {
        tokenizer.variant.modality: (name, fingerprint(tokenizer), tokenizer.variant.codebook)
        for name, tokenizer in tokenizers.items()
    }
    if coordinates:
        made_by[COORDINATES] = (COORDINATES, coordinates.fingerprint, coordinates.vocabulary_size)
    keys = ("model", "fingerprint", "codebook")
    return {name: dict(zip(keys, values, strict=True)) for name, values in made_by.items()}
