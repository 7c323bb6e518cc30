"""Import, export and re-export: bit for bit, key by key, and accounted for."""

from dataclasses import replace

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import toy_model
from hypothesis import given, settings
from hypothesis import strategies as st

from terra_jax.errors import WeightsError
from terra_jax.weights.rules import Fixed, Rule, Subset, WeightMap, flatten_params
from terra_jax.weights.state import LazyTensor
from terra_jax.weights.transfer import conform_state, export_state, import_params

WEIGHTS, TEMPLATE, PARAMS = toy_model.weight_map(), toy_model.template(), toy_model.params()


def exported(**changes) -> dict[str, LazyTensor]:
    """The toy model's state dict as a file would give it, with keys replaced, added, or (None) removed."""
    arrays = {key: tensor.read() for key, tensor in export_state(WEIGHTS, PARAMS)[0].items()}
    arrays |= {key.replace("__", "."): value for key, value in changes.items()}
    return {key: replace(LazyTensor.of(a), source="w.pt") for key, a in arrays.items() if a is not None}


def imported(state, weights=WEIGHTS):
    return import_params(weights, state, TEMPLATE, fresh=lambda: toy_model.params(seed=1))


def assert_equal(ours, expected, but=()):
    ours, expected = flatten_params(ours), flatten_params(expected)
    assert list(ours) == list(expected)
    for path, leaf in expected.items():
        if path not in but:
            assert (ours[path].dtype, ours[path].tobytes()) == (leaf.dtype, leaf.tobytes()), path


def test_there_and_back_is_bit_identical():
    state, report = export_state(WEIGHTS, PARAMS, "run")
    params, _ = imported(state)
    assert_equal(params, PARAMS, but=["fusion.query"])
    assert report.left_out == ("fusion.query",)
    assert "for training only, left out: fusion.query" in str(report)
    again = export_state(WEIGHTS, params)[0]
    assert [(k, t.read().tobytes()) for k, t in again.items()] == [(k, t.read().tobytes()) for k, t in state.items()]


def test_what_a_file_lacks_is_initialised_and_named():
    params, report = imported(exported(scale__0__weight=None))
    assert_equal(params, PARAMS, but=["fusion.query", "scale"])
    for path in ("scale", "fusion.query"):
        np.testing.assert_array_equal(flatten_params(params)[path], flatten_params(toy_model.params(seed=1))[path])
    assert report.fresh == ("scale", "fusion.query")
    assert "not in the file, initialised: scale, fusion.query" in str(report)
    assert report.source == "w.pt"


def test_fixed_buffers_may_be_absent_and_ignored_keys_present():
    gone = {f"blocks__{i}__attn__index": None for i in range(3)}
    params, report = imported(exported(**gone, fc__weight=np.ones(3)))
    assert_equal(params, PARAMS, but=["fusion.query"])
    assert report.aside == ("fc.weight",)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"norm__bias": None, "blocks__1__mlp__bias": None},
            r"2 missing \(blocks.1.mlp.bias \(5,\), norm.bias \(8,\)\)",
        ),
        ({"extra__weight": np.ones(3)}, r"1 left over \(extra.weight \(3,\)\)"),
        ({"norm__bias": np.ones((1, 8))}, r"1 of another shape \(norm.bias \(1, 8\) instead of \(8,\)\)"),
        ({"norm__bias": np.ones(8, int)}, r"1 of another type \(norm.bias int64 instead of float32\)"),
        ({"head__weight": None}, "1 missing .head.weight"),
        ({"head__weight": np.zeros((8, 3, 2, 2), np.float32)}, r"head.weight differs from embed.mod@224.weight"),
        ({"blocks__1__attn__index": np.zeros((4, 4), int)}, "buffer blocks.1.attn.index is not what this model builds"),
        ({f"blocks__{i}__mlp__bias": None for i in range(3)} | {"cls_token": None, "norm__bias": None}, "and 1 more"),
    ],
)
@pytest.mark.parametrize("move", [imported, lambda state: conform_state(WEIGHTS, state, TEMPLATE)])
def test_anything_else_that_does_not_fit_is_refused_by_name(move, changes, complaint):
    with pytest.raises(WeightsError, match=complaint) as caught:
        move(exported(**changes))
    assert str(caught.value).startswith("w.pt: ")


def test_an_optional_stack_is_there_whole_or_not_at_all():
    weights = WeightMap(Rule("b.{i}.w", "w", optional=True))
    template = {"w": np.zeros((2, 3), np.float32)}
    assert import_params(weights, {}, template, lambda: template)[1].fresh == ("w",)
    with pytest.raises(WeightsError, match=r"b\.0\.w"):
        import_params(weights, {"b.1.w": LazyTensor.of(np.zeros(3, np.float32))}, template)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_precisions_are_converted_and_named(dtype):
    state = {k: LazyTensor.of(t.read().astype(dtype)) if "index" not in k else t for k, t in exported().items()}
    params, report = imported(state)
    assert report.cast == (np.dtype(dtype).name,)
    expected = {path: leaf.astype(dtype).astype(np.float32) for path, leaf in flatten_params(PARAMS).items()}
    for path, leaf in flatten_params(params).items():
        if path != "fusion.query":
            np.testing.assert_array_equal(leaf, expected[path])


