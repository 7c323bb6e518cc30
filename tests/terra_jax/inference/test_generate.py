import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import rasterio

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "data_pipelines"))
from fakes import plausible, write_tif

from data_pipelines.errors import DataError
from data_pipelines.modalities import LAND_COVER, LAND_COVER_COLOURS
from terra_jax.errors import ConfigError
from terra_jax.inference.generate import Tiling, generate_rasters


@jax.tree_util.register_static
class Copier:
    """Stands for a generator: "NDVI" is the elevation by 1000, "LULC" its hundreds, coords those that it is given."""

    patch, image, multiple = 8, 32, 16

    def __init__(self):
        self.calls = []

    def generate(self, inputs, outputs, **options):
        self.calls.append((inputs, options))
        elevation = inputs["DEM"][..., 0]
        made = {
            "NDVI": elevation[..., None] / 1000,
            "LULC": np.eye(len(LAND_COVER))[(elevation // 100).astype(int)],
            "coords": inputs.get("coords", np.zeros((len(elevation), 2))),
        }
        return {name: made[name] for name in outputs}


def elevation(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(100, 900, (1, height, width)).astype(np.int16)


def run(folder: Path, *, outputs=("NDVI", "LULC"), generator=None, sources=None, **options):
    generator = generator or Copier()
    sources = {"DEM": folder / "dem.tif"} if sources is None else sources
    return generate_rasters(generator, sources, outputs, folder / "out", **options)


@pytest.mark.parametrize("shape", [(16, 32), (32, 32), (45, 61), (100, 33), (7, 9)])
@pytest.mark.parametrize("overlap", [None, 0, 15])
def test_windows_are_put_together_without_seams(tmp_path, shape, overlap):
    """What is the same in all windows comes out as it is, whatever the scene's size."""
    dem = elevation(*shape)
    write_tif(tmp_path / "dem.tif", dem)
    files = run(tmp_path, tiling=Tiling(overlap=overlap, batch=1))
    assert [path.name for path in files] == ["NDVI.tif", "LULC.tif"]
    with rasterio.open(files[0]) as ndvi, rasterio.open(files[1]) as lulc:
        assert ndvi.read().dtype == np.float32 and np.allclose(ndvi.read()[0], dem[0] / 1000, atol=1e-6)
        assert lulc.read().dtype == np.uint8 and np.array_equal(lulc.read()[0], dem[0] // 100)


def test_rasters_lie_where_the_input_does_and_land_cover_has_its_colours(tmp_path):
    write_tif(tmp_path / "dem.tif", elevation(40, 48), epsg=32722, offset=120)
    files = run(tmp_path, seed=7, tags={"model": "m"})
    with rasterio.open(tmp_path / "dem.tif") as given:
        for path in files:
            with rasterio.open(path) as made:
                assert (made.crs, made.transform, made.shape) == (given.crs, given.transform, given.shape)
                assert made.tags()["seed"] == "7" and made.tags()["model"] == "m"
    with rasterio.open(files[1]) as lulc:
        water = LAND_COVER_COLOURS[LAND_COVER.index("water")]
        assert "#{:02x}{:02x}{:02x}".format(*lulc.colormap(1)[LAND_COVER.index("water")][:3]) == water
        assert lulc.descriptions == ("class",)


def test_windows_share_what_is_drawn_at_each_place(tmp_path):
    write_tif(tmp_path / "dem.tif", elevation(40, 56))
    generator = Copier()
    run(tmp_path, generator=generator, tiling=Tiling(batch=1), steps=3)
    numbers: dict[int, set[float]] = {}
    windows = 0
    for inputs, options in generator.calls:
        assert options["steps"] == 3 and not options["numbers"].any() and options["probabilities"]
        for image, places in zip(inputs["DEM"], options["places"], strict=True):
            windows += 1
            corners = image[::8, ::8, 0].reshape(-1)
            for place, value in zip(places.tolist(), corners.tolist(), strict=True):
                numbers.setdefault(place, set()).add(value)
    assert windows >= 4 and all(len(values) == 1 for values in numbers.values())
    assert sorted(numbers) == list(range(6 * 8))  # 48 x 64 pixels, mirrored at the edges


def test_the_place_goes_in_and_comes_out(tmp_path):
    write_tif(tmp_path / "dem.tif", elevation(32, 64))
    generator = Copier()
    sources = {"DEM": tmp_path / "dem.tif", "coords": None}
    (path,) = generate_rasters(generator, sources, ["LULC"], tmp_path / "a")
    lon, lat = generator.calls[0][0]["coords"][0]
    assert 4 < lon < 5 and 45 < lat < 46  # easting 600 km, northing 5000 km of zone 31
    (path,) = run(tmp_path, outputs=["coords"])
    assert json.loads(path.read_text()) == {"lon": 0.0, "lat": 0.0}


def without_place(path: Path) -> None:
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        profile = {"driver": "GTiff", "count": 1, "height": 32, "width": 32, "dtype": "int16"}
        with rasterio.open(path, "w", **profile) as file:
            file.write(elevation(32, 32))


@pytest.mark.parametrize(
    ("write", "options", "words"),
    [
        (lambda f: without_place(f / "dem.tif"), {}, "dem.tif has no georeference"),
        (lambda f: write_tif(f / "dem.tif", np.full((1, 32, 32), 9500, np.int16)), {}, "within -12000..9000 m"),
        (lambda f: write_tif(f / "dem.tif", plausible("S1RTC", 32)), {}, "2 bands, DEM has 1"),
        (lambda f: (f / "dem.tif").write_bytes(b"no tiff"), {}, "cannot be read"),
        (lambda f: None, {}, "does not exist"),
        (lambda f: write_tif(f / "dem.tif", elevation(32, 32)), {"sources": {}}, "no raster is given"),
        (lambda f: write_tif(f / "dem.tif", elevation(32, 32)), {"outputs": ["DEM"]}, "DEM is given; leave it out"),
        (lambda f: write_tif(f / "dem.tif", elevation(32, 32)), {"outputs": ["NDWI"]}, "unknown modality 'NDWI'"),
        (lambda f: write_tif(f / "dem.tif", elevation(32, 32)), {"seed": -1}, "seed -1 is out of range"),
        (lambda f: write_tif(f / "dem.tif", elevation(32, 32)), {"tiling": Tiling(window=40)}, "use a multiple of 16"),
        (lambda f: write_tif(f / "dem.tif", elevation(32, 32)), {"tiling": Tiling(overlap=32)}, "overlap of 32"),
        (lambda f: write_tif(f / "dem.tif", elevation(64, 64)), {"tiling": Tiling(overlap=31)}, "smaller overlap"),
        (lambda f: write_tif(f / "dem.tif", elevation(32, 32)), {"tiling": Tiling(batch=0)}, "batch of 0 windows"),
    ],
)
def test_bad_scenes_are_refused_in_one_line(tmp_path, write, options, words):
    write(tmp_path)
    with pytest.raises((ConfigError, DataError), match=words) as error:
        run(tmp_path, **options)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_inputs_lie_on_one_grid(tmp_path):
    write_tif(tmp_path / "dem.tif", elevation(32, 32))
    for number, options in enumerate(({"epsg": 32632}, {"offset": 20.0}, {"gsd": 20.0})):
        other = tmp_path / f"{number}.tif"
        write_tif(other, plausible("S2L2A", 32), **options)
        with pytest.raises(ConfigError, match=f"{number}.tif does not lie on the grid of .*dem.tif"):
            run(tmp_path, sources={"DEM": tmp_path / "dem.tif", "S2L2A": other})


def test_results_are_not_replaced_unasked(tmp_path):
    write_tif(tmp_path / "dem.tif", elevation(32, 32))
    run(tmp_path)
    before = (tmp_path / "out" / "LULC.tif").read_bytes()
    with pytest.raises(ConfigError, match=r"NDVI.tif exists; .* --overwrite"):
        run(tmp_path, seed=1)
    assert (tmp_path / "out" / "LULC.tif").read_bytes() == before
    run(tmp_path, seed=1, overwrite=True)
    assert (tmp_path / "out" / "LULC.tif").read_bytes() != before  # the seed is written down
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
