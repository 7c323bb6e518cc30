import pytest

from terra_jax.errors import ConfigError
from terra_jax.parallel.hardware import CHIPS, Chip, chip_of
from terra_jax.parallel.hlo import Collective, Cost, Product
from terra_jax.parallel.roofline import exchange_seconds, exchanges, padded_flops, roofline

CHIP = Chip("toy", flops=1e12, hbm_bytes=2**30, hbm_bandwidth=1e11, link=1e9, ring=4, dcn=1e8)
TORUS = [(0, x, y) for x in range(4) for y in range(2)]


@pytest.mark.parametrize(
    ("product", "expected"),
    [
        (Product(1, 256, 128, 384, "bf16"), 2 * 256 * 128 * 384),
        (Product(1, 1, 64, 128, "bf16"), 2 * 8 * 128 * 128),
        (Product(1, 128, 64, 1, "bf16"), 2 * 8 * 128 * 128),  # either side may be held
        (Product(12, 197, 64, 197, "bf16"), 12 * 2 * 200 * 128 * 256),
        (Product(1, 8, 128, 128, "f32", passes=6), 6 * 2 * 8 * 128 * 128),
    ],
)
def test_products_are_padded_to_the_matrix_unit(product, expected):
    assert padded_flops(product, 128) == expected >= product.flops * product.passes


@pytest.mark.parametrize(
    ("kind", "group", "seconds"),
    [
        ("all-gather", [0, 2, 4, 6], 3e6 / 2e9),  # along x, a closed ring: both directions
        ("all-reduce", [0, 2, 4, 6], 2 * 0.75e6 / 2e9),
        ("reduce-scatter", [0, 1], 0.5e6 / 1e9),  # along y, which is no ring
        ("all-reduce", list(range(8)), 2 * 0.875e6 / 3e9),  # over both axes
        ("collective-permute", [0, 1], 1e6 / 1e9),
        ("all-gather", [3], None),
    ],
)
def test_exchanges_take_the_links_that_their_group_spans(kind, group, seconds):
    exchange = Collective(kind, 1_000_000, tuple(group))
    found = exchange_seconds(exchange, CHIP, [TORUS[i] for i in group], [4, 2])
    assert found == ({} if seconds is None else {"interconnect": pytest.approx(seconds)})


def test_what_leaves_a_slice_takes_the_network():
    places = [(0, 0, 0), (1, 0, 0)]
    assert exchange_seconds(Collective("all-reduce", 1000, (0, 8)), CHIP, places, [4, 2]) == {"network": 1000 / 1e8}
    assert exchange_seconds(Collective("dcn", 1000, ()), CHIP, [], [4, 2]) == {"network": 1000 / 1e8}


def test_the_roofline_is_the_largest_part_and_the_sum():
    cost = Cost(bytes=1e9)
    cost.products[Product(1, 1000, 1280, 1280, "bf16")] = 2
    cost.collectives[Collective("all-gather", 1_000_000, (0, 2, 4, 6))] = 3
    found = roofline(cost, CHIP, TORUS)
    assert found["compute"] == pytest.approx(2 * 2 * 1000 * 1280**2 / 1e12)
    assert found["memory"] == pytest.approx(0.01)
    assert found["interconnect"] == pytest.approx(3 * 3e6 / 2e9)
    assert found["limit"] == "memory" and found["max"] == found["memory"] < found["sum"]
    assert exchanges(cost.collectives) == [{"kind": "all-gather", "group": 4, "count": 3, "bytes": 3_000_000}]


def test_peaks_are_of_one_device():
    assert {chip.name for chip in CHIPS.values()} == {"v4", "v5e", "v5p", "v6e", "tpu7x"}
    with pytest.raises(ConfigError, match="no peaks are known of 'TPU v9', only of TPU v4"):
        chip_of("TPU v9")
