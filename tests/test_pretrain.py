"""A plain autoencoder first, then an objective: both gradients, and runs killed around it."""

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
from gradients import assert_close, gradients_of, params_of
from jax import Array
from running import interrupted_after, on_devices
from test_critics import KEYS, MODEL, X

from vae_jax import ELBO, Gaussian, OptimalGaussian, Pretrain, VaeJaxError, VonMisesFisher
from vae_jax.checkpoint import fingerprint
from vae_jax.compatibility import check_objective
from vae_jax.errors import Interrupted
from vae_jax.experiment import Experiment
from vae_jax.optimizers import by_group, switched
from vae_jax.run import Run
from vae_jax.step import init_state, loss_at_terms
from vae_jax.train import load_run, train

SWITCH = 20


def least_squares(params: Any) -> Array:
    """Squared errors of the decoded means, written out: MLPs with one hidden layer."""

    def dense(x: Array, layer: Any) -> Array:
        return x @ layer["kernel"] + layer["bias"]

    h = jnp.tanh(dense(X.reshape(len(X), -1), params["encoder"]["Dense_0"]))
    h = jnp.tanh(dense(dense(h, params["posterior"]["loc"]), params["decoder"]["Dense_0"]))
    means = 1 / (1 + jnp.exp(-dense(h, params["likelihood"]["loc"])))
    return ((means - X.reshape(len(X), -1)) ** 2).sum(-1).mean()


def test_the_first_steps_are_least_squares_and_the_later_ones_the_elbo() -> None:
    """With a standard deviation of 0.5^0.5, against the network written out by hand."""
    model = MODEL.clone(likelihood=Gaussian(0.5**0.5))
    params = params_of(model, ELBO(), X, KEYS)
    first, _ = gradients_of(params, model, Pretrain(1, ELBO()), X, KEYS)
    expected = jax.jit(jax.grad(least_squares))(params)
    assert optax.tree.norm(first["posterior"].pop("log_scale")) == 0
    del expected["posterior"]["log_scale"]
    assert_close(first, expected, 1e-5)
    then, _ = gradients_of(params, model, Pretrain(0, ELBO()), X, KEYS)
    elbo, _ = gradients_of(params, model, ELBO(), X, KEYS)
    assert_close(then, elbo, 1e-6)
    assert optax.tree.norm(elbo["posterior"]["log_scale"]) > 1e-3


def test_the_running_scale_moves_once_in_a_step() -> None:
    """sigma-VAE: the autoencoder's images have the batch's scale, and are not remembered.

    The running variance goes 1/20 of the way from 1 to the batch's mean squared error.
    """
    model = MODEL.clone(likelihood=OptimalGaussian())

    @jax.jit
    def step() -> Any:
        init = nn.init(loss_at_terms, model)
        variables = init(KEYS[0], Pretrain(1, ELBO()), X, KEYS, None, jnp.int32(0))
        apply = nn.apply(loss_at_terms, model, mutable=["running"])
        (loss, _), state = apply(variables, Pretrain(1, ELBO()), X, KEYS, None, jnp.int32(0))
        q: Any = model.apply(variables, X, method="encode")
        terms: Any = model.apply(variables, X, KEYS)
        decoded: Any = model.apply(variables, (q.mean,), method="decode")
        errors = [((x - X) ** 2).mean() for x in (decoded.mean, terms.reconstruction)]
        return loss, errors, state["running"]["likelihood"]["variance"]

    loss, (of_mean, of_sample), variance = step()
    np.testing.assert_allclose(variance, 1 + (of_sample - 1) / 20, rtol=1e-5)
    np.testing.assert_allclose(loss, 8 * (np.log(2 * np.pi * of_mean) + 1), rtol=1e-4)


def experiment() -> Experiment:
    """An autoencoder, whose encoder is then held fixed under a VAE's decoder."""
    adam = optax.adam(optax.cosine_decay_schedule(1e-2, 40))
    return dataclasses.replace(
        tiny.experiment(num_steps=40),
        objective=Pretrain(SWITCH, ELBO()),
        optimizer=by_group(
            adam,
            encoder=switched(SWITCH, adam, optax.set_to_zero()),
            likelihood=switched(SWITCH, optax.set_to_zero(), optax.sgd(1e-2, momentum=0.9)),
        ),
    )


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run never stopped."""
    with on_devices(1):
        return train(experiment(), tmp_path_factory.mktemp("runs") / "straight")


def killed_at(step: int, folder: Path) -> None:
    """Starts the run, which saves itself at the step: one chunk after the signal."""
    with pytest.raises(Interrupted, match=f"after step {step};"), interrupted_after(step - 5):
        train(experiment(), folder)


@pytest.mark.slow
@pytest.mark.parametrize("step", [SWITCH - 5, SWITCH, SWITCH + 5])
def test_a_run_killed_around_the_switch_is_the_run_never_stopped(
    step: int, straight: Run, tmp_path: Path
) -> None:
    with on_devices(1):
        killed_at(step, tmp_path / "run")
        resumed = train(experiment(), tmp_path / "run")
    assert fingerprint(resumed.state) == fingerprint(straight.state)


@pytest.mark.slow
def test_what_is_frozen_stays_before_and_after_the_switch(straight: Run, tmp_path: Path) -> None:
    with on_devices(1):
        killed_at(SWITCH, tmp_path / "run")
        middle = load_run(tmp_path / "run", experiment=experiment()).state.params
        start = jax.jit(jax.vmap(lambda seed: init_state(experiment(), seed).params))
        begin = start(np.zeros(1, np.uint32))

    def moved(before: Any, after: Any) -> set[str]:
        parts = {
            **{name: (before[name], after[name]) for name in before},
            "scale": (before["posterior"]["log_scale"], after["posterior"]["log_scale"]),
        }
        return {
            name for name, (one, other) in parts.items() if fingerprint(one) != fingerprint(other)
        }

    assert moved(begin, middle) == {"encoder", "posterior", "decoder"}
    assert moved(middle, straight.state.params) == {"posterior", "scale", "decoder", "likelihood"}


def test_latents_without_a_mean_among_them_are_refused() -> None:
    model = MODEL.clone(posterior=VonMisesFisher(2))
    with pytest.raises(VaeJaxError, match="Pretrain has no meaning for unit vectors"):
        check_objective(Pretrain(1, ELBO()), model)
