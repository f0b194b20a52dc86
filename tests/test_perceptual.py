"""The perceptual distance: by NumPy, in an objective and its game, and learned from the data."""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from gradients import assert_close, gradients_of, loss_and_metrics, params_of
from jax import Array
from running import interrupted_after, on_devices
from test_critics import KEYS, PATCH, STEP, X

from vae_jax import (
    ELBO,
    IWAE,
    LearnedPerceptual,
    PatchGAN,
    Perceptual,
    VaeJaxError,
    load_run,
    train,
)
from vae_jax.checkpoint import fingerprint
from vae_jax.data import Split
from vae_jax.errors import Interrupted
from vae_jax.networks.features import FeatureNetwork
from vae_jax.objectives.patch_gan import DELTA
from vae_jax.objectives.perceptual import learning_from, perceptual_distance
from vae_jax.step import loss_at_terms


def corners(images: Array) -> list[Array]:
    """A user's features: each pixel beside its complement, and means over squares of four."""
    x = jnp.concatenate([images, 1 - images], -1)
    return [x, x.reshape(len(x), 2, 2, 2, 2, 2).mean((2, 4))]


def distance_by_numpy(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of `corners`, pixel by pixel in float64, `[N]`."""
    total = np.zeros(len(a))
    for one, other in zip(corners(jnp.asarray(a)), corners(jnp.asarray(b)), strict=True):
        u, v = np.float64(one), np.float64(other)
        cosine = (u * v).sum(-1) / np.sqrt((u**2).sum(-1) * (v**2).sum(-1))
        total += (2 - 2 * cosine).mean((1, 2))
    return total


def test_the_distance_is_two_less_twice_the_mean_cosine() -> None:
    """Of every position, summed over layers; whatever the lengths; from zero to four a layer."""
    a, b = (np.random.default_rng(seed).uniform(size=(3, 4, 4, 1)) for seed in (0, 1))
    found = perceptual_distance(corners(jnp.asarray(a)), corners(jnp.asarray(b)))
    np.testing.assert_allclose(found, distance_by_numpy(a, b), rtol=1e-4)
    u = jnp.asarray(np.random.default_rng(2).normal(size=(2, 3, 3, 5)))
    for factor, expected in ((7.0, 0.0), (-0.1, 4.0)):
        (one,) = {round(float(d), 4) for d in perceptual_distance([u], [factor * u])}
        assert one == expected
    assert np.isfinite(jax.grad(lambda z: perceptual_distance([z], [0 * u]).sum())(0 * u)).all()


@pytest.mark.slow
def test_the_loss_is_the_objectives_and_the_weighted_distance() -> None:
    """Of the means of p(x|z) at each of three samples; its gradient is that of the sum."""
    objective = Perceptual(IWAE(3), 2.5, corners)
    params = params_of(PATCH.clone(critic=None), objective, X, KEYS)
    model = PATCH.clone(critic=None)
    (own, _), (loss, metrics) = (
        jax.jit(lambda p, o=o: loss_and_metrics(p, model, o, X, KEYS))(params)
        for o in (IWAE(3), objective)
    )
    terms: Any = model.apply({"params": params}, X, KEYS, 3)
    each = [distance_by_numpy(np.asarray(X), np.asarray(one)) for one in terms.reconstruction]
    assert float(metrics["perceptual"]) == pytest.approx(2.5 * np.mean(each), rel=1e-4)
    assert float(loss - own) == pytest.approx(2.5 * np.mean(each), rel=1e-3)

    def distance(params: Any) -> Array:
        drawn: Any = model.apply({"params": params}, X, KEYS, 3)
        pairs = [perceptual_distance(corners(X), corners(one)) for one in drawn.reconstruction]
        return 2.5 * jnp.stack(pairs).mean()

    gradients, _ = gradients_of(params, model, objective, X, KEYS)
    without, _ = gradients_of(params, model, IWAE(3), X, KEYS)
    expected = jax.tree.map(jnp.add, without, jax.jit(jax.grad(distance))(params))
    assert_close(gradients, expected, 1e-4)


def test_the_adaptive_weight_follows_the_distance_too() -> None:
    """Esser et al. (2021), equation 7: rec is the perceptual reconstruction loss."""
    objective = PatchGAN(Perceptual(ELBO(), 50.0, corners))
    params = params_of(PATCH, objective, X, KEYS)

    @jax.jit
    def both() -> tuple[Array, Array]:
        _, metrics = loss_and_metrics(params, PATCH, objective, X, KEYS)
        terms: Any = PATCH.apply({"params": params}, X, KEYS)
        z = terms.z[0][0]

        def decoded(layer: Any) -> Any:
            own = {"params": params | {"likelihood": layer}}
            return PATCH.apply(own, (z,), method="decode")

        def rec(layer: Any) -> Array:
            px = decoded(layer)
            distance = perceptual_distance(corners(X), corners(px.mean)).mean()
            return -px.log_prob(X).mean() + 50.0 * distance

        def gan(layer: Any) -> Array:
            logits = PATCH.apply(
                {"params": params}, decoded(layer).mean, method=lambda model, x: model.critic(x)
            )
            return -jnp.asarray(logits).mean()

        of_rec, of_gan = (jax.grad(each)(params["likelihood"])["loc"] for each in (rec, gan))
        return metrics["adaptive_weight"], optax.tree.norm(of_rec) / (
            optax.tree.norm(of_gan) + DELTA
        )

    weight, expected = both()
    assert float(weight) == pytest.approx(0.5 * float(expected), rel=1e-4)


def learned(num_steps: int = 10) -> Any:
    """The tiny experiment with a distance in features that are learned from its bars."""
    objective = Perceptual(ELBO(), 10.0, LearnedPerceptual(3))
    return dataclasses.replace(tiny.experiment(num_steps=num_steps), objective=objective)


@pytest.mark.slow
def test_learned_features_are_those_of_a_network_trained_on_the_data() -> None:
    """A classifier of the labels from seed 1, its three maps; another split, other features."""
    experiment = learned()
    features: Any = experiment.objective.features
    train_split = experiment.data.train
    network = FeatureNetwork.of(train_split)
    assert network.num_classes == 8
    params = network.trained(train_split, 3, seed=1)
    jax.tree.map(np.testing.assert_array_equal, features.params, params)
    found = features(train_split.images[:5] / np.float32(255))
    assert [each.shape for each in found] == [(5, 2, 2, 32), (5, 1, 1, 64), (5, 1, 1, 64)]
    other = features.of(Split(train_split.images[::-1], train_split.labels))
    assert np.abs(other(jnp.asarray(X))[0] - features(jnp.asarray(X))[0]).max() > 1e-4
    autoencoder = FeatureNetwork.of(Split(train_split.images, None))
    assert autoencoder.num_classes is None


@pytest.mark.slow
def test_training_learns_them_and_opening_the_run_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped on its way, when they are learned again, it is the run never stopped, to the byte."""
    with on_devices(1):
        whole = train(learned(num_steps=20), tmp_path / "whole")
        assert np.isfinite(whole.metric("perceptual")[1]).all()
        with pytest.raises(Interrupted, match="after step 10;"), interrupted_after(5):
            train(learned(num_steps=20), tmp_path / "run")
        resumed = train(learned(num_steps=20), tmp_path / "run")
        assert fingerprint(resumed.state) == fingerprint(whole.state)
        monkeypatch.setattr(FeatureNetwork, "trained", None)
        opened = load_run(tmp_path / "whole")
        assert isinstance(opened.experiment.objective, Perceptual)
        assert opened.experiment.objective.features == LearnedPerceptual(3)
        assert opened.sample(2).shape == (2, 4, 4, 1)


def test_nested_objectives_learn_from_the_data() -> None:
    data = tiny.data()
    nested = learning_from(PatchGAN(Perceptual(ELBO())), data.train)
    assert isinstance(nested, PatchGAN)
    assert isinstance(nested.objective, Perceptual)
    assert vars(nested.objective.features)["train"] is data.train
    plain = ELBO()
    assert learning_from(plain, data.train) is plain


def test_features_without_images_are_refused() -> None:
    with pytest.raises(VaeJaxError, match=r"no images to learn from: give the objective to an"):
        LearnedPerceptual()(X)


def test_a_model_is_initialized_without_features() -> None:
    """So that opening a run does not train them."""

    def fails(images: Array) -> list[Array]:
        raise AssertionError(images)

    def initial(key: Array) -> Any:
        init = nn.init(loss_at_terms, PATCH.clone(critic=None))
        return init(key, Perceptual(ELBO(), 1.0, fails), X, KEYS, None, STEP)

    assert "params" in jax.eval_shape(initial, KEYS[0])
