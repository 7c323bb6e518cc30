"""A coarse world: ten biomes on 5 degree cells, and the climate and relief that go with them."""

from dataclasses import dataclass

import numpy as np

_CELL = 5.0  # degrees
_NORTH = 85.0  # upper edge of the first row
_MAP = (  # 180 W to 180 E, one character a cell; a point is sea
    "..................IIIII.IIIIIIII........................................",  # 85 N
    "............UUUUUUUU..IIIIIIIIII......III.......II.....UUUU.....UU......",
    "....UUU....UUUUU.UUUUU...IIIIIII........UU....UU.UUUUUUUUUUUUUUUUUUU....",
    "..UUUUUBBBBBBBUUUUU..UUU.IIIII.UU.....BBBBBBUUBBUUUBBBBBBBBBBBBBBBBBUUUU",
    "...BBBBBHHBBBBBBUU..UUU..III...UU....HBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBUUUU",
    "....BB...HHBBBBBB...BBBB..........TT.TTTTTTTTTTTBBBBBBBBBBBBBBBB...BB...",  # 60 N
    "..........HHHGGGGBBBBBBBB.........TTTTTTTTTTGGGGGGGGHHHBBBBBBBBBB..B....",
    "...........THHGGGTTTTTT.BB.........TTTTTTTGGGGGDDGGGHHDGGGGGTTTTB.......",
    "...........TDDHGGTTTTT............MMM.MTTMGGHH.DDHHDDDDDDDGGTT..T.......",
    "...........MMDHGGTTTT.............MMMM.MMMGMMDDDDHHHHHHHGGTT.T.TT.......",
    "............DDDGGTTT..............MMDDDDDDDDDDDDDDSHHHHHHTTTT.T.........",  # 35 N
    ".............DDDG..S.............DDDDDDDDDDDDDDDDDSSSFFHHTTT............",
    "..............SDS.FSS...........DDDDDDDDDDDDDDDD..SSSSFFFFTTF...........",
    "...............SSFF..FF.........DDDDDDDDDDDSDDD...SSS..FSF..F...........",
    ".................FFF.SSS........SSSSSSSSSSSHDD.....S...FFF..F...........",
    "...................FFFSSFF.......FFSSSFSSSSHDD......F..FF..FFF..........",  # 10 N
    "....................FFFFFF............FFFFSSDD.........FF.FFFF..........",
    "....................FFFFFFFSS.........FFFFSS............F.FFF.FFFF......",  # equator
    "....................DFFFFFSSS.........SSSSSS.............FF.S...FF......",
    "....................DHFFSSSS..........SSSSSS.F...............SS.S.......",
    ".....................DHSSSSS..........DDSSSS.S..............SSSSSF......",
    ".....................DHSSSFF...........DDSS..S.............DDDDDDSS.....",  # 20 S
    ".....................DDDGT.............DGGS................DDDDDDGT.....",
    ".....................MDGGG.............MMGT................MMDDMGGT.....",
    ".....................TDGG.......................................TT....TT",
    ".....................TD..........................................T...TT.",
    ".....................TD..............................................T..",  # 45 S
    ".....................TT.................................................",
)


@dataclass(frozen=True)
class Biome:
    """Typical values of one biome; samples scatter widely about them.

    Attributes:
        name: plain name.
        cover: expected shares of water, trees, flooded vegetation, crops, built, bare, snow, rangeland.
        altitude: median, metres.
        relief: median standard deviation of elevation within a tile, metres.
        aridity: 0 (always moist) to 1 (desert).
        wet_season: day of the year (northern hemisphere) when rain makes the plants greenest; 0: warmth decides.
        conifers: share of needle-leaved trees; the rest of the trees drop their leaves in cold winters.
        cloudiness: share of scenes with some cloud that a cloud-screened archive still holds.
        field: typical width of a crop field, metres.
        swing: yearly swing of the temperature over that usual at the latitude: little by the sea, much inland.
    """

    name: str
    cover: tuple[float, ...]
    altitude: float
    relief: float
    aridity: float
    wet_season: int
    conifers: float
    cloudiness: float
    field: float
    swing: float


