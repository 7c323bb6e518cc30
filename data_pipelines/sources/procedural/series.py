"""Triple samples of the procedural Earth: a high-resolution image and a year of both Sentinels over one place."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.modalities import MODALITIES, modality
from data_pipelines.sample import Raster, Sample
from data_pipelines.sources import Index
from data_pipelines.sources.procedural import ProceduralEarth, places, spectra
from data_pipelines.sources.procedural.acquisition import seasons
from data_pipelines.sources.procedural.chance import layer_rng
from data_pipelines.sources.procedural.closeup import render_closeup
from data_pipelines.sources.procedural.land_cover import LandCover, map_land_cover
from data_pipelines.sources.procedural.optics import illumination
from data_pipelines.sources.procedural.passes import Passes, draw_passes
from data_pipelines.sources.procedural.places import Place
from data_pipelines.sources.procedural.skies import draw_skies
from data_pipelines.sources.procedural.surface import cover_ground
from data_pipelines.sources.procedural.terrain import Terrain, make_terrain
from data_pipelines.sources.procedural.utm import corner_on_lattice, utm_zone
from data_pipelines.sources.procedural.year import optical_series, radar_series

KNOWN = ("HR", "S2L2A", "S1GRD", "LULC")
FRAMES = {"S2L2A": 20, "S1GRD": 10}
"""Most frames of a series: as many as SkySense samples for a view."""


class ProceduralSeries:
    """Source of triple samples, over the very ground of `ProceduralEarth`'s sample of the same number, seed and tile.

    `HR` is one image on a clear day, 32 pixels to 10 m; `S2L2A` and `S1GRD` are series over a year that the seasons,
    clouds (facts of its frames: "cloud_fraction"), speckle and two orbits ("ascending") run through, with gaps: at
    least three quarters of the frames asked for. `LULC`, the truth, always comes along. A sample is a function of
    (seed, number, tile, frames); what is drawn of a modality does not depend on which others are asked for.

    Args:
        samples: length of the source.
        tile: side of a tile, pixels at 10 m.
        seed: another Earth.
        modalities: what to draw; None draws everything.
        frames: series -> most frames, where it is not `FRAMES`.

    Raises:
        DataError: if an option is out of range, or a modality is unknown or has no such form.
    """

    name = "procedural_series"

    def __init__(
        self,
        samples: int = 10_000,
        tile: int = 64,
        seed: int = 0,
        modalities: Sequence[str] | None = None,
        frames: Mapping[str, int] | None = None,
    ) -> None:
        names = [modality(name).name for name in (KNOWN if modalities is None else modalities)]
        strange = [name for name in names if name not in KNOWN]
        if strange or not names:
            raise DataError(f"the procedural series have {', '.join(KNOWN)}; not {strange or 'nothing'}")
        self.frames = FRAMES | dict(frames or {})
        for name, count in self.frames.items():
            if name not in FRAMES or not 1 <= count <= 60:
                raise DataError(f"{count} frames of {name}: choose 1 to 60 of {' or '.join(FRAMES)}")
        self._earth = ProceduralEarth(samples, tile, seed, ["LULC"])
        self.tile, self.seed = tile, seed
        self.modalities = tuple(name for name in MODALITIES if name in {*names, "LULC"})

    def __len__(self) -> int:
        return len(self._earth)

    @cached_property
    def index(self) -> Index:
        """Keys, places, regions, splits and dominant classes of all samples."""
        return self._earth.index

    def __getitem__(self, i: int) -> Sample:
        """Draw sample `i`.

        Raises:
            IndexError: if `i` is not in 0 .. len - 1.
        """
        i = int(i)
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        drawn = places.draw_places(self.seed, np.array([i]))
        place, scene = drawn[0], int(places.dominant_scene(drawn, self.tile**2)[0])
        epsg = utm_zone(place.lon, place.lat)
        left, top = corner_on_lattice(place.lon, place.lat, epsg, self.tile)
        return Sample(
            key=f"earth{self.seed}-{i:07d}",
            rasters=self._render(i, place),
            lon=place.lon,
            lat=place.lat,
            epsg=epsg,
            transform=(10.0, 0.0, left, 0.0, -10.0, top),
            source=self.name,
            attributes={"biome": place.climate.name, "scene": scene},
        )

    def _render(self, i: int, place: Place) -> dict[str, Raster]:
        tile = self.tile
        pixels = -(-tile // 6) * 6
        terrain = make_terrain(layer_rng(self.seed, i, "terrain"), place, pixels)
        land = map_land_cover(layer_rng(self.seed, i, "pattern"), place, terrain, tile)
        passes = draw_passes(layer_rng(self.seed, i, "passes"), place, self.frames["S2L2A"], self.frames["S1GRD"])
        made = {"LULC": Raster({10: land.classes[None, :tile, :tile].copy()}, modality("LULC").unit)}
        if "S2L2A" in self.modalities:
            made["S2L2A"] = self._optical(i, place, terrain, land, passes)
        if "S1GRD" in self.modalities:
            made["S1GRD"] = self._radar(i, place, land, passes)
        if "HR" in self.modalities:
            made["HR"] = self._image(i, place, terrain, land, passes)
        return {name: made[name] for name in self.modalities}

    def _optical(self, i: int, place: Place, terrain: Terrain, land: LandCover, passes: Passes) -> Raster:
        surface = cover_ground(layer_rng(self.seed, i, "surface"), place, land, seasons(passes.optical))
        palette = spectra.draw_palette(layer_rng(self.seed, i, "spectra"), place)
        skies = draw_skies(layer_rng(self.seed, i, "skies"), place, passes.optical, len(land.classes))
        rng = layer_rng(self.seed, i, "optics")
        grids = optical_series(rng, place, terrain, land, surface, palette, skies, passes.optical, self.tile)
        times = np.array([seen.optical_time for seen in passes.optical])
        return Raster(grids, modality("S2L2A").unit, times, {"cloud_fraction": skies.cloud_fraction(self.tile)})

    def _radar(self, i: int, place: Place, land: LandCover, passes: Passes) -> Raster:
        surface = cover_ground(layer_rng(self.seed, i, "surface"), place, land, seasons(passes.radar))
        rng, lasting = (layer_rng(self.seed, i, layer) for layer in ("echoes", "radar"))
        series = radar_series(rng, lasting, place, land, surface, passes.radar, self.tile)
        times = np.array([seen.radar_time for seen in passes.radar])
        return Raster({10: series}, modality("S1GRD").unit, times, {"ascending": passes.ascending})

    def _image(self, i: int, place: Place, terrain: Terrain, land: LandCover, passes: Passes) -> Raster:
        seen = passes.image
        surface = cover_ground(layer_rng(self.seed, i, "surface"), place, land, seen.season)
        palette = spectra.draw_palette(layer_rng(self.seed, i, "spectra"), place).at(seen.leaves, seen.warmth)
        light = illumination(place, terrain, land, seen)
        image = render_closeup(layer_rng(self.seed, i, "image"), land, surface, palette, light, seen, self.tile)
        return Raster({10: image}, modality("HR").unit, seen.optical_time)
