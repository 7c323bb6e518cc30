import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.modalities import LAND_COVER
from terra_jax.skysense.evaluation import CLOUDY, InputSet, PixelKNN, input_sets, labelled_pixels

TILE, FRAMES = 4, 3
MODALITIES = ("HR", "S2L2A", "S1GRD")


def _tiles(seed, count=12):
    """Land cover is written into Sentinel-1 and, where no cloud is, into Sentinel-2; HR is noise."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([1, 2, 4, 5], (count, TILE, TILE)).astype(np.uint8)
    cloud = np.tile([0.0, 0.9, 0.9], (count, 1)).astype(np.float32)
    clear = np.broadcast_to(cloud[:, :, None, None, None] < CLOUDY, (count, FRAMES, 1, TILE, TILE))
    ground = labels[:, None, None].astype(np.float32)
    s2 = {10: 4, 20: 6}
    batch = {
        "HR": rng.integers(0, 256, (count, 3, 32 * TILE, 32 * TILE)).astype(np.uint8),
        "HR/present": np.ones((count, 1), bool),
        "S1GRD/10": (ground * 3 - 20 + 0.1 * rng.normal(size=(count, FRAMES, 2, TILE, TILE))).astype(np.float16),
        "labels": labels,
        "cloud": cloud,
        "region": np.zeros(count, np.int32),
        "lonlat": np.zeros((count, 2), np.float32),
        "pixels": np.stack([labelled_pixels(tile, 8, i) for i, tile in enumerate(labels)]),
    }
    for gsd, bands in s2.items():
        step = gsd // 10
        noise = rng.integers(6000, 9000, (count, FRAMES, bands, TILE // step, TILE // step))
        seen = np.where(clear, 800 * ground, noise if step == 1 else 7000)[..., ::step, ::step]
        batch[f"S2L2A/{gsd}"] = np.broadcast_to(seen, noise.shape).astype(np.int16)
    for name in ("S2L2A", "S1GRD"):
        batch[f"{name}/days"] = np.tile(np.arange(FRAMES, dtype=np.int32), (count, 1))
        batch[f"{name}/present"] = np.ones((count, FRAMES), bool)
    return batch


class Transparent:
    """An encoder whose features are the pixels themselves, times a parameter."""

    def __init__(self, scale):
        self.scale = scale

    def aligned(self, images, *, present, normalised):
        assert normalised
        fine = images["HR"].reshape(len(images["HR"]), 1, TILE, 32, TILE, 32, 3).mean((3, 5))
        maps = {**images, "HR": fine}
        return {name: jnp.pad(x[..., :2], [(0, 0)] * 4 + [(0, 1)]) * self.scale + 1e-3 for name, x in maps.items()}

    def fuse(self, aligned, days, present):
        total = 0.0
        for i, (name, maps) in enumerate(sorted(aligned.items())):
            weight = present[name].astype(jnp.float32)[..., None, None, None]
            mean = (weight * maps).sum(1) / weight.sum(1)
            total = total + jnp.roll(jnp.concatenate([mean, jnp.zeros_like(mean).repeat(2, -1)], -1), 3 * i, -1)
        return total


class Module:
    def __init__(self, params):
        self.encoder = Transparent(params["scale"])


@pytest.fixture(scope="module")
def knn():
    return PixelKNN(
        lambda: iter([_tiles(0)]),
        lambda: iter([_tiles(1)]),
        lambda: {"scale": jnp.zeros(())},
        modalities=MODALITIES,
        batch_size=12,
        statistics="skysense",
    )


def test_every_set_is_scored_beside_its_baselines(knn):
    scores, baselines = knn(Module, {"scale": jnp.ones(())}), knn.baselines(Module)
    assert knn.headline == "HR+S2L2A+S1GRD"
    full = {name: results[-1]["accuracy"] for name, results in scores.items()}
    assert full["S1GRD"] > 0.9 and full["HR"] < 0.6
    assert full["S2L2A+S1GRD, heavy cloud"] > full["S2L2A fused, heavy cloud"] + 0.2
    assert baselines["random encoder"]["S1GRD"][-1]["accuracy"] < 0.6
    measured = baselines["pixel mean and deviation"]
    assert set(measured) == set(baselines["random encoder"]) == set(scores)
    assert measured["S1GRD"][-1]["accuracy"] > 0.6
    assert scores["S1GRD"][-1]["queries"] == 12 * 8


def test_input_sets():
    assert list(input_sets(("S2L2A",))) == ["S2L2A"]
    sets = input_sets(MODALITIES)
    assert next(iter(sets)) == "HR+S2L2A+S1GRD" and sets["HR"] == InputSet(("HR",), False)
    assert sets["S2L2A fused, heavy cloud"].cloudy
    assert "S2L2A+S1GRD" in input_sets(("S2L2A", "S1GRD"))


def test_pixels_are_drawn_from_known_land_cover():
    labels = np.full((4, 4), LAND_COVER.index("nodata"), np.uint8)
    assert (labelled_pixels(labels, 5, 0) == -1).all()
    labels[1, 2] = labels[3, 3] = 2
    labels[0, 0] = LAND_COVER.index("clouds")
    assert set(labelled_pixels(labels, 5, 0)) == {6, 15}
    everything = labelled_pixels(np.full((4, 4), 2), 16, 3)
    assert sorted(everything) == list(range(16))
    assert np.array_equal(everything, labelled_pixels(np.full((4, 4), 2), 16, 3))


def test_tiles_without_labels_are_left_out(knn):
    tiles = _tiles(2)
    tiles["pixels"][:6] = -1
    part = PixelKNN(
        lambda: iter([tiles]),
        lambda: iter([_tiles(1)]),
        lambda: {},
        modalities=MODALITIES,
        batch_size=12,
        statistics="skysense",
    )
    assert part(Module, {"scale": jnp.ones(())})["HR"][-1]["bank"] == 6 * 8
