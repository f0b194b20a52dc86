"""Draws of a transformer over tokens: truncated, at temperatures, guided; codes in any order.

Masses are enumerated over the 27 sequences of three codes of three.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax import Array
from scipy import stats

import vae_jax as vj
from vae_jax import VaeJaxError
from vae_jax.bounds import per_image
from vae_jax.networks.transformer import Transformer
from vae_jax.priors.autoregressive_codes import AutoregressiveCategorical
from vae_jax.priors.codes import likeliest
from vae_jax.priors.masked import MaskedCategorical
from vae_jax.run.inpainting import inpainted_by_codes, of_grid

N, C, CLASSES = 3, 3, 2
SMALL: dict[str, Any] = {"width": 8, "num_layers": 2, "num_heads": 2}
SEQUENCES = np.array(list(itertools.product(range(C), repeat=N)))
ONE_HOT = np.eye(C, dtype=np.float32)[SEQUENCES]
COUNT = 4000


def far(network: Transformer, inputs: int, scale: float = 0.8) -> Any:
    """Variables far from those of a uniform prior, all from a normal."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, N, inputs)))
    generator = np.random.default_rng(1)
    return jax.tree.map(lambda x: generator.normal(0, scale, x.shape).astype("f4"), shapes)


def autoregressive(y: Array | None = None, **settings: Any) -> AutoregressiveCategorical:
    classes = None if y is None else CLASSES
    prior = vj.AutoregressiveCodes((N,), **SMALL, num_classes=classes, **settings)
    network = Transformer(N, C, **SMALL)
    inputs = C if classes is None else C + classes + 1
    return AutoregressiveCategorical(far(network, inputs), y, network, prior)


def masked(y: Array | None = None, **settings: Any) -> MaskedCategorical:
    classes = None if y is None else CLASSES
    prior = vj.MaskedCodes((1, N), **SMALL, num_classes=classes, **settings)
    network = Transformer(N, C, **SMALL, causal=False)
    inputs = C + 1 if classes is None else C + classes + 2
    return MaskedCategorical(far(network, inputs), y, network, prior)


def by_brute_force(p: np.ndarray, top_k: int | None, top_p: float | None) -> np.ndarray:
    """The probabilities `[C]` of the categories that are kept, one after the other, normalized."""
    kept: list[int] = []
    allowed = sorted(range(len(p)), key=lambda c: (-p[c], c))[: top_k or len(p)]
    total = p[allowed].sum()
    for c in allowed:
        if kept and top_p is not None and p[kept].sum() >= top_p * total - 1e-9:
            break
        kept.append(c)
    found = np.zeros_like(p)
    found[kept] = p[kept]
    return found / found.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_likeliest_are_kept(temperature: float) -> None:
    """Of 200 sets of logits, some of them equal; of equally likely categories the first stay."""
    logits = np.random.default_rng(0).normal(size=(200, 7)).round(1).astype(np.float32)
    p = np.exp(np.float64(logits) / temperature)
    p /= p.sum(-1, keepdims=True)
    for top_k, top_p in itertools.product([None, 1, 3, 7, 20], [None, 1e-9, 0.31, 0.87, 1.0]):
        kept = np.asarray(likeliest(jnp.asarray(logits), temperature, top_k, top_p))
        expected = np.stack([by_brute_force(each, top_k, top_p) > 0 for each in p])
        np.testing.assert_array_equal(kept, expected, err_msg=f"{top_k} {top_p}")


def every_logits(p: AutoregressiveCategorical, label: int | None) -> np.ndarray:
    """Logits at each position of the 27 sequences, float64 `[27, N, C]`, without a cache."""
    before = np.pad(ONE_HOT[:, :-1], ((0, 0), (1, 0), (0, 0)))
    y = None if label is None else jnp.full(len(before), label)
    return np.asarray(jax.jit(p.outputs)(before, y)[0], np.float64)


def same_frequencies(drawn: Array, mass: np.ndarray) -> None:
    """Chi-squared over the 27 sequences, at a significance of 1e-4; none of mass zero is drawn."""
    z = np.asarray(drawn).argmax(-1).reshape(-1, N)
    observed = np.bincount(z @ C ** np.arange(N)[::-1], minlength=len(mass))
    assert observed[mass == 0].sum() == 0
    expected = len(z) * mass / mass.sum()
    common = expected > 5
    observed, expected = (np.append(n[common], n[~common].sum()) for n in (observed, expected))
    if expected[-1] == 0:
        observed, expected = observed[:-1], expected[:-1]
    assert stats.chisquare(observed, expected).pvalue > 1e-4


