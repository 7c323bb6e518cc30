from collections import Counter
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import quick_compilation

from terra_jax.errors import ConfigError
from terra_jax.parallel.mesh import make_mesh
from terra_jax.terramind.generation import Conditions, Decoding, Plan, Script, Tokens, check_plan, generate_tokens

GRID, PATCHES, VOCABULARY = (4, 4), 16, 80
START, STOP = 5, 8


@pytest.fixture(scope="module", autouse=True)
def quickly():
    with quick_compilation():
        yield


@jax.tree_util.register_static
@dataclass(frozen=True)
class Teller:
    """Stands for an encoder-decoder and says what it is shown.

    An image's token is the number of tokens that the encoder sees ("count"), or any ("chance"), or 1 where it sees more
    than 10 and else 2 ("doubt"); a sequence's token is one more than the token before it.
    """

    says: str = "count"
    inputs: tuple[str, ...] = ("S2L2A", "tok_LULC", "tok_NDVI", "coords")
    outputs: tuple[str, ...] = ("tok_LULC", "tok_NDVI", "coords")

    def encode(self, packed, pixels, grid):
        assert grid == GRID
        return (packed.stream >= 0).sum(1)

    def decode(self, seen, targets, grid):
        return jnp.stack([jnp.broadcast_to(seen[:, None], targets.token.shape), targets.token], -1)

    def logits(self, decoded, stream):
        seen, told = decoded[..., 0], decoded[..., 1]
        if stream == "coords":
            return 100.0 * jax.nn.one_hot(told + 1, VOCABULARY)
        if self.says == "doubt":
            return seen[..., None] * jax.nn.one_hot(1, VOCABULARY) + 10.0 * jax.nn.one_hot(2, VOCABULARY)
        return 100.0 * (self.says == "count") * jax.nn.one_hot(seen, VOCABULARY)


def conditions(batch: int = 2, seed: int = 0, tokens=None, places=None) -> Conditions:
    keys = jax.random.split(jax.random.key(seed), batch)
    places = jnp.broadcast_to(jnp.arange(PATCHES), (batch, PATCHES)) if places is None else places
    return Conditions({"S2L2A": jnp.zeros((batch, 32, 32, 12))}, tokens or {}, keys, places)


SCRIPT = Script(jnp.asarray(START), jnp.asarray([STOP]), jnp.ones((6, VOCABULARY), bool))


def told(*outputs, model=Teller(), given=None, chained=True, **how):
    plan = Plan(tuple((name, Decoding(**how)) for name in outputs), GRID, chained)
    made = generate_tokens(model, given or conditions(), {"coords": SCRIPT}, plan=plan)
    return {name: np.asarray(tokens.ids) for name, tokens in made.items()}


@pytest.mark.parametrize(("order", "steps"), [("roar", 1), ("roar", 4), ("roar", 10), ("maskgit", 4), ("maskgit", 10)])
def test_each_step_sees_what_was_decided_before_it(order, steps):
    """Of 16 patches in 4 steps: 4 tokens with 16 in sight, 4 with 20, and so on."""
    counts = {1: [16], 4: [4] * 4, 10: [2] * 6 + [1] * 4}[steps]
    expected = {PATCHES + sum(counts[:i]): count for i, count in enumerate(counts)}
    for ids in told("tok_LULC", order=order, steps=steps)["tok_LULC"]:
        assert Counter(ids.tolist()) == expected


def test_outputs_see_those_before_them():
    """The encoder sees 16, 32 and 48 tokens, and of a sequence those up to its end."""
    made = told("tok_NDVI", "tok_LULC", "coords")
    assert (made["tok_NDVI"] == 16).all() and (made["tok_LULC"] == 32).all()
    assert (told("tok_NDVI", "tok_LULC", chained=False)["tok_LULC"] == 16).all()
    assert (told("coords", "tok_LULC")["tok_LULC"] == 16 + 3).all()


def test_tokens_that_are_given_are_seen():
    ids = jnp.ones((2, PATCHES), jnp.int32)
    valid = jnp.arange(PATCHES) < jnp.array([[16], [4]])
    made = told("tok_LULC", given=conditions(tokens={"tok_NDVI": Tokens(ids, valid)}))
    assert (made["tok_LULC"] == [[32], [20]]).all()


def test_a_sequence_goes_on_to_its_end():
    plan = Plan((("coords", Decoding()),), GRID)
    made = generate_tokens(Teller(), conditions(), {"coords": SCRIPT}, plan=plan)["coords"]
    assert made.ids.tolist() == [[6, 7, 8, 0, 0, 0]] * 2
    assert made.valid.tolist() == [[True, True, True, False, False, False]] * 2


def test_a_sequence_keeps_to_its_grammar():
    allowed = jnp.zeros((3, VOCABULARY), bool).at[0, 40].set(True).at[1, 41].set(True).at[2, 42].set(True)
    plan = Plan((("coords", Decoding(temperature=3.0)),), GRID)
    made = generate_tokens(
        Teller("chance"), conditions(), {"coords": Script(jnp.asarray(1), jnp.asarray([42]), allowed)}, plan=plan
    )
    assert made["coords"].ids.tolist() == [[40, 41, 42]] * 2 and made["coords"].valid.all()


