"""A TerraMind that pretrains in minutes on two CPU cores, on tokens of the nano tokenizers. Every number is ours."""

from ml_collections import ConfigDict

from terra_jax.configs.terramind import _model


def get_config() -> ConfigDict:
    """Pixels of both radars, Sentinel-2 and elevation; tokens of Sentinel-2, land cover and NDVI."""
    config = _model.public("nano")
    config.steps = 700
    config.batch_size = 16
    config.remat = "none"
    tokens = ("tok_S2L2A", "tok_LULC", "tok_NDVI")
    config.streams.update({"inputs": ("S2L2A", "S1GRD", "S1RTC", "DEM", *tokens), "outputs": tokens})
    config.data.update({"samples": 4096, "tile": 72, "cache": True, "threads": 2, "balance": 0.5, "ocean": 0.02})
    config.masking.update({"input_tokens": (64, 64), "target_tokens": (64, 64), "pixels": 3.0})
    config.optimizer.update({"learning_rate": 1.5e-3, "warmup_steps": 50, "clip_norm": 1.0})
    config.checkpoint.every = 300
    config.evaluation.update(
        {"every": 350, "samples": 256, "unigram_samples": 4096, "probe_samples": 64, "batch_size": 32}
    )
    return config
