"""PyTorch weights to and from JAX: files read without PyTorch or pickle, and maps of names and layouts."""

from terra_jax.weights.convert import ModelSpec, Part, convert, load_parts, parse_sources
from terra_jax.weights.files import open_state, save_state
from terra_jax.weights.params_folder import load_params, save_params
from terra_jax.weights.rules import Fixed, Ignored, Rule, Tied, WeightMap, linear, norm, torch_shapes
from terra_jax.weights.state import LazyTensor, unwrap
from terra_jax.weights.transfer import Report, conform_state, export_state, import_params

__all__ = [
    "Fixed",
    "Ignored",
    "LazyTensor",
    "ModelSpec",
    "Part",
    "Report",
    "Rule",
    "Tied",
    "WeightMap",
    "conform_state",
    "convert",
    "export_state",
    "import_params",
    "linear",
    "load_params",
    "load_parts",
    "norm",
    "open_state",
    "parse_sources",
    "save_params",
    "save_state",
    "torch_shapes",
    "unwrap",
]