BIOMES = {
    "F": Biome(
        "tropical forest", (0.03, 0.66, 0.015, 0.09, 0.012, 0.003, 0.0, 0.19), 180, 16, 0.08, 0, 0, 0.5, 70, 0.7
    ),
    "S": Biome("savanna", (0.012, 0.20, 0.008, 0.20, 0.018, 0.02, 0.0, 0.54), 420, 11, 0.45, 245, 0, 0.32, 90, 0.8),
    "D": Biome("desert", (0.006, 0.006, 0.001, 0.03, 0.007, 0.50, 0.0, 0.45), 520, 14, 0.92, 60, 0, 0.15, 220, 1.1),
    "M": Biome(
        "mediterranean", (0.01, 0.2, 0.002, 0.3, 0.05, 0.02, 0.001, 0.42), 350, 34, 0.55, 105, 0.5, 0.22, 110, 0.6
    ),
    "T": Biome(
        "temperate", (0.02, 0.42, 0.004, 0.32, 0.065, 0.003, 0.001, 0.17), 220, 18, 0.22, 0, 0.35, 0.38, 115, 0.85
    ),
    "G": Biome("steppe", (0.012, 0.07, 0.006, 0.38, 0.018, 0.02, 0.001, 0.49), 450, 9, 0.55, 150, 0.4, 0.25, 320, 1.2),
    "B": Biome(
        "boreal", (0.06, 0.68, 0.018, 0.010, 0.003, 0.003, 0.001, 0.22), 260, 16, 0.25, 0, 0.75, 0.36, 200, 1.15
    ),
    "U": Biome("tundra", (0.06, 0.07, 0.025, 0.0, 0.001, 0.10, 0.07, 0.67), 200, 22, 0.35, 0, 0.8, 0.36, 200, 1.1),
    "I": Biome("ice", (0.01, 0.0, 0.0, 0.0, 0.0, 0.07, 0.89, 0.03), 900, 20, 0.3, 0, 1, 0.30, 200, 1.1),
    "H": Biome("highland", (0.010, 0.17, 0.002, 0.05, 0.008, 0.22, 0.09, 0.45), 2300, 95, 0.5, 0, 0.8, 0.34, 60, 1.0),
}
BIOME_CODES = tuple(BIOMES)


_CELLS = np.array([[BIOME_CODES.index(code) if code != "." else -1 for code in row] for row in _MAP])
_ROWS, _COLUMNS = _CELLS.shape


def _around() -> np.ndarray:
    """(9, rows, columns) biomes of each cell and its neighbours; columns go round the globe, the poles are sea."""
    padded = np.pad(_CELLS, ((1, 1), (0, 0)), constant_values=-1)
    padded = np.concatenate([padded[:, -1:], padded, padded[:, :1]], axis=1)
    return np.stack([padded[i : i + _ROWS, j : j + _COLUMNS] for i in range(3) for j in range(3)])


def _cumulative_area(mask: np.ndarray) -> np.ndarray:
    """Share of the area of the masked cells up to each cell."""
    latitude = np.deg2rad(_NORTH - (np.arange(_ROWS) + 0.5) * _CELL)
    total = np.cumsum((np.cos(latitude)[:, None] * mask).ravel())
    return total / total[-1]


_NEIGHBOURHOOD = _around()
_NEAREST = np.where(_CELLS >= 0, _CELLS, _NEIGHBOURHOOD.max(0))  # a biome for the sea beside land, too
_LAND = _cumulative_area(_CELLS >= 0)
_LAND_BESIDE_SEA = _cumulative_area((_CELLS >= 0) & (_NEIGHBOURHOOD < 0).any(0))
_SEA_BESIDE_LAND = _cumulative_area((_CELLS < 0) & (_NEAREST >= 0))


def locate(uniform: np.ndarray, sea: np.ndarray, coast: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw places evenly by area: on land, on land beside the sea, or on the sea beside land.

    Args:
        uniform: (samples, 5) numbers in (0, 1).
        sea: (samples,) bool, place it at sea.
        coast: (samples,) bool, place it at a coast.

    Returns:
        lon and lat in degrees, and the biome number; at sea that of the nearest land.
    """
    draws = [np.searchsorted(table, uniform[:, 0]) for table in (_SEA_BESIDE_LAND, _LAND_BESIDE_SEA, _LAND)]
    row, column = np.divmod(np.where(sea, draws[0], np.where(coast, draws[1], draws[2])), _COLUMNS)
    lat = np.clip(_NORTH - (row + uniform[:, 1]) * _CELL, -58.0, 83.0)
    lon = -180 + (column + uniform[:, 2]) * _CELL
    # Biomes have no straight borders: take that of a point up to half a cell away, where that is land.
    near_row = np.clip(row + np.floor(uniform[:, 1] + uniform[:, 3] - 0.5).astype(int), 0, _ROWS - 1)
    near_column = (column + np.floor(uniform[:, 2] + uniform[:, 4] - 0.5).astype(int)) % _COLUMNS
    near = _CELLS[near_row, near_column]
    return lon, lat, np.where(near >= 0, near, _NEAREST[row, column])


def mean_temperature(lat: np.ndarray | float, altitude: np.ndarray | float) -> np.ndarray:
    """Annual mean, degrees Celsius: a fit to zonal means, less 6.5 degrees a kilometre."""
    return np.asarray(28.5 - 40.0 * np.abs(np.sin(np.deg2rad(lat))) ** 2.3 - 0.0065 * np.asarray(altitude))


def temperature(lat: float, altitude: float, day: float, swing: float = 1.0) -> float:
    """Degrees Celsius on a day of the year, warmest on 20 July or 20 January; the swing grows with latitude."""
    phase = np.cos(2 * np.pi * (day - (201 if lat >= 0 else 18)) / 365.25)
    return float(mean_temperature(lat, altitude) + swing * (1.5 + 0.28 * abs(lat)) * phase)
