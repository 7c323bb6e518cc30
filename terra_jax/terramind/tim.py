"""Thinking in Modalities: a backbone that imagines modalities which it is not given (arXiv 2504.11171, section 5).

The encoder-decoder generates their tokens, which go into the encoder beside the inputs. It stays as it is; the encoder,
its embeddings included, is a copy that fine-tuning may change.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Key, Num

from terra_jax.errors import ConfigError
from terra_jax.terramind.backbone import Backbone, Modalities
from terra_jax.terramind.composite_weights import tim_map
from terra_jax.terramind.generation import Conditions, Decoding, Plan, Script, Tokens, check_plan, generate_tokens
from terra_jax.terramind.model import EncoderDecoder
from terra_jax.terramind.pretrained import SAMPLER
from terra_jax.terramind.streams import PIXELS, STREAMS, Stream, input_stream, output_stream
from terra_jax.terramind.variants import Variant
from terra_jax.weights.rules import WeightMap

TRAINABLE = nnx.Not(nnx.PathContains(SAMPLER))
"""NNX filter of what fine-tuning changes."""


class TiM(Backbone):
    """Backbone with thoughts.

    Args:
        variant: sizes.
        rngs: source of the initial values.
        modalities: what it takes, as of `Backbone`: band subsets and new modalities, of which thoughts know nothing.
        thoughts: modalities whose tokens are generated where they are not given, in this order.
        bands, merge, registers, statistics, drop_path, remat, dtype: as of `Backbone`; thoughts count among the image
            modalities that are merged.
        steps: in which the tokens of a thought are decided.
        chained: whether thoughts follow from those before them, not from the inputs alone.

    Raises:
        ConfigError: an unknown modality, band, merge or policy, or nothing to think of or from.
    """

    def __init__(
        self,
        variant: Variant,
        *,
        rngs: nnx.Rngs,
        modalities: Modalities = PIXELS,
        thoughts: Sequence[str] = ("LULC",),
        bands: Mapping[str, Sequence[str]] | None = None,
        merge: str | None = None,
        registers: int = 0,
        statistics: str = "terramind_v1",
        drop_path: float = 0.0,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
        steps: int = 1,
        chained: bool = True,
    ):
        imagined = [output_stream(name).name for name in thoughts]
        if not imagined:
            raise ConfigError("no thoughts are named; name at least one, such as LULC, or use the plain backbone")
        named = [modalities] if isinstance(modalities, str | Mapping) else list(modalities)
        taken = {input_stream(entry).name for entry in named if isinstance(entry, str)}
        super().__init__(
            variant,
            rngs=rngs,
            modalities=[*named, *(name for name in imagined if name not in taken)],
            bands=bands,
            merge=merge,
            registers=registers,
            statistics=statistics,
            drop_path=drop_path,
            remat=remat,
            dtype=dtype,
        )
        known = [stream for stream in self.encoder.streams if stream.known]
        self.thoughts = tuple(imagined)
        self.steps, self.chained = steps, chained
        self.sampler = EncoderDecoder(
            variant,
            rngs=rngs,
            inputs=[stream.name for stream in known],
            outputs=imagined,
            bands={stream.name: stream.bands for stream in known if stream.kind == "pixels"},
            statistics=statistics,
            dtype=dtype,
        )

    @property
    def weight_map(self) -> WeightMap:
        """How the parameters are named and laid out in PyTorch."""
        registers = self.encoder.registers is not None
        sampler = self.sampler
        return tim_map(self.variant, self.encoder.streams, sampler.encoder.streams, sampler.decoder.streams, registers)

    def __call__(self, inputs: Mapping[str, Num[Array, "b ..."]], **reading: Any) -> list[Any]:
        """Features after every block, the last ones normed, as of `Backbone`.

        Args:
            inputs: as of `Backbone`; not changed.
            reading: further arguments of `prepare`.
        """
        return self.features(self.prepare(inputs, **reading))

    def prepare(  # type: ignore[override]
        self,
        inputs: Mapping[str, Num[Array, "b ..."]],
        *,
        key: Key[Array, ""] | None = None,
        tokenizers: Mapping[str, Any] | None = None,
        **reading: Any,
    ) -> dict[str, Num[Array, "b ..."]]:
        """Stream -> standardised images or tokens: what a user gives, then the thoughts that are not given.

        Args:
            inputs: as of `Backbone`; not changed.
            key: of the thoughts; None takes the most probable tokens.
            tokenizers: as of `Backbone`; coordinates as a thought need theirs.
            reading: further arguments of `Backbone.prepare`.
        """
        values = super().prepare(inputs, tokenizers=tokenizers, **reading)
        missing = [STREAMS[name] for name in self.thoughts if name not in values]
        known = {name: value for name, value in values.items() if name in self.sampler.inputs}
        if missing and not known:
            raise ConfigError(f"nothing is given to think from; give one of {', '.join(self.sampler.inputs)}")
        if missing:
            values |= self._thoughts(missing, known, key, _scripts(missing, tokenizers or {}))
        return values

    def _thoughts(
        self,
        missing: Sequence[Stream],
        known: Mapping[str, Num[Array, "b ..."]],
        key: Key[Array, ""] | None,
        scripts: Mapping[str, Script],
    ) -> dict[str, Num[Array, "b ..."]]:
        images = {name: value for name, value in known.items() if STREAMS[name].is_image}
        rows, columns = self._grid(*next(iter(images.items()))) if images else (self.variant.grid,) * 2
        batch = next(iter(known.values())).shape[0]
        conditions = Conditions(
            {name: value for name, value in known.items() if STREAMS[name].kind == "pixels"},
            {name: _whole(value) for name, value in known.items() if STREAMS[name].kind != "pixels"},
            jax.random.split(jax.random.key(0) if key is None else key, batch),
            jnp.broadcast_to(jnp.arange(rows * columns), (batch, rows * columns)),
        )
        how = Decoding(temperature=0.0 if key is None else 1.0)
        outputs = tuple((stream.name, how.with_steps(self.steps if stream.is_image else 1)) for stream in missing)
        plan = Plan(outputs, (rows, columns), self.chained)
        check_plan(self.sampler, plan, tuple(known))
        frozen = jax.tree.map(jax.lax.stop_gradient, self.sampler)
        made = generate_tokens(frozen, conditions, scripts, plan=plan)
        return {
            stream.name: made[stream.name].ids.reshape(batch, rows, columns)
            if stream.is_image
            else made[stream.name].ids
            for stream in missing
        }


def _scripts(missing: Sequence[Stream], tokenizers: Mapping[str, Any]) -> dict[str, Script]:
    """What the sequences among the thoughts may be."""
    sequences = [stream for stream in missing if not stream.is_image]
    for stream in sequences:
        if stream.modality not in tokenizers:
            raise ConfigError(
                f"the thought {stream.name} needs its vocabulary; give tokenizers={{{stream.name!r}: ...}}"
            )
    return {stream.name: Script.of(tokenizers[stream.modality], stream.vocabulary) for stream in sequences}


def _whole(value: Num[Array, "b ..."]) -> Tokens:
    ids = value.reshape(value.shape[0], -1)
    return Tokens(ids, jnp.ones(ids.shape, bool))
