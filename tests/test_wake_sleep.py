"""Wake-sleep in linear-Gaussian models, where posteriors, gradients and noise are all known.

z has a prior whose components are independent, and x = W z + MEAN + NOISE e with orthogonal columns
of W, so that the posterior of a Gaussian prior has independent components too.
"""

import inspect
import itertools
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from combinations import triples
from gradients import assert_close
from jax import Array
from scipy import stats

from vae_jax import (
    GIVT,
    MLP,
    VAE,
    AdaptiveMLP,
    ClassGaussian,
    DiagonalGaussian,
    Diffusion,
    FlowMatching,
    Gaussian,
    GaussianMixture,
    LabelEmbedding,
    MaskedAutoregressiveFlow,
    RealNVP,
    StandardLaplace,
    StandardNormal,
    StandardStudentT,
    VampPrior,
    WakeSleep,
)
from vae_jax.compatibility import check_objective, check_prior
from vae_jax.interfaces import Layers, Prior
from vae_jax.priors.second_stage_vae import SecondStageVAE
from vae_jax.priors.standardized import Standardized
from vae_jax.step import loss_at_terms

STEP = jnp.int32(0)
COUNT, SHAPE, D = 10_000, (2, 2, 1), 2
RNG = np.random.default_rng(0)
W = np.linalg.qr(RNG.normal(size=(4, D)))[0] * [1.5, 0.8]
MEAN, NOISE = np.array([0.5, -1.0, 0.2, 0.8]), 0.6


class Dreamer:
    """A bound model that remembers its dreams."""

    z: Array
    x: Array
    x_noise: Array

    def __init__(self, model: Any):
        self.model = model

    def sample(self, keys: Array, y: Array | None = None) -> tuple[Layers, Any]:
        (self.z,), self.px = self.model.sample(keys, y)
        return (self.z,), self.px

    def encode(self, x: Array, y: Array | None = None) -> Any:
        self.x = x
        return self.model.encode(x, y)


def loss_and_dreams(
    model: VAE, num_samples: int, x: Array, keys: Array, y: Array | None = None
) -> tuple[Array, Any]:
    """The loss, its metrics, and all that was drawn on the way to it."""
    terms, dreamer = model(x, keys, num_samples, y), Dreamer(model)
    unchecked: Any = inspect.unwrap(WakeSleep.__call__)  # a dreamer is not a Model
    loss, metrics = unchecked(WakeSleep(num_samples), terms, STEP, dreamer)
    return loss, (metrics, terms, dreamer.z, dreamer.x, dreamer.px)


def test_each_phase_moves_its_own_parameters() -> None:
    """One scalar against two losses, each a function of its own copy of its parameters.

    -ln p(x, z) at the z of q, and -ln q(z|x) at the dreams. No stop_gradient: what is no argument
    is a constant.
    """
    model = tiny.model().clone(prior=GaussianMixture(3, 2))
    x, keys = (
        jnp.asarray(tiny.images(5, 0), jnp.float32) / 255,
        jax.random.split(jax.random.key(1), 5),
    )

    @jax.jit
    def everything() -> Any:
        params = nn.init(loss_at_terms, model)(jax.random.key(0), WakeSleep(3), x, keys, None, STEP)
        params = jax.tree.map(lambda p: 1.5 * p + 0.1, params["params"])

        def ours(params: Any) -> tuple[Array, Any]:
            return nn.apply(loss_and_dreams, model)({"params": params}, 3, x, keys)

        gradient, (metrics, terms, z_dream, x_dream, _) = jax.grad(ours, has_aux=True)(params)

        def apply(own: Any, method: str, *arguments: Any) -> Any:
            return model.apply({"params": params | own}, *arguments, method=method)

        def wake(own: Any) -> Array:
            return -apply(own, "log_joint", x, terms.z).mean()

        def sleep(own: Any) -> Array:
            return -apply(own, "encode", x_dream).log_prob(z_dream).mean()

        generative, inference = (
            {name: params[name] for name in names}
            for names in (("decoder", "likelihood", "prior"), ("encoder", "posterior"))
        )
        awake, asleep = jax.value_and_grad(wake)(generative), jax.value_and_grad(sleep)(inference)
        return gradient, metrics, awake, asleep

    gradient, metrics, (wake, generative), (sleep, inference) = everything()
    expected = generative | inference
    assert gradient.keys() == expected.keys()
    assert all(np.abs(leaf).max() > 1e-5 for leaf in jax.tree.leaves(expected))
    assert_close(gradient, expected, 1e-5)
    assert metrics["wake"] == pytest.approx(float(wake), rel=1e-6)
    assert metrics["sleep"] == pytest.approx(float(sleep), rel=1e-6)


