"""What pretraining runs share. Marks: "published" (paper, card), "reported" (by others), "4M" (its code), "ours"."""

from ml_collections import ConfigDict

from terra_jax.terramind.streams import INPUTS, OUTPUTS

TOKENS_SEEN = 500_000_000_000  # published; inputs and targets counted


def public(size: str) -> ConfigDict:
    """The published run of a size, as far as it is known.

    Args:
        size: "tiny", "small", "base" or "large".
    """
    batch_size, tokens = 4096, 128  # the batch is reported as the best of 2048, 4096 and 8192; the budgets are 4M's
    a_step = batch_size * 2 * tokens
    return ConfigDict(
        {
            "model": f"terramind_v1_{size}_encdec",
            "seed": 0,
            "steps": TOKENS_SEEN // a_step,
            "batch_size": batch_size,
            "accumulation": 1,
            "dtype": "auto",  # bfloat16 on accelerators, float32 on CPU; 4M: bfloat16
            "remat": "full",
            "init": "",  # released weights to continue from
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "data": {
                "source": "procedural",  # published: TerraMesh
                "path": "",
                "filter": "",  # of training samples, as "lat > 0 and scene in (crops, built)"
                "samples": 1_000_000,  # of the procedural Earth; files have as many as they have
                "tokens": ("",),  # folders of `terra-jax tokenize`
                "coordinates": "",  # vocabulary of coordinates, a JSON; "": the built one
                "partial": True,  # samples of files may lack modalities; budgets go to what they have
                "tile": 264,  # published
                "balance": 0.0,  # sampling probability ~ frequency of the stratum ** -balance
                "stratify": "scene",  # columns that make strata: scene (land cover), climate, region, ...
                "ocean": 1.0,  # share of open-sea tiles that is kept
                "strict": False,
                "cache": False,  # keep samples in memory
                "index_cache": "",  # folder that keeps the indices of TerraMesh's tars between runs
                "threads": 16,
            },
            "streams": {"inputs": INPUTS, "outputs": OUTPUTS},  # published
            "masking": {  # Dirichlet budgets: published; their numbers: unknown
                "input_tokens": (tokens, tokens),  # 4M: 128 and 128, or 256 and 256
                "target_tokens": (tokens, tokens),
                "alphas": (0.5,),  # 4M; of the components that give and ask for all streams, one each, of weight 1
                "pixels": 1.0,  # 4M; weight of the components that give the pixels of one modality, together
                "pixel_targets": 0.5,  # 4M; concentration of their targets
                "least": {},  # stream -> fewest tokens; 4M: none
            },
            "objective": {"loss": "mod"},  # 4M
            "optimizer": {
                "learning_rate": 2e-4,  # reported; read as the peak. 4M: 1e-4 * batch / 256
                "warmup_steps": 10_000_000_000 // a_step,  # 4M
                "first_learning_rate": 0.0,  # 4M
                "final_learning_rate": 0.0,  # 4M; its cosine is reported for TerraMind
                "weight_decay": 0.05,  # 4M
                "betas": (0.9, 0.95),  # 4M
                "eps": 1e-8,  # 4M
                "clip_norm": 0.0,  # 4M: no clipping
                "clip": "all",
                "undecayed": "norms",  # 4M: embeddings and the mask token decay
            },
            "checkpoint": {"every": 1000, "keep": 2},
            "evaluation": {  # ours
                "every": 10_000,
                "samples": 2048,  # of unseen regions, for the loss
                "unigram_samples": 65_536,  # of training, whose tokens are counted
                "probe_samples": 512,  # of unseen regions, for modalities drawn from others
                "batch_size": 64,
                "diffusion_steps": 10,
                # weights that decode, by modality; "": none, and no such probe
                "tokenizers": {"S2L2A": "", "LULC": "", "NDVI": ""},
            },
        }
    )
