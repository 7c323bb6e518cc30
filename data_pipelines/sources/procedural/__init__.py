"""A procedural Earth: endless co-registered Sentinel-1, Sentinel-2, elevation and land cover, drawn from a seed.

It is made the way an image comes about: a place (`world`, `places`), its relief (`terrain`), its land cover
(`land_cover`, `parcels`), the passes of the satellites and the season (`acquisition`), what covers each pixel
(`surface`), what that looks like (`spectra`), the air (`weather`), and the sensors (`optics`, `radar`).
It needs no file and no network, so that everything can be tried and tested on it. It is no substitute for
real data: places are crude, objects few, and nothing moves.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.modalities import MODALITIES, modality
from data_pipelines.sample import Raster, Sample
from data_pipelines.sources import Index
from data_pipelines.sources.procedural import optics, places
from data_pipelines.sources.procedural.acquisition import acquire
from data_pipelines.sources.procedural.chance import layer_rng
from data_pipelines.sources.procedural.land_cover import map_land_cover
from data_pipelines.sources.procedural.places import Place
from data_pipelines.sources.procedural.radar import render_radar
from data_pipelines.sources.procedural.surface import cover_ground
from data_pipelines.sources.procedural.terrain import make_terrain
from data_pipelines.sources.procedural.utm import corner_on_lattice, utm_zone
from data_pipelines.sources.procedural.weather import draw_weather

_OPTICAL = frozenset({"S2L1C", "S2L2A", "S2RGB", "NDVI"})
_RADAR = frozenset({"S1GRD", "S1RTC"})


class ProceduralEarth:
    """Source of drawn samples; sample i is a function of (seed, i, tile) alone, to the bit with the same libraries.

    What is drawn of a modality does not depend on which others are asked for. `LULC` is the truth, under clouds too:
    its class "clouds" never occurs. `index` is exact and costs no pixels. Samples carry the attributes
    `cloud_fraction` (where an optical modality is drawn), `biome`, `scene` and `sun_zenith`.

    Args:
        samples: length of the source.
        tile: side of a tile, pixels at 10 m; 20 m and 60 m bands have ceil(tile / 2) and ceil(tile / 6).
        seed: another Earth.
        modalities: what to draw; None draws everything.

    Raises:
        DataError: if an option is out of range or a modality is unknown or has no procedural form.
    """

    name = "procedural"

    def __init__(
        self, samples: int = 10_000, tile: int = 128, seed: int = 0, modalities: Sequence[str] | None = None
    ) -> None:
        if samples < 1 or seed < 0:
            raise DataError(f"the procedural Earth needs samples >= 1 and seed >= 0, not {samples} and {seed}")
        if not 16 <= tile <= 2048:
            raise DataError(f"tile={tile} is out of range: the procedural Earth draws tiles of 16 to 2048 pixels")
        known = (*_OPTICAL, *_RADAR, "DEM", "LULC")
        names = [modality(name).name for name in (known if modalities is None else modalities)]
        strange = [name for name in names if name not in known]
        if strange or not names:
            raise DataError(f"the procedural Earth draws {', '.join(sorted(known))}; not {strange or 'nothing'}")
        self.tile, self.seed = tile, seed
        self.modalities = tuple(name for name in MODALITIES if name in names)
        self._samples = samples

    def __len__(self) -> int:
        return self._samples

    @cached_property
    def index(self) -> Index:
        """Keys, places, regions, splits and dominant classes of all samples."""
        numbers = np.arange(self._samples)
        drawn = places.draw_places(self.seed, numbers)
        keys = np.char.add(f"earth{self.seed}-", np.char.zfill(numbers.astype(str), 7))
        return Index.at(keys, drawn.lon, drawn.lat, places.dominant_scene(drawn, self.tile**2))  # type: ignore[arg-type]

    def __getitem__(self, i: int) -> Sample:
        """Draw sample `i`.

        Raises:
            IndexError: if `i` is not in 0 .. len - 1.
        """
        i = int(i)
        if not 0 <= i < self._samples:
            raise IndexError(f"sample {i} of {self._samples}")
        drawn = places.draw_places(self.seed, np.array([i]))
        place, scene = drawn[0], int(places.dominant_scene(drawn, self.tile**2)[0])
        epsg = utm_zone(place.lon, place.lat)
        left, top = corner_on_lattice(place.lon, place.lat, epsg, self.tile)
        rasters, attributes = self._render(i, place)
        return Sample(
            key=f"earth{self.seed}-{i:07d}",
            rasters={name: rasters[name] for name in self.modalities},
            lon=place.lon,
            lat=place.lat,
            epsg=epsg,
            transform=(10.0, 0.0, left, 0.0, -10.0, top),
            source=self.name,
            attributes={"biome": place.climate.name, "scene": scene, **attributes},
        )

    def _render(self, i: int, place: Place) -> tuple[dict[str, Raster], dict[str, float]]:
        """Draw the scene on whole 60 m blocks, then whichever pictures of it are wanted."""
        wanted, tile = set(self.modalities), self.tile
        pixels = -(-tile // 6) * 6
        terrain = make_terrain(layer_rng(self.seed, i, "terrain"), place, pixels)
        land = map_land_cover(layer_rng(self.seed, i, "pattern"), place, terrain, tile)
        seen = acquire(layer_rng(self.seed, i, "acquisition"), place)
        made: dict[str, tuple[dict[int, np.ndarray], np.datetime64 | None]] = {
            "DEM": ({10: np.rint(land.elevation[None, :tile, :tile]).astype(np.int16)}, None),
            "LULC": ({10: land.classes[None, :tile, :tile].copy()}, None),
        }
        attributes = {"sun_zenith": round(seen.sun_zenith, 2)}
        if wanted & (_OPTICAL | _RADAR):
            surface = cover_ground(layer_rng(self.seed, i, "surface"), place, land, seen.season)
        if wanted & _RADAR:
            radar = render_radar(layer_rng(self.seed, i, "radar"), place, land, surface, seen, wanted & _RADAR)
            made |= {name: ({10: image[:, :tile, :tile].copy()}, seen.radar_time) for name, image in radar.items()}
        if wanted & _OPTICAL:
            weather = draw_weather(layer_rng(self.seed, i, "weather"), place, seen, pixels)
            stack = optics.fraction_stack(place, terrain, land, surface, weather, seen)
            spectrum, sensor = layer_rng(self.seed, i, "spectra"), layer_rng(self.seed, i, "sensor")
            pictures = optics.take_pictures(spectrum, sensor, place, stack, weather, seen, tile, wanted)
            made |= {name: (grids, seen.optical_time) for name, grids in pictures.items()}
            attributes["cloud_fraction"] = round(weather.cloud_fraction(tile), 4)
        rasters = {n: Raster(made[n][0], modality(n).unit, made[n][1]) for n in self.modalities}
        return rasters, attributes
