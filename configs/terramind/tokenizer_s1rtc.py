"""TerraMind's tokenizer of Sentinel-1 RTC: the published run."""

from ml_collections import ConfigDict

from terra_jax.configs.terramind import _tokenizer


def get_config() -> ConfigDict:
    """100 epochs of the samples of TerraMesh that have it."""
    return _tokenizer.public("S1RTC", samples=_tokenizer.MAJOR_TOM, epochs=100, sizes=(224, 256))
