"""The VAE's Terms against NumPy and SciPy from the model's own conditional parameters."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
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
    StandardNormal,
    VaeJaxError,
    VampPrior,
)
from vae_jax.step import Batch, init_state, train_step

SHAPE, D, B, K = (4, 4, 1), 3, 5, 7
BASE = VAE(
    encoder=MLP((6,)),
    posterior=DiagonalGaussian(D),
    prior=StandardNormal(D),
    decoder=MLP((6,)),
    likelihood=Bernoulli(),
    image_shape=SHAPE,
)
MODELS = {
    "standard": BASE,
    "vamp": BASE.clone(prior=VampPrior(4)),
    "gaussian": BASE.clone(likelihood=Gaussian()),
}
every = pytest.mark.parametrize("name", MODELS)


def keys(seed: int, n: int) -> jax.Array:
    return jax.random.split(jax.random.key(seed), n)


@pytest.fixture(scope="module")
def built():
    """Every model with its variables and a compiled `apply(x, keys, num_samples)`."""
    made = {}
    for name, model in MODELS.items():
        x = jnp.zeros((1, *SHAPE))
        variables = jax.jit(model.init)(jax.random.key(0), x, keys(0, 1))

        def apply(x, keys, num_samples=1, model=model, variables=variables):
            return model.apply(variables, x, keys, num_samples)

        made[name] = model, variables, jax.jit(apply, static_argnums=2)
    return made


@pytest.fixture(scope="module")
def x():
    """Binary images, which every model here gives a density."""
    return np.random.default_rng(0).integers(0, 2, (B, *SHAPE)).astype(np.float32)


@every
def test_shapes(built, x, name):
    """Terms are per sample and per example; nothing is averaged."""
    terms = built[name][2](x, keys(1, B), K)
    (z,) = terms.z
    assert z.shape == (K, B, D)
    assert terms.log_px.shape == terms.log_w.shape == (K, B)
    assert terms.log_pz.shape == terms.log_qz.shape == (1, K, B)
    assert terms.kl_sampled.shape == (1, B)
    assert terms.reconstruction.shape == (K, B, *SHAPE)
    assert (terms.kl is None) == (name == "vamp")
    if terms.kl is not None:
        assert terms.kl.shape == (1, B)


def test_terms_in_numpy(built, x):
    """Dense layers from the parameters in NumPy, densities by SciPy, log_w = ln p(x,z) - ln q."""
    _, variables, apply = built["standard"]
    terms = apply(x, keys(1, B), K)
    params = jax.tree.map(np.float64, variables["params"])

    def dense(parameters, h):
        return h @ parameters["kernel"] + parameters["bias"]

    hidden = np.tanh(dense(params["encoder"]["Dense_0"], x.reshape(B, -1)))
    loc = dense(params["posterior"]["loc"], hidden)
    scale = np.exp(dense(params["posterior"]["log_scale"], hidden))
    z = np.float64(terms.z[0])
    hidden = np.tanh(dense(params["decoder"]["Dense_0"], z))
    probabilities = special.expit(dense(params["likelihood"]["logits"], hidden))
    log_px = stats.bernoulli.logpmf(x.reshape(B, -1), probabilities).sum(-1)
    log_pz = stats.norm.logpdf(z).sum(-1)
    log_qz = stats.norm.logpdf(z, loc, scale).sum(-1)
    np.testing.assert_allclose(terms.log_px, log_px, rtol=1e-4)
    np.testing.assert_allclose(terms.log_pz, log_pz[None], rtol=1e-4)
    np.testing.assert_allclose(terms.log_qz, log_qz[None], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(terms.log_w, log_px + log_pz - log_qz, rtol=1e-4)
    np.testing.assert_allclose(terms.kl_sampled, (log_qz - log_pz).mean(0)[None], atol=1e-4)
    shown = terms.reconstruction.reshape(K, B, -1)
    np.testing.assert_allclose(shown, probabilities, rtol=1e-4)


def test_exact_kl_is_the_sampled_one_in_expectation(built, x):
    """Within 4 standard errors of 4000 samples, example by example."""
    terms = built["standard"][2](x, keys(1, B), 4000)
    samples = np.asarray(terms.log_qz - terms.log_pz, np.float64)[0]
    error = samples.std(0) / np.sqrt(len(samples))
    assert np.all(np.abs(np.asarray(terms.kl[0]) - samples.mean(0)) < 4 * error)


@every
def test_an_example_does_not_see_its_batch(built, x, name):
    """Example 3 alone, with its key, has the same latents and terms as among the others."""
    apply, example_keys = built[name][2], keys(1, B)
    together, alone = apply(x, example_keys, K), apply(x[3:4], example_keys[3:4], K)
    np.testing.assert_allclose(together.z[0][:, 3], alone.z[0][:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(together.log_w[:, 3], alone.log_w[:, 0], rtol=1e-5)
    q = together.q[0]
    noise = np.asarray((together.z[0] - q.loc) / q.scale)
    assert len(np.unique(noise.round(4))) > 0.9 * noise.size  # no two examples or samples share


@pytest.mark.parametrize(
    ("model", "groups"),
    [
        (MODELS["standard"], {"encoder", "posterior", "decoder", "likelihood"}),
        (MODELS["vamp"], {"encoder", "posterior", "prior", "decoder", "likelihood"}),
        (
            BASE.clone(encoder=MLP(()), decoder=MLP(())),
            {"posterior", "likelihood"},
        ),
    ],
    ids=["standard", "vamp", "linear"],
)
def test_parameter_groups(model, groups):
    """The top level is the groups that an optax partition names; those without parameters lack."""
    x = jnp.zeros((1, *SHAPE))
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, keys(0, 1))
    assert set(shapes) == {"params"}
    assert set(shapes["params"]) == groups


def test_sampling_is_ancestral_and_keyed(built):
    """z ~ p(z) by Kolmogorov-Smirnov at 1e-4; p(x|z) is the decoder's; sample n has key n alone."""
    model, variables, _ = built["standard"]
    sample_keys = keys(2, 4000)
    sample = jax.jit(lambda keys: model.apply(variables, keys, method="sample"))
    (z,), px = sample(sample_keys)
    assert z.shape == (4000, D)
    assert px.mean.shape == (4000, *SHAPE)
    for d in range(D):
        assert stats.kstest(np.asarray(z)[:, d], "norm").pvalue > 1e-4
    decoded = model.apply(variables, (z[:3],), method="decode").mean
    np.testing.assert_allclose(px.mean[:3], decoded, rtol=1e-5)
    np.testing.assert_array_equal(sample(jnp.roll(sample_keys, -7))[0][0][:9], z[7:16])


