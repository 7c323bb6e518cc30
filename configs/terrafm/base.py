"""TerraFM-B. Values marked "inferred" are unpublished: DINO's public ViT-B/16 recipe, the closest relative."""

from ml_collections import ConfigDict

STEPS_PER_EPOCH = 1_494  # 1.53 million places at a batch of 1,024


def get_config() -> ConfigDict:
    """The published run: 150 epochs of Major TOM's places with Sentinel-1 and both Sentinel-2 products."""
    return ConfigDict(
        {
            "model": "terrafm_base",
            "seed": 0,
            "steps": 150 * STEPS_PER_EPOCH,
            "batch_size": 1024,
            "accumulation": 1,
            "dtype": "auto",  # bfloat16 on accelerators, float32 on CPU
            "remat": "full",
            "init": "",
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "data": {
                "source": "procedural",
                "path": "",
                "mixture": "",  # instead of source and path, as "0.8 terramesh DIR; 0.2 records DIR where cloud < 20"
                "filter": "",  # of training samples, as "cloud < 20 and scene in (crops, built)"
                "samples": 1_000_000,  # of the procedural Earth; files have as many as they have
                "modalities": ("S2L2A", "S2L1C", "S1RTC"),
                "tile": 534,
                "balance": 0.5,  # inferred: sampling probability ~ frequency of the stratum ** -balance
                "stratify": "scene",  # columns that make strata: scene (land cover), climate, region, ...
                "ocean": 0.02,  # share of open-sea tiles that is kept
                "frequent": 0.5,  # inferred: the commonest classes that cover this share of tiles are "frequent"
                "frequent_classes": "",  # instead: a land_cover.json of `terra-jax prepare`, or "trees, rangeland"
                "strict": False,
                "cache": False,  # keep samples in memory
                "index_cache": "",  # folder that keeps the indices of TerraMesh's tars between runs
                "threads": 16,
            },
            "views": {
                "global_size": 224,
                "local_size": 96,
                "local_views": 10,  # inferred
                "global_scale": (0.25, 1.0),
                "local_scale": (0.05, 0.25),
                "modalities_per_view": "any",
                "draw": "per_sample",  # inferred
            },
            "objective": {
                "prototypes": 65_536,
                "head_hidden": 2048,  # inferred, as the head's other sizes
                "head_bottleneck": 256,
                "alpha": 0.8,
                "centre_momentum": 0.9,  # inferred
                "student_temperature": 0.1,  # inferred
                "teacher_temperature": (0.04, 0.06),
                "teacher_temperature_steps": 50 * STEPS_PER_EPOCH,  # inferred
                "teacher_momentum": 0.996,
                "same_view": False,  # inferred
                "frozen_head_steps": 3 * STEPS_PER_EPOCH,  # inferred
            },
            "encoder": {"drop_path": 0.1, "statistics": "ssl4eo_s12"},  # statistics: inferred
            "optimizer": {  # inferred
                "learning_rate": 7.5e-4 * 1024 / 256,
                "warmup_steps": 10 * STEPS_PER_EPOCH,
                "final_learning_rate": 2e-6,
                "weight_decay": 0.04,
                "final_weight_decay": 0.4,
                "betas": (0.9, 0.999),
                "eps": 1e-8,
                "clip_norm": 0.3,
            },
            "checkpoint": {"every": 1000, "keep": 2},
            "evaluation": {"every": 10_000, "bank": 4096, "queries": 2048, "batch_size": 256},
        }
    )
