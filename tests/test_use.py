"""A trained model in use: `Run.encode`, `decode`, `reconstruct`, `sample`, `log_prob`, ..."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from running import on_devices
from scipy import special

import vae_jax as vj
from vae_jax import random
from vae_jax.run import Run, RunFolder
from vae_jax.run.latents import between
from vae_jax.step import init_state

SHAPE = (3, 3, 1)
N = 11


@pytest.fixture(scope="module", autouse=True)
def one_device() -> Iterator[None]:
    with on_devices(1):
        yield


def run_of(model: Any, variables: Any = None, data: vj.Data | None = None) -> Run:
    """A run of a model that was never trained, with these variables or random ones."""
    data = tiny.data() if data is None else data
    model = model.clone(image_shape=data.image_shape)
    experiment = tiny.experiment().with_model(model)
    object.__setattr__(experiment, "data", data)
    if variables is None:
        x, keys = np.zeros((1, *data.image_shape), np.float32), random.key(0)[None]
        y = None if model.labels is None else np.zeros(1, np.int32)
        variables = jax.jit(partial(model.init))(random.key(1), x, keys, y=y)
    state: Any = jax.eval_shape(partial(init_state, tiny.experiment()), 0)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32)[None], dict(variables))
    state = state.replace(
        step=np.zeros(1, np.int32), params=params.pop("params"), model_state=params, ema_params=None
    )
    state = state.replace(opt_state=(), skipped=None, skipped_in_a_row=None)
    return Run(RunFolder(Path("run")), experiment, state, "latest")


def grey(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.1, 0.9, (count, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def ppca(fit_linear_gaussian: Any) -> tuple[Any, Run]:
    """Probabilistic PCA, of which everything is known, and its run."""
    exact = fit_linear_gaussian(grey(40), 2)
    data = vj.Data.from_arrays("grey", np.zeros((4, *SHAPE), np.uint8), protocol="grey")
    return exact, run_of(exact.model, exact.variables, data)


def by_hand(exact: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of p(z|x) in float64."""
    posterior = exact.variables["params"]["posterior"]
    flat = x.reshape(len(x), -1).astype(np.float64)
    mean = flat @ posterior["loc"]["kernel"] + posterior["loc"]["bias"]
    return mean, np.broadcast_to(np.exp(posterior["log_scale"]["bias"]), mean.shape)


def test_everything_of_a_model_in_closed_form(ppca: tuple[Any, Run]) -> None:
    """The posterior, its decoded mean, ln p(x), which has no gap, and lines, in float64."""
    exact, run = ppca
    x = grey(N, 1)
    mean, std = by_hand(exact, x)
    found = run.encode(x)
    np.testing.assert_allclose(found.mean, mean, atol=1e-5)
    np.testing.assert_allclose(found.std, std, rtol=1e-5)
    weights = exact.variables["params"]["likelihood"]["loc"]["kernel"]
    pictures = (mean @ weights + exact.mean).reshape(x.shape).clip(0, 1)
    np.testing.assert_allclose(run.decode(found.mean), pictures, atol=1e-5)
    np.testing.assert_allclose(run.reconstruct(x), pictures, atol=1e-5)
    log_prob = run.log_prob(x, num_samples=3)  # the weights are all equal
    np.testing.assert_allclose(log_prob, exact.log_likelihood(x), atol=1e-3)
    bounds = run.bounds(x, num_samples=3)
    kl = 0.5 * (mean**2 + std**2 - 1 - 2 * np.log(std)).sum(-1)
    np.testing.assert_allclose(bounds["kl"], kl, rtol=1e-4)
    np.testing.assert_allclose(bounds["nll"], -log_prob)
    line = run.interpolate(x[:3], x[3:6], points=4)
    middle = mean[:3] + 2 / 3 * (mean[3:6] - mean[:3])
    expected = (middle @ weights + exact.mean).reshape(3, *SHAPE).clip(0, 1)
    np.testing.assert_allclose(line[:, 2], expected, atol=1e-5)
    for each in (found.mean, found.std, found.sample, pictures, log_prob, line, *bounds.values()):
        assert isinstance(each, np.ndarray)


