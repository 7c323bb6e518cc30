import numpy as np
import pytest

from data_pipelines.modalities import modality
from terra_jax.errors import ConfigError
from terra_jax.nn.normalisation import arrange_bands

WANTED = modality("S2L2A").band_names


def test_bands_are_ordered_by_name():
    x = np.arange(12, dtype=np.float32)[None]
    shuffled = WANTED[::-1]
    assert arrange_bands(x[:, ::-1], "S2L2A", WANTED, shuffled, None, np.zeros(12)).tolist() == x.tolist()


def test_missing_bands_need_an_explicit_fill():
    rgb = np.array([[3.0, 2.0, 1.0]], np.float32)
    with pytest.raises(ConfigError, match=r"lacks B01, B05.*fill="):
        arrange_bands(rgb, "S2L2A", WANTED, ["B04", "B03", "B02"], None, np.zeros(12))
    mean = np.full(12, 7.0)
    assert arrange_bands(rgb, "S2L2A", WANTED, ["red", "B03", "B02"], "mean", mean)[0, :4].tolist() == [7, 1, 2, 3]
    assert arrange_bands(rgb, "S2L2A", WANTED, ["B04", "B03", "B02"], "zero", mean)[0, 0] == 0
    assert arrange_bands(rgb, "S2L2A", WANTED, ["B04", "B03", "B02"], "copy:B02", mean)[0, 0] == 1


@pytest.mark.parametrize("fill", ["median", "copy:B12"])
def test_a_fill_that_cannot_be_done_is_named(fill):
    with pytest.raises(ConfigError, match=fill):
        arrange_bands(np.ones((1, 1), np.float32), "S2L2A", WANTED, ["B02"], fill, np.zeros(12))


def test_channels_must_match_their_names():
    with pytest.raises(ConfigError, match="3 channels but 12 band names"):
        arrange_bands(np.ones((1, 3)), "S2L2A", WANTED, None, None, np.zeros(12))
