"""TerraMind-B: the published run, as far as it is known."""

from ml_collections import ConfigDict

from terra_jax.configs.terramind import _model


def get_config() -> ConfigDict:
    """500 billion tokens of TerraMesh."""
    return _model.public("base")