DRAWS: dict[str, dict[str, Any]] = {
    "all": {"guidance": 0.5, "temperature": 3.0, "top_k": 2, "top_p": 0.9},
    "temperature": {"temperature": 2.0},
    "top_k": {"top_k": 2},
    "top_p": {"top_p": 0.6},
    "guidance": {"guidance": 1.5},
    "class": {},
}


@pytest.mark.others_slow
@pytest.mark.parametrize("name", DRAWS)
def test_draws_have_the_mass_that_is_asked_for(name: str) -> None:
    """With the cache, against that of every sequence by NumPy; the mass sums to one."""
    how = {"guidance": 0.0, "temperature": 1.0, "top_k": None, "top_p": None} | DRAWS[name]
    p = autoregressive(jnp.array([1]), **how)
    of_class, of_none = every_logits(p, 1), every_logits(p, CLASSES)
    logits = (of_class + how["guidance"] * (of_class - of_none)) / how["temperature"]
    each = np.exp(logits - logits.max(-1, keepdims=True))
    each /= each.sum(-1, keepdims=True)
    kept = np.apply_along_axis(by_brute_force, -1, each, how["top_k"], how["top_p"])
    mass = (kept * ONE_HOT).sum(-1).prod(-1)
    assert mass.sum() == pytest.approx(1.0)
    assert (mass > 0.01).sum() >= 4
    keys = jax.random.split(jax.random.key(4), (COUNT, 1))
    same_frequencies(jax.jit(jax.vmap(p.sample))(keys), mass)


@pytest.mark.slow
def test_no_guidance_is_the_conditional_mass_and_no_temperature_the_likeliest() -> None:
    """To the bit: by the same noise as of a prior that cannot be guided."""
    y, key = jnp.array([0, 1]), jax.random.key(5)
    (noise,) = autoregressive(y, drop_labels=0.0).noise(key, (50,))

    @jax.jit
    def all_of_them() -> Any:
        plain = autoregressive(y, drop_labels=0.0)
        zero, cold = autoregressive(y, guidance=0.0), autoregressive(y, temperature=0.0)
        one = autoregressive(y, top_k=1)
        return [p.sample(key, (50,)) for p in (plain, zero, cold, one)] + [plain.mean]

    plain, zero, cold, one, mean = map(np.asarray, all_of_them())
    np.testing.assert_array_equal(plain, zero)
    np.testing.assert_array_equal(cold, np.broadcast_to(mean, cold.shape))
    np.testing.assert_array_equal(cold, one)
    for label in range(2):
        logits = every_logits(autoregressive(y), label)
        z, index = plain[:, label].argmax(-1), np.zeros(50, int)
        for i in range(N):
            rows = (SEQUENCES[:, :i] == z[:, None, :i]).all(-1).argmax(1)
            best = (logits[rows, i] + noise[:, label, i]).argmax(-1)
            np.testing.assert_array_equal(z[:, i], best)
            index = index * C + best


@pytest.mark.parametrize("kind", [autoregressive, masked])
def test_labels_are_dropped_in_training(kind: Any) -> None:
    """As often as is asked for: each bound is that of its class, or of no class."""
    y = jnp.array([0, 1])
    p, value = kind(y, drop_labels=0.3), jnp.asarray(ONE_HOT[:2])
    keys = jax.random.split(jax.random.key(6), (500, 2))

    @jax.jit
    def bounds(keys: Array) -> Any:
        told = kind(y, drop_labels=0.0)
        none = told.replace(y=jnp.full(2, CLASSES))
        return [jax.vmap(lambda k, p=p: p.elbo(value, k))(keys) for p in (p, told, none)]

    mixed, told, none = map(np.asarray, bounds(keys))
    dropped = np.isclose(mixed, none, atol=1e-5) & ~np.isclose(mixed, told, atol=1e-5)
    assert (dropped | np.isclose(mixed, told, atol=1e-5)).all()
    assert dropped.mean() == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / dropped.size))


# --- Codes in any order ---------------------------------------------------------------------------

MASKS = np.array(list(itertools.product([False, True], repeat=N)))


def given_seen(p: MaskedCategorical) -> np.ndarray:
    """ln p(z_i | seen codes) of every sequence, mask and position, `[27, 8, N]`."""

    @jax.jit
    def every() -> Array:
        one_hot = jnp.repeat(ONE_HOT, len(MASKS), 0)
        hidden = jnp.tile(MASKS, (len(ONE_HOT), 1))
        _, y = p.flat(one_hot)
        return (one_hot * jax.nn.log_softmax(p.logits(one_hot, hidden, y))).sum(-1)

    return np.asarray(every(), np.float64).reshape(len(ONE_HOT), len(MASKS), N)


