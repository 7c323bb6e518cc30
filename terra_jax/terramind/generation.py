"""From tokens that are seen to tokens that are not: ROAR, MaskGIT and autoregressive decoding (4M, section 3.4).

The encoder is run anew at every step on what is visible by then, in a buffer of fixed size; the decoder gives only what
the step asks for. Everything is drawn from keys of single places, so that a token depends on its sample's key and its
place alone: not on the batch, the devices, or, where windows of one raster overlap, the window.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key

from terra_jax.errors import ConfigError
from terra_jax.terramind.coordinates import CoordinateTokenizer
from terra_jax.terramind.packing import PADDING, PackedInputs, PackedTargets
from terra_jax.terramind.sampling import IMPOSSIBLE, check_filters, draw, guided
from terra_jax.terramind.schedules import temperatures, token_schedule
from terra_jax.terramind.streams import STREAMS

ORDERS = ("roar", "maskgit")
"""Which tokens of an image a step decides: random ones, or those that it is surest of. Sequences go word by word."""

ORDER, TOKEN, NOISE = range(3)
"""What the keys of a place are for."""


@dataclass(frozen=True)
class Decoding:
    """How the tokens of one output are drawn.

    Attributes:
        order: a word of `ORDERS`.
        steps: in which the tokens of an image are decided; what is decided is seen by the steps that follow.
        schedule: how many tokens at each step, a word of `schedules.SCHEDULES`.
        temperature: of the distribution; 0 takes the most probable token.
        cooling: how the temperature falls (`schedules.temperatures`).
        top_k: draw from so many most probable tokens; 0 for all.
        top_p: draw from the fewest most probable tokens whose probabilities sum to more than this.
        guidance: scale of classifier-free guidance, away from what would be drawn without inputs; 1 for none.
    """

    order: str = "roar"
    steps: int = 1
    schedule: str = "linear"
    temperature: float = 1.0
    cooling: str = "constant"
    top_k: int = 0
    top_p: float = 0.8
    guidance: float = 1.0

    def __post_init__(self):
        if self.order not in ORDERS:
            raise ConfigError(f"unknown order {self.order!r}; choose {' or '.join(ORDERS)}")
        check_filters(self.top_k, self.top_p)

    def with_steps(self, steps: int) -> "Decoding":
        """The same in another number of steps."""
        return replace(self, steps=steps)


@dataclass(frozen=True)
class Plan:
    """What is generated; one compiled program each.

    Attributes:
        outputs: streams of the model's outputs in the order in which they are decided, and how.
        grid: rows and columns of patches.
        chained: whether an output is seen by those that follow; else all follow from the inputs alone.
    """

    outputs: tuple[tuple[str, Decoding], ...]
    grid: tuple[int, int]
    chained: bool = True


class Tokens(NamedTuple):
    """Discrete tokens of a stream, those of images row by row, and which of them are there."""

    ids: Int[Array, "b t"]
    valid: Bool[Array, "b t"]


class Script(NamedTuple):
    """What a sequence may be: the token that begins it, those that end it, and which ones may stand at each place."""

    start: Int[Array, ""]
    stops: Int[Array, " s"]
    allowed: Bool[Array, "l v"]

    @classmethod
    def of(cls, words: CoordinateTokenizer, vocabulary: int) -> "Script":
        """A place in some vocabulary, for a model of so many tokens.

        Raises:
            ConfigError: a vocabulary without the words that begin and end a sequence, or larger than the model's.
        """
        if len(words.sentinels) < 2:
            raise ConfigError("the vocabulary of coordinates lacks [S_1] or [S_2]; give that of the model's training")
        start, end = words.sentinels[:2]
        stops = jnp.asarray([words.eos, end])
        return cls(jnp.asarray(start), stops, jnp.asarray(words.grammar(vocabulary)))


class Conditions(NamedTuple):
    """What is known of the samples of a batch, all arrays led by it.

    Attributes:
        pixels: pixel stream -> standardised images.
        tokens: other stream -> tokens.
        keys: one a sample; decides all that is random.
        places: numbers of the patches; those of equal numbers, under equal keys, draw alike.
    """

    pixels: Mapping[str, Float[Array, "b y x c"]]
    tokens: Mapping[str, Tokens]
    keys: Key[Array, " b"]
    places: Int[Array, "b t"]


def check_plan(model: Any, plan: Plan, given: tuple[str, ...]) -> None:
    """Refuse what the model cannot do.

    Args:
        model: an `EncoderDecoder`.
        plan: of the generation.
        given: streams that are known.

    Raises:
        ConfigError: an input or output that the model lacks, or steps that do not fit.
    """
    for name in given:
        if name not in model.inputs:
            raise ConfigError(f"the model takes no {name}; it takes {', '.join(model.inputs)}")
    if not given:
        raise ConfigError(f"nothing is given to generate from; give one of {', '.join(model.inputs)}")
    tokens = plan.grid[0] * plan.grid[1]
    for i, (name, how) in enumerate(plan.outputs):
        if name not in model.outputs:
            raise ConfigError(f"the model was not trained to give {name}; it gives {', '.join(model.outputs)}")
        if not STREAMS[name].is_image:
            continue
        temperatures(how.temperature, how.cooling, token_schedule(how.schedule, how.steps, tokens))
        if name not in model.inputs and (how.steps > 1 or (plan.chained and i + 1 < len(plan.outputs))):
            raise ConfigError(f"the model gives {name} but cannot see it; generate it last and with steps=1")


@partial(jax.jit, static_argnames=("plan", "mesh", "singly"))
def generate_tokens(
    model: Any,
    conditions: Conditions,
    scripts: Mapping[str, Script],
    *,
    plan: Plan,
    mesh: Mesh | None = None,
    singly: bool = False,
) -> dict[str, Tokens]:
    """Generate the tokens of all outputs of a plan; compiled.

    Args:
        model: an `EncoderDecoder`, which can do what the plan asks (`check_plan`).
        conditions: what is known.
        scripts: of the outputs that are sequences.
        plan: of the generation.
        mesh: devices that share the batch, a multiple of their number; None: as the arguments lie.
        singly: one sample after another (`over_samples`).

    Returns:
        Output stream -> tokens, in the plan's order.
    """
    run = partial(_generated, plan=plan)
    return over_samples(run, (model, scripts), conditions, mesh, singly)


def over_samples(run: Callable[..., Any], shared: tuple, batch: Any, mesh: Mesh | None, singly: bool) -> Any:
    """Run a function of a batch on the devices that share it.

    Args:
        run: (*shared, batch) -> arrays led by the batch's axis.
        shared: what all samples have in common.
        batch: arrays led by it.
        mesh: devices; None: as the arguments lie.
        singly: one sample after another, by one program whatever their number: sums of the same numbers in another
            order differ in the last bit, and what is drawn from them may.
    """

    def every(shared: tuple, batch: Any) -> Any:
        if not singly:
            return run(*shared, batch)
        one = lambda sample: run(*shared, jax.tree.map(lambda leaf: leaf[None], sample))  # noqa: E731
        return jax.tree.map(lambda leaf: leaf[:, 0], jax.lax.map(one, batch))

    if mesh is None:
        return every(shared, batch)
    everywhere, split = PartitionSpec(), PartitionSpec(mesh.axis_names)
    return jax.shard_map(every, mesh=mesh, in_specs=(everywhere, split), out_specs=split, check_vma=False)(
        shared, batch
    )


def place_keys(keys: Key[Array, " b"], places: Int[Array, "b t"], output: int, use: int) -> Key[Array, "b t"]:
    """Keys of single places: of a sample's key, an output's number, the place's number and what the key is for."""
    fold = jax.random.fold_in
    one = lambda key, place: fold(fold(fold(key, output), place), use)  # noqa: E731
    return jax.vmap(jax.vmap(one, (None, 0)))(keys, places)