@pytest.mark.parametrize(
    "prefix", ["", "module.", "state_dict.", "model.module.", "teacher.backbone.", "state_dict.model.backbone."]
)
def test_wrappers_are_taken_off_and_their_neighbours_named(prefix):
    wrapped = {prefix + key: tensor for key, tensor in exported().items()}
    if prefix:
        wrapped["optimizer.state.0.exp_avg"] = replace(LazyTensor.of(np.ones(3)), source="w.pt")
    params, report = imported(wrapped)
    assert_equal(params, PARAMS, but=["fusion.query"])
    assert report.aside == (("optimizer.state.0.exp_avg",) if prefix else ())


def test_a_wrapper_that_is_not_expected_is_refused():
    with pytest.raises(WeightsError, match=r"left over \(other.cls_token"):
        imported({f"other.{key}": tensor for key, tensor in exported().items()})


def test_conforming_sorts_unwraps_and_completes_a_file():
    gone = {"blocks__2__attn__index": None, "scale__0__weight": None}
    shuffled = {f"module.{key}": tensor for key, tensor in reversed(exported(**gone).items())}
    state, report = conform_state(WEIGHTS, shuffled, TEMPLATE)
    assert list(state) == [key for key in export_state(WEIGHTS, PARAMS)[0] if key != "scale.0.weight"]
    np.testing.assert_array_equal(state["blocks.2.attn.index"].read(), toy_model.INDEX)
    assert state["head.weight"].alias == state["embed.mod@224.weight"].alias is not None
    assert report.absent == ("scale.0.weight",)


def test_many_unused_keys_are_summed_up():
    extra = {f"optimizer.{i}": replace(LazyTensor.of(np.ones(1)), source="w.pt") for i in range(20)}
    _, report = imported({f"model.{key}": tensor for key, tensor in exported().items()} | extra)
    assert "in the file, not used: optimizer.* (20)" in str(report)


@settings(max_examples=50, deadline=None)
@given(layers=st.integers(1, 4), sizes=st.tuples(*[st.integers(1, 5)] * 4), seed=st.integers(0, 9))
def test_random_sizes_come_back_bit_for_bit(layers, sizes, seed):
    a, b, c, d = sizes
    weights = WeightMap(
        Rule("x.{i}.w", "x.w", "(c h d) i -> i c h d"),
        Rule("x.{i}.k", "x.k", "o i p q -> (p q i) o", {"p": a, "q": b}),
        Rule("y", "y"),
    )
    rng = np.random.default_rng(seed)
    shapes = {"w": (layers, d, a, b, c), "k": (layers, a * b * c, d)}
    params = {
        "x": {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()},
        "y": rng.standard_normal((a, b), dtype=np.float32),
    }
    state, _ = export_state(weights, params)
    assert all(tensor.read().shape == tensor.shape for tensor in state.values())
    assert_equal(import_params(weights, state, params)[0], params)


def test_only_the_initial_values_that_are_needed_are_built():
    weights = WeightMap(Rule("w", "w"), training_only=("query",))
    template = {"w": np.zeros(2, np.float32), "query": np.zeros(3, np.float32)}
    state = {"w": LazyTensor.of(np.ones(2, np.float32))}
    params, _ = import_params(weights, state, template, lambda: {"w": jnp.zeros(1 << 37), "query": jnp.arange(3.0)})
    np.testing.assert_array_equal(params["query"], [0, 1, 2])


def test_a_model_of_some_channels_reads_the_whole_tensor_or_its_own():
    subset = Subset(channels=3, chosen=(2, 0))
    weights = WeightMap(Rule("proj.weight", "kernel", "d n -> n d", subset=subset))
    template = {"kernel": np.zeros((8, 5), np.float32)}  # four places of two channels each
    whole = np.arange(60, dtype=np.float32).reshape(5, 12)
    some = whole.reshape(5, 4, 3)[..., [2, 0]].reshape(5, 8)
    for held in (whole, some):
        params, _ = import_params(weights, {"proj.weight": LazyTensor.of(held)}, template)
        np.testing.assert_array_equal(params["kernel"], some.T)
        conformed, _ = conform_state(weights, {"proj.weight": LazyTensor.of(held)}, template)
        np.testing.assert_array_equal(conformed["proj.weight"].read(), some)
    with pytest.raises(WeightsError, match=r"proj.weight \(5, 16\) instead of \(5, 8\)"):
        import_params(weights, {"proj.weight": LazyTensor.of(np.zeros((5, 16), np.float32))}, template)


def test_a_buffer_of_another_permitted_shape_is_not_used():
    own = np.ones((1, 4), np.float32)
    weights = WeightMap(Rule("a", "a"), Fixed("table", own.shape, lambda: own, others=((1, 2),)))
    template = {"a": np.zeros(3, np.float32)}
    state = {"a": LazyTensor.of(template["a"]), "table": LazyTensor.of(np.zeros((1, 2), np.float32))}
    assert import_params(weights, state, template)[1].aside == ("table",)
    np.testing.assert_array_equal(conform_state(weights, state, template)[0]["table"].read(), own)
    with pytest.raises(WeightsError, match=r"table \(1, 3\) instead of \(1, 4\)"):
        import_params(weights, {**state, "table": LazyTensor.of(np.zeros((1, 3), np.float32))}, template)
