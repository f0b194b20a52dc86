"""Conditional models with games, pretraining and pixels in turn: trained, killed and resumed."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
import tiny
from running import interrupted_after, on_devices

import vae_jax as vj
from vae_jax import MLP, Experiment, VaeJaxError, train
from vae_jax.checkpoint import fingerprint
from vae_jax.errors import Interrupted
from vae_jax.run import Run

STEPS, SWITCH = 200, 100
MODEL = tiny.model(16).clone(labels=vj.LabelEmbedding(8, 4))
PIXELS = vj.AutoregressivePixels(vj.Bernoulli(), width=8, num_layers=1, num_heads=2)
IMAGE_CRITIC = vj.ImageCritic(MLP((8,)), MLP((8,)))
PATCH_CRITIC = vj.PatchCritic((4, 4))
GREY = MODEL.clone(likelihood=vj.Gaussian(0.1))
# Model, objective, protocol: the two halves of a run with a switch differ.
COMBINATIONS: dict[str, tuple[Any, Any, str]] = {
    "PatchGAN": (
        GREY.clone(critic=PATCH_CRITIC),
        vj.PatchGAN(vj.ELBO(), first_step=SWITCH),
        "grey",
    ),
    "VAEGAN": (GREY.clone(critic=IMAGE_CRITIC), vj.VAEGAN(1.0), "grey"),
    "Pretrain": (MODEL, vj.Pretrain(SWITCH, vj.ELBO()), "dynamic"),
    "AutoregressivePixels": (MODEL.clone(likelihood=PIXELS), vj.ELBO(), "dynamic"),
}


def experiment(name: str) -> Experiment:
    """Of bars that say which of 8 they are."""
    model, objective, protocol = COMBINATIONS[name]
    return dataclasses.replace(
        tiny.experiment(num_steps=STEPS, log_every=20, checkpoint_every=STEPS),
        model=model,
        objective=objective,
        data=tiny.data(protocol),
        optimizer=optax.adam(2e-2),
    )


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow) for name in COMBINATIONS],
)
def straight(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Run]:
    """A run never stopped."""
    with on_devices(2):
        run = train(experiment(request.param), tmp_path_factory.mktemp("runs") / "straight")
    return request.param, run


def log_px(run: Run, labels: np.ndarray) -> np.ndarray:
    """ln p(x|z, y) of all test images, with z from the prior and not from x, nats `[S, Z, N]`.

    Args:
        run: of grey or binary images.
        labels: y of each image, `[S, N]`.
    """
    x = run.experiment.data.test.images / np.float32(255)
    x = (x > 0.5).astype(np.float32) if run.experiment.data.support == "binary" else x
    z = np.random.default_rng(0).normal(size=(32, 1, 2)).astype(np.float32)
    z = np.broadcast_to(z, (32, len(x), 2))

    @jax.jit
    def found(variables: Any, y: Any) -> Any:
        px: Any = run.experiment.model.apply(variables, (z,), y, method="decode")
        return px.log_prob(x)

    return np.stack([found(run.seed_variables, y) for y in labels])


def test_the_label_decides_what_is_probable(straight: tuple[str, Run]):
    """Every loss is finite, and images are more probable with their own label than with others'."""
    _, run = straight
    lines = [line for line in run.folder.read_metrics() if "loss" in line]
    assert len(lines) == STEPS // 20
    assert all(np.isfinite([v for v in line.values() if v is not None]).all() for line in lines)
    assert None not in [line["loss"] for line in lines]
    own: Any = run.experiment.data.test.labels
    right, *wrong = log_px(run, (own + np.arange(8)[:, None]) % 8)
    assert (right.mean() > np.mean(wrong, (1, 2)) + 1).all()


@pytest.mark.parametrize("step", [SWITCH - 20, SWITCH + 20])
def test_a_killed_run_is_the_run_never_stopped(
    step: int, straight: tuple[str, Run], tmp_path: Path
):
    """On both sides of a switch, to the byte: parameters, optimizer and running averages."""
    name, run = straight
    with on_devices(2):
        with pytest.raises(Interrupted), interrupted_after(step - 20):
            train(experiment(name), tmp_path / "run")
        resumed = train(experiment(name), tmp_path / "run")
    assert fingerprint(resumed.state) == fingerprint(run.state)


@pytest.mark.others_slow
@pytest.mark.parametrize(
    ("objective", "critic"),
    [(vj.VAEGAN(1.0), IMAGE_CRITIC), (vj.PatchGAN(vj.ELBO()), PATCH_CRITIC)],
    ids=["VAEGAN", "PatchGAN"],
)
def test_pictures_that_are_draws_play_no_game(objective: Any, critic: Any):
    """No gradient passes a draw, and the means before a mean make no picture."""
    name = type(objective).__name__
    build = partial(dataclasses.replace, tiny.experiment(), objective=objective)
    for model in (MODEL, tiny.model()):
        assert build(model=model.clone(critic=critic)).objective is objective
        with pytest.raises(VaeJaxError, match=f"{name} shows means .* AutoregressivePixels"):
            build(model=model.clone(likelihood=PIXELS, critic=critic))
