"""Codebooks, quantized posteriors and priors over codes, by hand, enumeration and identities."""

import dataclasses
import itertools
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from gradients import assert_close, one_batch
from jax import Array
from running import on_devices
from scipy import stats

from vae_jax import (
    VAE,
    VQVAE,
    AutoregressiveCodes,
    Bernoulli,
    Categorical,
    ConvDecoder,
    ConvEncoder,
    Experiment,
    FiniteScalarQuantized,
    LookupFree,
    ResidualVectorQuantized,
    UniformCodes,
    VectorQuantized,
    parallel,
)
from vae_jax.distributions import VectorCodebook
from vae_jax.evaluation.codebook import codebook_use
from vae_jax.evaluation.over_split import over_split
from vae_jax.networks.transformer import Transformer
from vae_jax.objectives.vq import perplexity
from vae_jax.priors.autoregressive_codes import AutoregressiveCategorical
from vae_jax.step import init_state, make_train_chunk
from vae_jax.train import chunks_of_batches

GRID = (2, 2)


def identity(key: Array, shape: Any, dtype: Any = None, out_sharding: Any = None) -> Array:
    """A kernel that leaves features as they are."""
    return jnp.eye(*shape, dtype=dtype)


def quantize(posterior: Any, features: Any, state: Any = None) -> Any:
    """q of features, and the new codebook state, from a given one."""

    @jax.jit
    def both(features, state):
        variables = posterior.init(jax.random.key(0), features)
        if state is not None:
            variables = {**variables, "codebook": {"level": state}}
        return posterior.apply(variables, features, mutable=["codebook"])

    return both(features, state)