def test_guidance_weighs_what_is_said_without_inputs():
    """With inputs 16 tokens are in sight and 1 is surer than 2 by 6, without any 2 is surer by 10."""
    options = {"model": Teller("doubt"), "temperature": 0.0}
    assert (told("tok_LULC", **options)["tok_LULC"] == 1).all()
    assert (told("tok_LULC", guidance=0.7, **options)["tok_LULC"] == 1).all()  # 16 x 0.7 > 10
    assert (told("tok_LULC", guidance=0.6, order="maskgit", **options)["tok_LULC"] == 2).all()
    # From the second step on the 4 tokens that are decided are in sight of both: 4 + 0.6 x 16 > 10.
    for ids in told("tok_LULC", guidance=0.6, steps=4, **options)["tok_LULC"]:
        assert Counter(ids.tolist()) == {2: 4, 1: 12}


def test_the_same_keys_draw_the_same_in_any_batch_on_any_devices():
    given, names = conditions(8, seed=3), ("tok_LULC", "tok_NDVI")
    how = {"tok_LULC": Decoding(steps=3, top_p=1.0), "tok_NDVI": Decoding("maskgit", steps=3, top_p=1.0)}

    def drawn(given, *names, **options) -> dict:
        plan = Plan(tuple((name, how[name]) for name in names), GRID)
        made = generate_tokens(Teller("chance"), given, {}, plan=plan, **options)
        return {name: np.asarray(tokens.ids) for name, tokens in made.items()}

    expected = drawn(given, *names)
    assert len(np.unique(expected["tok_LULC"])) > 40 and not np.array_equal(*expected.values())
    assert not np.array_equal(expected["tok_LULC"][0], expected["tok_LULC"][1])
    some = [6, 0, 3]
    ways = {
        "singly": drawn(given, *names, singly=True),
        "on 8 devices": drawn(given, *names, mesh=make_mesh()),
        "in the other order": drawn(given, *reversed(names)),
        "elsewhere in another batch": drawn(jax.tree.map(lambda leaf: leaf[jnp.array(some)], given), *names),
    }
    for way, made in ways.items():
        for name, ids in made.items():
            assert np.array_equal(ids, expected[name][some] if len(ids) < 8 else expected[name]), way
    assert not np.array_equal(drawn(conditions(8, seed=4), *names)["tok_LULC"], expected["tok_LULC"])


def test_windows_of_one_scene_draw_alike_where_they_overlap():
    places = jnp.stack([jnp.arange(PATCHES), jnp.arange(PATCHES) + 8])
    keys = jnp.broadcast_to(jax.random.key(5), (2,))
    given = conditions(places=places)._replace(keys=keys)
    first, second = told("tok_LULC", model=Teller("chance"), given=given, steps=3)["tok_LULC"]
    assert np.array_equal(first[8:], second[:8]) and not np.array_equal(first[:8], second[8:])


@pytest.mark.parametrize(
    ("outputs", "how", "given", "words"),
    [
        (("tok_DEM",), {}, ("S2L2A",), "not trained to give tok_DEM; it gives tok_LULC, tok_NDVI, coords"),
        (("tok_LULC",), {}, ("S1GRD",), "takes no S1GRD"),
        (("tok_LULC",), {}, (), "nothing is given"),
        (("tok_LULC",), {"steps": 17}, ("S2L2A",), "steps=17 cannot share 16 tokens"),
        (("tok_LULC",), {"cooling": "fast"}, ("S2L2A",), "unknown cooling 'fast'"),
    ],
)
def test_what_the_model_cannot_do_is_refused(outputs, how, given, words):
    plan = Plan(tuple((name, Decoding(**how)) for name in outputs), GRID)
    with pytest.raises(ConfigError, match=words) as error:
        check_plan(Teller(), plan, given)
    assert "\n" not in str(error.value)


def test_an_output_that_cannot_be_seen_goes_last_and_at_once():
    blind = Teller(inputs=("S2L2A", "tok_NDVI"))
    for outputs, steps in ((("tok_LULC",), 2), (("tok_LULC", "tok_NDVI"), 1)):
        plan = Plan(tuple((name, Decoding(steps=steps)) for name in outputs), GRID)
        with pytest.raises(ConfigError, match="gives tok_LULC but cannot see it"):
            check_plan(blind, plan, ("S2L2A",))
    made = told("tok_NDVI", "tok_LULC", model=blind)
    assert (made["tok_LULC"] == 32).all()


def test_unknown_decodings_are_refused():
    with pytest.raises(ConfigError, match="unknown order 'raster'; choose roar or maskgit"):
        Decoding(order="raster")
    with pytest.raises(ConfigError, match="top_p=2 is impossible"):
        Decoding(top_p=2)
