"""What one batch of TerraMind's pretraining is: pixels on native grids, and which tokens are seen and which are asked.

All modalities of a sample share one crop, so that a patch of pixels and a token of the same number show the same
place; such a place may be seen as pixels and asked for as a token, but is never seen and asked for in one stream.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.recipes.spec import ArraySpec
from data_pipelines.recipes.tiles import tile_arrays, tile_spec
from data_pipelines.sample import Sample
from data_pipelines.sources.dual_scale import DualScaleSample
from data_pipelines.tokens import TokenRecord
from data_pipelines.transforms.budgets import Component, choose_component, draw_budget
from data_pipelines.transforms.spans import mask_spans

RADARS = ("S1GRD", "S1RTC")
"""Two products of the same image: a model sees one of them."""

_INPUT_KEYS, _TARGET_KEYS = ("stream", "position", "token"), ("stream", "position", "token", "label")
_Columns = tuple[np.ndarray, ...]
"""Positions, tokens, and labels where there are any; of equal length."""


@dataclass(frozen=True)
class StreamLayout:
    """What the recipe must know of one stream of the model.

    Attributes:
        name: what is seen of a stream is not asked for in the stream of this name.
        modality: that it shows.
        kind: "pixels", "tokens" (one a patch) or "sequence".
        length: most tokens of a sample: patches of an image, or the longest sequence.
    """

    name: str
    modality: str
    kind: str
    length: int


@dataclass(frozen=True)
class DualScaleLayout:
    """The model's streams, in its own order, which the indices of packed slots follow.

    Attributes:
        inputs, outputs: streams.
        sentinels: ids that stand for hidden spans of sequences.
    """

    inputs: tuple[StreamLayout, ...]
    outputs: tuple[StreamLayout, ...]
    sentinels: tuple[int, ...] = ()

    @property
    def pixels(self) -> tuple[str, ...]:
        """Modalities whose pixels are shipped."""
        return tuple(stream.modality for stream in self.inputs if stream.kind == "pixels")

    def spec(self, tile: int, seen: int, asked: int) -> dict[str, ArraySpec]:
        """Names, shapes, dtypes and units of one example with so many slots of inputs and of targets."""
        return {
            **tile_spec(self.pixels, tile),
            "boxes": ArraySpec((1, 4), "float32", "pixel"),  # top, left, height, width
            "flips": ArraySpec((1, 2), "bool"),  # upside down, left to right
            **{f"inputs/{key}": ArraySpec((seen,), "int32") for key in _INPUT_KEYS},  # stream -1: an empty slot
            **{f"targets/{key}": ArraySpec((asked,), "int32") for key in _TARGET_KEYS},
        }


@dataclass(frozen=True)
class DualScaleRecipe:
    """From a sample with tokens to one example of masked modelling.

    A crop setting is drawn, then a radar product where there are two, a component of the mixture that the sample can
    serve, both budgets among the streams that the sample has, and which patches they are spent on.

    Attributes:
        layout: the model's streams.
        tile: side of the square samples, 10 m pixels.
        mixture: how budgets are shared out.
        input_tokens, target_tokens: least and most tokens of an example.
        least: stream -> fewest tokens of it, wherever it has a share.
        seed: of all draws.

    Raises:
        DataError: a budget that is impossible, or a mixture that names a stream which the layout lacks.
    """

    layout: DualScaleLayout
    tile: int
    mixture: tuple[Component, ...]
    input_tokens: tuple[int, int] = (128, 128)
    target_tokens: tuple[int, int] = (128, 128)
    least: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (low, high) in (("input_tokens", self.input_tokens), ("target_tokens", self.target_tokens)):
            if not 1 <= low <= high:
                raise DataError(f"{name}=({low}, {high}) is no budget; give the least and the most tokens, from 1 on")
        if not self.mixture:
            raise DataError("the mixture of budgets is empty; give it a component")
        for side, streams in (("inputs", self.layout.inputs), ("targets", self.layout.outputs)):
            known = [stream.name for stream in streams]
            for name in (name for part in self.mixture for name in getattr(part, side)):
                if name not in known:
                    raise DataError(f"the mixture's {side} name {name!r}; the model has {', '.join(known)}")

    @cached_property
    def batch_spec(self) -> dict[str, ArraySpec]:
        """Names, shapes, dtypes and units of one example."""
        return self.layout.spec(self.tile, self.input_tokens[1], self.target_tokens[1])

    def __call__(self, sample: Sample, position: int) -> dict[str, np.ndarray]:
        """One example; a pure function of the sample, the position in the stream and the seed.

        Raises:
            DataError: a sample without tokens, of another size, or with nothing that the mixture gives a share.
        """
        records = _records(sample, self.tile)
        rng = np.random.default_rng([self.seed, position])
        record = records[int(rng.integers(len(records)))]
        used = {stream.modality for stream in (*self.layout.inputs, *self.layout.outputs)}
        radars = [name for name in RADARS if name in used and (name in sample.rasters or name in record.ids)]
        left_out = set(radars) - {str(rng.choice(radars))} if radars else set()
        given, asked = (
            {s.name: s for s in streams if s.modality not in left_out and _has(sample, record, s)}
            for streams in (self.layout.inputs, self.layout.outputs)
        )
        shown, wanted = self._budgets(rng, record.key, given, asked)
        sides = {
            name: _divide(rng, stream, record, self.layout.sentinels, shown.get(name, 0), wanted.get(name, 0))
            for name, stream in {**given, **asked}.items()
        }
        return {
            **_example(sample, record, self.layout.pixels, self.tile),
            **_packed("inputs", self.layout.inputs, {name: sides[name][0] for name in given}, self.input_tokens[1]),
            **_packed("targets", self.layout.outputs, {name: sides[name][1] for name in asked}, self.target_tokens[1]),
        }

    def _budgets(
        self,
        rng: np.random.Generator,
        key: str,
        given: Mapping[str, StreamLayout],
        asked: Mapping[str, StreamLayout],
    ) -> tuple[dict[str, int], dict[str, int]]:
        """Tokens to see and to ask for, by stream."""
        part = choose_component(rng, self.mixture, tuple(given), tuple(asked))
        if part is None:
            raise DataError(
                f"sample {key} has {', '.join({**given, **asked}) or 'nothing'}, to which no component of the mixture "
                "gives tokens to see and to ask for; leave it out or add a component"
            )
        seen, wanted = (int(rng.integers(low, high + 1)) for low, high in (self.input_tokens, self.target_tokens))
        shown = self._budget(rng, given.values(), part.inputs, seen, {})
        taken = {name: shown.get(name, 0) for name, stream in asked.items() if stream.kind != "sequence"}
        return shown, self._budget(rng, asked.values(), part.targets, wanted, taken)

    def _budget(
        self,
        rng: np.random.Generator,
        streams: Iterable[StreamLayout],
        alphas: Mapping[str, float],
        total: int,
        taken: Mapping[str, int],
    ) -> dict[str, int]:
        most = {stream.name: stream.length - taken.get(stream.name, 0) for stream in streams}
        shares = [alphas.get(name, 0.0) for name in most]
        least = [min(self.least.get(name, 0) * bool(alphas.get(name)), room) for name, room in most.items()]
        budget = draw_budget(rng, shares, total, list(most.values()), least)
        return dict(zip(most, budget.tolist(), strict=True))


@dataclass(frozen=True)
class TranslationRecipe:
    """Evaluation: everything of some streams is seen, everything of others is asked for, under crop setting 0.

    Attributes:
        layout: the model's streams.
        tile: side of the square samples, 10 m pixels.
        given: streams that are seen.
        asked: streams that are asked for; a sequence's target is the whole sequence.
        truths: modalities whose tiles are shipped beside the pixels, to compare with.
    """

    layout: DualScaleLayout
    tile: int
    given: tuple[str, ...]
    asked: tuple[str, ...]
    truths: tuple[str, ...] = ()

    @cached_property
    def batch_spec(self) -> dict[str, ArraySpec]:
        """Names, shapes, dtypes and units of one example."""
        seen, asked = (sum(stream.length for stream in streams) for streams in self._streams)
        return {**self.layout.spec(self.tile, seen, asked), **tile_spec(self.truths, self.tile)}

    def __call__(self, sample: Sample, position: int) -> dict[str, np.ndarray]:
        """One example; the position plays no part.

        Raises:
            DataError: a sample of another size, or one that lacks what is seen, asked for or compared with.
        """
        record = _records(sample, self.tile)[0]
        given, asked = self._streams
        lacking = [stream.name for stream in (*given, *asked) if not _has(sample, record, stream)]
        lacking += [name for name in self.truths if name not in sample.rasters]
        if lacking:
            raise DataError(f"sample {sample.key} has no {', '.join(lacking)}; leave it out")
        seen = {s.name: _visible(s, _ids(s, record), np.arange(s.length)) for s in given if s.kind != "sequence"}
        seen |= {s.name: _read(_ids(s, record)) for s in given if s.kind == "sequence"}
        rng = np.random.default_rng(0)  # nothing is left to chance where all is asked for
        wanted = {s.name: _divide(rng, s, record, self.layout.sentinels, 0, s.length)[1] for s in asked}
        spec = self.batch_spec
        return {
            **_example(sample, record, (*self.layout.pixels, *self.truths), self.tile),
            **_packed("inputs", self.layout.inputs, seen, *spec["inputs/stream"].shape),
            **_packed("targets", self.layout.outputs, wanted, *spec["targets/stream"].shape),
        }

    @property
    def _streams(self) -> tuple[list[StreamLayout], list[StreamLayout]]:
        """What is seen, and what is asked for."""
        given = [stream for stream in self.layout.inputs if stream.name in self.given]
        return given, [stream for stream in self.layout.outputs if stream.name in self.asked]


# ---- one sample ---------------------------------------------------------------------------------------------------


def _records(sample: Sample, tile: int) -> tuple[TokenRecord, ...]:
    if not isinstance(sample, DualScaleSample):
        raise DataError(f"sample {sample.key} has no tokens; join the source to a corpus with DualScaleSource")
    if sample.shape != (tile, tile):
        height, width = sample.shape
        raise DataError(
            f"sample {sample.key} is {width} x {height} pixels, not {tile} x {tile}; "
            f"set --config.data.tile={min(height, width)}"
        )
    return sample.records


def _has(sample: Sample, record: TokenRecord, stream: StreamLayout) -> bool:
    return stream.modality in (sample.rasters if stream.kind == "pixels" else record.ids)


def _example(sample: Sample, record: TokenRecord, modalities: Sequence[str], tile: int) -> dict[str, np.ndarray]:
    """Tiles, and where they are cut."""
    return {
        **tile_arrays(sample, tuple(dict.fromkeys(modalities)), tile),
        "boxes": np.array([record.crop.box], np.float32),
        "flips": np.array([[False, record.crop.flip]]),
    }


# ---- slots --------------------------------------------------------------------------------------------------------


def _divide(
    rng: np.random.Generator,
    stream: StreamLayout,
    record: TokenRecord,
    sentinels: Sequence[int],
    shown: int,
    wanted: int,
) -> tuple[_Columns, _Columns]:
    """What is seen and what is asked for of one stream, within budgets."""
    ids = _ids(stream, record)
    if stream.kind == "sequence":
        visible, targets = mask_spans(rng, ids, sentinels, shown, wanted)
        return _read(visible), (np.arange(len(targets) - 1), targets[:-1], targets[1:])
    order = rng.permutation(stream.length)
    hidden = np.sort(order[shown : shown + wanted])
    return _visible(stream, ids, np.sort(order[:shown])), (hidden, np.zeros_like(hidden), ids[hidden])


def _visible(stream: StreamLayout, ids: np.ndarray, places: np.ndarray) -> _Columns:
    return places, np.zeros_like(places) if stream.kind == "pixels" else ids[places]


def _read(ids: np.ndarray) -> _Columns:
    return np.arange(len(ids)), ids


def _ids(stream: StreamLayout, record: TokenRecord) -> np.ndarray:
    """Tokens of a stream, patch by patch or in order; zeros for pixels."""
    if stream.kind == "pixels":
        return np.zeros(stream.length, np.int64)
    ids = record.ids[stream.modality].ravel()
    if stream.kind == "tokens" and len(ids) != stream.length:
        raise DataError(
            f"sample {record.key} has {len(ids)} tokens of {stream.modality}, the model wants {stream.length}; "
            "tokenise at the model's size"
        )
    return ids[: stream.length]


def _packed(
    side: str, streams: Sequence[StreamLayout], columns: Mapping[str, _Columns], size: int
) -> dict[str, np.ndarray]:
    """Slots of all streams end to end, then empty ones."""
    keys = _INPUT_KEYS if side == "inputs" else _TARGET_KEYS
    packed = {f"{side}/{key}": np.full(size, -1 if key == "stream" else 0, np.int32) for key in keys}
    start = 0
    for number, stream in enumerate(streams):
        rows = columns.get(stream.name, (np.zeros(0),))
        end = start + len(rows[0])
        packed[f"{side}/stream"][start:end] = number
        for key, values in zip(keys[1:], rows, strict=False):
            packed[f"{side}/{key}"][start:end] = values
        start = end
    return packed
