"""TerraMind's tokenizer of elevation: the published run."""

from ml_collections import ConfigDict

from terra_jax.configs.terramind import _tokenizer


def get_config() -> ConfigDict:
    """20 epochs of TerraMesh."""
    return _tokenizer.public("DEM", samples=_tokenizer.TERRAMESH, epochs=20, sizes=(256,))
