import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from terra_jax.parallel.expected_trips import expected_trips
from terra_jax.parallel.flops import count_flops
from terra_jax.parallel.hlo import cost_of, group_of
from terra_jax.parallel.hlo_text import Array, parse
from terra_jax.parallel.mesh import make_mesh
from terra_jax.parallel.topology import topology_devices

DEPTH, WIDTH, ROWS = 4, 256, 512


@pytest.fixture(params=["cpu", "tpu"])
def device(request):
    """What small programs are compiled for: this machine, or a TPU that is not there."""
    if request.param == "cpu":
        return jax.devices()[:1]
    request.getfixturevalue("libtpu")
    return topology_devices("v5e:1x1")


def compiled(function, device, *shapes, dtype=jnp.bfloat16):
    """FLOPs as JAX traced them, and the cost of what was compiled."""
    everywhere = NamedSharding(make_mesh(devices=device), PartitionSpec())
    arrays = [jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere) for shape in shapes]
    traced = jax.jit(function).trace(*arrays)
    return count_flops(traced.jaxpr), cost_of(traced.lower().compile().as_text(), 1)


def gradient(scan):
    def loss(w, x):
        if scan:
            x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)
        else:
            for i in range(DEPTH):
                x = jnp.tanh(x @ w[i])
        return jnp.sum(x.astype(jnp.float32))

    return jax.grad(loss, argnums=(0, 1))


def test_a_scan_counts_as_its_unrolled_loop(device):
    shapes = (DEPTH, WIDTH, WIDTH), (ROWS, WIDTH)
    (expected, scan), (_, unrolled) = (compiled(gradient(scan), device, *shapes) for scan in (True, False))
    assert scan.flops == unrolled.flops == expected == 3 * DEPTH * 2 * ROWS * WIDTH**2
    if device[0].platform == "tpu":  # a layer reads its slice of the stacks, not all of them
        inputs_and_outputs = 2 * 2 * (DEPTH * WIDTH**2 + ROWS * WIDTH)
        assert inputs_and_outputs <= unrolled.bytes <= scan.bytes < 1.5 * unrolled.bytes
    assert not scan.collectives and not scan.host_transfers


def test_a_loop_whose_length_the_data_decide_counts_as_often_as_is_noted(device):
    def loss(w, x):
        with expected_trips(7):
            x = jax.lax.fori_loop(0, jnp.int32(x[0, 0]), lambda _, x: jnp.tanh(x @ w), x)
        return x

    expected, cost = compiled(loss, device, (WIDTH, WIDTH), (ROWS, WIDTH))
    assert cost.flops == expected == 7 * 2 * ROWS * WIDTH**2


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("bhnd,bhmd->bhnm", [(4, 3, 40, 64), (4, 3, 40, 64)]),
        ("bnhd,hde->bne", [(4, 40, 3, 64), (3, 64, 200)]),
        ("bnd,dthe->bnthe", [(4, 40, 96), (96, 3, 2, 48)]),
        ("bvph,bchw->bvpcw", [(4, 3, 16, 24), (4, 5, 24, 24)]),
    ],
)
def test_products_of_every_form_are_recognised(device, equation, shapes):
    expected, cost = compiled(lambda a, b: jnp.einsum(equation, a, b), device, *shapes)
    assert cost.flops == expected > 0


def test_a_conditional_costs_as_its_dearest_branch(device):
    def either(x, y):
        return jax.lax.cond(x.sum() > 0, lambda x, y: x @ y, lambda x, y: x @ y @ y @ y + x, x, y)

    expected, cost = compiled(either, device, (128, 128), (128, 128), dtype=jnp.float32)
    assert cost.flops == expected == 3 * 2 * 128**3


def test_collectives_are_found_with_their_groups():
    mesh = make_mesh(data=2, fsdp=4)
    batch = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
    kernel = jax.ShapeDtypeStruct((32, 16), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
    whole = NamedSharding(mesh, PartitionSpec())

    @jax.jit
    def loss(x, w):
        gathered = jax.lax.with_sharding_constraint(w, whole)
        return jax.lax.with_sharding_constraint(jnp.sum(jnp.tanh(x @ gathered)), whole)

    cost = cost_of(loss.lower(batch, kernel).compile().as_text(), 8)
    found = {exchange.kind: exchange for exchange in cost.collectives}
    assert set(found) == {"all-gather", "all-reduce"}
    assert found["all-gather"].group == (0, 1, 2, 3) and found["all-gather"].bytes == 4 * 8 * 16
    assert found["all-reduce"].group == tuple(range(8)) and found["all-reduce"].bytes == 4
    assert cost.flops == 2 * 64 * 32 * 16 / 8


@pytest.mark.parametrize(
    ("attributes", "group"),
    [
        ("channel_id=1, replica_groups={{0,2},{1,3}}, use_global_device_ids=true", [0, 2]),
        ("replica_groups=[2,4]<=[8]", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}", [0, 4]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}, x=1", [0, 1, 2, 3]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [0, 4]),
        ("replica_groups=mesh['a'=8] {'a':(2)2}", [0, 2]),
        ("replica_groups=mesh['a'=8] {'a':(1)2}", [0, 4]),
        ("source_target_pairs={{3,4},{4,3}}", [3, 4]),
        ("replica_groups={}", list(range(8))),
    ],
)
def test_groups_are_read_in_every_notation(attributes, group):
    assert group_of(attributes, 8) == group


