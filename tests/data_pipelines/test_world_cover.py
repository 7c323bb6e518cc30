"""Land cover of a place from maps in degrees."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import DataError
from data_pipelines.modalities import LAND_COVER, Unit
from data_pipelines.sample import Raster, Sample
from data_pipelines.world_cover import CLASSES, WorldCover


def write_map(folder: Path, name: str, codes: np.ndarray, west: float, north: float, degrees: float = 3.0) -> Path:
    """A map as released: EPSG:4326, uint8, 0 is no data; coarser than the 12,000 pixels a degree of the original."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"ESA_WorldCover_10m_2021_v200_{name}_Map.tif"
    height, width = codes.shape
    profile = {"driver": "GTiff", "count": 1, "height": height, "width": width, "dtype": "uint8", "nodata": 0}
    transform = rasterio.Affine(degrees / width, 0, west, 0, -degrees / height, north)
    with rasterio.open(path, "w", **profile, crs="EPSG:4326", transform=transform) as file:
        file.write(codes[None])
    return path


def place(x: float, y: float, pixels: int = 60, epsg: int = 32631) -> Sample:
    raster = Raster({10: np.zeros((1, pixels, pixels), np.int16)}, Unit.METRE)
    return Sample("p", {"DEM": raster}, 0.0, 0.0, epsg, (10.0, 0.0, x, 0.0, -10.0, y))


MIDDLE = (500_000.0, 5_000_000.0)
"""Of UTM zone 31: 3 degrees east, 45.15 degrees north, on the edge of two tiles of 3 degrees."""


def share(fractions: np.ndarray, name: str) -> float:
    return float(fractions[LAND_COVER.index(name)])


def test_classes_are_ours_and_all_known():
    assert set(CLASSES.values()) <= set(LAND_COVER[1:])
    assert sorted(CLASSES) == [10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100]


@settings(max_examples=15, deadline=None)
@given(code=st.sampled_from(sorted(CLASSES)), x=st.integers(-20, 20), y=st.integers(0, 50))
def test_a_uniform_map_gives_its_class_anywhere(tmp_path_factory, code, x, y):
    folder = tmp_path_factory.mktemp("maps")
    write_map(folder, "N45E003", np.full((30, 30), code, np.uint8), 1.5, 48.0)
    found = WorldCover(folder).fractions(place(MIDDLE[0] + 1000 * x, MIDDLE[1] + 1000 * y))
    assert share(found, CLASSES[code]) == 1.0 and found.sum() == 1.0


def test_a_place_on_the_edge_of_two_maps_sees_both(tmp_path):
    write_map(tmp_path / "a", "N45E000", np.full((30, 30), 40, np.uint8), 0.0, 48.0)
    write_map(tmp_path / "b", "N45E003", np.full((30, 30), 80, np.uint8), 3.0, 48.0)
    found = WorldCover(tmp_path).fractions(place(MIDDLE[0] - 300, MIDDLE[1]))
    assert share(found, "crops") == pytest.approx(0.5, abs=0.02) and share(found, "water") == 1 - share(found, "crops")


def test_pixels_are_looked_up_where_they_lie(tmp_path):
    codes = np.full((3000, 3000), 10, np.uint8)
    codes[:, 1500:] = 50  # from 3 degrees east on
    write_map(tmp_path, "N45E003", codes, 1.5, 48.0)
    for shift, trees in ((-600, 1.0), (-450, 0.75), (-300, 0.5), (0, 0.0)):
        found = WorldCover(tmp_path).fractions(place(MIDDLE[0] + shift, MIDDLE[1] + 600))
        assert share(found, "trees") == pytest.approx(trees, abs=0.1)


def write_list(folder: Path, *names: str) -> None:
    features = [{"type": "Feature", "properties": {"ll_tile": name}, "geometry": None} for name in names]
    (folder / "esa_worldcover_grid.geojson").write_text(json.dumps({"features": features}))


def test_what_is_not_there_is_sea_only_if_the_list_says_so(tmp_path):
    write_map(tmp_path, "N45E006", np.full((30, 30), 10, np.uint8), 6.0, 48.0)
    sea = place(*MIDDLE)
    assert WorldCover(tmp_path).fractions(sea) is None
    write_list(tmp_path, "N45E006")
    assert share(WorldCover(tmp_path).fractions(sea), "nodata") == 1.0
    before = WorldCover(tmp_path).digest
    write_list(tmp_path, "N45E006", "N45E003")
    assert WorldCover(tmp_path).digest != before
    with pytest.raises(DataError, match="sample p: the WorldCover tile N45E003 is not in the folder; fetch it"):
        WorldCover(tmp_path).fractions(sea)


def test_places_on_the_antimeridian(tmp_path):
    write_map(tmp_path, "N00E177", np.full((30, 30), 30, np.uint8), 177.0, 3.0)
    write_map(tmp_path, "N00W180", np.full((30, 30), 60, np.uint8), -180.0, 3.0)
    found = WorldCover(tmp_path).fractions(place(833_700.0, 100_000.0, epsg=32660))
    assert share(found, "rangeland") == pytest.approx(0.5, abs=0.2) and share(found, "bare") > 0.3
    assert share(found, "nodata") == 0


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder, path: path.unlink(), "holds no .tif of WorldCover"),
        (lambda folder, path: path.write_bytes(b"II*\0"), r"v200_N45E003_Map.tif cannot be read"),
        (lambda folder, path: (folder / "a_grid.geojson").write_text("{"), "a_grid.geojson is not WorldCover's list"),
        (
            lambda folder, path: write_map(folder, "N45E003", np.full((9, 9), 7, np.uint8), 1.5, 48.0),
            "holds the code 7",
        ),
    ],
)
def test_damaged_maps_are_named(tmp_path, damage, words):
    path = write_map(tmp_path, "N45E003", np.full((30, 30), 10, np.uint8), 1.5, 48.0)
    damage(tmp_path, path)
    with pytest.raises(DataError, match=words) as error:
        WorldCover(tmp_path).fractions(place(*MIDDLE))
    assert "\n" not in str(error.value)