def test_draws_have_the_distribution_and_the_seed_they_say(ppca: tuple[Any, Run]) -> None:
    """Of z within five standard errors; p(x|z) means have the covariance W Wᵀ."""
    exact, run = ppca
    x = np.repeat(grey(1), 4000, 0)
    mean, std = by_hand(exact, x[:1])
    z = run.encode(x, seed=3).sample
    assert isinstance(z, np.ndarray)
    eps = (z - mean) / std
    assert np.all(np.abs(eps.mean(0)) < 5 / math.sqrt(len(x)))
    assert np.all(np.abs(eps.std(0) - 1) < 5 / math.sqrt(2 * len(x)))
    np.testing.assert_array_equal(z, run.encode(x, seed=3).sample)
    assert not np.array_equal(z, run.encode(x, seed=4).sample)
    weights = exact.variables["params"]["likelihood"]["loc"]["kernel"]
    drawn = run.sample(4000).reshape(4000, -1)
    np.testing.assert_allclose(np.cov(drawn.T), weights.T @ weights, atol=0.01)
    np.testing.assert_array_equal(run.sample(5), run.sample(5, seed=0))
    np.testing.assert_allclose(run.sample(5), run.sample(7)[:5], atol=1e-6)
    assert not np.array_equal(run.sample(5), run.sample(5, seed=1))


