import pytest

from data_pipelines.modalities import modality
from terra_jax.errors import ConfigError
from terra_jax.terramind.streams import INPUTS, OUTPUTS, PIXELS, STREAMS, input_stream, output_stream, streams_of
from terra_jax.terramind.variants import MODELS, TOKENIZERS

NUMBERS = {
    "S2L2A": 421, "S2L1C": 27295, "S2RGB": 16849, "S1GRD": 12002, "S1RTC": 26488, "DEM": 21202, "tok_S2L2A": 32014,
    "tok_S1GRD": 20262, "tok_S1RTC": 11360, "tok_DEM": 19072, "tok_LULC": 24055, "tok_NDVI": 1959, "coords": 30432,
    "caption": 32652,
}  # fmt: skip


def test_streams_are_the_public_ones():
    assert {name: stream.number for name, stream in STREAMS.items()} == NUMBERS
    assert (len(INPUTS), len(OUTPUTS), len(PIXELS)) == (13, 7, 6)
    assert all(STREAMS[name].bands == modality(name).band_names for name in PIXELS)
    for variant in TOKENIZERS.values():
        assert STREAMS[f"tok_{variant.modality}"].vocabulary == variant.codebook


def test_nano_fits_the_nano_tokenizers():
    nano = MODELS["nano"]
    sizes = {(v.patch, v.image, v.grid) for name, v in TOKENIZERS.items() if name.endswith("_nano")}
    assert sizes == {(nano.patch, nano.image, nano.grid)}


@pytest.mark.parametrize(
    ("name", "taken", "given"),
    [
        ("S2L2A", "S2L2A", "tok_S2L2A"),
        ("LULC", "tok_LULC", "tok_LULC"),
        ("tok_DEM", "tok_DEM", "tok_DEM"),
        ("tok_dem@224", "tok_DEM", "tok_DEM"),
        ("coords", "coords", "coords"),
    ],
)
def test_modalities_go_in_and_come_out(name, taken, given):
    assert (input_stream(name).name, output_stream(name).name) == (taken, given)


def test_modalities_without_tokens_only_go_in():
    assert input_stream("RGB").name == input_stream("untok_sen2rgb@224").name == "S2RGB"
    with pytest.raises(ConfigError, match=r"no modality 'S2RGB' here; did you mean"):
        output_stream("RGB")
    with pytest.raises(ConfigError, match="no stream 'tok_HR' here; did you mean tok_"):
        streams_of(["tok_HR"])
