"""TerraFM with a ViT-S: for one accelerator. Ours; the paper's small model has no public recipe."""

from ml_collections import ConfigDict

from terra_jax.configs.terrafm import base


def get_config() -> ConfigDict:
    """100,000 steps of 256 places."""
    config = base.get_config()
    config.model = "terrafm_small"
    config.steps = 100_000
    config.batch_size = 256
    config.views.local_views = 8
    config.objective.teacher_temperature_steps = 30_000
    config.objective.frozen_head_steps = 1_000
    config.optimizer.learning_rate = 7.5e-4
    config.optimizer.warmup_steps = 10_000
    config.evaluation.every = 5_000
    return config