def test_devices_and_batches_change_nothing_and_one_program_does(
    ppca: tuple[Any, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of 3 for each device; 5, 7 and 8 images of one device have one program."""
    _, run = ppca
    whole = run.encode(grey(N))
    run = dataclasses.replace(run)
    for count in (5, 7, 8):
        np.testing.assert_allclose(run.encode(grey(N)[:count]).mean, whole.mean[:count], 1e-4)
    (program,) = run._programs.values()
    assert len(program.on_devices.programs) == 1
    monkeypatch.setattr("vae_jax.cpu.platform.CACHED_FLOATS", 3 * math.prod(SHAPE))
    run = dataclasses.replace(run)
    with on_devices(2):
        pieces = run.encode(grey(N))
    for name in ("mean", "std", "sample"):
        np.testing.assert_allclose(getattr(pieces, name), getattr(whole, name), atol=1e-5)


def test_bytes_go_through_the_protocol_and_floats_are_what_it_makes(ppca: Any) -> None:
    _, run = ppca
    x = np.random.default_rng(2).integers(0, 256, (N, *SHAPE), np.uint8)
    np.testing.assert_allclose(run.encode(x).mean, run.encode(x / 255).mean, atol=1e-6)
    binary = untrained("plain")
    bars = tiny.images(6, 0)
    seen = np.asarray(binary.observed(bars))
    assert set(np.unique(seen)) == {0, 1}
    np.testing.assert_array_equal(binary.encode(bars).mean, binary.encode(seen).mean)


MODELS = {
    "ladder": vj.LadderVAE(
        encoders=(vj.MLP((6,)), vj.MLP((5,))),
        posteriors=(vj.DiagonalGaussian(3), vj.DiagonalGaussian(2)),
        decoders=(vj.MLP((6,)), vj.MLP((5,))),
        conditionals=(vj.DiagonalGaussian(3),),
        prior=vj.StandardNormal(2),
        likelihood=vj.Bernoulli(),
    ),
    "hierarchical": vj.HierarchicalVAE(
        encoders=(vj.MLP((6,)), vj.MLP((5,))),
        posteriors=(vj.DiagonalGaussian(3), vj.FullCovarianceGaussian(2)),
        decoders=(vj.MLP((6,)), vj.MLP((5,))),
        conditionals=(vj.DiagonalGaussian(3),),
        prior=vj.StandardNormal(2),
        likelihood=vj.Bernoulli(),
    ),
    "skip": vj.SkipVAE(
        encoders=(vj.MLP((6,)), vj.MLP((5,))),
        posteriors=(vj.DiagonalGaussian(3), vj.DiagonalGaussian(2)),
        decoders=(vj.MLP((6,)), vj.MLP((5,))),
        conditionals=(vj.DiagonalGaussian(3),),
        prior=vj.VampPrior(4),
        likelihood=vj.Bernoulli(),
    ),
    "deep": vj.DeepVAE(
        encoder=vj.BottomUp(blocks=(1, 1), width=4),
        decoder=vj.TopDown(blocks=(1, 1), width=4, latents=2),
        likelihood=vj.Bernoulli(),
    ),
    "codes": tiny.model().clone(posterior=vj.VectorQuantized(5, 3), prior=vj.UniformCodes((1, 1))),
    "one-hot": tiny.model().clone(
        posterior=vj.Categorical(2, 3, 1.0), prior=vj.UniformCategorical(2, 3)
    ),
    "sphere": tiny.model().clone(posterior=vj.VonMisesFisher(3), prior=vj.HypersphericalUniform(3)),
    "flow": tiny.model().clone(posterior=vj.PlanarFlow(2, 2)),
    "deterministic": tiny.model().clone(posterior=vj.Deterministic(2)),
    "pixels": tiny.model().clone(likelihood=vj.AutoregressivePixels(vj.Bernoulli())),
    "classes": tiny.model().clone(labels=vj.LabelEmbedding(8, 2)),
}


@cache
def untrained(family: str) -> Run:
    """A run that tests may share, for they leave it as it is."""
    return run_of(MODELS.get(family, tiny.model()))


SLOW = ("deep", "sphere", "pixels", "hierarchical", "skip")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MODELS],
)
def family(request: pytest.FixtureRequest) -> tuple[str, Run]:
    return request.param, untrained(request.param)


@pytest.mark.others_slow
def test_every_family_encodes_decodes_and_draws(family: tuple[str, Run]) -> None:
    """Shapes, ranges, and agreement of each with the model's own methods."""
    name, run = family
    model, variables = run.experiment.model, run.seed_variables
    x = np.asarray(run.observed(tiny.images(5, 0)))
    y = np.arange(5) % 8 if name == "classes" else None

    @jax.jit
    def own(variables: Any, x: Any) -> Any:
        qs: Any = model.apply(variables, x, y, method="infer")
        return [(q.mean, q.std) for q in qs]

    found = run.encode(x, y)
    pictures = run.decode(found.sample, y)
    bounds = run.bounds(x, y, num_samples=2)
    layered = isinstance(found.mean, tuple)
    assert layered == (name in ("ladder", "hierarchical", "skip", "deep"))
    tuples: Any = [each if layered else (each,) for each in (found.mean, found.std, found.sample)]
    for mean, std, z, (own_mean, own_std) in zip(*tuples, own(variables, x), strict=True):
        assert mean.shape == std.shape == z.shape == own_mean.shape
        if name != "flow":
            np.testing.assert_allclose(mean, own_mean, atol=1e-4)
        if own_std is not None:
            np.testing.assert_allclose(std, own_std, rtol=1e-3, atol=1e-6)
        # In a hierarchy a draw is given drawn layers.
        assert layered or np.all(np.abs(z - mean) <= 6 * std + 1e-5)
    assert pictures.shape == x.shape
    assert pictures.dtype == np.float32
    assert 0 <= pictures.min() <= pictures.max() <= 1
    for values in bounds.values():
        assert values.shape == (5,)
        assert np.isfinite(values).all()
    if name == "deterministic":
        assert bounds.keys() == {"distortion"}
        with pytest.raises(vj.VaeJaxError, match="no bound on ln p"):
            run.log_prob(x)
    else:
        assert {"nll", "kl_sampled"} <= bounds.keys()


def test_moments_without_a_closed_form_are_estimated_from_draws() -> None:
    """A flow's, against those of one draw for each of 400 equal images: both have an error."""
    run = untrained("flow")
    x = np.repeat(np.asarray(run.observed(tiny.images(1, 0))), 400, 0)
    found = run.encode(x)
    draws: Any = found.sample
    spread = draws.std(0)
    error = spread * math.sqrt(1 / 256 + 1 / 400)
    assert np.all(np.abs(found.mean[0] - draws.mean(0)) < 5 * error)
    np.testing.assert_allclose(found.std[0], spread, rtol=5 * math.sqrt(1 / 512 + 1 / 800))


def test_the_standard_deviation_of_distributions() -> None:
    """By NumPy in float64, also where a probability is nearly one."""
    from vae_jax.distributions import MultivariateNormal, OneHotCategorical

    generator = np.random.default_rng(0)
    tril = np.tril(generator.normal(size=(4, 3, 3)))
    covariance = tril @ tril.transpose(0, 2, 1)
    normal = MultivariateNormal(jnp.zeros((4, 3)), jnp.asarray(tril, jnp.float32))
    expected = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    np.testing.assert_allclose(normal.std, expected, rtol=1e-5)
    logits = np.array([[[0.0, 30.0, -1.0], [1.0, 2.0, 3.0]]])
    p = special.softmax(logits, -1)
    others = p.sum(-1, keepdims=True) - p
    others[0, 0, 1] = p[0, 0, 0] + p[0, 0, 2]  # 1 - p cancels
    std = OneHotCategorical(jnp.asarray(logits, jnp.float32), 1.0).std
    np.testing.assert_allclose(std, np.sqrt(p * others), rtol=1e-4)


def test_lines_on_a_sphere_are_great_circles() -> None:
    """Of equal steps, and of unit length."""
    a, b = np.eye(3, dtype=np.float32)[:1], np.array([[0.6, 0.8, 0]], np.float32)
    (line,) = between(a, b, 4, "sphere")
    angles = math.acos(0.6) * np.arange(4) / 3
    expected = np.stack([np.cos(angles), np.sin(angles), 0 * angles], -1)
    np.testing.assert_allclose(line, expected, atol=1e-6)


@pytest.mark.slow
def test_a_deep_model_is_decoded_from_its_top_layers() -> None:
    """Those below are at the means of their priors; temperature 0 draws the mean of the prior."""
    run = untrained("deep")
    x = np.asarray(run.observed(tiny.images(3, 0)))
    zs = run.encode(x).mean
    assert isinstance(zs, tuple)
    np.testing.assert_allclose(run.decode(zs[-1:]), run.reconstruct(x, top=1), atol=1e-6)
    cold = run.sample(3, temperature=0)
    np.testing.assert_allclose(cold, cold[:1].repeat(3, 0), atol=1e-6)
    with pytest.raises(vj.VaeJaxError, match="leading axes"):
        run.decode((zs[0][:2], zs[1]))
    with pytest.raises(vj.VaeJaxError, match="top is 3"):
        run.reconstruct(x, top=3)


def test_classes_by_name_or_number_one_or_one_for_each() -> None:
    run = untrained("classes")
    x = tiny.images(4, 0)
    each = run.encode(x, [3, 3, 3, 3]).mean
    every: list[Any] = ["3", 3, ["3"], ["3"] * 4, np.array([3]), np.int64(3)]
    for same in every:
        np.testing.assert_allclose(run.encode(x, same).mean, each, atol=1e-6)
    assert not np.allclose(run.encode(x, 4).mean, each)
    z = np.zeros((2, 4, 2), np.float32)
    pictures = run.decode(z, [0, 1, 2, 3])
    np.testing.assert_allclose(pictures[0], pictures[1], atol=1e-6)
    np.testing.assert_allclose(pictures[0, 1], run.decode(z, "1")[0, 0], atol=1e-6)
    np.testing.assert_array_equal(run.sample(4, labels=5), run.sample(4, labels=["5"]))


X, Z = tiny.images(4, 0), np.zeros((3, 2), np.float32)
REFUSED: dict[str, tuple[str, Callable[[Run], Any], str]] = {
    "no image": ("plain", lambda run: run.encode(X[:0]), "at least one image"),
    "one image": ("plain", lambda run: run.reconstruct(X[0]), "give x\\[None\\]"),
    "channels first": (
        "plain",
        lambda run: run.log_prob(X.transpose(0, 3, 1, 2)),
        "channels come first",
    ),
    "0 to 255": ("plain", lambda run: run.encode(X.astype(float)), "divide pixels"),
    "a seed below zero": ("plain", lambda run: run.sample(2, seed=-1), "from 0 to 2\\^32 - 1"),
    "no picture": ("plain", lambda run: run.sample(0), "num of sample is 0"),
    "no sample": (
        "plain",
        lambda run: run.log_prob(X, num_samples=0),
        "num_samples of log_prob is 0",
    ),
    "no z": ("plain", lambda run: run.decode(Z[:0]), "at least one z"),
    "labels of a plain model": ("plain", lambda run: run.encode(X, 3), "takes no labels"),
    "a label of a plain model": (
        "plain",
        lambda run: run.sample(2, labels=3),
        "trained without labels",
    ),
    "no labels": ("classes", lambda run: run.encode(X), "give the classes too"),
    "no labels to decode": ("classes", lambda run: run.decode(Z), "classes too"),
    "too few": ("classes", lambda run: run.encode(X, [1, 2, 3]), "3 labels were given for 4"),
    "a name": ("classes", lambda run: run.encode(X, "sneaker"), "no class 'sneaker'"),
    "temperature": (
        "plain",
        lambda run: run.sample(2, temperature=0.7),
        "leave the temperature out",
    ),
    "pairs": ("plain", lambda run: run.interpolate(X, X[:3]), "give pairs"),
    "replica": ("plain", lambda run: run.replica(1), "1 seed: give 0"),
    "codes": ("codes", lambda run: run.interpolate(X, X), "nothing between"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_a_sentence(case: str) -> None:
    family, act, said = REFUSED[case]
    with pytest.raises(vj.VaeJaxError, match=said):
        act(untrained(family))


def test_another_seed_is_a_run_of_its_own() -> None:
    """With its own variables, curves and fitted priors."""
    one = untrained("plain")
    halved = jax.tree.map(lambda leaf: leaf / 2, one.state)
    both: Any = jax.tree.map(lambda *leaves: np.concatenate(leaves), one.state, halved)
    run = dataclasses.replace(one, state=both)
    x = tiny.images(3, 0)
    np.testing.assert_array_equal(run.encode(x).mean, one.encode(x).mean)
    expected = dataclasses.replace(one, state=halved).encode(x).mean
    np.testing.assert_array_equal(run.replica(1).encode(x).mean, expected)
    assert not np.allclose(expected, one.encode(x).mean)
    assert run.replica(1).first == 1