TPU = """HloModule jit_step, is_scheduled=true

%scatter.all-reduce-scatter (p: bf16[8,64]) -> bf16[2,64] {
  %p = bf16[8,64]{1,0:T(8,128)(2,1)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %all-reduce.1 = bf16[8,64]{1,0:T(8,128)(2,1)} all-reduce(%p), channel_id=1, replica_groups=mesh['a'=4] {'a'}, to_apply=%add
  ROOT %dynamic-slice.1 = bf16[2,64]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.1, %zero, %zero), dynamic_slice_sizes={2,64}
}

%start (q: bf16[8,64]) -> (bf16[8,64], bf16[32,64]) {
  %q = bf16[8,64]{1,0} parameter(0)
  %all-gather.1 = bf16[32,64]{1,0} all-gather(%q), channel_id=7, replica_groups=mesh['a'=4] {'a'}, dimensions={0}
  ROOT %custom-call.1 = (bf16[8,64]{1,0}, bf16[32,64]{1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%middle (r: bf16[8,64]) -> bf16[32,64] {
  %r = bf16[8,64]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[32,64]{1,0} all-gather(%r), channel_id=7, replica_groups=mesh['a'=4] {'a'}, dimensions={0}
}

%body (t: (s32[], bf16[5,8,64])) -> (s32[], bf16[5,8,64]) {
  %t = (s32[]{:T(128)}, bf16[5,8,64]{2,1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  %stack = bf16[5,8,64]{2,1,0} get-tuple-element(%t), index=1
  %layer = bf16[1,8,64]{2,1,0} dynamic-slice(%stack, %i, %i, %i), dynamic_slice_sizes={1,8,64}
  %x = bf16[8,64]{1,0} bitcast(%layer)
  %first = (bf16[8,64]{1,0}, bf16[32,64]{1,0}) fusion(%x), kind=kCustom, calls=%start
  %second = bf16[32,64]{1,0} fusion(%x), kind=kLoop, calls=%middle
  ROOT %next = (s32[]{:T(128)}, bf16[5,8,64]{2,1,0}) tuple(%i, %stack)
}

%condition (t2: (s32[], bf16[5,8,64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %t2 = (s32[]{:T(128)}, bf16[5,8,64]{2,1,0}) parameter(0)
  %i2 = s32[]{:T(128)} get-tuple-element(%t2), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i2, %limit), direction=LT
}

ENTRY %main (a: s32[], b: bf16[5,8,64], c: bf16[8,64]) -> f32[4] {
  %a = s32[]{:T(128)} parameter(0)
  %b = bf16[5,8,64]{2,1,0} parameter(1)
  %c = bf16[8,64]{1,0:T(8,128)(2,1)} parameter(2)
  %on_chip = bf16[8,64]{1,0:T(8,128)(2,1)S(1)} copy(%c)
  %fused = bf16[2,64]{1,0:T(8,128)(2,1)S(1)} fusion(%on_chip), kind=kCustom, calls=%scatter.all-reduce-scatter
  %tuple = (s32[]{:T(128)}, bf16[5,8,64]{2,1,0}) tuple(%a, %b)
  %while = (s32[]{:T(128)}, bf16[5,8,64]{2,1,0}) while(%tuple), condition=%condition, body=%body
  %token = token[] after-all()
  %send = (f32[4]{0}, u32[], token[]) send(%f, %token), channel_id=9, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %f = f32[4]{0} constant({1, 2, 3, 4})
}
"""  # noqa: E501


def test_what_only_tpus_print_is_understood():
    cost = cost_of(TPU, 4)
    found = {(exchange.kind, exchange.bytes): times for exchange, times in cost.collectives.items()}
    # The parts of one overlapping gather are one; the loop runs five times; a reduce with a slice is a reduce-scatter.
    assert found == {("reduce-scatter", 2 * 8 * 64): 1, ("all-gather", 2 * 8 * 64): 5, ("dcn", 16): 1}
    assert cost.host_transfers == 0


def test_what_is_fetched_in_pieces_is_read_once():
    """Weights come onto the chip ahead of their use, a slice at a time; no piece reads the whole."""
    pieces = "\n".join(
        f"  %s{i} = ((bf16[4,8,128]{{2,1,0:T(8,128)(2,1)}}), bf16[2,8,128]{{2,1,0:T(8,128)(2,1)S(1)}}, s32[]{{:S(2)}}) "
        f"slice-start(%w), slice={{[{2 * i}:{2 * i + 2}], [0:8], [0:128]}}\n"
        f"  %d{i} = bf16[2,8,128]{{2,1,0:T(8,128)(2,1)S(1)}} slice-done(%s{i})"
        for i in range(2)
    )
    text = f"""HloModule m, is_scheduled=true

ENTRY %main (w: bf16[4,8,128]) -> bf16[2,8,128] {{
  %w = bf16[4,8,128]{{2,1,0:T(8,128)(2,1)}} parameter(0)
{pieces}
  ROOT %out = bf16[2,8,128]{{2,1,0:T(8,128)(2,1)S(1)}} add(%d0, %d1)
}}
"""
    assert cost_of(text, 1).bytes == 2 * 4 * 8 * 128


def test_memory_is_counted_as_it_lies():
    assert Array("bf16", (8, 64), "1,0:T(8,128)(2,1)").hbm_bytes == 2 * 8 * 128
    assert Array("f32", (9, 3, 130), "0,2,1:T(8,128)").hbm_bytes == 4 * 128 * 3 * 136
    assert Array("f32", (9, 3), "1,0:T(8,128)S(1)").hbm_bytes == 0  # on the chip
    assert Array("f32", (9, 3), "1,0").hbm_bytes == 4 * 27
    assert Array("token", ()).bytes == 0


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no optimised HLO"):
        parse("hello")
