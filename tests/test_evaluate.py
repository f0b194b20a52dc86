"""Evaluation: every image once, at the K asked for, against closed forms and SciPy."""

import math
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from running import on_devices
from scipy import special, stats

from vae_jax import (
    ELBO,
    MLP,
    VAE,
    Bernoulli,
    Data,
    DiagonalGaussian,
    Experiment,
    Gaussian,
    HierarchicalVAE,
    PlanarFlow,
    StandardNormal,
    Terms,
    VaeJaxError,
    bounds,
    evaluate,
    parallel,
)
from vae_jax.bounds import per_image
from vae_jax.distributions import Elementwise, Normal, Transformed
from vae_jax.evaluation.bounds import make_bounds_and_latents_evaluator, make_bounds_evaluator
from vae_jax.evaluation.evaluate import active_units, bits_per_dim
from vae_jax.evaluation.moments import Moments, merged
from vae_jax.evaluation.over_split import over_split
from vae_jax.interfaces import Likelihood
from vae_jax.report import rows_of
from vae_jax.run import Run, RunFolder
from vae_jax.run.batches import MEMORY_FRACTION, floats_at_once
from vae_jax.step import init_state

SHAPE, D, N = (4, 4, 1), 2, 13
DIGITS = np.arange(N)[:, None] >> np.arange(4) & 1
BASE = VAE(
    encoder=MLP(()),
    posterior=DiagonalGaussian(D),
    prior=StandardNormal(D),
    decoder=MLP(()),
    likelihood=Bernoulli(),
    image_shape=SHAPE,
)


def keys(seed: int, n: int) -> jax.Array:
    return jax.random.split(jax.random.key(seed), n)


def make_images(count: int) -> np.ndarray:
    """Two random patterns in random mixtures, and noise."""
    generator = np.random.default_rng(0)
    patterns = generator.normal(size=(2, *SHAPE))
    grey = np.tensordot(generator.normal(size=(count, 2)), patterns, 1) * 25 + 128
    return np.clip(grey + 12 * generator.normal(size=grey.shape), 0, 255).astype(np.uint8)


def make_experiment(model: Any, protocol: str, test: np.ndarray | None = None) -> Experiment:
    images = make_images(60)
    return Experiment(
        data=Data.from_arrays("patterns", images, None, test, protocol=protocol),
        model=model,
        objective=ELBO(),
        optimizer=optax.sgd(0.1),
        num_steps=1,
    )


def stacked(*seeds):
    """One model's variables for each seed, as a run has them: host arrays `[S, ...]`."""
    return jax.tree.map(lambda *leaves: np.stack(leaves).astype(np.float32), *seeds)


@pytest.fixture
def small_pieces(monkeypatch):
    """Three samples and one image for each device at a time."""
    monkeypatch.setattr(bounds, "SAMPLES_AT_ONCE", 3)
    monkeypatch.setattr("vae_jax.cpu.platform.CACHED_FLOATS", 3 * math.prod(SHAPE))


# --- K samples of one batch ---------------------------------------------------------------------


class Stub:
    """Terms by rule: what `per_image` makes of known log-weights."""

    prior = StandardNormal(D)

    def __init__(self, terms):
        self.apply: Any = lambda variables, x, keys, num_samples, y: terms(keys, num_samples)


SLOTS = np.array([-900.0, -902.0, -899.5], np.float32)  # their weights underflow


def by_slot(keys, num_samples) -> Any:
    """The k-th of a chunk's samples always has the same log p(x|z) = SLOTS[k]; two layers."""
    ones = jnp.ones((num_samples, len(keys)))
    unused: Any = None
    q = Normal(jnp.arange(2.0)[:, None] + jnp.zeros((2, D)), jnp.ones((2, D)))
    return Terms(
        x=unused,
        y=None,
        keys=keys,
        z=(unused, unused),
        path=None,
        log_px=jnp.asarray(SLOTS)[:num_samples, None] * ones,
        log_pz=jnp.stack([-ones, -2 * ones]),
        log_qz=jnp.stack([-0.5 * ones, 3 * ones]),
        kl=jnp.array([[1.0, 2.0], [0.5, 0.25]]),
        q=(q, q),
        p=(unused, unused),
        reconstruction=unused,
    )


