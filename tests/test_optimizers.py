"""Optimizers by group: what moves, what stays, and what a checkpoint brings back."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from running import interrupted_after, on_devices

from vae_jax import (
    MLP,
    AdversarialAutoencoder,
    Bernoulli,
    DiagonalGaussian,
    HierarchicalVAE,
    LatentCritic,
    StandardNormal,
    train,
)
from vae_jax.checkpoint import fingerprint
from vae_jax.errors import Interrupted, VaeJaxError
from vae_jax.optimizers import (
    PARAMETER_GROUPS,
    by_group,
    lagging_inference,
    spectral_regularization,
)

HIERARCHY = HierarchicalVAE(
    encoders=[MLP((3,)), MLP((3,))],
    posteriors=[DiagonalGaussian(2), DiagonalGaussian(2)],
    prior=StandardNormal(2),
    decoders=[MLP((3,)), MLP((3,))],
    conditionals=[DiagonalGaussian(2)],
    likelihood=Bernoulli(),
    image_shape=tiny.IMAGE_SHAPE,
)


def moved(params: Any, **groups: optax.GradientTransformation) -> dict[str, float]:
    """How far the parameters of each part of the model go at a gradient of one."""
    optimizer = by_group(optax.sgd(1.0), **groups)
    ones = jax.tree.map(np.ones_like, params)
    updates: Any = optimizer.update(ones, optimizer.init(params), params)[0]
    flat = {
        name: np.concatenate([u.ravel() for u in jax.tree.leaves(part)])
        for name, part in updates.items()
    }
    return {name: -np.unique(steps).item() for name, steps in flat.items()}


def test_each_group_is_moved_by_its_own_optimizer():
    params = {name: {"Dense_0": {"kernel": jnp.zeros((2, 3))}} for name in PARAMETER_GROUPS}
    rates = {name: 2.0 + place for place, name in enumerate(PARAMETER_GROUPS)}
    assert moved(params, **{n: optax.sgd(rate) for n, rate in rates.items()}) == rates
    default = dict.fromkeys(PARAMETER_GROUPS, 1.0)
    assert moved(params) == default
    assert moved(params, critic=optax.sgd(5.0)) == default | {"critic": 5.0}
    assert moved(params, decoder=optax.set_to_zero()) == default | {"decoder": 0.0}


def test_every_layer_of_a_hierarchical_model_is_in_its_group():
    x = jnp.zeros((1, *tiny.IMAGE_SHAPE))
    params = jax.eval_shape(HIERARCHY.init, jax.random.key(0), x, jax.random.key(0)[None])["params"]
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), params)
    rates = {name: 2.0 + place for place, name in enumerate(PARAMETER_GROUPS)}
    assert moved(params, **{name: optax.sgd(rate) for name, rate in rates.items()}) == {
        "encoders_0": rates["encoder"],
        "encoders_1": rates["encoder"],
        "posteriors_0": rates["posterior"],
        "posteriors_1": rates["posterior"],
        "decoders_0": rates["decoder"],
        "decoders_1": rates["decoder"],
        "conditionals_0": rates["conditional"],
        "likelihood": rates["likelihood"],
    }


def test_the_inference_network_takes_extra_steps():
    """Two of q(z|x), one of the rest, for seven steps; then both in each, as Adam in NumPy moves.

    A side that stays keeps its moments: its n-th step is Adam's n-th at its own gradients.
    """
    params = {name: jnp.zeros(2) for name in ("encoders_0", "posterior", "decoder", "prior")}
    optimizer = lagging_inference(optax.adam(0.1), encoder_steps=2, num_steps=7)
    state, generator = optimizer.init(params), np.random.default_rng(0)
    moments = {name: [np.zeros(2), np.zeros(2), 0] for name in params}
    moving = ["q", "q", "p", "q", "q", "p", "q", "qp", "qp", "qp"]
    update = jax.jit(optimizer.update)
    for sides in moving:
        gradients = {name: generator.normal(size=2) for name in params}
        updates: Any = None
        updates, state = update(jax.tree.map(jnp.float32, gradients), state, params)
        for name, gradient in gradients.items():
            expected = np.zeros(2)
            if ("q" if name in ("encoders_0", "posterior") else "p") in sides:
                mean, square, count = moments[name]
                mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
                moments[name] = [mean, square, count + 1]
                corrected = mean / (1 - 0.9 ** (count + 1)), square / (1 - 0.999 ** (count + 1))
                expected = -0.1 * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
            np.testing.assert_allclose(updates[name], expected, rtol=1e-4, atol=1e-7)


def test_spectral_regularization_is_the_gradient_of_singular_values():
    """Of matrices, convolutions and stacks of both, by LAPACK's float64; all else stays."""
    generator = np.random.default_rng(0)
    shapes = {
        "encoder": {"dense": (7, 5), "conv": (3, 3, 4, 6), "zero": (4, 2)},
        "decoder": {"blocks_0": (2, 6, 3), "blocks_1": (3, 3, 3, 2, 4)},
        "critic": {"wide": (3, 40)},
    }
    draw = lambda shape: jnp.float32(generator.normal(size=shape))  # noqa: E731
    params: Any = {
        part: {
            name: {"kernel": draw(shape), "bias": draw(shape[-1:])} for name, shape in each.items()
        }
        for part, each in shapes.items()
    } | {"posterior": {"Dense_0": {"kernel": draw((4, 4))}}}
    params["encoder"]["zero"]["kernel"] = jnp.zeros((4, 2))
    params["decoder"]["start_0"] = draw((2, 2, 3))
    optimizer = spectral_regularization(lambda step: 0.5 + step)
    state, update, zero = (
        optimizer.init(params),
        jax.jit(optimizer.update),
        jax.tree.map(jnp.zeros_like, params),
    )
    added: Any = None
    for _ in range(60):
        added, state = update(zero, state, params)
    for part, each in shapes.items():
        for name, shape in each.items():
            w = np.float64(params[part][name]["kernel"])
            u, _, v = np.linalg.svd(
                w.reshape(*shape[: len(shape) % 2], -1, shape[-1]), full_matrices=False
            )
            expected = (0.5 + 59) * (u[..., :, :1] * v[..., :1, :]).reshape(shape)
            if name == "zero":
                expected = np.zeros(shape)
            np.testing.assert_allclose(
                added[part][name].pop("kernel"), expected, atol=2e-3, err_msg=name
            )
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(added))


