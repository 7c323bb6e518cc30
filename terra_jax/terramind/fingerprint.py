"""Which tokenizer made some tokens: a digest of everything that their meaning depends on."""

import hashlib
import json
from dataclasses import asdict

import numpy as np
from flax import nnx

from data_pipelines.modalities import Unit, modality
from terra_jax.terramind.tokenizer import Tokenizer
from terra_jax.weights.rules import flatten_params
from terra_jax.weights.state import as_bytes


def fingerprint(tokenizer: Tokenizer) -> str:
    """Digest of a tokenizer's sizes, standardisation and parameters, 32 hexadecimal digits.

    Equal for the same weights whatever file they came from. How decoding samples (`clip`) plays no part: it changes
    pictures, not tokens.
    """
    variant = tokenizer.variant
    table = modality(variant.modality)
    statistics = None if table.unit is Unit.CLASS else table.statistics_set(tokenizer.statistics)
    sizes = {"variant": asdict(variant), "statistics": statistics and asdict(statistics)}
    digest = hashlib.sha256(json.dumps(sizes, sort_keys=True).encode())
    for path, leaf in sorted(flatten_params(nnx.to_pure_dict(nnx.state(tokenizer, nnx.Param))).items()):
        array = np.asarray(leaf)
        digest.update(f"{path} {array.dtype} {array.shape};".encode())
        digest.update(as_bytes(array))
    return digest.hexdigest()[:32]