@pytest.mark.parametrize(
    ("num_samples", "counts"), [(1, (1, 0, 0)), (3, (1, 1, 1)), (7, (3, 2, 2))]
)
@pytest.mark.usefixtures("small_pieces")
def test_exactly_k_weights_count(num_samples, counts):
    """Chunks of three: K = 7 takes the slots 0 1 2 0 1 2 0 and no ninth sample.

    SciPy's logsumexp of weights log p(x|z) + (-1 + 0.5) + (-2 - 3), with multiplicities.
    """
    model: Any = Stub(by_slot)
    result = per_image(model, {}, jnp.zeros((2, *SHAPE)), keys(0, 2), num_samples)
    log_w = SLOTS - 5.5
    with np.errstate(divide="ignore"):
        nll = np.log(num_samples) - special.logsumexp(log_w + np.log(counts))
    average = np.array(counts) / num_samples
    np.testing.assert_allclose(result["nll"], [nll, nll], rtol=1e-6)
    np.testing.assert_allclose(result["neg_elbo"], [-average @ log_w] * 2, rtol=1e-6)
    np.testing.assert_allclose(result["distortion"], [-average @ SLOTS] * 2, rtol=1e-6)
    np.testing.assert_allclose(result["kl_sampled"], [5.5, 5.5], rtol=1e-6)
    np.testing.assert_allclose(result["kl"], [1.5, 2.25], rtol=1e-6)
    np.testing.assert_allclose(result["posterior_mean_z1"], [[0, 0], [1, 1]])


@pytest.mark.usefixtures("small_pieces")
def test_chunks_do_not_share_noise():
    """3000 standard normal log-weights in chunks of three average to 0 ± 5/sqrt(3000).

    Were the chunks alike, or the examples, the averages would be as wide as 1/sqrt(3), or equal.
    """

    def normal(keys, num_samples):
        log_px = jax.vmap(lambda key: jax.random.normal(key, (num_samples,)), out_axes=1)(keys)
        terms = by_slot(keys, num_samples)
        return terms.replace(log_px=log_px, log_pz=terms.log_qz, kl=None)

    model: Any = Stub(normal)
    result = per_image(model, {}, jnp.zeros((2, *SHAPE)), keys(0, 2), 3000)
    assert np.abs(result["neg_elbo"]).max() < 5 / math.sqrt(3000)
    # ln E[w] = 1/2 for a log-normal weight, whose sd is sqrt(e² - e) = 2.16.
    np.testing.assert_allclose(result["nll"], -0.5, atol=5 * 2.16 / math.exp(0.5) / math.sqrt(3000))
    assert result["neg_elbo"][0] != result["neg_elbo"][1]
    assert "kl" not in result


def test_posterior_means_of_every_layer():
    """E[z_2|x] of q(z_2|z_1) with mean 2 z_1 + 1 is 2 E[z_1|x] + 1, E[z_1|x] the image's sum."""
    model = HierarchicalVAE(
        encoders=[MLP(()), MLP(())],
        posteriors=[DiagonalGaussian(1), DiagonalGaussian(1)],
        prior=StandardNormal(1),
        decoders=[MLP(()), MLP(())],
        conditionals=[DiagonalGaussian(1)],
        likelihood=Bernoulli(),
        image_shape=SHAPE,
    )
    x = np.random.default_rng(0).integers(0, 2, (3, *SHAPE)).astype(np.float32)
    params = jax.jit(model.init)(jax.random.key(0), x, keys(0, 3))["params"]
    params = jax.tree.map(np.zeros_like, params)
    params["posteriors_0"]["loc"]["kernel"][:] = 1
    params["posteriors_1"]["loc"] = {"kernel": np.full((1, 1), 2.0), "bias": np.ones(1)}
    evaluated = jax.jit(partial(per_image, model, num_samples=1000))
    result = evaluated({"params": params}, x, keys(1, 3))
    first, second = result["posterior_mean_z1"], result["posterior_mean_z2"]
    total = x.reshape(3, -1).sum(1, keepdims=True)
    np.testing.assert_allclose(first, total, rtol=1e-6)
    # z_1 has unit variance, so the average of 2 z_1 + 1 has the standard error 2/sqrt(1000).
    np.testing.assert_allclose(second, 2 * total + 1, atol=5 * 2 / math.sqrt(1000))
    # 16 chunks of 64; the estimate of the variance 4/1024 has a relative error of sqrt(2/1000).
    np.testing.assert_array_equal(result["mean_variance_z1"], np.zeros((3, 1)))
    np.testing.assert_allclose(result["mean_variance_z2"], np.full((3, 1), 4 / 1024), rtol=0.25)


