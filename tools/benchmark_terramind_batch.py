"""The batch that both sides of `benchmark.py terramind` are given: random tokens, budgets drawn as in pretraining."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.transforms.budgets import draw_budget

KEYS = {
    "S2L2A": "untok_sen2l2a@224", "S2L1C": "untok_sen2l1c@224", "S2RGB": "untok_sen2rgb@224",
    "S1GRD": "untok_sen1grd@224", "S1RTC": "untok_sen1rtc@224", "DEM": "untok_dem@224",
    "tok_S2L2A": "tok_sen2l2a@224", "tok_S1GRD": "tok_sen1grd@224", "tok_S1RTC": "tok_sen1rtc@224",
    "tok_DEM": "tok_dem@224", "tok_LULC": "tok_lulc@224", "tok_NDVI": "tok_ndvi@224", "coords": "coords",
}  # fmt: skip
"""terra_jax's name of a stream -> the public one."""

FEW = (("S2L2A", "tok_S2L2A", "tok_LULC"), ("tok_S2L2A", "tok_LULC"))
USUAL = (
    ("S2L2A", "S2L1C", "S2RGB", "S1GRD", "DEM", "tok_S2L2A", "tok_S1GRD", "tok_DEM", "tok_LULC", "tok_NDVI"),
    ("tok_S2L2A", "tok_S1GRD", "tok_DEM", "tok_LULC", "tok_NDVI"),
)
ALL = (tuple(KEYS), tuple(name for name in KEYS if name.startswith("tok_") or name == "coords"))
STREAMS = {len(inputs): (inputs, outputs) for inputs, outputs in (FEW, USUAL, ALL)}
"""Number of modalities -> inputs and outputs."""

CHANNELS = {"S2L2A": 12, "S2L1C": 13, "S2RGB": 3, "S1GRD": 2, "S1RTC": 2, "DEM": 1}
VOCABULARIES = {**dict.fromkeys(KEYS, 15360), "tok_LULC": 4375, "coords": 30000}
COORDINATES = 3
"""Tokens of coordinates that are seen or asked for at most."""


def draw(
    rng: np.random.Generator,
    inputs: Sequence[str],
    outputs: Sequence[str],
    batch: int,
    tokens: int,
    image: int,
    patch: int,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Packed slots, as `data_pipelines.recipes.terramind` names them, and standardised images.

    Args:
        rng: source of randomness.
        inputs, outputs: terra_jax's names of the streams.
        batch: examples.
        tokens: budget of the encoder, and of the decoder.
        image, patch: pixels per side.
    """
    patches = (image // patch) ** 2
    examples = [_example(rng, inputs, outputs, tokens, patches) for _ in range(batch)]
    packed = {key: np.stack([example[key] for example in examples]) for key in examples[0]}
    shapes = {name: (batch, image, image, CHANNELS[name]) for name in inputs if name in CHANNELS}
    return packed, {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def _example(rng, inputs, outputs, tokens: int, patches: int) -> dict[str, np.ndarray]:
    """One example: what a stream shows is no target of its."""
    most = [COORDINATES if name == "coords" else patches for name in inputs]
    seen = dict(zip(inputs, draw_budget(rng, [0.5] * len(inputs), tokens, most), strict=True))
    most = [COORDINATES if name == "coords" else patches - seen.get(name, 0) for name in outputs]
    asked = dict(zip(outputs, draw_budget(rng, [0.5] * len(outputs), tokens, most), strict=True))
    order = {name: rng.permutation(patches) for name in KEYS}
    slots: dict[str, list[Any]] = {f"inputs/{key}": [] for key in ("stream", "position", "token")}
    slots |= {f"targets/{key}": [] for key in ("stream", "position", "token", "label")}

    def put(side: str, number: int, **columns: Any) -> None:
        slots[f"{side}/stream"] += [number] * len(columns["position"])
        for key, values in columns.items():
            slots[f"{side}/{key}"] += list(values)

    for number, name in enumerate(inputs):
        count = seen[name]
        position = np.arange(count) if name == "coords" else np.sort(order[name][:count])
        token = rng.integers(0, VOCABULARIES[name], count) * (name not in CHANNELS)
        put("inputs", number, position=position, token=token)
    for number, name in enumerate(outputs):
        count, begin = asked[name], seen.get(name, 0)
        token = rng.integers(0, VOCABULARIES[name], count + 1)
        if name == "coords":  # each token is told where the next one is asked for
            put("targets", number, position=np.arange(count), token=token[:-1], label=token[1:])
        else:
            position = np.sort(order[name][begin : begin + count])
            put("targets", number, position=position, token=[0] * count, label=token[1:])
    empty = {"stream": -1}
    return {
        key: np.array([*values, *[empty.get(key.split("/")[1], 0)] * (tokens - len(values))], np.int32)
        for key, values in slots.items()
    }