def _generated(model: Any, scripts: Mapping[str, Script], conditions: Conditions, *, plan: Plan) -> dict[str, Tokens]:
    batch, tokens = conditions.places.shape
    rows = jnp.broadcast_to(jnp.arange(tokens), (batch, tokens))
    parts = [
        _slots(model.inputs.index(name), rows, jnp.zeros_like(rows), jnp.ones_like(rows, bool))
        for name in conditions.pixels
    ]
    parts += [_seen(model, name, known) for name, known in conditions.tokens.items()]
    made: dict[str, Tokens] = {}
    for name, how in plan.outputs:
        ask = _Ask(model, conditions, _joined(*parts), name, how, plan.grid)
        made[name] = _DECODERS[how.order](ask) if STREAMS[name].is_image else _autoregressive(ask, scripts[name])
        if plan.chained and name in model.inputs:
            parts.append(_seen(model, name, made[name]))
    return made


@dataclass(frozen=True)
class _Ask:
    """One output to be decided."""

    model: Any
    conditions: Conditions
    condition: PackedInputs
    name: str
    how: Decoding
    grid: tuple[int, int]

    @property
    def number(self) -> int:
        """Of the output among the model's."""
        return self.model.outputs.index(self.name)

    @property
    def shape(self) -> tuple[int, int]:
        """Samples and tokens of an image."""
        batch, tokens = self.conditions.places.shape
        return batch, tokens

    def keys(self, use: int) -> Key[Array, "b t"]:
        """Keys of the places."""
        return place_keys(self.conditions.keys, self.conditions.places, self.number, use)

    def own(self, positions: Int[Array, "b t"], ids: Int[Array, "b t"], valid: Bool[Array, "b t"]) -> PackedInputs:
        """What is decided of the output, as the encoder sees it."""
        return _slots(self.model.inputs.index(self.name), positions, ids, valid)

    def targets(
        self, positions: Int[Array, "b m"], valid: Bool[Array, "b m"], told: Int[Array, "b m"] | None = None
    ) -> PackedTargets:
        """Tokens to be given."""
        empty = jnp.zeros_like(positions)
        return PackedTargets(
            jnp.where(valid, self.number, PADDING), positions, empty if told is None else told, label=empty
        )

    def contexts(self, own: PackedInputs | None = None) -> list[Any]:
        """What the decoder may look at; with guidance, also that without the inputs."""
        visible = _joined(self.condition, own) if own else self.condition
        contexts = [self.model.encode(visible, self.conditions.pixels, self.grid)]
        if self.how.guidance != 1:
            first = jax.tree.map(lambda leaf: leaf[:, :1], self.condition)
            nothing = replace(first, stream=jnp.full_like(first.stream, PADDING))
            contexts.append(self.model.encode(own or nothing, {}, self.grid))
        return contexts

    def logits(self, contexts: list[Any], targets: PackedTargets) -> Float[Array, "b m v"]:
        """Of the targets, guided where asked for."""
        given = [
            self.model.logits(self.model.decode(context, targets, self.grid), self.name).astype(jnp.float32)
            for context in contexts
        ]
        return given[0] if len(given) == 1 else guided(given[0], given[1], self.how.guidance)

    def draw(self, logits, keys, temperature) -> tuple[Int[Array, "b m"], Float[Array, "b m"]]:
        """Tokens and the logarithms of their probabilities."""
        return draw(logits, keys, temperature, top_k=self.how.top_k, top_p=self.how.top_p)

    def steps(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens decided before each step, tokens that it decides, and its temperature."""
        counts = token_schedule(self.how.schedule, self.how.steps, self.shape[1])
        hot = temperatures(self.how.temperature, self.how.cooling, counts)
        before = np.cumsum((0, *counts[:-1]))
        return before.astype(np.int32), np.asarray(counts, np.int32), np.asarray(hot, np.float32)


def _roar(ask: _Ask) -> Tokens:
    """Random order (4M's random-order autoregression): each step decides the next few places of a permutation."""
    batch, tokens = ask.shape
    before, counts, hot = ask.steps()
    keys = ask.keys(TOKEN)
    if len(counts) == 1:
        positions = jnp.broadcast_to(jnp.arange(tokens), (batch, tokens))
        everything = jnp.ones((batch, tokens), bool)
        ids, _ = ask.draw(ask.logits(ask.contexts(), ask.targets(positions, everything)), keys, hot[0])
        return Tokens(ids, everything)
    most = int(counts.max())
    order = jnp.argsort(_uniform(ask.keys(ORDER)), axis=1)
    padded = jnp.pad(order, ((0, 0), (0, most)))

    def step(decided: Int[Array, "b t+m"], now) -> tuple[Int[Array, "b t+m"], None]:
        start, count, temperature = now
        seen = jnp.broadcast_to(jnp.arange(tokens) < start, (batch, tokens))
        positions = jax.lax.dynamic_slice_in_dim(padded, start, most, axis=1)
        wanted = jnp.broadcast_to(jnp.arange(most) < count, (batch, most))
        contexts = ask.contexts(ask.own(order, decided[:, :tokens], seen))
        ids, _ = ask.draw(ask.logits(contexts, ask.targets(positions, wanted)), _taken(keys, positions), temperature)
        # What is written beyond the step's own tokens is written over by the next one.
        return jax.lax.dynamic_update_slice_in_dim(decided, ids, start, axis=1), None

    decided, _ = jax.lax.scan(step, jnp.zeros_like(padded), (before, counts, hot))
    ids = jnp.take_along_axis(decided[:, :tokens], jnp.argsort(order, axis=1), axis=1)
    return Tokens(ids, jnp.ones_like(ids, bool))


def _maskgit(ask: _Ask) -> Tokens:
    """Each step draws all that is left and keeps what is most probable (Chang et al. 2022)."""
    batch, tokens = ask.shape
    positions = jnp.broadcast_to(jnp.arange(tokens), (batch, tokens))
    keys, fold = ask.keys(TOKEN), jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))
    alone = ask.how.steps == 1

    def step(held, now) -> tuple[tuple[Int[Array, "b t"], Bool[Array, "b t"]], None]:
        ids, decided = held
        number, count, temperature = now
        contexts = ask.contexts(None if alone else ask.own(positions, ids, decided))
        drawn, surety = ask.draw(
            ask.logits(contexts, ask.targets(positions, ~decided)), fold(keys, number), temperature
        )
        rank = jnp.argsort(jnp.argsort(jnp.where(decided, jnp.inf, -surety), axis=1), axis=1)
        chosen = ~decided & (rank < count)
        return (jnp.where(chosen, drawn, ids), decided | chosen), None

    _, counts, hot = ask.steps()
    nothing = jnp.zeros((batch, tokens), jnp.int32), jnp.zeros((batch, tokens), bool)
    (ids, decided), _ = jax.lax.scan(step, nothing, (np.arange(len(counts)), counts, hot))
    return Tokens(ids, decided)


