"""What the procedural Earth drew when results were first reported: later work must not change it."""

import numpy as np
import pytest

from data_pipelines.sources.procedural import ProceduralEarth

FROZEN = {
    0: ("2023-10-22T01:27:56", {"S2L1C": 1421.5314, "S2L2A": 1535.6716, "S2RGB": 97.7043, "S1GRD": -10.8996,
                                "S1RTC": -9.8980, "DEM": 333.4045, "LULC": 5.5486, "NDVI": 0.3552}),
    6: ("2020-08-10T20:29:09", {"S2L1C": 3668.4335, "S2L2A": 4481.6045, "S2RGB": 180.5266, "S1GRD": -14.6966,
                                "S1RTC": -14.0240, "DEM": 122.3524, "LULC": 5.5399, "NDVI": 0.0254}),
    17: ("2021-02-05T09:52:52", {"S2L1C": 1138.5918, "S2L2A": 965.7664, "S2RGB": 77.7043, "S1GRD": -14.5624,
                                 "S1RTC": -13.9232, "DEM": 0.1979, "LULC": 3.1476, "NDVI": -0.1230}),
    48: ("2017-04-04T12:46:28", {"S2L1C": 2742.0598, "S2L2A": 3249.4903, "S2RGB": 143.3912, "S1GRD": -16.6075,
                                 "S1RTC": -15.5990, "DEM": 712.6944, "LULC": 5.0938, "NDVI": -0.0028}),
}  # fmt: skip
"""Sample of seed 0 and 24 pixels -> time of the optical pass, and the mean over each modality's grids."""


@pytest.mark.parametrize("i", FROZEN)
def test_single_dates_are_what_they_were(i):
    sample, (time, means) = ProceduralEarth(60, 24)[i], FROZEN[i]
    assert str(sample.rasters["S2L2A"].time) == time
    found = {
        name: np.mean([grid.astype(np.float64).mean() for grid in raster.grids.values()])
        for name, raster in sample.rasters.items()
    }
    assert found == pytest.approx(means, abs=2e-3, rel=1e-5)  # libraries may round the last bit otherwise
