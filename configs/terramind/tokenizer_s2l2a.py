"""TerraMind's tokenizer of Sentinel-2 L2A: the published run."""

from ml_collections import ConfigDict

from terra_jax.configs.terramind import _tokenizer


def get_config() -> ConfigDict:
    """100 epochs of TerraMesh."""
    return _tokenizer.public("S2L2A", samples=_tokenizer.TERRAMESH, epochs=100, sizes=(224, 256))
