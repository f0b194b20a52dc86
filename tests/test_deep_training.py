"""The deep hierarchy in training and evaluation: objectives, devices, precision, pictures."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from gradients import assert_close, begun, gradients_of, one_batch, params_of
from perturbation import normals
from running import on_devices
from test_hierarchical import keys

from vae_jax import (
    AIS,
    ELBO,
    GECO,
    IWAE,
    MIWAE,
    BalancedELBO,
    Bernoulli,
    BottomUp,
    Capacity,
    DeepVAE,
    Experiment,
    FreeBits,
    GaussianMixture,
    LabelEmbedding,
    Multiplier,
    RenyiBound,
    TopDown,
    VaeJaxError,
    WakeSleep,
    evaluate,
    fitted_priors,
    generate,
    train,
)
from vae_jax.bounds import per_image
from vae_jax.compatibility import check_objective
from vae_jax.evaluation.ais import bracket
from vae_jax.networks.top_down import TopDownBlock
from vae_jax.objectives.balance import shares_of
from vae_jax.run import Run

SHAPE = tiny.IMAGE_SHAPE  # 4x4


def deep(**settings: Any) -> DeepVAE:
    """Three layers: one at 2x2, two at 4x4."""
    return DeepVAE(
        encoder=BottomUp((1, 1), 8),
        decoder=TopDown((2, 1), 8, 2),
        likelihood=Bernoulli(),
        image_shape=SHAPE,
        **settings,
    )


def experiment(**settings: Any) -> Experiment:
    made = dataclasses.replace(tiny.experiment(batch_size=8), model=deep(), objective=ELBO())
    return dataclasses.replace(made, **settings)


# Objectives


@pytest.mark.others_slow
@pytest.mark.parametrize(
    ("objective", "critic"),
    [
        (ELBO(2, beta=optax.linear_schedule(0, 1, 10)), None),
        (IWAE(3), None),
        (IWAE(3, doubly_reparameterized=True), None),
        (FreeBits(0.1, "map"), None),
        (BalancedELBO(optax.linear_schedule(0.1, 1.0, 10)), None),
        (MIWAE(2, 2), None),
        (RenyiBound(3, 0.5), None),
        (FreeBits(0.1), None),
        (FreeBits(0.1, "layer"), None),
        (Capacity(1.0, 3.0), None),
        (GECO(5.0), Multiplier()),
    ],
    ids=lambda value: type(value).__name__ + getattr(value, "per", ""),
)
def test_every_parameter_has_a_gradient_of_every_objective(objective: Any, critic: Any) -> None:
    """And `neg_elbo` is the bound at beta = 1, whatever the objective."""
    model = deep(critic=critic)
    check_objective(objective, model)
    x = np.random.default_rng(0).integers(0, 2, (4, *SHAPE)).astype(np.float32)
    params = jax.tree.map(lambda p: p / 2, params_of(model, objective, x, keys(0, 4)))
    gradients, metrics = gradients_of(params, model, objective, x, keys(1, 4))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)
    assert metrics["neg_elbo"] >= metrics["distortion"]


def test_balance_gives_the_weight_of_small_layers_to_large_ones() -> None:
    """gamma_l ~ (E[KL_l] + 0.01) / alpha_l of mean one, by hand; at beta = 1 the ELBO."""
    model = deep()
    x = np.random.default_rng(0).integers(0, 2, (4, *SHAPE)).astype(np.float32)
    params = normals(jax.eval_shape(model.init, jax.random.key(0), x, keys(0, 4)))
    terms: Any = jax.jit(partial(model.apply, num_samples=2))(params, x, keys(1, 4))
    np.testing.assert_array_equal(shares_of(terms.z), [16 / 2, 16 / 2, 4 / 1])
    kl = np.asarray(terms.kl, np.float64).mean(1)
    gamma = (kl + 0.01) / [8, 8, 4]
    gamma *= 3 / gamma.sum()
    objective = BalancedELBO(optax.linear_schedule(0.0, 1.0, 10))
    for step, weights in ((4, 0.4 * gamma), (10, np.ones(3)), (99, np.ones(3))):
        loss, metrics = objective(terms, jnp.asarray(step), tiny.model())
        distortion = float(metrics["distortion"])
        assert loss == pytest.approx(distortion + weights @ kl, rel=1e-5)
        assert metrics["neg_elbo"] == pytest.approx(distortion + kl.sum(), rel=1e-5)


def test_objectives_of_one_layer_are_refused() -> None:
    with pytest.raises(VaeJaxError, match="one layer of latents, and DeepVAE has several"):
        check_objective(WakeSleep(), deep())


# Exactness of training and evaluation


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "devices", "tolerance"),
    [
        ({"remat": True}, 2, 1e-5),
        ({}, 8, 1e-5),
        ({"accumulate": 4}, 1, 1e-5),
        ({"compute_dtype": jnp.bfloat16, "remat": True}, 1, 0.3),
        ({"objective": IWAE(3)}, 2, 1e-5),
    ],
    ids=["remat on 2 devices", "8 devices", "accumulate", "bfloat16", "IWAE on 2 devices"],
)
def test_equal_gradients(settings: dict[str, Any], devices: int, tolerance: float) -> None:
    """Of one batch: on several devices, in parts, with blocks computed again, in bfloat16."""
    plain = experiment(objective=settings.get("objective", ELBO()))
    state = begun(plain)
    (one,) = one_batch(plain, 1, state=state)
    (other,) = one_batch(dataclasses.replace(plain, **settings), devices, state=state)
    assert_close(other[0], one[0], tolerance / 10)
    assert_close(
        jax.tree.map(np.asarray, other[3]["decoder"]["blocks_0"]["residual_0"]["first"]),
        jax.tree.map(np.asarray, one[3]["decoder"]["blocks_0"]["residual_0"]["first"]),
        tolerance,
    )
    if tolerance < 0.1:
        assert_close(other[3], one[3], tolerance)


def test_a_scan_is_the_blocks_one_after_the_other() -> None:
    """Values and gradients, against a loop over the stacked parameters."""
    top_down = TopDown((3,), 6, 2)
    activations = (np.random.default_rng(0).normal(size=(2, 3, 4, 6)).astype(np.float32),)

    def draw(p: Any, q: Any, z: Any = None) -> Any:
        return p.mean + 0.3 * q.scale

    def scanned(params: Any) -> Any:
        h, _ = top_down.apply(
            {"params": params}, 2, (3, 4, 1), activations, draw, list(jnp.arange(3))
        )
        return jnp.square(h).sum()

    def looped(params: Any) -> Any:
        h = jnp.broadcast_to(params["start_0"], (2, 3, 4, 6))
        for i in range(3):
            own = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks_0"])
            h, _ = TopDownBlock(6, 2).apply({"params": own}, h, activations[0], draw)
        return jnp.square(h * params["gain"] + params["bias"]).sum()

    shapes = jax.eval_shape(
        lambda: top_down.init(
            jax.random.key(0), 2, (3, 4, 1), activations, draw, list(jnp.arange(3))
        )
    )
    params = normals(shapes["params"])
    expected, actual = (jax.jit(jax.value_and_grad(f))(params) for f in (looped, scanned))
    assert_close(actual, expected, 1e-5)


@pytest.mark.slow
def test_bounds_and_annealing_against_quadrature() -> None:
    """Two scalar latents: ln p(x) on a grid, L_K below it, AIS on both sides of it."""
    model = DeepVAE(
        encoder=BottomUp((0, 1), 4),
        decoder=TopDown((0, 2), 4, 1),
        likelihood=Bernoulli(),
        image_shape=(2, 1, 1),
    )
    x = np.array([[[[1.0]], [[0.0]]], [[[1.0]], [[1.0]]]], np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, keys(0, 2))
    variables = jax.tree.map(lambda leaf: 0.8 * leaf, normals(shapes))
    # q wider than p: importance weights have a small variance.
    variables["params"]["decoder"]["blocks_1"]["posterior"]["out"]["bias"][..., 1] += 0.7
    scales, grid = 8.0, np.linspace(-1, 1, 401)
    settings = AIS(num_temperatures=60, num_chains=16, num_leapfrog=4)

    apply: Any = model.apply

    @jax.jit
    def everything(x: Any, keys: Any) -> Any:
        top = apply(variables, method="top")
        z_2 = top.mean.reshape(()) + scales * top.scale.reshape(()) * grid
        z = jnp.stack(jnp.meshgrid(z_2, 30 * grid, indexing="ij"), -1).reshape(-1, 1, 2, 1, 1, 1)
        z = jnp.broadcast_to(z, (z.shape[0], 2, *z.shape[2:]))
        log_px, log_pz = apply(variables, x, (z[:, :, 1], z[:, :, 0]), method="log_densities")
        cell = (z_2[1] - z_2[0]) * 30 * (grid[1] - grid[0])
        log_joint = log_px + log_pz + jnp.log(cell)
        own = per_image(model, variables, x, keys, 2000)
        below, above = bracket(model, variables, x, exact_draws(log_joint, z, keys), keys, settings)
        return special_sum(log_joint), special_sum(log_pz + jnp.log(cell)), own, below, above

    def special_sum(values: Any) -> Any:
        return jax.nn.logsumexp(values, axis=0)

    def exact_draws(log_joint: Any, z: Any, keys: Any) -> Any:
        """A draw from p(z|x) of each image, on the grid."""
        rows = jax.vmap(jax.random.categorical, (0, 1))(keys, log_joint)
        chosen = z[rows, jnp.arange(2)]
        return chosen[:, 1], chosen[:, 0]

    exact, total, own, below, above = everything(x, keys(5, 2))
    np.testing.assert_allclose(total, 0, atol=1e-3)  # the grid holds all of p(z)
    assert (exact < 0).all()
    assert np.exp(exact).sum() < 1  # of two different images
    np.testing.assert_allclose(-own["nll"], exact, atol=0.05)
    assert (own["neg_elbo"] > -exact - 0.01).all()
    np.testing.assert_allclose(below, exact, atol=0.03)
    np.testing.assert_allclose(above, exact, atol=0.03)


# A run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = experiment(
        model=deep(labels=LabelEmbedding(8, 2)), batch_size=16, optimizer=optax.adamax(2e-2)
    )
    with on_devices(1):
        return train(made, tmp_path_factory.mktemp("runs") / "deep")


@pytest.mark.slow
def test_it_trains_and_has_a_rate_of_each_layer(run: Run) -> None:
    with on_devices(1):
        evaluation = evaluate(run, num_samples=16)
    losses = [row["loss"] for row in run.folder.read_metrics() if "loss" in row]
    assert losses[-1] < losses[0] - 0.5
    mean = evaluation.mean
    assert mean["nll"] < mean["neg_elbo"]
    assert mean["rate_z1"] + mean["rate_z2"] + mean["rate_z3"] == pytest.approx(
        mean["kl"], rel=1e-4
    )
    assert len(evaluation.active_units) == 3


@pytest.mark.slow
def test_pictures_of_all_layers_of_some_and_at_other_temperatures(run: Run) -> None:
    x, shown = generate.reconstruct(run, "test", 3)
    _, of_top = generate.reconstruct(run, "test", 3, top=1)
    assert x.shape == shown.shape == of_top.shape == (3, *SHAPE)
    assert np.abs(shown - of_top).max() > 1e-6
    assert generate.interpolate(run, "test", 1, 3, top=2).shape == (1, 3, *SHAPE)
    pictures, _, dims = generate.traverse(run, "test", points=3, num_latents=2, layer=2)
    assert pictures.shape == (2, 3, *SHAPE)
    assert dims.max() < 32
    cold, own = (generate.sample(run, 8, temperature=[t] * 3) for t in (0.0, 1.0))
    np.testing.assert_array_equal(own, generate.sample(run, 8, temperature=[1.0]))
    np.testing.assert_array_equal(own, generate.sample(run, 8))
    assert np.abs(own - cold).max() > 1e-5

    for refused, match in (
        (partial(generate.sample, run, temperature=[1.0, 1.0]), "each of the 3 layers"),
        (partial(generate.reconstruct, run, top=4), "take 1 to 3"),
        (partial(generate.traverse, run, layer=0), "take 1 to 3"),
        (partial(fitted_priors.fit, run, GaussianMixture(2, 2)), "parts of its decoder"),
    ):
        with pytest.raises(VaeJaxError, match=match):
            refused()