def test_sampling_from_a_vamp_prior(built):
    """Draws have the mixture's moments: mean of components' means, within 4 standard errors."""
    model, variables, _ = built["vamp"]
    (z,), _ = jax.jit(lambda keys: model.apply(variables, keys, method="sample"))(keys(3, 4000))
    pseudo_inputs = variables["params"]["prior"]["pseudo_inputs"]
    components = model.apply(variables, jnp.clip(pseudo_inputs, 0, 1), method="encode")
    z = np.asarray(z, np.float64)
    error = z.std(0) / np.sqrt(len(z))
    assert np.all(np.abs(z.mean(0) - np.asarray(components.loc).mean(0)) < 4 * error)


def test_a_learned_scale_is_moved_by_the_optimizer():
    """One train step of gradient descent moves likelihood/log_scale by -rate x its gradient.

    With every mean at a grey 1/2 and s = 1 that gradient is D - E sum (x - 1/2)², in closed form.
    """
    images = np.random.default_rng(0).integers(0, 256, (B, *SHAPE), np.uint8)
    rate = 0.01
    experiment = Experiment(
        data=Data.from_arrays("grey", images, protocol="grey"),
        model=BASE.clone(likelihood=Gaussian(kernel_init=jax.nn.initializers.zeros)),
        objective=ELBO(),
        optimizer=optax.sgd(rate),
        num_steps=1,
        batch_size=B,
    )
    state = jax.jit(partial(init_state, experiment))(0)
    assert state.params["likelihood"]["log_scale"] == 0

    @jax.jit
    def step(state):
        batch, seed = Batch(rows=jnp.arange(B), images=None, y=None), jnp.uint32(0)
        return train_step(experiment, state, jnp.asarray(images), batch, seed, axis=None)[0]

    after = step(state)
    error = ((images / 255 - 0.5) ** 2).reshape(B, -1).sum(1).mean()
    expected = -rate * (np.prod(SHAPE) - error)
    assert after.params["likelihood"]["log_scale"] == pytest.approx(expected, rel=1e-4)


def test_a_model_is_traced_once_however_many_experiments_it_is_in(monkeypatch):
    model = tiny.model().clone()
    experiment = dataclasses.replace(tiny.experiment(), model=model)

    def traced(model):
        raise AssertionError("traced again")

    monkeypatch.setattr("vae_jax.compatibility._initial", traced)
    assert dataclasses.replace(experiment, num_steps=3).model is model
    with pytest.raises(VaeJaxError, match="traced again"):
        dataclasses.replace(experiment, model=model.clone())