def drawn(module: Any, *arguments: Any) -> Any:
    """Variables, all from N(0, 0.8²): an initializer would have to be compiled."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *arguments)
    generator = np.random.default_rng(1)
    return jax.tree.map(lambda x: generator.normal(0, 0.8, x.shape).astype("f4"), shapes)


IDENTITY = {"params": {"encoded": {"kernel": np.eye(2, dtype="f4"), "bias": np.zeros(2, "f4")}}}


# --- Codebooks ----------------------------------------------------------------------------------

VECTORS = np.random.default_rng(0).normal(size=(2, 3, 2)).astype(np.float32)
CODEBOOKS: dict[str, tuple[Any, int]] = {
    "vectors": (VectorCodebook(jnp.asarray(VECTORS[:1])), 3),
    "residual": (VectorCodebook(jnp.asarray(VECTORS)), 3),
    "scalars": (FiniteScalarQuantized((3, 4, 5)).codebook, 60),
    "signs": (LookupFree(4).codebook, 16),
}


@pytest.mark.parametrize(("codebook", "num_codes"), CODEBOOKS.values(), ids=CODEBOOKS)
def test_codes_and_vectors_are_in_bijection(codebook, num_codes):
    """All C^depth combinations: different vectors, each of which spells its codes."""
    assert codebook.num_codes == num_codes
    codes = np.array(list(itertools.product(range(num_codes), repeat=codebook.depth)))
    z = jax.jit(codebook.embed)(jnp.asarray(codes))
    assert z.shape == (num_codes**codebook.depth, codebook.dim)
    assert len(np.unique(np.round(z, 5), axis=0)) == len(z)
    np.testing.assert_array_equal(jax.jit(codebook.indices)(z), codes)


def test_residual_vectors_hold_partial_sums():
    z = CODEBOOKS["residual"][0].embed(jnp.array([[2, 1]]))
    first, second = VECTORS[0, 2], VECTORS[1, 1]
    np.testing.assert_allclose(z, [[*first, *(first + second)]], rtol=1e-6)


def test_finite_scalars_are_the_papers():
    """Mentzer et al. (2023): integers, as many as levels, of the tanh, divided by floor(L/2)."""
    x = np.linspace(-6, 6, 241, dtype=np.float32)
    q, _ = quantize(FiniteScalarQuantized((3, 4), identity), np.stack([x, x], -1)[:, None, None])
    odd, even = np.moveaxis(np.asarray(q.mean), -1, 0)
    np.testing.assert_allclose(np.unique(odd), [-1, 0, 1])
    np.testing.assert_allclose(np.unique(even), [-1, -0.5, 0, 0.5])
    # Three levels: round(0.999 tanh x), whose steps are where 0.999 tanh x = ±1/2.
    np.testing.assert_array_equal(odd.ravel(), np.round(0.999 * np.tanh(x)))
    assert even.ravel()[120] == 0  # of x = 0, where the offset has not moved the code
    # The gradient is that of the bounded value, 0.999 (1 - tanh²).

    def of_odd(x):
        q: Any = FiniteScalarQuantized((3, 4)).apply(IDENTITY, jnp.full((1, 1, 1, 2), x))
        return q.mean[..., 0].sum()

    gradient = jax.jit(jax.vmap(jax.grad(of_odd)))(x)
    np.testing.assert_allclose(gradient, 0.999 * (1 - np.tanh(x) ** 2), atol=1e-5)


@pytest.mark.parametrize("levels", range(2, 9))
def test_finite_scalars_use_their_levels_alike(levels):
    """The steps are where the paper's bound, with artanh for its tan, crosses halves.

    Of symmetric inputs two levels get half each; of an even number above, h = 0 stays 0.
    """
    h = np.random.default_rng(0).normal(size=2001)
    h = np.concatenate([h, -h]).astype(np.float32)
    q, _ = quantize(FiniteScalarQuantized((levels,), identity), h.reshape(-1, 1, 1, 1))
    code = np.asarray(q.mean).ravel() * (levels // 2)
    half = (levels - 1) * 0.999 / 2
    if levels == 2:
        np.testing.assert_array_equal(code, np.where(h < 0, -1, 0))
        assert (code == 0).mean() == 0.5
    else:
        offset = 0.0 if levels % 2 else 0.5
        bounded = half * np.tanh(h.astype(np.float64) + math.atanh(offset / half)) - offset
        clear = np.abs(bounded % 1 - 0.5) > 1e-4  # of rounding in float32
        np.testing.assert_array_equal(code[clear], np.round(bounded)[clear])


def test_signs_and_their_penalties():
    """Entropies of exp(-|h - c|²), normalised over all codes by enumeration in NumPy."""
    h = np.random.default_rng(1).normal(size=(3, 2, 2, 2)).astype(np.float32)
    q, _ = quantize(LookupFree(2, identity), h)
    np.testing.assert_array_equal(q.mean, np.sign(h))
    np.testing.assert_allclose(
        q.penalties["commitment"], ((np.abs(h) - 1) ** 2).sum((1, 2, 3)), rtol=1e-5
    )
    codes = np.array(list(itertools.product((-1.0, 1.0), repeat=2)))
    p = np.exp(-((h[..., None, :] - codes) ** 2).sum(-1))
    p /= p.sum(-1, keepdims=True)
    each = stats.entropy(p, axis=-1).mean()
    together = stats.entropy(p.mean((0, 1, 2)))
    np.testing.assert_allclose(q.penalties["entropy"].mean(), 4 * (each - together), rtol=1e-4)


# --- Vector quantization ------------------------------------------------------------------------


def test_the_nearest_vector_is_taken_and_the_gradient_passes_straight_through():
    """By brute force; d/dh of any function of z is that at z, times the identity."""
    h = np.random.default_rng(2).normal(size=(4, 2, 2, 2)).astype(np.float32)
    state = {"counts": jnp.ones(3), "sums": jnp.asarray(VECTORS[0])}
    posterior = VectorQuantized(3, 2, kernel_init=identity)
    q, _ = quantize(posterior, h, state)
    distances = ((h[..., None, :] - VECTORS[0]) ** 2).sum(-1)
    np.testing.assert_array_equal(q.indices[..., 0], distances.argmin(-1))
    np.testing.assert_allclose(q.mean, VECTORS[0][distances.argmin(-1)], rtol=1e-4)
    penalty = distances.min(-1).sum((1, 2))
    assert q.penalties.keys() == {"commitment"}
    np.testing.assert_allclose(q.penalties["commitment"], penalty, rtol=1e-4)

    def function(encoded):
        z = q.replace(encoded=encoded).sample(jax.random.key(0), (3,))
        return (jnp.sin(z) * jnp.arange(1.0, 4)[:, None, None, None, None]).sum()

    np.testing.assert_allclose(
        jax.jit(jax.grad(function))(q.encoded), 6 * np.cos(q.mean), rtol=1e-5
    )
    np.testing.assert_array_equal(q.log_prob(q.sample(jax.random.key(0), (3,))), np.zeros((3, 4)))


def test_running_averages_by_hand():
    """Van den Oord et al. (2017), appendix A.1, for numbers that were added up on paper.

    At 0 and 10 there are vectors with counts of 2 and 6. Of the batch 1, 2, 8, the first two go to
    0: counts 0.9 * 2 + 0.1 * 2 and 0.9 * 6 + 0.1 * 1, sums 0.1 * 3 and 0.9 * 60 + 0.1 * 8.
    """
    state = {"counts": jnp.array([2.0, 6.0]), "sums": jnp.array([[0.0], [60.0]])}
    posterior = VectorQuantized(2, 1, decay=0.9, kernel_init=identity)
    batch = np.array([1.0, 2.0, 8.0], np.float32).reshape(3, 1, 1, 1)
    q, new = quantize(posterior, batch, state)
    level = new["codebook"]["level"]
    np.testing.assert_allclose(level["counts"], [2.0, 5.5], rtol=1e-6)
    np.testing.assert_allclose(level["sums"], [[0.3], [54.8]], rtol=1e-6)
    np.testing.assert_allclose(q.codebook.vectors, [[[0.0], [10.0]]], rtol=1e-4)  # this step's
    q, _ = quantize(posterior, batch, level)
    np.testing.assert_allclose(q.codebook.vectors, [[[0.15], [54.8 / 5.5]]], rtol=1e-4)


def test_dead_codes_restart_from_the_batch():
    """A vector that nothing is near moves to one of the batch's, with a fair share of uses."""
    state = {"counts": jnp.array([2.0, 0.5]), "sums": jnp.array([[0.0], [50.0]])}
    batch = np.array([1.0, 2.0, 3.0], np.float32).reshape(3, 1, 1, 1)
    half = VectorQuantized(2, 1, restart_below=0.5, kernel_init=identity)
    _, new = quantize(half, batch, state)  # 0.495 uses, of a fair share of 1.5
    counts, sums = (np.asarray(new["codebook"]["level"][name]) for name in ("counts", "sums"))
    np.testing.assert_allclose(counts, [0.99 * 2 + 0.01 * 3, 1.5], rtol=1e-5)
    assert sums[1, 0] / 1.5 in (1.0, 2.0, 3.0)
    for restart_below in (0.0, 0.3):
        alive = VectorQuantized(2, 1, restart_below=restart_below, kernel_init=identity)
        _, new = quantize(alive, batch, state)
        np.testing.assert_allclose(new["codebook"]["level"]["sums"][1], 0.99 * 50, rtol=1e-5)


