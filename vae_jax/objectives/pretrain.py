"""Training that starts as a plain autoencoder and continues with an objective."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int
from typing_extensions import override

from vae_jax.given import Index
from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.vae import Terms


@dataclass(frozen=True)
class Pretrain(Objective):
    """-ln p(x|z) at z = E_q[z|x] for the first steps, then an objective.

    Training starts with a plain autoencoder, without noise and without a rate. With
    `Gaussian(0.5**0.5)` its loss is the squared error plus a constant. The prior, and those
    parameters of q(z|x) on which its mean does not depend, keep their initial values. With
    `optimizers.switched(num_steps, adam, optax.set_to_zero())` for the group `encoder`, the encoder
    of the autoencoder is held fixed afterwards.

    The loss is a function of the step, so a resumed run switches at the same step as an
    uninterrupted one. The metrics are those of the objective from the first step on. Computing them
    makes a step of the autoencoder slower than one of the objective; afterwards nothing extra is
    computed.

    Attributes:
        num_steps: the number of steps of the autoencoder.
        then: the objective of the following steps.
    """

    num_steps: Index
    then: Annotated[Objective, "an objective, such as ELBO()"]

    @property
    def num_samples(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of samples of the objective."""
        return self.then.num_samples

    @property
    @override
    def requires(self) -> Requirements:
        requires = self.then.requires
        return dataclasses.replace(requires, spaces=requires.spaces & {"real"}, one_layer=True)

    def __call__(
        self, terms: Terms, step: Int[Array, ""], model: Model
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss -ln p(x|E_q[z]), or that of the objective, in nats per image.

        If the mean of q has no closed form, the first sample replaces it.
        """
        loss, metrics = self.then(terms, step, model)
        q = terms.q[0]
        z = q.mean if q.exact_mean else terms.z[0][0]
        unbound, variables = model.unbind()

        def distortion() -> Array:
            bound = unbound.bind(variables, mutable=list(variables.keys() - {"params"}))
            px = bound.likelihood.observe(bound.decode((z,), terms.y), terms.x, remember=False)
            return -px.log_prob(terms.x).mean()

        pretraining = step < self.num_steps
        reconstruction = lax.cond(pretraining, distortion, lambda: jnp.zeros_like(loss))
        return jnp.where(pretraining, reconstruction, loss), metrics
