"""TerraMind's tokenizer of Sentinel-1 GRD: the published run."""

from ml_collections import ConfigDict

from terra_jax.configs.terramind import _tokenizer


def get_config() -> ConfigDict:
    """100 epochs of the samples of TerraMesh that have it."""
    config = _tokenizer.public("S1GRD", samples=_tokenizer.SSL4EO, epochs=100, sizes=(224, 256), batch_size=384)
    config.optimizer.learning_rate = 1.0e-4
    return config