def test_spectral_regularization_goes_on_where_a_kernel_was_zero_and_where_steps_are_few():
    """One iteration a step follows a kernel that training moves, from zero on."""
    optimizer = optax.chain(spectral_regularization(0.01, iterations=1), optax.sgd(1.0))
    target = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
    params: Any = {"decoder": {"kernel": jnp.zeros((6, 5))}}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for _ in range(2000):
        pull: Any = jax.tree.map(lambda w: 0.1 * (w - target), params)
        updates, state = update(pull, state, params)
        params = optax.apply_updates(params, updates)
    # The least of |W - T|^2 / 20 + sigma(W) / 100 takes 0.1 from the first singular value alone.
    u, s, v = np.linalg.svd(np.float64(target))
    assert s[0] - s[1] > 0.1
    expected = target - 0.1 * np.outer(u[:, 0], v[0])
    np.testing.assert_allclose(params["decoder"]["kernel"], expected, atol=1e-4)


def test_a_group_that_does_not_exist_is_refused():
    with pytest.raises(
        VaeJaxError, match="no group of parameters 'discriminator': take one of encoder, "
    ):
        by_group(optax.sgd(1.0), discriminator=optax.sgd(1.0))


@pytest.mark.slow
def test_a_game_is_resumed_with_every_optimizer_s_state(tmp_path: Path):
    """Killed between checkpoints and started again: the same bytes as the run never stopped.

    Three optimizers with states of different shapes, and a group that stays where it started.
    """
    experiment = dataclasses.replace(
        tiny.experiment(num_steps=20),
        model=tiny.model().clone(critic=LatentCritic(MLP((5,)))),
        objective=AdversarialAutoencoder(),
        optimizer=by_group(
            optax.adam(optax.linear_schedule(1e-2, 0.0, 20)),
            critic=optax.sgd(1e-2, momentum=0.9),
            likelihood=optax.set_to_zero(),
        ),
    )
    with on_devices(1):
        straight = train(experiment, tmp_path / "straight").state
        with pytest.raises(Interrupted), interrupted_after(5):
            train(experiment, tmp_path / "resumed")
        resumed = train(experiment, tmp_path / "resumed").state
    assert fingerprint(resumed) == fingerprint(straight)
    counts = [leaf for leaf in jax.tree.leaves(straight.opt_state) if leaf.dtype == jnp.int32]
    assert [count.item() for count in counts] == [20, 20]  # Adam's and its schedule's
    assert optax.tree.norm(straight.params["likelihood"]["logits"]["bias"]) == 0
    assert optax.tree.norm(straight.params["critic"]["logit"]["bias"]) > 0
