import jax
import jax.numpy as jnp
import numpy as np
import pytest

from terra_jax.skysense.augmentation import Augmentation
from terra_jax.skysense.granularity import Clustering, Views, contrast
from terra_jax.skysense.granularity import compare as compare_eagerly
from terra_jax.skysense.heads import LEVELS, info_nce

CLUSTERING = Clustering(clusters=4, epsilon=0.05, iterations=3, rounds=3)
TEMPERATURE = 0.1
compare = jax.jit(compare_eagerly, static_argnums=(2, 3))


def coordinates(boxes, flips, size):
    """What an encoder that returns pixel coordinates gives: the place on the ground of every pixel."""
    axes = []
    for i in (0, 1):
        fraction = (np.arange(size) + 0.5) / size
        fraction = np.where(flips[..., i, None], 1 - fraction, fraction)
        axes.append(boxes[..., i, None] + boxes[..., i + 2, None] * fraction)
    rows = np.broadcast_to(axes[0][..., :, None], (*axes[0].shape, size))
    columns = np.broadcast_to(axes[1][..., None, :], rows.shape)
    return np.stack([rows, columns], -1)[:, :, None] / 16


def views(rng, examples, size):
    extent = rng.uniform(8, 16, (examples, 2, 2))
    boxes = np.concatenate([rng.random(extent.shape) * (16 - extent), extent], -1)
    flips = rng.random((examples, 2, 2)) < 0.5
    shown = np.ones((examples, 2, 1), bool)
    return Views(*map(jnp.asarray, (coordinates(boxes, flips, size), shown, boxes, flips)))


def places_as_logits(x):
    """A head under which equal places, and only they, have equal distributions."""
    return 4 * jnp.concatenate([x, 1 - x], axis=-1)


def excess(student, teacher, level="pixel"):
    """Cross-entropy above the teacher's own entropy: zero exactly where both say the same."""
    compared, _ = compare(student, teacher, (level,), CLUSTERING)
    compared = compared[level]
    weight = compared.weight
    p, q = (jax.nn.log_softmax(places_as_logits(x) / TEMPERATURE) for x in (compared.teacher, compared.student))
    divergence = (jnp.exp(p) * (p - q)).sum(-1)
    return float((weight * divergence).sum() / weight.sum())


@pytest.mark.parametrize("sizes", [(8, 8), (8, 4)], ids=["globals", "local"])
def test_the_pixel_loss_vanishes_only_with_correct_bookkeeping(sizes):
    rng = np.random.default_rng(0)
    student, teacher = views(rng, 6, sizes[1]), views(rng, 6, sizes[0])
    right = excess(student, teacher)
    assert right < 1e-6
    wrong = {
        "flips": student._replace(flips=~student.flips),
        "offset": student._replace(boxes=student.boxes.at[..., 0].add(1.0)),
        "scale": student._replace(boxes=student.boxes.at[..., 2].multiply(1.2)),
        "views": student.take([1, 0])._replace(maps=student.maps),
    }
    for name, other in wrong.items():
        assert excess(other, teacher) > 1e-3, name
    assert excess(student, teacher._replace(flips=~teacher.flips)) > 1e-3


def test_the_loss_itself_is_least_where_bookkeeping_is_right():
    rng = np.random.default_rng(1)
    student, teacher = views(rng, 4, 8), views(rng, 4, 8)

    def loss(student):
        compared, _ = compare(student, teacher, ("pixel",), CLUSTERING)
        result = contrast(
            compared["pixel"], places_as_logits, places_as_logits, jnp.zeros(4), TEMPERATURE, jnp.float32(TEMPERATURE)
        )
        return float(result.loss)

    assert loss(student) < loss(student._replace(flips=~student.flips)) - 0.01


