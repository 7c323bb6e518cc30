"""TerraMind's tokenizer of land cover: the published run."""

from ml_collections import ConfigDict

from terra_jax.configs.terramind import _tokenizer


def get_config() -> ConfigDict:
    """20 epochs of TerraMesh."""
    config = _tokenizer.public("LULC", samples=_tokenizer.TERRAMESH, epochs=20, sizes=(224, 240, 256))
    config.objective.ema_momentum = 0.99
    config.optimizer.learning_rate = 3.54e-5
    return config