def of_orders(log_p: np.ndarray) -> np.ndarray:
    """The log-mass of every sequence if drawn in each of the six orders, `[27, 6]`."""
    found = []
    for order in itertools.permutations(range(N)):
        total = np.zeros(len(log_p))
        for step, position in enumerate(order):
            hidden = np.isin(np.arange(N), order[step:])
            total += log_p[:, (hidden == MASKS).all(1).argmax(), position]
        found.append(total)
    return np.stack(found, 1)


def test_the_mass_in_every_order_sums_to_one_and_the_bound_is_below() -> None:
    """`elbo` has the mean over orders; the fit the cosine's numbers of hidden codes."""
    p = masked()
    log_p = given_seen(p)
    orders = of_orders(log_p)
    np.testing.assert_allclose(np.exp(orders).sum(0), 1.0, rtol=1e-5)
    assert np.ptp(orders, axis=1).max() > 0.1
    mass = np.exp(orders).mean(1)
    keys = jax.random.split(jax.random.key(0), (4000, len(ONE_HOT)))
    value = jnp.asarray(ONE_HOT)
    both = jax.jit(lambda k: (p.elbo(value, k), p.fit_objective(value, k)))
    elbo, fit = (np.asarray(each, np.float64) for each in jax.lax.map(both, keys))
    error = stats.sem(elbo)
    assert (np.abs(elbo.mean(0) - orders.mean(1)) < 4.5 * error).all()
    assert (orders.mean(1) <= np.log(mass) + 1e-6).all()
    share = np.arccos(np.arange(N) / N) - np.arccos(np.arange(1, N + 1) / N)
    share *= 2 / np.pi  # of one, two, ... hidden codes
    number = MASKS.sum(1)
    sums = (log_p * MASKS).sum(-1)
    by_number = np.stack([sums[:, number == m].mean(1) for m in range(1, N + 1)], 1)
    assert (np.abs(fit.mean(0) - by_number @ share) < 4.5 * stats.sem(fit)).all()


def test_a_code_is_found_from_those_that_are_seen() -> None:
    """What is hidden has no influence; what is seen has, on both sides."""
    p = masked()
    hidden = jnp.array([[False, True, False]])
    x = jax.random.normal(jax.random.key(2), (N, C))
    logits = lambda x: p.logits(x[None], hidden, None)[0]  # noqa: E731
    influence = np.abs(jax.jit(jax.jacobian(logits))(x)).max((1, 3))  # [to, from]
    assert (influence[:, 1] == 0).all()
    assert (influence[:, [0, 2]] > 1e-4).all()


def test_one_code_after_another_in_a_random_order_has_the_bounded_mass() -> None:
    """As many steps as codes, and an order by noise alone: the mean over the six orders."""
    p = masked(num_steps=N, choice_temperature=1e6)
    drawn = jax.jit(jax.vmap(p.sample))(jax.random.split(jax.random.key(1), COUNT))
    same_frequencies(drawn, np.exp(of_orders(given_seen(p))).mean(1))


def test_one_step_draws_all_codes_by_themselves_and_seen_codes_stay() -> None:
    """In one step from the product of p(z_i | nothing); one hidden code from p(z_i | others)."""
    p = masked(num_steps=1)
    log_p = given_seen(p)
    keys = jax.random.split(jax.random.key(1), COUNT)
    same_frequencies(jax.jit(lambda k: p.sample(k, (COUNT,)))(keys[0]), np.exp(log_p[:, -1].sum(1)))
    hidden = np.broadcast_to([False, True, False], (COUNT, N))
    one_hot = jnp.asarray(np.broadcast_to(ONE_HOT[5], (COUNT, N, C)))
    drawn = jax.jit(masked(num_steps=8).complete)(one_hot, jnp.asarray(hidden), keys)
    alike = (SEQUENCES[:, [0, 2]] == SEQUENCES[5, [0, 2]]).all(1)
    index = (hidden[0] == MASKS).all(1).argmax()
    same_frequencies(drawn, np.where(alike, np.exp(log_p[:, index, 1]), 0.0))


