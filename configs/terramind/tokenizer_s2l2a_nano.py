"""A small tokenizer of Sentinel-2 L2A that trains in minutes on two CPU cores."""

from ml_collections import ConfigDict

from terra_jax.configs.terramind import _tokenizer, tokenizer_s2l2a


def get_config() -> ConfigDict:
    """The published run's task at a small size."""
    return _tokenizer.nano(tokenizer_s2l2a.get_config())