def test_a_posterior_mean_without_closed_form_is_that_of_the_samples():
    """Where `mean` is not the mean, E_q[z] is estimated; latents may have several axes."""
    z = np.random.default_rng(0).normal(size=(5, 2, 3, D)).astype(np.float32)

    def terms(keys, num_samples):
        base = Normal(jnp.full((2, 3, D), 9.0), jnp.ones((2, 3, D)), event_ndims=2)
        q = Transformed(base, ())
        one = by_slot(keys, 1)
        return one.replace(q=(base, q), z=(z[:num_samples], z[:num_samples]))

    model: Any = Stub(terms)
    result = per_image(model, {}, jnp.zeros((2, *SHAPE)), keys(0, 2), 5)
    np.testing.assert_allclose(result["posterior_mean_z1"], np.full((2, 3, D), 9.0))
    np.testing.assert_allclose(result["posterior_mean_z2"], z.mean(0), rtol=1e-5)
    np.testing.assert_array_equal(result["mean_variance_z1"], np.zeros((2, 3, D)))
    np.testing.assert_allclose(result["mean_variance_z2"], z.var(0, ddof=1) / 5, rtol=1e-4)


def moments(values) -> Any:
    """The moments of values `[N, ...]`, in float64, of one seed."""
    mean = values.mean(0)
    return Moments(jnp.full(1, len(values)), mean[None], ((values - mean) ** 2).sum(0)[None])


@pytest.mark.parametrize("num_samples", [2, 5, 10, 50])
@pytest.mark.parametrize("count", [100, 1000])
def test_chance_is_not_counted_as_active_units(num_samples, count):
    """Ten units of samples from N(0, 1) whatever the image, ten that follow it: ten active."""
    generator = np.random.default_rng(num_samples * count)
    for _ in range(20):
        centres = generator.normal(size=(count, 20)) * np.repeat([0, 1], 10)
        spread = np.repeat([1, 0.3], 10)
        z = centres + spread * generator.normal(size=(num_samples, count, 20))
        variances = z.var(0, ddof=1) / num_samples
        assert list(active_units(moments(z.mean(0)), moments(variances))) == [10]


def test_sampling_variance_is_subtracted_from_that_of_the_means():
    """K = 50 adds 0.02 to every variance: 0.018 is active all the same, 0.006 is not."""
    generator = np.random.default_rng(0)
    centres = np.sqrt([[0.018] * 4 + [0.006] * 4]) * generator.choice([-1, 1], (4000, 1))
    z = centres + generator.normal(size=(50, 4000, 8))
    assert list(active_units(moments(z.mean(0)), moments(z.var(0, ddof=1) / 50))) == [4]
    nothing = np.zeros((4000, 8))
    assert list(active_units(moments(centres), moments(nothing))) == [4]
    assert np.isnan(
        active_units(moments(z[0]), moments(nothing * np.nan))
    ).all()  # one sample tells nothing


# --- A split on all devices ---------------------------------------------------------------------


@pytest.mark.usefixtures("small_pieces")
def test_every_image_has_its_likelihood_in_its_place(fit_linear_gaussian):
    """13 images over 8 devices, one at a time: -ln p(x) by SciPy for each, the posterior exact.

    A dropped last batch, a counted padding or a log p where an NLL was promised would show.
    """
    test = make_images(60 + N)[60:]
    ppca = fit_linear_gaussian(make_images(60) / 255, D)
    evaluator = make_bounds_evaluator(make_experiment(ppca.model, "grey", test), "test", 5)
    result = evaluator(stacked(ppca.variables))
    expected = -ppca.log_likelihood(test / 255)
    assert result["nll"].shape == (1, N)
    np.testing.assert_allclose(result["nll"][0], expected, atol=2e-3)
    np.testing.assert_allclose(result["neg_elbo"][0], expected, atol=2e-3)
    assert len(set(expected.round(2))) == N