def _autoregressive(ask: _Ask, script: Script) -> Tokens:
    """Word by word, until one ends the sequence."""
    batch, length = ask.shape[0], script.allowed.shape[0]
    ranks = jnp.broadcast_to(jnp.arange(length), (batch, length))
    keys = place_keys(ask.conditions.keys, ranks, ask.number, TOKEN)
    contexts = ask.contexts()

    def step(held, rank) -> tuple[tuple[Int[Array, "b l"], Bool[Array, " b"]], Bool[Array, " b"]]:
        ids, going = held
        told = jnp.concatenate([jnp.broadcast_to(script.start, (batch, 1)), ids[:, :-1]], axis=1)
        logits = ask.logits(contexts, ask.targets(ranks, jnp.ones_like(ranks, bool), told))[:, rank]
        logits = jnp.where(script.allowed[rank], logits, IMPOSSIBLE)
        drawn, _ = ask.draw(logits, keys[:, rank], ask.how.temperature)
        ids = ids.at[:, rank].set(jnp.where(going, drawn, 0))
        return (ids, going & ~jnp.isin(drawn, script.stops)), going

    begun = jnp.zeros((batch, length), jnp.int32), jnp.ones(batch, bool)
    (ids, _), valid = jax.lax.scan(step, begun, jnp.arange(length))
    return Tokens(ids, valid.T)


_DECODERS = {"roar": _roar, "maskgit": _maskgit}


def _slots(
    stream: int, positions: Int[Array, "b n"], ids: Int[Array, "b n"], valid: Bool[Array, "b n"]
) -> PackedInputs:
    return PackedInputs(jnp.where(valid, stream, PADDING), positions, ids)


def _seen(model: Any, name: str, tokens: Tokens) -> PackedInputs:
    """Known tokens as the encoder sees them."""
    positions = jnp.broadcast_to(jnp.arange(tokens.ids.shape[1]), tokens.ids.shape)
    if not STREAMS[name].is_image:
        positions = jnp.maximum(jnp.cumsum(tokens.valid, axis=1) - 1, 0)
    return _slots(model.inputs.index(name), positions, tokens.ids, tokens.valid)


def _joined(*parts: PackedInputs) -> PackedInputs:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *parts)


def _taken(keys: Key[Array, "b t"], positions: Int[Array, "b m"]) -> Key[Array, "b m"]:
    return jax.vmap(lambda row, index: row[index])(keys, positions)


def _uniform(keys: Key[Array, "b t"]) -> Float[Array, "b t"]:
    return jax.vmap(jax.vmap(jax.random.uniform))(keys)
