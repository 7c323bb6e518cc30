"""SkySense with 2 billion parameters. Values marked "unknown" are unpublished and ours, the reason beside them."""

from ml_collections import ConfigDict

GPUS = 80
"""Of the published run, three places each."""


def get_config() -> ConfigDict:
    """The published run: 875,000 steps of 240 places."""
    return ConfigDict(
        {
            "model": "skysense_huge",
            "seed": 0,
            "steps": 875_000,
            "batch_size": 3 * GPUS,
            "accumulation": 1,  # places of one micro-batch are the negatives of the alignment
            "dtype": "auto",  # unknown; bfloat16 on accelerators, float32 on CPU, as everywhere here
            "remat": "full",
            "init": "",
            "mesh": {"data": -1, "fsdp": 8, "tensor": 1},
            "data": {
                "source": "procedural_series",
                "path": "",
                "mixture": "",  # instead of source and path, as "0.8 geotiff_series DIR; 0.2 ssl4eo DIR where lat > 0"
                "filter": "",  # of training places, as "climate == tropical and lat > 0"
                "samples": 1_000_000,  # of the procedural Earth; files have as many as they have
                "modalities": ("HR", "S2L2A", "S1GRD"),
                "tile": 64,  # HR 2048
                "frames": {"S2L2A": 60, "S1GRD": 13},  # of a procedural place; the corpus has 65 and 13 on average
                "balance": 0.0,  # the paper draws places alike
                "stratify": "scene",  # columns that make strata: scene (land cover), climate, region, ...
                "ocean": 1.0,  # and thins nothing
                "regions": {
                    "rows": 4096,
                    "zoom": 9,  # unknown; tiles of about 65 km fit the stated area of a region
                    "overflow": "share",  # unknown; a corpus of more regions than rows must not stop the run
                },
                "strict": False,
                "cache": False,  # keep samples in memory
                "index_cache": "",  # folder that keeps the indices of TerraMesh's tars between runs
                "threads": 16,
            },
            "views": {
                "frames": {"S2L2A": 20, "S1GRD": 10},
                "shipped": {"S2L2A": 40, "S1GRD": 13},  # of which every view draws its own: twice a view's, if there
                "date_jitter": 7,  # unknown; less than the revisit of a cloudy month
                "flip": 0.5,  # unknown; nadir images have no up
                "global_size": 16,  # unknown; HR 512, twice DINOv2's, as dense levels want maps
                "local_size": 8,  # unknown; HR 256, half the global side as in DINO, and the least that Swin takes
                "local_views": 6,  # unknown; DINO uses 6 to 10
                "global_scale": (0.25, 1.0),  # unknown; DINO, widened: the dense levels live from overlap
                "local_scale": (0.05, 0.25),  # unknown; DINO
                "brightness": 0.4,  # unknown; BYOL's jitter, without hue: land cover is told by colour
                "contrast": 0.4,  # unknown; as brightness
                "blur": 0.5,  # unknown; the paper names blur; DINO's mean over both global views
                "solarise": 0.1,  # unknown; the paper names solarisation; DINO's mean over both global views
            },
            "objective": {
                "levels": ("pixel", "object", "image"),
                # unknown; DINO's 65,536 for images, an eighth for pixels and objects, of which there are far more:
                # with the heads' widths, 205 M parameters beside the paper's 189 M
                "outputs": {"pixel": 8192, "object": 8192, "image": 65_536},
                "head_per": "level",  # unknown; levels differ in what they are to ignore
                "head_hidden": 2048,  # unknown; DINO
                "head_bottleneck": 256,  # unknown; DINO
                "clusters": 16,  # unknown; objects of about 4 x 4 pixels of a global view
                "cluster_epsilon": 0.05,  # unknown; SwAV
                "cluster_iterations": 3,  # unknown; SwAV
                "cluster_rounds": 3,  # unknown; by then assignments hardly change
                "contrast_weight": 1.0,  # unknown alpha; sets the scale
                "alignment_weight": 0.1,  # unknown beta; an addition worth less than 1 mIoU in the paper's ablation
                "alignment_grid": 2,  # unknown; four places of each view: neither a mean of everything nor 256 a view
                "alignment_width": 256,  # unknown; as the heads' bottleneck
                "alignment_temperature": 0.1,  # unknown; batches are small for CLIP's 0.07
                "student_temperature": 0.1,  # unknown; DINO
                "teacher_temperature": (0.04, 0.07),  # unknown; DINO
                "teacher_temperature_steps": 30_000,  # unknown; DINO's 30 epochs, as a share of the run
                "teacher_momentum": 0.996,  # unknown; DINO
                "centre_momentum": 0.9,  # unknown; DINO
                "modality_dropout": 0.0,  # the paper hides nothing
                "geo_context": True,
                "region_prototypes": 100,
                "prototype_width": 512,  # unknown; what 215 M parameters leave, with projections
                "prototype_momentum": 0.99,  # unknown; a region is met about once in 17 steps
                "prototype_epsilon": 0.05,  # unknown; SwAV
                "prototype_iterations": 3,  # unknown; SwAV
            },
            "encoder": {
                "hr_drop_path": 0.2,  # the released configs
                "drop_path": 0.3,  # the released configs
                "class_token": False,  # unknown; SkySense++ goes on without
                "eps": 1e-5,  # unknown; the released code
                "date_positions": "all",
                "pad_small_map": False,
                "statistics": "skysense",
            },
            "optimizer": {
                "learning_rate": 2e-4,  # unknown; SkySense V2 on the same corpus
                "warmup_steps": 10_000,  # unknown; about 1 % of the run
                "final_learning_rate": 1e-6,  # unknown; SkySense V2
                "weight_decay": 0.04,  # unknown; DINO
                "final_weight_decay": 0.2,  # unknown; DINOv2
                "betas": (0.9, 0.999),  # unknown; AdamW's
                "eps": 1e-8,  # unknown; AdamW's
                "clip_norm": 3.0,  # unknown; DINO
                "clip": "tensor",
            },
            "checkpoint": {"every": 1000, "keep": 2},
            "evaluation": {
                "every": 25_000,
                "bank": 512,  # places
                "queries": 256,
                "pixels": 64,  # of each place
                "batch_size": 80,
            },
        }
    )