@pytest.fixture(scope="module")
def noisy():
    """Dynamically binarized images, and two seeds' variables of a VAE that is not trained.

    The first row of a test image is its position in binary digits, which have no noise.
    """
    test = make_images(60 + N)[60:]
    test[:, 0, :, 0] = 255 * DIGITS
    experiment = make_experiment(BASE, "dynamic", test)
    init = jax.jit(partial(init_state, experiment))
    states = [init(seed) for seed in (0, 1)]
    return experiment, [state.variables for state in states]


@pytest.fixture(scope="module")
def seen(noisy):
    """What a function of the test images is given: x `[N, H, W, C]` and keys `[N]`."""
    experiment, seeds = noisy

    def function(variables, x, keys, y):
        return x, jax.random.key_data(keys)

    x, data = over_split(experiment, "test", function)(stacked(*seeds))
    for given in (x, data):
        np.testing.assert_array_equal(*given)  # the noise of an image is the same for all seeds
    return x[0], jax.random.wrap_key_data(data[0])


def test_every_image_and_pixel_has_noise_of_its_own(noisy, seen):
    """x - p in standard deviations: its sums vary as those of independent numbers do.

    Over 13 images or 12 pixels their mean square is one, and 13 or 12 were the noise shared.
    """
    experiment, _ = noisy
    x, own = seen
    np.testing.assert_array_equal(x[:, 0, :, 0], DIGITS)
    assert set(np.unique(x)) == {0, 1}
    p = experiment.data.test.images[:, 1:] / 255
    errors = ((x[:, 1:] - p) / np.sqrt(p * (1 - p))).reshape(N, -1)
    for axis in (0, 1):
        squares = errors.sum(axis) ** 2 / errors.shape[axis]
        assert abs(squares.mean() - 1) < 4 * np.sqrt(2 / len(squares))
    assert abs(errors.sum()) < 4 * np.sqrt(errors.size)
    assert len(np.unique(jax.random.key_data(own), axis=0)) == N


@pytest.mark.usefixtures("small_pieces")
def test_a_split_is_its_images_one_by_one(noisy, seen):
    """Seeds x images against `per_image` of each image alone, with its noise."""
    experiment, seeds = noisy
    x, own = seen
    result = make_bounds_evaluator(experiment, "test", 7)(stacked(*seeds))
    assert result["nll"].shape == (2, N)
    alone = jax.jit(partial(per_image, BASE, num_samples=7))
    for n in range(N):
        for s, variables in enumerate(seeds):
            one = alone(variables, x[n : n + 1], own[n : n + 1])
            for name in ("nll", "neg_elbo", "distortion", "kl", "kl_sampled"):
                np.testing.assert_allclose(result[name][s, n], one[name][0], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("small_pieces")
def test_of_posterior_means_only_moments_leave_the_devices(noisy, seen, monkeypatch):
    """13 images over 8 devices, one at a time: NumPy's float64 moments of the means one by one.

    What is gathered is a number for each seed and image, and the values are those without moments.
    """
    experiment, seeds = noisy
    gathered, gather = [], parallel.gather

    def counting(sharded, axis):
        gathered.append(sharded[0].size)
        return gather(sharded, axis)

    monkeypatch.setattr(parallel, "gather", counting)
    evaluator = make_bounds_and_latents_evaluator(experiment, "test", 7)
    values, ((means, variances),) = evaluator(stacked(*seeds))
    assert set(gathered) == {2}  # of each device one image, of two seeds
    plain = make_bounds_evaluator(experiment, "test", 7)(stacked(*seeds))
    assert values.keys() == plain.keys()
    for name, value in plain.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-6)
    for s, variables in enumerate(seeds):
        q: Any = BASE.apply(variables, seen[0], method="encode")
        exact = np.asarray(q.mean, np.float64)
        np.testing.assert_allclose(means.mean[s], exact.mean(0), atol=1e-6)
        np.testing.assert_allclose(means.squares[s] / N, exact.var(0), rtol=1e-5)
    np.testing.assert_array_equal(variances.mean, np.zeros((2, D)))
    np.testing.assert_array_equal(means.count, [N, N])