def test_objects_share_one_assignment():
    rng = np.random.default_rng(2)
    student, teacher = views(rng, 4, 8), views(rng, 4, 8)
    assert excess(student, teacher, "object") < 1e-6  # the same pixels make the same centres on both sides
    compared, _ = compare(student, teacher, ("object",), CLUSTERING)
    centres = np.asarray(compared["object"].teacher)
    assert centres.shape == (4, 2, 1, 4, 2)
    apart = np.linalg.norm(centres[..., :, None, :] - centres[..., None, :, :], axis=-1) + np.eye(4)
    assert apart.min() > 1e-3


def test_images_are_means_over_their_own_crops():
    student, teacher = views(np.random.default_rng(3), 2, 8), views(np.random.default_rng(4), 2, 4)
    compared, _ = compare(student, teacher, ("image",), CLUSTERING)
    np.testing.assert_allclose(compared["image"].student[..., 0, :], student.maps.mean((3, 4)), rtol=1e-6)
    np.testing.assert_allclose(compared["image"].teacher[..., 0, :], teacher.maps.mean((3, 4)), rtol=1e-6)


def test_frames_that_do_not_count_and_ground_that_is_not_shared_weigh_nothing():
    rng = np.random.default_rng(5)
    student, teacher = views(rng, 2, 8), views(rng, 2, 8)
    teacher = teacher._replace(boxes=teacher.boxes.at[0, 0].set(jnp.array([100.0, 100, 8, 8])))
    student = student._replace(shown=student.shown.at[1, 1].set(False))
    compared, _ = compare(student, teacher, LEVELS, CLUSTERING)
    for level in ("pixel", "object"):
        weight = np.asarray(compared[level].weight)
        assert not weight[0, 0].any() and not weight[1, 1].any() and weight[0, 1].any(), level
    assert not np.asarray(compared["image"].weight)[1, 1].any()

    def loss(maps):
        found, _ = compare(student._replace(maps=maps), teacher, LEVELS, CLUSTERING)
        parts = [
            contrast(f, places_as_logits, places_as_logits, jnp.zeros(4), 0.1, jnp.float32(0.1)) for f in found.values()
        ]
        return sum(part.loss for part in parts), [part.number for part in parts]

    (value, _), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(student.maps)
    assert np.isfinite(float(value)) and np.isfinite(np.asarray(gradient)).all()
    assert not np.asarray(gradient)[1, 1].any()


def test_info_nce_is_the_cross_entropy_of_finding_the_other():
    rng = np.random.default_rng(6)
    first, second = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in rng.normal(size=(2, 5, 2, 7)))
    both = np.array([1, 1, 0, 1, 1.0])
    loss = float(info_nce(jnp.asarray(first), jnp.asarray(second), jnp.asarray(both), 0.1))
    kept = both > 0
    total = 0.0
    for v in range(2):
        scores = np.exp(first[kept][:, v] @ second[kept][:, v].T / 0.1)
        hits = np.diag(scores)
        total += -np.log(hits / scores.sum(1)).mean() - np.log(hits / scores.sum(0)).mean()
    assert loss == pytest.approx(total / 2, rel=1e-4)
    nothing = info_nce(jnp.asarray(first), jnp.asarray(second), jnp.zeros(5), 0.1)
    assert float(nothing) == 0


def test_colours_change_image_by_image_and_stay_in_range():
    images = jax.random.normal(jax.random.key(0), (3, 16, 16, 3))
    assert Augmentation()(images, jax.random.key(1), "skysense") is images
    changed = jax.jit(lambda x: Augmentation(0.2, 0.2, 1.0, 0.5)(x, jax.random.key(1), "skysense"))(images)
    assert changed.shape == images.shape and np.isfinite(changed).all()
    flat = jnp.full((2, 16, 16, 3), 0.3)
    blurred = jax.jit(lambda x: Augmentation(blur=1.0)(x, jax.random.key(2), "skysense"))(flat)
    np.testing.assert_allclose(blurred, flat, atol=1e-4)  # a blur changes no mean
    alone = jax.jit(lambda x: Augmentation(0.2, 0.2)(x, jax.random.key(3), "skysense"))(images)
    ratio = np.asarray(alone.std((1, 2, 3)) / images.std((1, 2, 3)))
    assert np.ptp(ratio) > 1e-3
