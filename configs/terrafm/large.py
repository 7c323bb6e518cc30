"""TerraFM-L: 200 epochs at twice the batch; the rest as the base size."""

from ml_collections import ConfigDict

from terra_jax.configs.terrafm import base

STEPS_PER_EPOCH = base.STEPS_PER_EPOCH // 2


def get_config() -> ConfigDict:
    """The published run of the large size."""
    config = base.get_config()
    config.model = "terrafm_large"
    config.steps = 200 * STEPS_PER_EPOCH
    config.batch_size = 2048
    config.mesh.fsdp = 8
    config.objective.teacher_temperature_steps = 50 * STEPS_PER_EPOCH
    config.objective.frozen_head_steps = 3 * STEPS_PER_EPOCH
    config.optimizer.learning_rate = 7.5e-4 * 2048 / 256
    config.optimizer.warmup_steps = 10 * STEPS_PER_EPOCH
    return config
