"""A small tokenizer of Sentinel-1 RTC that trains in minutes on two CPU cores."""

from ml_collections import ConfigDict

from terra_jax.configs.terramind import _tokenizer, tokenizer_s1rtc


def get_config() -> ConfigDict:
    """The published run's task at a small size."""
    return _tokenizer.nano(tokenizer_s1rtc.get_config())