class Apart(nn.Module):
    """Features of each component of z: x and a one, each in entries of its own."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        own = jnp.broadcast_to(jnp.eye(D), (len(x), D, D))
        pixels = own[..., None] * x.reshape(len(x), 1, 1, -1)
        return jnp.concatenate([pixels.reshape(len(x), D, -1), own], -1)


@dataclass(frozen=True)
class Case:
    """A prior in the linear-Gaussian model.

    Attributes:
        prior: the part of the package.
        params: its parameters.
        weights: of the Gaussian components it is made of, or that have its first three moments.
        means, variances: theirs, `[C, D]`.
        w: W.
        labelled: whether the components are classes y.
        tokens: whether z is a sequence of D vectors of one component.
    """

    prior: Prior
    params: dict[str, Any] = field(default_factory=dict)
    weights: tuple[float, ...] = (1.0,)
    means: Any = ((0.0, 0.0),)
    variances: Any = ((1.0, 1.0),)
    w: np.ndarray = field(default_factory=lambda: W)
    labelled: bool = False
    tokens: bool = False

    @cached_property
    def model(self) -> VAE:
        """Everything affine."""
        return VAE(
            encoder=Apart() if self.tokens else MLP(()),
            posterior=DiagonalGaussian((D, 1) if self.tokens else D),
            prior=self.prior,
            decoder=MLP(()),
            likelihood=Gaussian(squash=lambda x: x),
            labels=LabelEmbedding(2, 2) if self.labelled else None,
            image_shape=SHAPE,
        )

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Images `[N, H, W, C]` of the model, and which component each is from: by NumPy."""
        generator = np.random.default_rng(1)
        component = generator.choice(len(self.weights), COUNT, p=self.weights)
        means, scales = np.array(self.means), np.sqrt(self.variances)
        z = means[component] + scales[component] * generator.normal(size=(COUNT, D))
        x = z @ self.w.T + MEAN + NOISE * generator.normal(size=(COUNT, 4))
        return x.reshape(COUNT, *SHAPE), component

    def posterior(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A, b_c and s² of p(z|x, c) = N(A'x + b_c, diag s²); the components have one variance."""
        precision = 1 / np.array(self.variances[0]) + (self.w**2).sum(0) / NOISE**2
        a = self.w / NOISE**2 / precision
        return a, np.array(self.means) / self.variances / precision - MEAN @ a, 1 / precision

    def variables(self, a: np.ndarray, b: np.ndarray, variance: np.ndarray) -> Any:
        """Those of the model with q(z|x) = N(A'x + b, diag s²); b `[C, D]` is of the classes."""
        to_loc, to_scale, to_x = a, np.zeros_like(a), self.w.T
        loc, log_scale = b[0], np.log(variance) / 2
        if self.tokens:
            to_loc = np.append(a.T, b[0])[:, None]
            to_scale = np.append(np.zeros(a.size), log_scale)[:, None]
            loc = log_scale = np.zeros(1)
        if self.labelled:  # of each pixel and its label's vector; b from the first pixel's
            to_loc = np.concatenate([a.reshape(4, 1, D), np.zeros((4, 2, D))], 1)
            to_loc[0, 1:] = b
            to_loc, to_x = to_loc.reshape(-1, D), np.concatenate([to_x, np.zeros((2, 4))])
            loc, to_scale = np.zeros(D), np.zeros_like(to_loc)
        params: dict[str, Any] = {
            "posterior": {
                "loc": {"kernel": to_loc, "bias": loc},
                "log_scale": {"kernel": to_scale, "bias": log_scale},
            },
            "likelihood": {
                "loc": {"kernel": to_x, "bias": MEAN},
                "log_scale": np.asarray(np.log(NOISE)),
            },
        }
        if self.params:
            params["prior"] = self.params
        if self.labelled:
            vectors = {"embedding": np.eye(2)}
            params["labels"] = {"encoder": vectors, "decoder": vectors}
        return {"params": jax.tree.map(np.float32, params)}

    @cached_property
    def run(self) -> Any:
        """Gradients of each example by itself, what was drawn for it, and its metrics.

        But for those of large layers: they are below one that is zero, and so are these.
        """

        def one(variables: Any, x: Array, key: Array, y: Array) -> Any:
            def loss(params: Any) -> Any:
                apply = nn.apply(loss_and_dreams, self.model)
                return apply({"params": params}, 1, x[None], key[None], y[None])

            gradient, (metrics, terms, z, x_dream, px) = jax.grad(loss, has_aux=True)(
                variables["params"]
            )
            gradient = jax.tree.map(lambda g: g if g.size < 1000 else None, gradient)
            (q,), (z_posterior,) = terms.q, terms.z
            noise = (z_posterior - q.loc) / q.scale, z, (x_dream - px.loc) / px.scale
            return gradient, [each.ravel() for each in noise], metrics

        @jax.jit
        def every(variables: Any, *examples: Any) -> Any:
            return jax.lax.map(lambda each: one(variables, *each), examples, batch_size=1000)

        def call(variables: Any, x: np.ndarray, y: np.ndarray) -> Any:
            return jax.tree.map(np.float64, every(variables, np.float32(x), KEYS, np.int32(y)))

        return call


KEYS = jax.random.split(jax.random.key(0), COUNT)  # which compile faster than the package's
OFF = (0.4, -0.7), (0.6, 1.5)
LAST = "['network']['Dense_1']"
SPREAD = ((-2.0, 0.5), (0.3, -1.0), (1.5, 2.0)), ((0.5, 1.0), (1.2, 0.3), (0.7, 0.8))


def mixture(weights: tuple[float, ...], means: Any, variances: Any) -> Case:
    params = {
        "loc": np.array(means),
        "log_scale": np.log(variances) / 2,
        "logits": np.log(weights),
    }
    return Case(GaussianMixture(len(weights), D), params, weights, means, variances)


def at_the_identity(prior: Prior, last: str, **settings: Any) -> Case:
    """The last layer of every network is zero, the others are not."""
    params = jax.eval_shape(partial(prior.init, model=tiny.model()), jax.random.key(0))["params"]

    def leaf(path: Any, leaf: Any) -> np.ndarray:
        is_last = last in jax.tree_util.keystr(path)
        return (0.0 if is_last else 0.5) * RNG.normal(size=leaf.shape)

    return Case(prior, jax.tree_util.tree_map_with_path(leaf, params), **settings)


class FlowMatchingOfGaussians(FlowMatching):
    """The velocity that carries N(0, I) along the paths to N(0, I), and the network's."""

    def predict(self, z: Array, s: Array, y: Array | None) -> Array:
        at = s[:, None]
        return (2 * at - 1) / (at**2 + (1 - at) ** 2) * z + super().predict(z, s, y)


def second_stage() -> Case:
    """A linear-Gaussian VAE over latents, z = m + V u + s e, whose bound is ln p(z)."""
    mean, variance = map(np.array, OFF)
    s2 = 0.3
    v = np.sqrt(variance - s2)
    params = {
        "posterior": {
            "loc": {"kernel": np.diag(v / variance), "bias": -mean * v / variance},
            "log_scale": {"kernel": np.zeros((D, D)), "bias": np.log(s2 / variance) / 2},
        },
        "likelihood": {
            "loc": {"kernel": np.diag(v), "bias": mean},
            "log_scale": np.log(s2) / 2,
        },
    }
    return Case(SecondStageVAE(D, ()), {"vae": params}, (1.0,), (mean,), (variance,))


def standardized(case: Case) -> Case:
    """The same prior, shifted and scaled."""
    mean, variance = map(np.array, OFF)
    params = {"prior": case.params, "loc": mean, "scale": np.sqrt(variance)}
    return Case(Standardized(case.prior), params, (1.0,), (mean,), (variance,))


def vamp() -> Case:
    """W is zero, so that x says nothing of z: q(z|x) = p(z) = N(b, s²) for every x."""
    mean, variance = OFF
    params = {"pseudo_inputs": RNG.uniform(0.1, 0.9, (3, *SHAPE))}
    return Case(VampPrior(3), params, (1.0,), (mean,), (variance,), np.zeros((4, D)))


GAUSSIAN = {
    "standard normal": Case(StandardNormal(D)),
    "mixture": mixture((0.2, 0.3, 0.5), *([each] * 3 for each in OFF)),
    "RealNVP": at_the_identity(RealNVP(D, 2, (3,)), "out"),
    "MAF": at_the_identity(MaskedAutoregressiveFlow(D, 2, (3,)), "out"),
    "class Gaussian": Case(
        ClassGaussian(2, D),
        {"loc": np.array([OFF[0], (-1.0, 0.3)]), "log_scale": np.log([OFF[1]] * 2) / 2},
        (0.4, 0.6),
        (OFF[0], (-1.0, 0.3)),
        (OFF[1], OFF[1]),
        labelled=True,
    ),
    "VampPrior": vamp(),
    "GIVT": at_the_identity(
        GIVT((D, 1), width=4, num_layers=1, num_heads=1, num_components=2), LAST, tokens=True
    ),
    "diffusion": at_the_identity(Diffusion(D, AdaptiveMLP(4, 1)), LAST),
    "flow matching": at_the_identity(FlowMatchingOfGaussians(D, AdaptiveMLP(4, 1)), LAST),
    "Student's t, 3,000 degrees": Case(StandardStudentT(D), {"log_dof": np.array(8.0)}),
    "second-stage VAE": second_stage(),
}
GAUSSIAN["standardized diffusion"] = standardized(GAUSSIAN["diffusion"])
OTHERS = {
    "spread mixture": mixture((0.2, 0.3, 0.5), *SPREAD),
    "Laplace": Case(StandardLaplace(D), variances=((2.0, 2.0),)),
    "Student's t": Case(StandardStudentT(D, dof=12.0), variances=((1.2, 1.2),)),
}


def names(*without: str) -> list[Any]:
    """The names of `GAUSSIAN`; priors that draw by an ODE take a while."""
    slow = Diffusion, FlowMatching, Standardized
    return [
        pytest.param(name, marks=[pytest.mark.slow] * isinstance(case.prior, slow))
        for name, case in GAUSSIAN.items()
        if name not in without
    ]


def standard_errors(values: np.ndarray, expected: Any = 0.0) -> float:
    """How far the mean of values `[N, p]` is from its expectation, in standard errors.

    The p-value of Hotelling's T², which is of all p at once, as the quantile of a normal variable.
    """
    values = np.reshape(values, (len(values), -1)) - expected
    spread = values.std(0)
    varies = spread > 1e-6  # or it is zero, but for rounding
    np.testing.assert_allclose(values.mean(0)[~varies], 0.0, atol=1e-6)
    if not varies.any():
        return 0.0
    scaled = values[:, varies] / spread[varies]
    variances, directions = np.linalg.eigh(np.cov(scaled.T).reshape(varies.sum(), -1))
    mean, free = scaled.mean(0) @ directions, variances > 1e-6
    np.testing.assert_allclose(mean[~free], 0.0, atol=1e-3)
    square = len(values) * (mean[free] ** 2 / variances[free]).sum()
    return float(stats.norm.isf(stats.chi2.sf(square, free.sum()) / 2))


def flat(gradients: Any) -> np.ndarray:
    leaves = jax.tree.leaves(gradients)
    return np.concatenate([leaf.reshape(COUNT, -1) for leaf in leaves], 1)


def assert_independent(noise: list[np.ndarray]) -> None:
    """The noise of z in waking, the dreamt z, and the noise of the dreamt x: no correlations."""
    correlation = np.corrcoef(np.concatenate(noise, 1).T)
    sizes = [each.shape[1] for each in noise]
    ends = np.cumsum([0, *sizes])
    parts = [slice(*pair) for pair in itertools.pairwise(ends)]
    for one, other in itertools.combinations(parts, 2):
        assert np.abs(correlation[one, other]).max() < 0.05


def test_every_prior_of_real_vectors_is_here() -> None:
    """All that wake-sleep takes with a Gaussian posterior; latents of other spaces have none."""
    cases = [*GAUSSIAN.values(), *OTHERS.values()]
    for case in cases:
        check_prior(case.model.posterior, case.prior)
        check_objective(WakeSleep(), case.model)
    here = {kind.__name__ for case in cases for kind in type(case.prior).__mro__}
    taken = {p for q, p, loss in triples() if (q, loss) == ("DiagonalGaussian", "WakeSleep")}
    assert taken <= here
    assert "GIVT" in taken


@pytest.mark.parametrize("name", names())
def test_nothing_moves_at_the_exact_posterior(name: str) -> None:
    """The mean gradient of every parameter is zero on data of the model itself.

    The posterior has the parameters of p(z|x), and E_p(x) d ln p(x) = 0 for those of generation.
    Of all parameters at once and of each part's, since many would hide a few.
    Sleep is the entropy of z given x, wake less that the exact NLL.
    """
    case = GAUSSIAN[name]
    x, y = case.data()
    a, b, variance = case.posterior()
    gradients, noise, metrics = case.run(case.variables(a, b, variance), x, y)
    for gradients_of_part in (gradients, *gradients.values()):
        assert standard_errors(flat(gradients_of_part)) < 3
    assert_independent(noise)

    entropy = 0.5 * np.log(2 * np.pi * np.e * variance).sum()
    normal: Any = stats.multivariate_normal
    covariance = case.w * case.variances[0] @ case.w.T + NOISE**2 * np.eye(4)
    log_p = np.zeros(COUNT)
    for component, mean in enumerate(case.means):
        own = (y == component) | (not case.labelled)
        means = case.w @ mean + MEAN
        log_p[own] = normal.logpdf(x[own].reshape(-1, 4), means, covariance)
    assert standard_errors(metrics["sleep"], entropy) < 3
    assert standard_errors(metrics["wake"] - entropy + log_p) < 3


@pytest.mark.parametrize("name", [*names("VampPrior", "GIVT"), *OTHERS])
def test_the_gradient_of_sleep_is_that_of_the_cross_entropy(name: str) -> None:
    """-E_p(x, z)[ln q(z|x)] of a wrong q, and its gradient, in closed form.

    With r = z - A'x - b, which is normal with x for each component of the prior, they are moments
    of x and r up to the third; those are all that is asked of a prior that is not made of normals.
    """
    case = (GAUSSIAN | OTHERS)[name]
    a, b = W / 2 + 0.1, np.array([[0.3, -0.2], [-0.5, 0.4]])[: 1 + case.labelled]
    variance = np.array([1.5, 0.8])
    x, y = case.data()
    gradients, noise, metrics = case.run(case.variables(a, b, variance), x, y)
    assert_independent(noise)

    value, of_a, of_bias, of_kernel, of_b = 0.0, 0.0, 0.0, 0.0, []
    for component, (weight, m, v) in enumerate(
        zip(case.weights, case.means, case.variances, strict=True)
    ):
        x_mean, x_covariance = W @ m + MEAN, W * v @ W.T + NOISE**2 * np.eye(4)
        r_mean = m - x_mean @ a - b[component if case.labelled else 0]
        x_and_r = W * v - x_covariance @ a
        r_variance = (np.diag(v) - 2 * (W * v).T @ a + a.T @ x_covariance @ a).diagonal()
        square = (r_variance + r_mean**2) / variance
        x_square = np.outer(x_mean, square) + 2 * x_and_r * r_mean / variance
        value += weight * (square + np.log(2 * np.pi * variance)).sum() / 2
        of_b.append(-weight * r_mean / variance)
        of_a -= weight * (x_and_r + np.outer(x_mean, r_mean)) / variance
        of_bias += weight * (1 - square)
        of_kernel += weight * (x_mean[:, None] - x_square)

    ours = gradients["posterior"]
    rows = slice(None, None, 3 if case.labelled else 1)  # of x, without the labels' vectors
    found = [
        ours["loc"]["kernel"][:, rows],
        ours["loc"]["kernel"][:, 1:3] if case.labelled else ours["loc"]["bias"],
        ours["log_scale"]["bias"],
        ours["log_scale"]["kernel"][:, rows],
    ]
    of_b = of_b if case.labelled else sum(of_b)
    expected = np.concatenate([np.ravel(each) for each in (of_a, of_b, of_bias, of_kernel)])
    assert np.linalg.norm(expected) > 1
    assert standard_errors(flat(found), expected) < 3
    assert standard_errors(metrics["sleep"], value) < 3
