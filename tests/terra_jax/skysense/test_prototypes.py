import jax
import jax.numpy as jnp
import numpy as np
import pytest

from terra_jax.selfsupervised.sinkhorn import cosine_similarity
from terra_jax.skysense import prototypes

REGIONS, COUNT, WIDTH = 6, 4, 8
ASSIGNMENT = {"epsilon": 0.05, "iterations": 3}


@pytest.fixture
def table():
    return prototypes.initial(REGIONS, COUNT, WIDTH, seed=0)


@jax.jit
def _moved(table, features, region, momentum=0.9):
    means = prototypes.pixel_means(features, prototypes.gather(table, region), **ASSIGNMENT)
    return prototypes.moved(table, prototypes.tally(means, region, REGIONS), momentum)


def test_a_sample_moves_only_its_regions_prototypes(table):
    features = jax.random.normal(jax.random.key(1), (2, 16, WIDTH))
    moved = _moved(table, features, jnp.array([4, 1]))
    changed = np.abs(np.asarray(moved - table)).max((1, 2)) > 0
    assert list(np.flatnonzero(changed)) == [1, 4]
    other = _moved(table, features.at[0].mul(-2), jnp.array([4, 1]))
    assert np.array_equal(other[1], moved[1]) and not np.allclose(other[4], moved[4])


def test_samples_of_one_region_are_averaged_and_parts_of_a_batch_add_up(table):
    features = jax.random.normal(jax.random.key(2), (4, 16, WIDTH))
    region = jnp.array([3, 3, 0, 3])
    means = prototypes.pixel_means(features, prototypes.gather(table, region), **ASSIGNMENT)
    whole = prototypes.tally(means, region, REGIONS)
    np.testing.assert_allclose(whole["sum"][3] / whole["count"][3], means[np.array([0, 1, 3])].mean(0), rtol=1e-5)
    halves = [prototypes.tally(means[part], region[part], REGIONS) for part in (slice(2), slice(2, 4))]
    for name, value in whole.items():
        np.testing.assert_allclose(halves[0][name] + halves[1][name], value, rtol=1e-5, atol=1e-6)


def test_every_prototype_gets_pixels_even_where_one_is_nearest_to_all(table):
    direction = table[2, 1]
    features = direction + 0.3 * jax.random.normal(jax.random.key(3), (1, 64, WIDTH))
    own = prototypes.gather(table, jnp.array([2]))
    assert (np.asarray(cosine_similarity(features, own)).argmax(-1) == 1).mean() > 0.9
    moved = _moved(table, features, jnp.array([2]), momentum=0.0)[2]
    assert (np.abs(np.asarray(moved - table[2])).max(-1) > 0.1).all()
    assert np.unique(np.asarray(cosine_similarity(features[0], moved)).argmax(-1)).size == COUNT


def test_prototypes_converge_to_the_groups_of_a_region(table):
    centres = 2 * jax.random.normal(jax.random.key(4), (COUNT, WIDTH))
    noise = 0.05 * jax.random.normal(jax.random.key(5), (1, 16 * COUNT, WIDTH))
    features = jnp.repeat(centres, 16, axis=0)[None] + noise
    for _ in range(200):
        table = _moved(table, features, jnp.array([5]))
    nearest = np.asarray(cosine_similarity(centres, table[5])).max(-1)
    assert (nearest > 0.98).all()


def test_no_gradient_reaches_features_or_table(table):
    features = jax.random.normal(jax.random.key(6), (1, 16, WIDTH))

    def through(table, features):
        return jnp.square(_moved(table, features, jnp.array([1]), momentum=0.0)[1]).sum()

    of_table, of_features = jax.grad(through, argnums=(0, 1))(table, features)
    assert not np.asarray(of_features).any()
    assert not np.asarray(of_table).any()
