"""TerraMind's position tables against PyTorch: as they are built, and resampled to images of other sizes."""

import numpy as np
import pytest

from terra_jax.nn.positions import sincos_sequence
from terra_jax.terramind.encoder import position_table
from terra_jax.terramind.streams import SEQUENCE_TABLE
from terra_jax.terramind.variants import MODELS


def test_tables_are_built_as_in_pytorch(torch):
    for width in {variant.width for variant in MODELS.values()}:
        for quarter, table in (
            (width // 4, lambda waves: (waves[:, None].expand(14, 14, -1), waves[None].expand(14, 14, -1))),
            (width // 2, None),
        ):
            omega = 1 / 10000 ** (torch.arange(quarter, dtype=torch.float32) / quarter)
            angles = torch.arange(14 if table else SEQUENCE_TABLE, dtype=torch.float32)[:, None] * omega
            waves = torch.cat([angles.sin(), angles.cos()], dim=1)
            if table:
                expected = torch.cat(table(waves), dim=-1).reshape(196, width)
                np.testing.assert_allclose(position_table(14, (14, 14), width), expected, atol=5e-6)
            else:
                np.testing.assert_allclose(sincos_sequence(SEQUENCE_TABLE, width), waves, atol=2e-4)


@pytest.mark.parametrize("size", [(256, 256), (96, 96), (224, 448), (512, 304)])
def test_other_sizes_are_resampled_as_in_pytorch(size, torch):
    grid, width = (size[0] // 16, size[1] // 16), 192
    table = position_table(14, (14, 14), width)
    image = torch.from_numpy(table.reshape(1, 14, 14, width)).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(image, size=grid, mode="bicubic", align_corners=False)
    resampled = position_table(14, grid, width)
    np.testing.assert_allclose(resampled, expected.permute(0, 2, 3, 1).reshape(-1, width), atol=2e-6)


def test_a_model_built_for_256_pixels_has_another_table_than_one_resampled():
    built, resampled = position_table(16, (16, 16), 768), position_table(14, (16, 16), 768)
    assert round(np.abs(built - resampled).max(), 2) == 1.67
