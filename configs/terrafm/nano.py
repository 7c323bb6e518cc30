"""A TerraFM that pretrains in minutes on two CPU cores: for a first look, for tests, for ablations."""

from ml_collections import ConfigDict

from terra_jax.configs.terrafm import base


def get_config() -> ConfigDict:
    """A few hundred steps on small tiles of the procedural Earth."""
    config = base.get_config()
    config.model = "terrafm_nano"
    config.steps = 450
    config.batch_size = 64
    config.remat = "none"
    config.data.update({"samples": 8192, "tile": 64, "cache": True, "threads": 2})
    config.views.update({"global_size": 16, "local_size": 8, "local_views": 2})
    config.objective.update(
        {
            "prototypes": 1024,
            "head_hidden": 256,
            "head_bottleneck": 64,
            "teacher_temperature_steps": 100,
            "teacher_momentum": 0.99,
            "frozen_head_steps": 20,
        }
    )
    config.encoder.drop_path = 0.0
    config.optimizer.update(
        {
            "learning_rate": 1e-3,
            "warmup_steps": 30,
            "final_learning_rate": 1e-5,
            "final_weight_decay": 0.1,
            "clip_norm": 3.0,
        }
    )
    config.checkpoint.every = 100
    config.evaluation.update({"every": 200, "bank": 2048, "queries": 1024, "batch_size": 128})
    return config
