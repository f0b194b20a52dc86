"""The shape of the images: a model knows it from its experiment's data, or is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vae_jax import Data, Experiment, VaeJaxError

UNKNOWN = tiny.model().clone(image_shape=())


def experiment(shape: tuple[int, ...], model=UNKNOWN) -> Experiment:
    base = tiny.experiment()
    data = Data.from_arrays("zeros", np.zeros((20, *shape), np.uint8), protocol="threshold")
    return Experiment(
        data=data, model=model, objective=base.objective, optimizer=base.optimizer, num_steps=1
    )


def test_an_experiment_tells_its_model():
    assert experiment((3, 5, 1)).model.image_shape == (3, 5, 1)
    assert UNKNOWN.image_shape == ()


def test_a_model_of_other_images_is_refused():
    with pytest.raises(VaeJaxError, match=r"of shape \(4, 4, 1\), zeros has \(3, 5, 1\): leave im"):
        experiment((3, 5, 1), tiny.model())


def test_a_model_that_nobody_told_says_so():
    x, keys = jnp.zeros((1, 4, 4, 1)), jax.random.key(0)[None]
    with pytest.raises(VaeJaxError, match="VAE does not know the shape of its images: give it to"):
        UNKNOWN.init(jax.random.key(0), x, keys)
