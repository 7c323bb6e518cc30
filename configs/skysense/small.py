"""SkySense with a Swin-L and ViT-B encoders: for one host of accelerators. Ours; the paper gives no such recipe."""

from ml_collections import ConfigDict

from terra_jax.configs.skysense import huge


def get_config() -> ConfigDict:
    """100,000 steps of 64 places, with half the frames of the published run."""
    config = huge.get_config()
    config.model = "skysense_small"
    config.steps = 100_000
    config.batch_size = 64
    config.mesh.fsdp = 1
    config.data.update({"samples": 100_000, "balance": 0.5, "ocean": 0.05})
    config.data.frames.update({"S2L2A": 30, "S1GRD": 13})
    config.views.frames.update({"S2L2A": 10, "S1GRD": 5})
    config.views.shipped.update({"S2L2A": 20, "S1GRD": 10})
    config.views.local_views = 4
    config.objective.outputs.update({"pixel": 4096, "object": 4096, "image": 16_384})
    config.objective.teacher_temperature_steps = 10_000
    config.objective.prototype_width = 256
    config.optimizer.warmup_steps = 5_000
    config.evaluation.update({"every": 5_000, "batch_size": 32})
    return config