def test_the_cosine_says_how_many_codes_are_left() -> None:
    """floor(n cos(pi t / 2T)), by the paper's figure 3; of 2 codes one a step."""
    seen: list[np.ndarray] = []

    class Watched(MaskedCategorical):
        def logits(self, one_hot: Any, hidden: Any, y: Any) -> Any:
            jax.debug.callback(lambda each: seen.append(np.asarray(each.sum(1))), hidden)
            return jnp.zeros(one_hot.shape)

    network = Transformer(64, C, **SMALL, causal=False)
    p = Watched({}, None, network, vj.MaskedCodes((8, 8), **SMALL))
    two = jnp.arange(64)[None] < 2
    hidden = jnp.concatenate([jnp.ones((1, 64), bool), two])
    drawn = p.complete(jnp.zeros((2, 64, C)), hidden, jax.random.split(jax.random.key(0), 2))
    jax.effects_barrier()
    left = [math.floor(64 * math.cos(math.pi * t / 16)) for t in range(8)]
    np.testing.assert_array_equal(np.stack(seen)[:, 0], left)
    np.testing.assert_array_equal(np.stack(seen)[:, 1], [2, 1, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(drawn.sum(-1), hidden)


@pytest.mark.slow
def test_guided_codes_are_drawn_from_guided_masses() -> None:
    """All at once: the class's mass times its ratio to that of no class, normalized."""
    weight, y = 1.5, jnp.array([1])
    p = masked(y, guidance=weight, num_steps=1)
    nothing = jnp.zeros((1, N, C)), jnp.ones((1, N), bool)
    of_class, of_none = (
        np.asarray(p.logits(*nothing, jnp.array([label]))[0], np.float64) for label in (1, CLASSES)
    )
    each = np.exp(of_class + weight * (of_class - of_none))
    each /= each.sum(-1, keepdims=True)
    mass = (each * ONE_HOT).sum(-1).prod(-1)
    keys = jax.random.split(jax.random.key(4), (COUNT, 1))
    same_frequencies(jax.jit(jax.vmap(p.sample))(keys), mass)


# --- Models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "grid"), [((8, 8), (4, 4)), ((7, 5), (2, 3)), ((28, 28), (7, 7)), ((3, 3), (1, 1))]
)
def test_a_code_is_hidden_where_a_pixel_of_its_block_is(
    size: tuple[int, int], grid: tuple[int, int]
) -> None:
    """By a loop over single pixels."""
    block = [math.ceil(pixels / codes) for pixels, codes in zip(size, grid, strict=True)]
    every = np.eye(size[0] * size[1], dtype=bool).reshape(-1, *size)
    found = np.asarray(of_grid(jnp.asarray(every), grid))
    for pixel, hidden in enumerate(found):
        row, column = divmod(pixel, size[1])
        expected = np.zeros(grid, bool)
        expected[row // block[0], column // block[1]] = True
        np.testing.assert_array_equal(hidden, expected)


@pytest.mark.slow
def test_masked_codes_in_a_model() -> None:
    """Draws, the bound in evaluation, and pixels filled in: codes of seen ones stay."""
    model = vj.VAE(
        encoder=vj.ConvEncoder((4,), dense=None),
        posterior=vj.FiniteScalarQuantized((3, 3)),
        prior=vj.MaskedCodes((2, 2), **SMALL),
        decoder=vj.ConvDecoder((4, 3), dense=None),
        likelihood=vj.Bernoulli(),
        image_shape=tiny.IMAGE_SHAPE,
    )
    x = jnp.asarray(tiny.images(6, 0) > 127, jnp.float32)
    keys = jax.random.split(jax.random.key(0), 6)
    half = jnp.zeros((6, 4, 4), bool).at[:, :2].set(True)

    @jax.jit
    def everything() -> Any:
        variables = model.init(keys[0], x, keys)
        values = per_image(model, variables, x, keys, 2)
        (z,), filled = inpainted_by_codes(model, variables, x, half, keys, 2)
        (same,), _ = inpainted_by_codes(model, variables, x, jnp.zeros_like(half), keys, 1)
        q: Any = model.apply(variables, x, method="encode")
        return values, z, filled, same, q.mean

    values, z, filled, same, encoded = everything()
    np.testing.assert_array_equal(values["nll"], values["neg_elbo"])
    assert (values["kl_sampled"] > 0).all()
    np.testing.assert_array_equal(filled[:, 2:], x[:, 2:])
    assert set(np.unique(filled)) == {0.0, 1.0}
    np.testing.assert_array_equal(same, encoded)
    assert z.shape == encoded.shape
    with pytest.raises(VaeJaxError, match="only a bound on it"):
        masked().log_prob(jnp.asarray(ONE_HOT))
