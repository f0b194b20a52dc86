"""An experiment that trains in a moment, for the tests of training: imported, and as a file."""

from functools import cache

import numpy as np
import optax

from vae_jax import ELBO, MLP, VAE, Bernoulli, Data, DiagonalGaussian, Experiment, StandardNormal
from vae_jax.data import SplitName

IMAGE_SHAPE = (4, 4, 1)


def images(count: int, seed: int) -> np.ndarray:
    """A bright bar in a random row or column of each grey image, uint8 `[count, 4, 4, 1]`."""
    generator = np.random.default_rng(seed)
    bars = np.concatenate([np.repeat(np.eye(4), 4, 1), np.tile(np.eye(4), 4)]).reshape(8, 4, 4, 1)
    noisy = 40 + 150 * bars[generator.integers(8, size=count)]
    return (noisy + generator.integers(-40, 40, noisy.shape)).astype(np.uint8)


def labels(count: int, seed: int) -> np.ndarray:
    """The number of the bar, 0 to 7, in each of `images(count, seed)`."""
    return np.random.default_rng(seed).integers(8, size=count)


def data(protocol: str = "dynamic") -> Data:
    """90 training images, so that a batch of 16 straddles epochs, and 21 in the other splits."""
    sizes: dict[SplitName, int] = {"train": 90, "valid": 21, "test": 21}
    return Data.from_arrays(
        "bars",
        *(images(count, seed) for seed, count in enumerate(sizes.values())),
        protocol=protocol,
        labels={split: labels(count, seed) for seed, (split, count) in enumerate(sizes.items())},
    )


@cache
def model(hidden: int = 8) -> VAE:
    """MLPs with 2 latents, whose parts are found to fit together once."""
    return VAE(
        encoder=MLP((hidden,)),
        posterior=DiagonalGaussian(2),
        prior=StandardNormal(2),
        decoder=MLP((hidden,)),
        likelihood=Bernoulli(),
        image_shape=IMAGE_SHAPE,
    )


def experiment(
    *,
    num_steps: int = 40,
    learning_rate: float = 1e-2,
    batch_size: int = 16,
    log_every: int = 5,
    checkpoint_every: int = 10,
    hidden: int = 8,
    beta: float = 1.0,
    max_nonfinite: int = 100,
) -> Experiment:
    """Bars, with Adam and a running average of the parameters."""
    return Experiment(
        data=data(),
        model=model(hidden),
        objective=ELBO(beta=beta),
        optimizer=optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps)),
        num_steps=num_steps,
        batch_size=batch_size,
        ema_decay=0.9,
        log_every=log_every,
        checkpoint_every=checkpoint_every,
        max_nonfinite=max_nonfinite,
    )
