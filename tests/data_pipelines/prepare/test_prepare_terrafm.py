"""TerraFM's tiles: cut exactly, described by the map, the sea thinned."""

import json
from dataclasses import replace

import numpy as np
import pytest
from corpora import write_majortom
from rasterio.warp import transform as warp
from rasterio.warp import transform_bounds
from test_world_cover import write_list, write_map

from data_pipelines import records
from data_pipelines.errors import DataError
from data_pipelines.hashing import hash_strings, to_unit
from data_pipelines.land_cover import read_frequent
from data_pipelines.modalities import SCENE_CLASSES
from data_pipelines.prepare.plan import Plan, Preparation
from data_pipelines.prepare.run import prepare
from data_pipelines.prepare.terrafm import TerraFMTiles
from data_pipelines.sources import open_source

NAMES, TILE = ("S2L1C", "S2L2A", "S1RTC"), 18
KEYS = ("110D_457L", "300D_568L", "172U_184L", "55U_60R")


@pytest.fixture(scope="module")
def cells():
    """Whole ones, one without radar, one without a product of Sentinel-2."""
    earth = open_source("procedural", samples=4, tile=2 * TILE, modalities=NAMES)
    drawn = [replace(earth[i], key=key) for i, key in enumerate(KEYS)]
    for i, name in ((2, "S1RTC"), (3, "S2L1C")):
        drawn[i] = replace(drawn[i], rasters={n: r for n, r in drawn[i].rasters.items() if n != name})
    return drawn


@pytest.fixture
def plan(tmp_path, cells) -> Plan:
    root = write_majortom(tmp_path / "majortom", cells)
    return Plan("majortom", path=str(root), out=str(tmp_path / "out"), recipe="terrafm", tile=TILE, shard_size=2)


def bounds(cell):
    a, _, c, _, e, f = cell.transform
    return transform_bounds(f"EPSG:{cell.epsg}", "EPSG:4326", c, f + e * 2 * TILE, c + a * 2 * TILE, f)


def write_maps(folder, cells, codes):
    """A map of each cell: its western half has one code, its eastern half another."""
    for cell, (west, east) in zip(cells, codes, strict=True):
        image = np.full((60, 60), west, np.uint8)
        image[:, 30:] = east
        left, south, right, north = bounds(cell)
        write_map(folder, cell.key, image, (left + right) / 2 - 0.03, (south + north) / 2 + 0.03, 0.06)
    write_list(folder)
    return str(folder)