@pytest.mark.parametrize(("codes", "positions"), [(12, 5), (12, 12), (12, 40), (300, 144)])
def test_no_two_codes_restart_on_one_position(codes, positions):
    """All codes but one are dead. As many move as there are positions, each to one of its own."""
    counts = np.full(codes, 1e-3, np.float32)
    counts[codes // 2] = 7.0
    sums = -1e3 * counts
    sums[codes // 2] = 0.0  # the nearest of all inputs
    state = {"counts": jnp.asarray(counts), "sums": jnp.asarray(sums[:, None])}
    batch = np.arange(1, positions + 1, dtype=np.float32).reshape(positions, 1, 1, 1)
    posterior = VectorQuantized(codes, 1, restart_below=0.01, kernel_init=identity)
    _, new = quantize(posterior, batch, state)
    level = {name: np.asarray(value) for name, value in new["codebook"]["level"].items()}
    vectors = (level["sums"] / level["counts"][:, None]).ravel()
    restarted = np.isclose(level["counts"], positions / codes) & (vectors > 0)
    found = np.sort(vectors[restarted].round(3))
    assert len(found) == min(codes - 1, positions)
    assert len(np.unique(found)) == len(found)
    assert set(found) <= set(batch.ravel())
    assert not restarted[codes // 2]
    # Spread over the batch: its halves differ by a few at most.
    assert abs((found > positions / 2).sum() - len(found) / 2) <= 3


def test_a_small_batch_does_not_restart_its_codes_for_ever():
    """512 codes on 144 positions, 0.28 uses each: all in equal use, few restarts once settled."""
    posterior = VectorQuantized(512, 1, kernel_init=identity)
    affine = {"encoded": {"kernel": jnp.eye(1), "bias": jnp.zeros(1)}}
    centres = jnp.arange(512.0)
    state = {"counts": jnp.full(512, 144 / 512), "sums": centres[:, None] * 144 / 512}

    def step(level, key):
        x = jax.random.choice(key, centres, (1, 12, 12, 1))
        variables = {"params": affine, "codebook": {"level": level}}
        _, new = posterior.apply(variables, x, mutable=["codebook"])
        level = new["codebook"]["level"]
        return level, (level["counts"] == jnp.float32(144 / 512)).sum()

    _, restarts = jax.jit(partial(jax.lax.scan, step))(
        state, jax.random.split(jax.random.key(0), 600)
    )
    assert restarts[-200:].mean() < 0.1


def test_the_codebook_rests_unless_it_is_mutable():
    """Evaluation, and every call that does not train, leaves the averages alone."""
    posterior = VectorQuantized(3, 2)
    h = jnp.ones((2, 1, 1, 2))
    variables = jax.jit(posterior.init)(jax.random.key(0), h)
    np.testing.assert_array_equal(variables["codebook"]["level"]["counts"], np.ones(3))
    q: Any = jax.jit(posterior.apply)(variables, h)
    assert isinstance(q.codebook, VectorCodebook)  # not q and a new state


def test_vectors_learned_by_gradient_move_to_the_mean_of_their_own():
    """Gradient descent on the penalty ends in Lloyd's fixed point."""
    h = np.array([[0.0, 0.0], [0.4, 0.2], [3.0, 3.0], [3.2, 2.0]], np.float32)[:, None, None]
    posterior = VectorQuantized(2, 2, decay=None, kernel_init=identity)
    start = jnp.array([[1.0, 0.0], [2.0, 2.0]])

    @jax.jit
    def descend(key):
        variables = posterior.init(key, h)

        def penalty(vectors):
            params = {**variables["params"], "level": {"vectors": vectors}}
            q: Any = posterior.apply({"params": params}, h)
            return q.penalties["codebook"].sum(), q

        def step(vectors, _):
            gradient, q = jax.grad(penalty, has_aux=True)(vectors)
            return vectors - 0.1 * gradient, q.penalties

        return variables, *jax.lax.scan(step, start, None, length=100)

    variables, vectors, penalties = descend(jax.random.key(0))
    assert "codebook" not in variables
    np.testing.assert_allclose(vectors, [[0.2, 0.1], [3.1, 2.5]], rtol=1e-5)
    np.testing.assert_allclose(penalties["codebook"], penalties["commitment"], rtol=1e-6)


def test_every_level_brings_the_residual_down():
    """After training the averages on one batch, each partial sum is closer than the one before."""
    h = np.random.default_rng(3).normal(size=(64, 2, 2, 3)).astype(np.float32)
    posterior = ResidualVectorQuantized(8, 3, 3, decay=0.5, kernel_init=identity)

    @jax.jit
    def many(key):
        variables = posterior.init(key, h)

        def step(state, _):
            q, state = posterior.apply({**variables, **state}, h, mutable=["codebook"])
            return state, q.encoded - q.mean

        return jax.lax.scan(step, {"codebook": variables["codebook"]}, None, length=20)[1]

    difference = np.asarray(many(jax.random.key(0))[-1]).reshape(-1, 3, 3)
    errors = (difference**2).sum(-1).mean(0)
    assert errors[0] < 0.7 * 3  # of the variance of h
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.7 * errors[1]


def test_perplexity_counts_the_codes_in_use():
    q, _ = quantize(LookupFree(2, identity), np.ones((1, 1, 1, 2), np.float32))
    codes = jnp.array([0, 0, 1, 2, 2, 1, 2, 0]).reshape(2, 2, 2, 1)
    assert perplexity(q.replace(indices=codes)) == pytest.approx(
        np.exp(stats.entropy([3, 2, 3])), rel=1e-5
    )


# --- Priors -------------------------------------------------------------------------------------

LENGTH, CLASSES = 3, 3


@pytest.fixture(scope="module")
def autoregressive() -> AutoregressiveCategorical:
    """Far from uniform: every weight is drawn from a normal."""
    small: Any = {"width": 8, "num_layers": 2, "num_heads": 2}
    network = Transformer(LENGTH, CLASSES, **small)
    variables = drawn(network, jnp.zeros((1, LENGTH, CLASSES)), network.empty_cache(1))
    prior = AutoregressiveCodes((LENGTH,), **small)
    return AutoregressiveCategorical(variables, None, network, prior)


SEQUENCES = np.array(list(itertools.product(range(CLASSES), repeat=LENGTH)))


def every_log_prob(p: AutoregressiveCategorical) -> np.ndarray:
    """Of the 27 sequences."""
    return np.asarray(jax.jit(p.log_prob)(np.eye(CLASSES, dtype=np.float32)[SEQUENCES]))


def test_masses_sum_to_one(autoregressive):
    """Over all 27 sequences; and they are not all alike."""
    log_p = every_log_prob(autoregressive)
    assert np.exp(log_p).sum() == pytest.approx(1.0, abs=1e-5)
    assert np.ptp(log_p) > 2


def test_a_code_depends_on_those_before_alone(autoregressive):
    """d ln p(z_i | ...) / d z_j is zero for j >= i, and not for j < i."""
    network, variables = autoregressive.network, autoregressive.variables
    x = jax.random.normal(jax.random.key(2), (LENGTH, CLASSES))

    def features(x):
        return network.apply(variables, x[None], network.empty_cache(1))[0][0]

    influence = np.abs(jax.jit(jax.jacobian(features))(x)).max((1, 3))  # [to, from]
    assert (influence[np.triu_indices(LENGTH, 1)] == 0).all()
    assert (influence[np.tril_indices(LENGTH)] > 1e-4).all()


def test_place_by_place_is_all_at_once(autoregressive):
    """Samples with a cache against a loop without one, from the same noise."""
    key = jax.random.key(3)
    z = jax.jit(autoregressive.sample, static_argnums=1)(key, (50,))
    (noise,) = autoregressive.noise(key, (50,))
    network, variables = autoregressive.network, autoregressive.variables
    whole = jax.jit(lambda x: network.apply(variables, x, network.empty_cache(50))[0])
    expected = np.zeros((50, LENGTH, CLASSES), np.float32)
    for i in range(LENGTH):
        before = np.concatenate([np.zeros((50, 1, CLASSES), np.float32), expected[:, :-1]], 1)
        expected[:, i] = np.eye(CLASSES)[np.argmax(whole(before)[:, i] + noise[:, i], -1)]
    np.testing.assert_array_equal(z, expected)


def test_samples_have_the_enumerated_frequencies(autoregressive):
    """Chi-squared over the 27 sequences, at a significance of 1e-4; keys one by one, as a VAE's."""
    keys = jax.random.split(jax.random.key(4), 4000)
    z = np.asarray(jax.jit(jax.vmap(autoregressive.sample))(keys)).argmax(-1)
    observed = np.bincount(z @ CLASSES ** np.arange(LENGTH)[::-1], minlength=len(SEQUENCES))
    expected = 4000 * np.exp(np.float64(every_log_prob(autoregressive)))
    expected *= 4000 / expected.sum()
    common = expected > 5
    observed, expected = (np.append(n[common], n[~common].sum()) for n in (observed, expected))
    assert stats.chisquare(observed, expected).pvalue > 1e-4


# --- Models -------------------------------------------------------------------------------------

X = (tiny.images(3, 0) > 127).astype(np.float32)
KEYS = jax.random.split(jax.random.key(0), 3)


def on_grid(posterior: Any, prior: Any) -> VAE:
    """Codes on a grid of 2x2 for images of 4x4."""
    return VAE(
        encoder=ConvEncoder((4,), dense=None, residual_blocks=1),
        posterior=posterior,
        prior=prior,
        decoder=ConvDecoder((4, 3), dense=None, residual_blocks=1),
        likelihood=Bernoulli(),
        image_shape=tiny.IMAGE_SHAPE,
    )


def experiment(posterior: Any, **settings: Any) -> Experiment:
    """One vector of codes for each image, with an autoregressive prior."""
    model = tiny.model().clone(
        posterior=posterior, prior=AutoregressiveCodes((1, 1), width=4, num_layers=1, num_heads=2)
    )
    settings = {"batch_size": 8, **settings}
    return dataclasses.replace(tiny.experiment(), model=model, objective=VQVAE(), **settings)


@pytest.mark.slow
def test_one_device_is_eight():
    """Loss, metrics (the perplexity among them), codebook state and gradients."""
    # Unused codes, of 0.99 uses in the running average, are restarted.
    to_train = experiment(ResidualVectorQuantized(8, 2, 2, restart_below=0.995))
    one, eight = one_batch(to_train, 1, 8)
    assert_close(eight, one, 1e-4)
    _, metrics, model_state, gradients = one
    assert metrics["perplexity"] > 1
    counts = model_state["codebook"]["posterior"]["levels_0"]["counts"]
    assert counts.max() > 1, "no code was used twice, so none of 8 was left out"
    assert counts.min() == 1, "nothing restarted"
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(gradients))


def test_the_entropy_penalty_is_the_whole_batchs():
    """Of 8 images, one on each of 8 devices or all on one."""
    h = np.random.default_rng(5).normal(size=(8, 1, 1, 2)).astype(np.float32)
    penalties = []
    for devices in (1, 8):
        with on_devices(devices):
            function = parallel.on_every_device(partial(LookupFree(2, identity).apply, IDENTITY))
            q: Any = function(parallel.split(h, 0))
            penalties.append(parallel.gather(q.penalties["entropy"], 0))
    np.testing.assert_allclose(*penalties, rtol=1e-5)


STEPS = 100


@pytest.fixture(scope="module")
def trained() -> Any:
    """States of two seeds before and after some steps of one program, from these and from NaNs."""
    to_train = experiment(
        ResidualVectorQuantized(8, 4, 2),
        optimizer=optax.adam(1e-2),
        num_steps=STEPS,
        log_every=STEPS,
        checkpoint_every=STEPS,
        max_nonfinite=2 * STEPS,
        batch_size=16,
    )
    seeds = np.arange(2, dtype=np.uint32)
    with on_devices(1):
        start = jax.jit(jax.vmap(partial(init_state, to_train)))(seeds)
        likelihood = jax.tree.map(lambda leaf: leaf * np.nan, start.params["likelihood"])
        broken = start.replace(params={**start.params, "likelihood": likelihood})
        layout = parallel.Layout.of(len(seeds), to_train.batch_size)
        chunk = make_train_chunk(to_train, layout)
        batches = next(chunks_of_batches(to_train, layout, seeds, 0, streamed=False))
        images = parallel.replicate(to_train.data.train.images)

        def run(state):
            after = chunk(layout.place(state), images, batches, layout.place(seeds))
            return layout.collect(after)

        return start, run(start), run(broken)


@pytest.mark.slow
def test_training_lowers_the_bound_and_uses_the_codes(trained):
    _, (_, metrics), _ = trained
    neg_elbo, used = metrics["neg_elbo"], metrics["perplexity"]
    assert neg_elbo.shape == (2, STEPS)
    assert (neg_elbo[:, -20:].mean(1) < neg_elbo[:, :5].mean(1) - 2).all()
    assert (used[:, -20:].mean(1) > 2).all()


def test_the_use_of_codes_is_counted_over_all_images(trained):
    """Of each seed and level by sets and by SciPy's entropy; half the images, half the counts."""
    _, (state, _), _ = trained
    to_train = experiment(ResidualVectorQuantized(8, 4, 2))
    with on_devices(1):
        found = codebook_use(state.variables, to_train, "test", None)
        observed = over_split(to_train, "test", lambda variables, x, keys, y: x)(state.variables)
    for seed, x in enumerate(observed):
        variables = jax.tree.map(lambda leaf, seed=seed: leaf[seed], state.variables)
        q: Any = jax.jit(partial(to_train.model.apply, method="encode"))(variables, x)
        levels = [list(level) for level in np.asarray(q.indices).reshape(-1, 2).T]
        shares = [len(set(level)) / 8 for level in levels]
        entropies = [stats.entropy([level.count(c) for c in set(level)]) for level in levels]
        assert found["codebook_use"][seed] == pytest.approx(np.mean(shares))
        assert found["codebook_perplexity"][seed] == pytest.approx(np.mean(np.exp(entropies)))
    assert codebook_use(state.variables, tiny.experiment(), "test", None) == {}


def test_skipped_steps_leave_the_codebook(trained):
    """The state holds the collection; steps whose loss is not finite do not touch it."""
    start, (good, _), (bad, _) = trained
    assert set(start.model_state) == {"codebook"}
    assert (bad.skipped == STEPS).all()
    assert (good.skipped == 0).all()
    for before, moved, kept in zip(
        *(jax.tree.leaves(state.model_state) for state in (start, good, bad)), strict=True
    ):
        np.testing.assert_array_equal(before, kept)
        assert np.any(before != moved)


@pytest.mark.parametrize(
    ("posterior", "rate"),
    [
        (FiniteScalarQuantized((3, 2)), 4 * np.log(6)),
        (ResidualVectorQuantized(5, 2, 2), 8 * np.log(5)),
    ],
    ids=["scalars", "residual"],
)
def test_the_bound_has_a_mass_for_every_code(posterior, rate):
    """Under a uniform prior -ln p(z) = n ln C, of 2x2 places with one code or two."""
    model = on_grid(posterior, UniformCodes(GRID))

    @jax.jit
    def everything(variables):
        terms: Any = model.apply(variables, X, KEYS)
        sampled: Any = model.apply(variables, KEYS, method="sample")
        (z,), px = sampled
        codebook = terms.q[0].codebook
        again = codebook.embed(codebook.indices(z))
        return terms, VQVAE()(terms, jnp.int32(0), model), z, again, px.mean

    variables = drawn(model, X, KEYS)
    variables |= {"codebook": jax.tree.map(np.abs, variables.get("codebook", {}))}
    terms, (loss, metrics), z, again, means = everything(variables)
    np.testing.assert_allclose(terms.log_w, terms.log_px - rate, rtol=1e-5)
    np.testing.assert_allclose(metrics["neg_elbo"], metrics["distortion"] + rate, rtol=1e-5)
    penalty = sum(0.25 * value.mean() for value in terms.q[0].penalties.values())
    np.testing.assert_allclose(loss, metrics["neg_elbo"] + penalty, rtol=1e-5)
    own = dataclasses.replace(terms.q[0], penalties={"own": jnp.array([1.0, 2.0, 6.0])})
    weighed, _ = VQVAE()(dataclasses.replace(terms, q=(own,)), jnp.int32(0), model)
    np.testing.assert_allclose(weighed, metrics["neg_elbo"] + 3, rtol=1e-5)
    assert z.shape == terms.z[0].shape[1:] == (3, *terms.p[0].event_shape)
    assert means.shape == X.shape
    np.testing.assert_allclose(z, again, atol=1e-6)


def test_the_prior_learns_the_codes_and_moves_no_encoder():
    """d ln p(z) / d encoder is zero; ln p(z) of codes is that of the transformer over them."""
    model = experiment(ResidualVectorQuantized(5, 2, 2)).model

    @jax.jit
    def everything(params, state):
        def rate(params):
            terms: Any = model.apply({"params": params, "codebook": state}, X, KEYS)
            return terms.log_pz.sum(), terms

        gradients, terms = jax.grad(rate, has_aux=True)(params)
        one_hot = jax.nn.one_hot(terms.q[0].indices.reshape(3, 2), 5)
        return gradients, terms.log_pz[0, 0], terms.p[0].base.log_prob(one_hot)

    variables = drawn(model, X, KEYS)
    positive = jax.tree.map(np.abs, variables["codebook"])
    gradients, log_pz, expected = everything(variables["params"], positive)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradients["encoder"]))
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients["prior"]))
    np.testing.assert_allclose(log_pz, expected, rtol=1e-6)


def test_an_autoregressive_prior_over_one_hot_latents():
    """ln p(z) is differentiable along them, and so the rate reaches the encoder."""
    model = tiny.model().clone(
        posterior=Categorical(2, 3, temperature=1.0),
        prior=AutoregressiveCodes((2,), width=4, num_layers=1, num_heads=1),
    )

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradients_and_terms(params):
        terms: Any = model.apply({"params": params}, X, KEYS)
        return terms.log_pz.sum(), terms

    gradients, terms = gradients_and_terms(drawn(model, X, KEYS)["params"])
    assert terms.p[0].event_shape == terms.q[0].event_shape == (2, 3)
    assert np.abs(gradients["encoder"]["Dense_0"]["kernel"]).max() > 1e-7
