"""Latents that are vectors, sets of vectors or maps: densities, KLs and every objective."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from running import on_devices
from scipy import integrate, stats

import vae_jax as vj
from vae_jax import generate
from vae_jax.compatibility import check_shapes
from vae_jax.distributions import Normal, Shape, exact_kl
from vae_jax.evaluation.information import log_aggregated_posterior
from vae_jax.interfaces import latent_shape
from vae_jax.objectives.regularized import gradient_penalty
from vae_jax.train import train

SHAPES: list[int | Shape] = [6, (6,), (3, 2), (1, 3, 2)]


class Places(nn.Module):
    """Features at `places` positions, each an affine map of the whole image."""

    places: Shape

    @nn.compact
    def __call__(self, x):
        return nn.DenseGeneral((*self.places, 4))(x.reshape(len(x), -1))


def encoder_for(shape: int | Shape) -> Places:
    return Places(latent_shape(shape)[:-1])


def model_of(shape: int | Shape, **parts: Any) -> vj.VAE:
    made = {
        "encoder": encoder_for(shape),
        "posterior": vj.DiagonalGaussian(shape),
        "prior": vj.StandardNormal(shape),
        "decoder": vj.MLP((5,)),
        "likelihood": vj.Bernoulli(),
        "image_shape": tiny.IMAGE_SHAPE,
    }
    return vj.VAE(**made | parts)


def images(count: int = 4) -> jax.Array:
    return jnp.asarray(tiny.images(count, 0) / 255, jnp.float32)


def terms_of(model: Any, num_samples: int = 1) -> tuple[Any, Any]:
    """Terms of four images, and the variables."""
    keys = jax.random.split(jax.random.key(1), 4)
    run = jax.jit(model.init_with_output, static_argnums=3)
    return run(jax.random.key(0), images(), keys, num_samples)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("prior", "scipy"),
    [
        (vj.StandardNormal, stats.norm),
        (vj.StandardLaplace, stats.laplace),
        (lambda shape: vj.StandardStudentT(shape, 4.0), stats.t(4)),
    ],
)
def test_simple_priors_are_products_over_all_components(shape, prior, scipy):
    p: Any = prior(shape).apply({}, tiny.model())
    event = latent_shape(shape)
    assert (p.batch_shape, p.event_shape) == ((), event)
    z = np.random.default_rng(0).normal(size=(2, 3, *event)).astype(np.float32)
    expected = scipy.logpdf(z).reshape(2, 3, -1).sum(-1)
    np.testing.assert_allclose(p.log_prob(jnp.asarray(z)), expected, rtol=1e-5)
    assert p.sample(jax.random.key(0), (2,)).shape == (2, *event)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_gaussian_of_any_shape_is_one_of_its_components(shape):
    """Density by SciPy, KL by quadrature, one component after another."""
    terms, _ = terms_of(model_of(shape), num_samples=3)
    event = latent_shape(shape)
    loc, scale = (np.broadcast_to(a, (4, *event)) for a in (terms.q[0].loc, terms.q[0].scale))
    assert terms.z[0].shape == (3, 4, *event)
    expected = stats.norm.logpdf(terms.z[0], loc, scale).reshape(3, 4, -1).sum(-1)
    np.testing.assert_allclose(terms.log_qz[0], expected, rtol=1e-4)
    m, s = (a[0].ravel().astype(np.float64) for a in (loc, scale))

    def integrand(eps):
        z = m + s * eps
        return stats.norm.pdf(eps) * (stats.norm.logpdf(z, m, s) - stats.norm.logpdf(z))

    kl = integrate.quad_vec(integrand, -10, 10)[0].sum()
    assert terms.kl[0, 0] == pytest.approx(kl, rel=1e-4)


def test_places_share_one_affine_map():
    """Swapping two tokens of the features swaps two vectors of the set, and moves nothing else."""
    features = jax.random.normal(jax.random.key(0), (2, 3, 5))
    posterior = vj.DiagonalGaussian((3, 2))
    made: Any = posterior.init_with_output(jax.random.key(1), features)
    q, variables = made
    swapped: Any = posterior.apply(variables, features[:, [1, 0, 2]])
    np.testing.assert_allclose(swapped.loc, q.loc[:, [1, 0, 2]], rtol=1e-6)
    assert variables["params"]["loc"]["kernel"].shape == (5, 2)


@pytest.mark.parametrize("event", [(3,), (3, 2), (2, 1, 2)])
def test_every_value_under_every_density(event):
    """The quadratic form of `log_prob_pairs` against SciPy, density by density."""
    generator = np.random.default_rng(0)
    loc, scale = generator.normal(size=(4, *event)), generator.uniform(0.5, 2, size=(4, *event))
    value = generator.normal(size=(2, 5, *event))
    p = Normal(jnp.asarray(loc), jnp.asarray(scale), event_ndims=len(event))
    expected = stats.norm.logpdf(np.expand_dims(value, 2), loc, scale).reshape(2, 5, 4, -1).sum(-1)
    np.testing.assert_allclose(p.log_prob_pairs(jnp.asarray(value)), expected, rtol=1e-4)


@pytest.mark.others_slow
@pytest.mark.parametrize("shape", [(3, 2), (1, 3, 2)])
@pytest.mark.parametrize("prior", ["mixture", "vamp"])
def test_mixtures_of_any_shape(shape, prior):
    """ln p(z) is the log of SciPy's sum over components; draws have z's shape."""
    made = vj.GaussianMixture(3, shape) if prior == "mixture" else vj.VampPrior(3)
    terms, _ = terms_of(model_of(shape, prior=made))
    p: Any = terms.p[0]
    z = terms.z[0][0]
    densities = [
        stats.norm.pdf(z, p.components.loc[c], p.components.scale[c]).reshape(4, -1).prod(-1)
        for c in range(3)
    ]
    np.testing.assert_allclose(terms.log_pz[0, 0], np.log(np.mean(densities, 0)), rtol=1e-4)
    assert p.sample(jax.random.key(0), (5,)).shape == (5, *shape)
    assert p.mean.shape == shape
    q: Any = terms.q[0]
    aggregated = np.log(np.mean(np.exp(q.log_prob(z[:, None])), 1))
    np.testing.assert_allclose(log_aggregated_posterior(q, z), aggregated, rtol=1e-4)


OBJECTIVES = [
    vj.ELBO(2),
    vj.FreeBits(0.1),
    vj.IWAE(3, doubly_reparameterized=True),
    vj.PIWAE(2, 2),
    vj.BetaTC(2.0, 90),
    vj.DIPVAE(1.0, 2.0),
    vj.FactorVAE(2.0),
    vj.InfoVAE(0.5, 2.0),
    vj.WakeSleep(),
    vj.RAE(0.3, 0.1, 0.2),
]


@pytest.mark.others_slow
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_an_objective_has_no_eye_for_the_shape(objective):
    """With the draws of a vector in another shape, the loss and the metrics are the vector's."""
    critic = vj.LatentCritic(vj.MLP((4,))) if objective.requires.critic else None
    posterior = vj.Deterministic if isinstance(objective, vj.RAE) else vj.DiagonalGaussian

    def values(shape: int | Shape, variables: Any) -> tuple[Any, Any]:
        # One place with all features: its affine map is the vector's, so z is, but for its shape.
        model = model_of(
            shape,
            encoder=Places(latent_shape(shape)[:-1]),
            posterior=posterior(shape),
            critic=critic,
        )

        def loss(model, x, keys):
            terms = model(x, keys, objective.num_samples)
            return objective(terms, jnp.asarray(3), model)

        keys = jax.random.split(jax.random.key(1), 4)
        if variables is None:
            variables = nn.init(loss, model)(jax.random.key(0), images(), keys)
        run = jax.jit(nn.apply(loss, model))
        return run(variables, images(), keys), variables

    as_vector, variables = values(4, None)
    dense = variables["params"]["encoder"]["DenseGeneral_0"]
    moved = {"kernel": dense["kernel"].reshape(-1, 1, 1, 4), "bias": dense["bias"][None, None]}
    params = variables["params"] | {"encoder": {"DenseGeneral_0": moved}}
    as_map, _ = values((1, 1, 4), {"params": params})
    for one, other in zip(jax.tree.leaves(as_map), jax.tree.leaves(as_vector), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_jacobians_norm_is_of_the_whole_latent():
    """Hutchinson's estimate, averaged over many signs, against the Jacobian itself."""
    model = model_of((3, 2), posterior=vj.Deterministic((3, 2)))
    terms, variables = terms_of(model)
    z = terms.z[0][0]

    def penalty(model, keys):
        return jax.vmap(lambda keys: gradient_penalty(model, z, keys))(keys).mean(0)

    keys = jax.random.split(jax.random.key(0), (2000, 4))
    estimate = jax.jit(nn.apply(penalty, model))(variables, keys)

    def mean(z):
        px: Any = model.apply(variables, (z[None],), method="decode")
        return px.mean[0]

    jacobian = jax.jit(jax.vmap(jax.jacobian(mean)))(z).reshape(4, -1)
    np.testing.assert_allclose(estimate, (jacobian**2).sum(-1), rtol=0.1)


@pytest.mark.slow
def test_layers_may_have_shapes_of_their_own():
    """A set of vectors below, a vector above; the sum of the layers' terms is the bound."""
    for cls in (vj.HierarchicalVAE, vj.LadderVAE):
        model = cls(
            encoders=(Places((3,)), vj.MLP((4,))),
            posteriors=(vj.DiagonalGaussian((3, 2)), vj.DiagonalGaussian(2)),
            prior=vj.StandardNormal(2),
            decoders=(vj.MLP((5,)), Places((3,))),
            conditionals=(vj.DiagonalGaussian((3, 2)),),
            likelihood=vj.Bernoulli(),
            image_shape=tiny.IMAGE_SHAPE,
        )
        check_shapes(model)
        terms, variables = terms_of(model, num_samples=2)
        assert [z.shape for z in terms.z] == [(2, 4, 3, 2), (2, 4, 2)]
        joint: Any = model.apply(variables, images(), terms.z, method="log_joint")
        np.testing.assert_allclose(joint, terms.log_px + terms.log_pz.sum(0), rtol=1e-5)
        with pytest.raises(vj.VaeJaxError, match=r"have the shape \(2,\), the prior's \(3, 2\)"):
            check_shapes(model.clone(prior=vj.StandardNormal((3, 2))))
        with pytest.raises(vj.VaeJaxError, match=r"have the shape \(3, 2\), the prior's \(3, 1\)"):
            check_shapes(model.clone(conditionals=(vj.DiagonalGaussian((3, 1)),)))


@pytest.mark.slow
def test_a_run_with_latents_that_are_maps(tmp_path, monkeypatch):
    """Trained, evaluated with everything there is, pictured, and given a prior afterwards."""
    shape = (1, 3, 2)
    monkeypatch.setattr(vj.fitted_priors, "LATENTS", 90)
    experiment = vj.Experiment(
        data=tiny.data(),
        model=model_of(shape),
        objective=vj.ELBO(),
        optimizer=optax.adam(1e-2),
        num_steps=40,
        batch_size=16,
        log_every=20,
        checkpoint_every=40,
    )
    with on_devices(1):
        run = train(experiment, tmp_path / "run")
        _look_at(run, shape)


def _look_at(run: vj.Run, shape: Shape) -> None:
    losses = [line["loss"] for line in run.folder.read_metrics() if "loss" in line]
    assert np.ravel(losses[-1])[0] < np.ravel(losses[0])[0]
    result = vj.evaluate(run, num_samples=3, num_images=8, information=True)
    assert 0 <= result.active_units[0][0] <= 6
    assert result.mean["mutual_information"][0] <= np.log(8) + 1e-3
    pictures, _, dims = generate.traverse(run, "valid", 0, 3, 4)
    assert pictures.shape == (4, 3, *tiny.IMAGE_SHAPE)
    assert len(set(dims)) == 4
    assert max(dims) < 6
    assert generate.interpolate(run, "valid", 2, 3).shape == (2, 3, *tiny.IMAGE_SHAPE)
    fitted = vj.fitted_priors.fit(run, vj.GaussianMixture(2, shape), num_steps=2)
    assert generate.sample(fitted, 2).shape == (2, *tiny.IMAGE_SHAPE)
    with pytest.raises(vj.VaeJaxError, match="for other real latents mixture"):
        vj.fitted_priors.prior_for(run, "flow")
    with pytest.raises(vj.VaeJaxError, match="give both the same"):
        vj.fitted_priors.fit(run, vj.GaussianMixture(2, shape[::-1]), num_steps=2)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"prior": vj.StandardNormal(6)}, r"shape \(3, 2\), the prior's \(6,\)"),
        ({"prior": vj.StandardNormal((3, 1))}, r"shape \(3, 2\), the prior's \(3, 1\)"),
        ({"prior": vj.GaussianMixture(2, (2, 3))}, r"the prior's \(2, 3\)"),
        (
            {"encoder": vj.MLP((4,))},
            r"\[N, 3, F\], .* \[N, F\]: take one number",
        ),
        ({"encoder": Places((2, 2))}, r"are \[N, 2, 2, F\]: take shape=\(2, 2, 2\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_a_sentence(parts, said):
    with pytest.raises(vj.VaeJaxError, match=said) as refusal:
        check_shapes(model_of((3, 2), **parts))
    assert str(refusal.value).endswith(".")


def test_a_kl_is_not_broadcast():
    """Without the refusal a prior over vectors [1] would have passed for one over vectors [6]."""
    terms, _ = terms_of(model_of(6))
    assert exact_kl(terms.q[0], vj.StandardNormal(1)(model_of(6))) is not None
    with pytest.raises(vj.VaeJaxError, match="give both the same"):
        check_shapes(model_of(6, prior=vj.StandardNormal(1)))