@pytest.mark.parametrize(("centre", "spread"), [(0.0, 1.0), (1000.0, 1.0), (-3.0, 1e-3)])
def test_moments_are_numpys_in_float64(centre, spread):
    """100,000 values in 400 batches, the last one padded with what must not count.

    Sums of squares less the square of the sum would lose all digits at a centre of 1000.
    """
    generator = np.random.default_rng(0)
    values = (centre + spread * generator.normal(size=(99_900, 5))).astype(np.float32)
    padded = np.resize(np.concatenate([values, np.full((100, 5), 1e6, np.float32)]), (400, 250, 5))
    counted = (np.arange(100_000) < len(values)).reshape(400, 250)

    @jax.jit
    def run(padded, counted):
        def add(so_far, batch):
            return merged(so_far, Moments.of(*batch)), None

        nothing = Moments(jnp.zeros(()), jnp.zeros(5), jnp.zeros(5))
        return jax.lax.scan(add, nothing, (padded, counted))[0]

    found = run(padded, counted)
    assert found.count == len(values)
    exact = values.astype(np.float64)
    tolerance = 3e-5 * spread + 1e-6 * abs(centre)
    np.testing.assert_allclose(found.mean, exact.mean(0), atol=tolerance)
    np.testing.assert_allclose(found.squares / len(values), exact.var(0), rtol=2e-5)


