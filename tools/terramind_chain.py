"""TerraMind from nothing to maps on the built-in data: tokenizers, tokens, pretraining, generation; one command each.

    python tools/terramind_chain.py --out runs/chain
    python tools/terramind_chain.py --out runs/chain --tiles tiles

Each command is printed before it runs. A chain that was stopped goes on with the same words. The tokenizers train
fewer steps than their configs say, and every training is scored once, which keeps the whole short. What is generated of
a place in a region that nothing was trained on, and of each tile of `--tiles` (folders as the source "geotiff" reads
them), is set beside the commonest class and the mean.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio

from data_pipelines.modalities import modality
from data_pipelines.sources.geotiff import read_checked
from data_pipelines.sources.procedural import ProceduralEarth
from terra_jax.inference.rasters import Georeference, write_image
from terra_jax.training.config import write_json

MODALITIES = ("S2L2A", "LULC", "NDVI")
"""What is tokenised; Sentinel-1 and elevation are seen as pixels."""

OUTPUTS = ("LULC", "NDVI")
TILE, SCENE = 72, 192
"""Pixels per side of what is tokenised, and of the scene that maps are made of."""

AT_THE_END = "--config.evaluation.every=0"
QUICK = (AT_THE_END, "--config.evaluation.codebook_samples=512")
"""Of the tokenizers: figures at the end only, on fewer tiles."""

SETTINGS, DRAWS = 4, 8
"""Crops of a place that are tokenised; draws of which a map is the mean."""


def main() -> int:
    """Run the chain and print its figures."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example: python tools/terramind_chain.py --out runs/chain --config.optimizer.learning_rate=1e-3 "
        "(config keys go to every training)",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder that takes everything")
    parser.add_argument("--tokenizer-steps", type=int, default=250, metavar="N", help="of each tokenizer (default 250)")
    parser.add_argument(
        "--steps", type=int, default=None, metavar="N", help="of the pretraining (default the config's)"
    )
    parser.add_argument(
        "--samples", type=int, default=3072, metavar="N", help="places that are tokenised (default 3072)"
    )
    parser.add_argument("--generation-steps", type=int, default=4, metavar="N", help="of the generation (default 4)")
    parser.add_argument("--tiles", type=Path, metavar="DIR", help="also make maps of real tiles, <DIR>/S2L2A/<key>.tif")
    options, overrides = parser.parse_known_args()
    if wrong := [item for item in overrides if not item.startswith("--config.")]:
        parser.error(f"unknown option {wrong[0]!r}; only --config.KEY=VALUE may follow")
    return Chain(options, overrides).run()


class Chain:
    """The commands, and how long each took."""

    def __init__(self, options: argparse.Namespace, overrides: Sequence[str]):
        self.options, self.overrides = options, list(overrides)
        self.seconds: dict[str, float] = {}

    def run(self) -> int:
        """All commands in turn, then the figures."""
        out = self.options.out
        for name in MODALITIES:
            quick = [f"--config.steps={self.options.tokenizer_steps}", *QUICK]
            config = f"terramind/tokenizer_{name.lower()}_nano"
            self._command(f"tokenizer {name}", "train", "--config", config, "--workdir", out / name, *quick,
                          *self.overrides)  # fmt: skip
        models = [f"terramind_v1_tokenizer_{name.lower()}_nano={out / name}" for name in MODALITIES]
        self._command(
            "tokens", "tokenize", *(word for model in models for word in ("--model", model)), "--source", "procedural",
            "--samples", self.options.samples, "--tile", TILE, "--settings", SETTINGS, "--out", out / "tokens",
        )  # fmt: skip
        changes = [f"data.tokens={out / 'tokens'}", f"data.samples={self.options.samples}", f"data.tile={TILE}"]
        changes += [f"evaluation.tokenizers.{name}={out / name}" for name in MODALITIES]
        changes += [f"steps={self.options.steps}"] if self.options.steps else []
        self._command("pretraining", "train", "--config", "terramind/nano", "--workdir", out / "model", AT_THE_END,
                      *(f"--config.{change}" for change in changes), *self.overrides)  # fmt: skip
        scenes = {"unseen region": draw_scene(out / "scene", self.options.samples), **self._tiles()}
        results = {}
        for title, folder in scenes.items():
            made = out / "maps" / title.replace(" ", "_")
            self._generate(title, folder, made)
            results[title] = scores(folder, made)
        print_scores(results)
        report = json.loads((out / "model" / "report.json").read_text())
        summary = {name: report[name] for name in ("validation", "zero_shot")}
        write_json(out / "chain.json", {"seconds": self.seconds, "maps": results, **summary})
        minutes = sum(self.seconds.values()) / 60
        print(f"{minutes:.1f} minutes in all; figures in {out / 'chain.json'}, page in {out / 'model' / 'report.png'}")
        return 0

    def _generate(self, title: str, scene: dict[str, Path], made: Path) -> None:
        out = self.options.out
        weights = [f"model={out / 'model'}", *(f"{name}={out / name}" for name in OUTPUTS)]
        self._command(
            f"maps of {title}", "generate", "--model", "terramind_v1_nano_generate",
            *(word for weight in weights for word in ("--weights", weight)), "--in", f"S2L2A={scene['S2L2A']}",
            "--outputs", ",".join(OUTPUTS), "--steps", self.options.generation_steps, "--samples", DRAWS, "--out", made,
            "--overwrite",
        )  # fmt: skip

    def _tiles(self) -> dict[str, dict[str, Path]]:
        """Key of a real tile -> modality -> file."""
        if self.options.tiles is None:
            return {}
        keys = sorted(path.stem for path in (self.options.tiles / "S2L2A").glob("*.tif"))
        return {key: {name: self.options.tiles / name / f"{key}.tif" for name in ("S2L2A", *OUTPUTS)} for key in keys}

    def _command(self, title: str, *words: object) -> None:
        """Print a command, run it and note its time."""
        arguments = [str(word) for word in words]
        print(f"\n# {title}\nterra-jax {shlex.join(arguments)}", flush=True)
        began = time.perf_counter()
        if status := subprocess.run([sys.executable, "-m", "terra_jax.cli", *arguments]).returncode:
            raise SystemExit(status)
        self.seconds[title] = time.perf_counter() - began
        print(f"# {self.seconds[title]:.0f} s", flush=True)