def test_cells_become_four_tiles(plan, cells):
    assert prepare(plan, workers=1, say=lambda line: None)
    found = open_source("records", path=plan.out)
    assert found.index.keys.tolist() == [f"{key}_{c}_{r}" for key in KEYS[:3] for r in (0, 1) for c in (0, 1)]
    source = open_source("majortom", path=plan.path)
    for i in range(len(found)):
        cell, tile, (row, column) = source[i // 4], found[i], divmod(i % 4, 2)
        assert tile.shape == (TILE, TILE) and ("S1RTC" in tile.rasters) == (i < 8)
        assert (tile.attributes.get("missing") == "S1RTC") == (i >= 8)
        for name, raster in tile.rasters.items():
            for gsd, grid in raster.grids.items():
                side = TILE * 10 // gsd
                part = cell.rasters[name].grids[gsd]
                expected = part[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
                assert np.array_equal(grid, expected, equal_nan=grid.dtype.kind == "f")
        corner = cell.transform[2] + 180 * column, cell.transform[5] - 180 * row
        assert (tile.transform[2], tile.transform[5]) == corner
        (x,), (y,) = warp("EPSG:4326", f"EPSG:{tile.epsg}", [tile.lon], [tile.lat])
        assert np.allclose((x, y), (corner[0] + 90, corner[1] - 90), atol=0.01)


def test_the_map_describes_and_thins(plan, cells, tmp_path):
    maps = write_maps(tmp_path / "maps", cells[:3], [(10, 40), (50, 50), (0, 0)])
    plan = replace(plan, landcover=maps, ocean=0.5)
    assert prepare(plan, workers=1, say=lambda line: None)
    sea = [f"{KEYS[2]}_{c}_{r}" for r in (0, 1) for c in (0, 1)]
    kept = [key for key in sea if to_unit(hash_strings([key]))[0] < 0.5]
    manifest = records.read_manifest(plan.out)
    index = records.read_index(plan.out, manifest)
    assert manifest["thinned"] == 4 - len(kept) > 0 and index["key"].tolist()[8:] == kept
    assert [SCENE_CLASSES[s] for s in index["scene"][:4]] == ["trees", "crops", "trees", "crops"]
    assert np.allclose(index["cover_trees"][:4], [1, 0, 1, 0], atol=0.1) and (index["cover_built"][4:8] == 1).all()
    assert set(index["cover_nodata"][8:]) <= {1.0}
    content = json.loads((tmp_path / "out" / "land_cover.json").read_text())
    assert content["samples"] == {"trees": 2, "crops": 2, "built": 4} | ({"ocean": len(kept)} if kept else {})
    assert content["frequent"][0] == "built" and sum(content["frequencies"].values()) == pytest.approx(1)
    frequent = read_frequent(str(tmp_path / "out" / "land_cover.json"))
    assert frequent[0] == SCENE_CLASSES.index("built") and len(frequent) == len(content["frequent"])


def test_two_workers_give_the_same_tiles(plan, cells, tmp_path):
    maps = write_maps(tmp_path / "maps", cells[:3], [(10, 40), (50, 50), (0, 0)])
    files = []
    for name, workers in (("one", 1), ("two", 2)):
        prepare(replace(plan, landcover=maps, out=str(tmp_path / name)), workers=workers, say=lambda line: None)
        files.append({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()})
    assert files[0] == files[1] and len(files[0]) == 8


def test_places_off_the_maps_are_kept_and_unknown(plan, cells, tmp_path):
    write_map(tmp_path / "maps", "elsewhere", np.full((9, 9), 10, np.uint8), 170.0, -80.0, 0.1)
    preparation = Preparation(replace(plan, landcover=str(tmp_path / "maps")))
    made = preparation.made_of(0)
    assert len(made.rows) == 4 and not made.thinned
    assert {row["scene"] for row in made.rows} == {-1} and np.isnan(made.rows[0]["cover_trees"])


@pytest.mark.parametrize(
    ("codes", "scene"),
    [((80, 80), "water"), ((0, 80), "ocean"), ((0, 0), "ocean"), ((10, 0), "trees"), ((95, 90), "flooded_vegetation")],
)
def test_open_sea_is_where_maps_end(cells, tmp_path, codes, scene):
    from data_pipelines.world_cover import WorldCover

    tiles = TerraFMTiles(TILE, WorldCover(write_maps(tmp_path, cells[:1], [codes])), 1.0)
    middle = tiles._cut(cells[0], (6, 6), 0, 0)
    assert SCENE_CLASSES[middle.attributes["scene"]] == scene


def test_what_cannot_be_cut_is_refused(cells):
    with pytest.raises(DataError, match="--tile 20 splits pixels of 60 m; use a multiple of 6, such as 534"):
        TerraFMTiles(20, None, 0.02)
    with pytest.raises(DataError, match=r"cell 110D_457L is 36 x 36 pixels, not 48 x 48"):
        TerraFMTiles(24, None, 0.02)(cells[0])
    with pytest.raises(DataError, match=r"cell 55U_60R has no S2L1C"):
        TerraFMTiles(TILE, None, 0.02)(cells[3])
    assert TerraFMTiles(12, None, 0.02)(cells[0])[0][0].transform[2] == cells[0].transform[2] + 60  # from the middle


def test_tiles_without_radar_can_be_trained_on(plan):
    from data_pipelines.loader import one_pass
    from data_pipelines.recipes.terrafm import TerraFMRecipe

    assert prepare(plan, workers=1, say=lambda line: None)
    source = open_source("records", path=plan.out, modalities=NAMES)
    (batch,) = one_pass(source, TerraFMRecipe(NAMES, TILE, 0, (0.4, 1.0), (0.1, 0.4)), np.arange(12), 12)
    assert batch["student_modalities"][:8, :, 2].any() and not batch["student_modalities"][8:, :, 2].any()
    assert batch["S1RTC/10"][:8].any() and not batch["S1RTC/10"][8:].any()
    with pytest.raises(DataError, match="has no DEM"):
        open_source("records", path=plan.out, modalities=("S2L2A", "DEM"))