def test_an_images_noise_does_not_depend_on_how_many_are_evaluated(noisy, monkeypatch):
    """4 of 13 images are numbers 0, 3, 6, 9; each has the same numbers as among all 13.

    K is above the samples at once, and the batch differs: neither may reach the noise.
    """
    experiment, seeds = noisy
    variables = stacked(seeds[0])
    everything = make_bounds_evaluator(experiment, "test", 100)(variables)
    monkeypatch.setattr("vae_jax.cpu.platform.CACHED_FLOATS", math.prod(SHAPE) * 64)
    some = make_bounds_evaluator(experiment, "test", 100, num_images=4)(variables)
    for name in ("nll", "neg_elbo", "distortion", "kl"):
        expected = everything[name][:, [0, 3, 6, 9]]
        np.testing.assert_allclose(some[name], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("small_pieces")
def test_however_many_batches_there_are_one_program_is_compiled(noisy, tmp_path, caplog):
    """At most three images for each of eight devices at once, one in `evaluate` with K = 3."""
    experiment, seeds = noisy
    run = make_run(experiment, tmp_path, stacked(seeds[0]))

    def compiled(function):
        caplog.clear()
        with jax.log_compiles():
            function()
        said = [record.getMessage() for record in caplog.records]
        return sum(line.startswith("Finished XLA compilation of jit(_fun)") for line in said)

    assert compiled(lambda: evaluate(run, num_samples=3)) == 1
    assert compiled(lambda: run.sample(50)) == 1
    assert compiled(lambda: run.sample(40, seed=1)) == 0
    assert compiled(lambda: run.reconstruct(make_images(50))) == 2  # encoder and decoder
    assert compiled(lambda: run.reconstruct(make_images(50))) == 0


def test_batches_are_of_a_cpus_cache_or_of_an_accelerators_memory(monkeypatch):
    """16 arrays of 2^28 bytes each in a quarter of 16 GiB."""
    assert floats_at_once() == 2**20
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(parallel, "device_memory", lambda: 2**34)
    assert floats_at_once() == 2**26


def test_images_are_taken_in_chunks_that_fit_the_memory(noisy, monkeypatch):
    """With a quarter of the memory that all images at once would take, by the compiler's account.

    The chunks then fit, and each image's numbers are as with all at once, whatever the chunks.
    """
    experiment, seeds = noisy
    taken = []

    def temporary_bytes(function, *arguments):
        taken.append((arguments[3].shape[1], measured(function, *arguments)))
        return taken[-1][1]

    measured = parallel.temporary_bytes
    monkeypatch.setattr(parallel, "temporary_bytes", temporary_bytes)
    with on_devices(1):
        variables = stacked(seeds[0])
        everything = make_bounds_evaluator(experiment, "train", 64)(variables)
        ((count, whole),) = taken
        assert count == 60
        taken.clear()
        budget = whole // 4
        monkeypatch.setattr(parallel, "device_memory", lambda: budget / MEMORY_FRACTION)
        evaluator = make_bounds_evaluator(experiment, "train", 64)
        chunked = evaluator(variables)
        assert taken[-1][1] <= budget
        assert 1 < taken[-1][0] < 60
        taken.clear()
        evaluator(variables)
        assert not taken, "it measured again"
    for name in ("nll", "neg_elbo", "distortion", "kl"):
        np.testing.assert_allclose(chunked[name], everything[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_images", [0, N + 1])
def test_a_wrong_number_of_images_is_refused(noisy, num_images):
    with pytest.raises(
        VaeJaxError, match=f"test split of patterns has 13 images: .* on {num_images}; take 1 to 13"
    ):
        make_bounds_evaluator(noisy[0], "test", 1, num_images)


def test_an_empty_split_is_refused(noisy):
    with pytest.raises(VaeJaxError, match="valid split of patterns"):
        make_bounds_evaluator(noisy[0], "valid", 1)


# --- The report ---------------------------------------------------------------------------------


def make_run(experiment: Experiment, folder, variables) -> Run:
    """A run whose parameters, `[S, ...]`, are given."""
    seeds = np.arange(jax.tree.leaves(variables)[0].shape[0], dtype=np.uint32)
    state = jax.jit(jax.vmap(partial(init_state, experiment)))(seeds)
    return Run(RunFolder(folder), experiment, state.replace(params=variables["params"]), "latest")


@pytest.mark.parametrize(("num_samples", "units", "shown"), [(1, np.nan, "unknown"), (6, 0, "0")])
def test_a_flow_that_ignores_its_images_has_no_active_units(num_samples, units, shown, tmp_path):
    """Its means are of samples, whose variances 1/K are above 0.01."""
    model = BASE.clone(posterior=PlanarFlow(D, num_flows=1))
    experiment = make_experiment(model, "threshold", make_images(N))
    params = jax.jit(partial(init_state, experiment))(0).params
    params["posterior"] = jax.tree.map(jnp.zeros_like, params["posterior"])
    evaluation = evaluate(
        make_run(experiment, tmp_path, stacked({"params": params})), num_samples=num_samples
    )
    np.testing.assert_array_equal(evaluation.active_units, [[units]])
    row = {name: value for name, value, *_ in rows_of(evaluation)}["active units"]
    assert row.startswith(shown)


def test_evaluation(noisy, tmp_path):
    """Means and SciPy's standard errors over images for each seed; units counted by hand.

    A unit's posterior mean is a x (sum of the image), its variance a² x that of the sums: a is
    chosen for 0.02 (active) or 0.005 (not). Seed 0 has one active unit, seed 1 has two.
    """
    test = (np.random.default_rng(0).integers(0, 2, (N, *SHAPE)) * 255).astype(np.uint8)
    experiment = make_experiment(BASE, "threshold", test)
    sums = (test // 255).reshape(N, -1).sum(1)
    params = jax.tree.map(lambda *leaves: np.stack(leaves), *noisy[1])["params"]
    kernel = params["posterior"]["loc"]["kernel"]
    assert kernel.shape == (2, 16, D)
    kernel[0] = np.sqrt([0.02, 0.005]) / sums.std()
    kernel[1] = np.sqrt([0.02, 0.02]) / sums.std()
    run = make_run(experiment, tmp_path, {"params": params})

    evaluation = evaluate(run, num_samples=3)
    values = make_bounds_evaluator(experiment, "test", 3)(run.variables)
    assert [list(units) for units in evaluation.active_units] == [[1, 2]]
    assert (evaluation.num_samples, evaluation.num_images) == (3, N)
    for name in ("nll", "neg_elbo", "distortion", "kl", "kl_sampled"):
        np.testing.assert_allclose(evaluation.mean[name], values[name].mean(1), rtol=1e-6)
        expected = stats.sem(values[name].astype(np.float64), axis=1)
        np.testing.assert_allclose(evaluation.standard_error[name], expected, rtol=1e-5)
    bits = evaluation.mean["nll"] / (16 * math.log(2))
    assert evaluation.bits_per_dim == pytest.approx(bits)
    for said in ("patterns", "test split", "threshold"):
        assert said in evaluation.data
    assert evaluation.checkpoint == "latest, step 0"


class Pseudo(Bernoulli):
    measure: ClassVar = "pseudo"


def test_no_likelihood_of_what_is_not_normalized(tmp_path):
    """The distortion is there; NLL, bounds and bits/dim are not, and the table says why."""
    experiment = make_experiment(BASE.clone(likelihood=Pseudo()), "dynamic", make_images(3))
    state = jax.jit(jax.vmap(partial(init_state, experiment)))(np.zeros(1, np.uint32))
    evaluation = evaluate(make_run(experiment, tmp_path, state.variables), num_samples=2)
    assert set(evaluation.mean) == {"distortion"}
    assert evaluation.bits_per_dim is None
    (said,) = (value for name, value, *_ in rows_of(evaluation) if name == "NLL")
    assert "not normalized" in said


# --- Bits per dimension -------------------------------------------------------------------------


@struct.dataclass
class UniformDensity(Elementwise):
    """1 on [0, 1] for every pixel."""

    def sample(self, key, sample_shape=()):
        raise NotImplementedError

    def component_log_prob(self, value):
        return jnp.where((value >= 0) & (value <= 1), 0.0, -jnp.inf) + 0 * self.loc


class Uniform(Likelihood):
    """Knows nothing of the image: every level of 256 is as likely."""

    supports: ClassVar = frozenset({"unit"})
    measure: ClassVar = "density"

    def __call__(self, features, image_shape):
        return UniformDensity(jnp.full((len(features), *image_shape), 0.5), event_ndims=3)


def bits_of(likelihood: Likelihood) -> np.ndarray:
    """Bits per dimension of dequantized images, decoder and posterior blind: `[N]`."""
    model = BASE.clone(likelihood=likelihood)
    experiment = make_experiment(model, "dequantize", make_images(60 + N)[60:])
    shapes = jax.eval_shape(partial(init_state, experiment), 0).variables
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes)
    nll = make_bounds_evaluator(experiment, "test", 2)(stacked(variables))["nll"]
    bits = bits_per_dim(nll, experiment)
    assert bits is not None
    return bits[0]


def test_a_uniform_density_takes_eight_bits():
    """256 equally likely levels, exactly: the scaling of the data to [0, 1] is accounted for."""
    np.testing.assert_array_equal(bits_of(Uniform()), np.full(N, 8.0))


def test_a_gaussian_takes_the_bits_of_its_levels():
    """N(1/2, 0.3²) of dequantized pixels against -log2 of SciPy's mass of each level's cell.

    The density varies by a 10,000th over a cell of 1/256, and sqrt(16) pixels average the noise.
    """
    v = make_images(60 + N)[60:].reshape(N, -1)
    mass = stats.norm.cdf((v + 1) / 256, 0.5, 0.3) - stats.norm.cdf(v / 256, 0.5, 0.3)
    bits = bits_of(Gaussian(scale=0.3))
    np.testing.assert_allclose(bits, -np.log2(mass).mean(1), atol=5e-3)


def test_bits_of_a_mass_and_of_a_density(noisy):
    """A fair coin for each pixel costs one bit; a density of data that are not noisy has none."""
    nll = np.array([16 * math.log(2)])
    assert bits_per_dim(nll, noisy[0]) == pytest.approx(1.0)
    assert bits_per_dim(nll, make_experiment(BASE.clone(likelihood=Gaussian()), "grey")) is None