def draw_scene(folder: Path, samples: int) -> dict[str, Path]:
    """GeoTIFFs of one place of the procedural Earth in a region that training and its evaluations leave out."""
    earth = ProceduralEarth(samples, SCENE, modalities=("S2L2A", *OUTPUTS))
    land = np.flatnonzero((earth.index.split == "test") & (earth.index.scene > 1))  # neither no data nor water
    sample = earth[int(land[0] if len(land) else np.flatnonzero(earth.index.split == "test")[0])]
    crs = rasterio.CRS.from_epsg(sample.epsg).to_wkt()
    files = {}
    for name, raster in sample.rasters.items():
        table = modality(name)
        bands = np.zeros((len(table.bands), SCENE, SCENE), np.float32)
        for gsd, grid in raster.grids.items():
            fine = grid.repeat(gsd // 10, -2).repeat(gsd // 10, -1)[..., :SCENE, :SCENE]
            bands[list(table.grids[gsd])] = fine
        folder.mkdir(parents=True, exist_ok=True)
        files[name] = folder / f"{name}.tif"
        write_image(files[name], bands.transpose(1, 2, 0), name, Georeference(crs, sample.transform), {})
    return files


def scores(scene: dict[str, Path], made: Path) -> dict[str, dict[str, float]]:
    """Of generated maps: accuracy of land cover beside the commonest class', error of NDVI beside the mean's."""
    known = [name for name in OUTPUTS if scene[name].exists()]
    truth = {name: read_checked(name, scene[name])[0].astype(np.float64) for name in known}
    found = {name: read_checked(name, made / f"{name}.tif")[0].astype(np.float64) for name in known}
    result = {}
    if "LULC" in truth:
        seen = truth["LULC"] > 0  # 0 is no data
        counts = np.bincount(truth["LULC"][seen].astype(int))
        result["LULC"] = {
            "accuracy": float((truth["LULC"] == found["LULC"])[seen].mean()),
            "majority class": float(counts.max() / counts.sum()),
        }
    if "NDVI" in truth:
        result["NDVI"] = {
            "mae": float(np.abs(truth["NDVI"] - found["NDVI"]).mean()),
            "mae of the mean": float(np.abs(truth["NDVI"] - truth["NDVI"].mean()).mean()),
        }
    return result


def print_scores(results: dict[str, dict[str, dict[str, float]]]) -> None:
    """One line a scene."""
    print(f"\n{'S2L2A to':<24}{'LULC accuracy':>16}{'majority class':>16}{'NDVI MAE':>12}{'of the mean':>12}")
    for title, result in results.items():
        cells = [*result.get("LULC", {}).values(), *result.get("NDVI", {}).values()]
        print(f"{title:<24}" + "".join(f"{c:>{w}.3f}" for c, w in zip(cells, (16, 16, 12, 12), strict=False)))


if __name__ == "__main__":
    sys.exit(main())
