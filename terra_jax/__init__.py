"""Pretraining of Earth-observation foundation models in JAX: TerraMind, TerraFM and SkySense.

    import terra_jax
    terra_jax.list_models()
    model = terra_jax.load("terrafm_base", "TerraFM-B.pth")

Names are imported when they are first used, so that `import terra_jax` stays fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from terra_jax.registry import build, export_torch, list_models, load, state_dict_shapes

__all__ = ["build", "export_torch", "list_models", "load", "state_dict_shapes"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("terra_jax.registry"), name)
    raise AttributeError(f"module 'terra_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
