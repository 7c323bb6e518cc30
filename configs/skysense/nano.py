"""A SkySense that pretrains in minutes on two CPU cores: for a first look, for tests, for ablations."""

from ml_collections import ConfigDict

from terra_jax.configs.skysense import huge


def get_config() -> ConfigDict:
    """A few hundred steps on small tiles of the procedural Earth."""
    config = huge.get_config()
    config.model = "skysense_nano"
    config.steps = 200
    config.batch_size = 8
    config.remat = "none"
    config.mesh.fsdp = 1
    config.data.update({"samples": 512, "tile": 16, "balance": 0.5, "ocean": 0.02, "cache": True, "threads": 2})
    config.data.frames.update({"S2L2A": 8, "S1GRD": 4})
    config.data.regions.update({"rows": 512, "zoom": 5})
    config.views.frames.update({"S2L2A": 4, "S1GRD": 2})
    config.views.shipped.update({"S2L2A": 8, "S1GRD": 4})
    config.views.update({"global_size": 8, "local_views": 0, "brightness": 0.2, "contrast": 0.2})
    config.views.update({"global_scale": (0.25, 0.7), "blur": 0.0, "solarise": 0.0})
    config.objective.outputs.update({"pixel": 256, "object": 256, "image": 256})
    config.objective.update(
        {
            "head_hidden": 128,
            "head_bottleneck": 64,
            "clusters": 4,
            "alignment_weight": 1.0,
            "alignment_grid": 8,
            "alignment_width": 64,
            "teacher_temperature_steps": 60,
            "teacher_momentum": 0.98,
            "modality_dropout": 0.3,
            "region_prototypes": 16,
            "prototype_width": 64,
            "prototype_momentum": 0.9,
        }
    )
    config.encoder.update({"hr_drop_path": 0.0, "drop_path": 0.0, "pad_small_map": True})
    config.optimizer.update(
        {"learning_rate": 1e-3, "warmup_steps": 20, "final_learning_rate": 1e-5, "final_weight_decay": 0.1}
    )
    config.checkpoint.every = 50
    config.evaluation.update({"every": 100, "bank": 96, "queries": 48, "pixels": 40, "batch_size": 8})
    return config
