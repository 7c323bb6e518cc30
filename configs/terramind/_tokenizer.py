"""What the tokenizers' runs have in common. Values marked "inferred" are unpublished."""

from ml_collections import ConfigDict

TERRAMESH = 9_089_536  # training samples
MAJOR_TOM = 8_113_664  # those with Sentinel-1 RTC
SSL4EO = 975_872  # those with Sentinel-1 GRD


def public(name: str, *, samples: int, epochs: int, sizes: tuple[int, ...], batch_size: int = 2048) -> ConfigDict:
    """The published run of a modality's tokenizer, as far as it is shared by all (paper; arguments in the code).

    Args:
        name: modality.
        samples: training samples, which make an epoch.
        epochs: passes over them.
        sizes: pixels per side of the network's input; every batch draws one.
        batch_size: of the whole machine.
    """
    epoch = samples // batch_size
    return ConfigDict(
        {
            "model": f"terramind_v1_tokenizer_{name.lower()}",
            "seed": 0,
            "steps": epochs * epoch,
            "batch_size": batch_size,
            "accumulation": 1,
            "dtype": "auto",  # bfloat16 on accelerators, float32 on CPU; published: float16, bfloat16 for LULC
            "remat": "full",  # of the transformer blocks
            "init": "",
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "data": {
                "source": "procedural",
                "path": "",
                "mixture": "",  # instead of source and path, as "0.8 terramesh DIR; 0.2 records DIR where cloud < 20"
                "filter": "",  # of training samples, as "cloud < 20 and scene in (crops, built)"
                "samples": 1_000_000,  # of the procedural Earth; files have as many as they have
                "modalities": (name,),
                "tile": 264,
                "balance": 0.0,  # sampling probability ~ frequency of the stratum ** -balance
                "stratify": "scene",  # columns that make strata: scene (land cover), climate, region, ...
                "ocean": 1.0,  # share of open-sea tiles that is kept
                "strict": False,
                "cache": False,  # keep samples in memory
                "index_cache": "",  # folder that keeps the indices of TerraMesh's tars between runs
                "threads": 16,
            },
            "views": {"sizes": sizes, "scale": (0.8, 1.0), "flip": 0.5},
            "objective": {
                "ema_momentum": 0.9999,
                "spread": 0.0,  # weight of the term that spreads latents over the codebook; published: none
            },
            "optimizer": {
                "learning_rate": 1.414e-4,
                "warmup_steps": epoch,
                "first_learning_rate": 1e-6,
                "final_learning_rate": 0.0,
                "weight_decay": 0.05,
                "betas": (0.9, 0.99),
                "eps": 1e-8,
                "clip_norm": 1.0,
                "clip": "all",
            },
            "checkpoint": {"every": 1000, "keep": 2},
            "evaluation": {
                "every": 10_000,
                "samples": 512,  # decoded, of unseen regions
                "codebook_samples": 4096,  # whose tokens are counted
                "batch_size": 64,
                "steps": 10,  # of the diffusion
            },
        }
    )


def nano(config: ConfigDict) -> ConfigDict:
    """The same task in minutes on two CPU cores: small tiles of the procedural Earth, a small model, few steps."""
    config.model += "_nano"
    config.steps = 1000
    config.batch_size = 16
    config.remat = "none"
    config.data.update({"samples": 4096, "tile": 72, "cache": True, "threads": 2, "balance": 0.5, "ocean": 0.02})
    config.views.sizes = (64,)
    config.objective.update({"ema_momentum": 0.0, "spread": 0.3})  # without it a handful of codes serve all
    config.optimizer.update({"learning_rate": 2e-3, "warmup_steps": 30, "first_learning_rate": 0.0})
    config.checkpoint.every = 250
    config.evaluation.update({"every": 500, "samples": 128, "batch_size": 32})
    return config
