"""Training that starts as a plain autoencoder and goes on with an objective."""

import dataclasses
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array, lax

from vae_jax.interfaces import Metrics, Model, Objective, Requirements
from vae_jax.vae import Terms


@dataclass(frozen=True)
class Pretrain(Objective):
    """-ln p(x|z) at z = E_q[z|x] for the first steps, then an objective.

    A plain autoencoder: no noise, and no rate. With `Gaussian(0.5**0.5)` its loss is the squared
    error plus a constant: the decoder by least squares. What q(z|x) has besides its mean, and the
    prior, stay as they are initialized. With `optimizers.switched(steps, adam,
    optax.set_to_zero())` for the group `encoder`, the encoder is that of an autoencoder, and held
    fixed from then on.

    The loss is a function of the step, so a resumed run switches where the run never stopped does.
    The metrics are those of the objective from the first step; computing them makes a step of
    the autoencoder slower than one of the objective, which has nothing to wait for afterwards.

    Attributes:
        steps: of the autoencoder.
        then: the objective afterwards.
    """

    steps: int
    then: Objective

    @property
    def num_samples(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The objective's."""
        return self.then.num_samples

    @property
    def requires(self) -> Requirements:
        """What the objective does, and latents that have a mean among them; one layer."""
        requires = self.then.requires
        return dataclasses.replace(requires, spaces=requires.spaces & {"real"}, one_layer=True)

    def __call__(self, terms: Terms, step: Array, model: Model) -> tuple[Array, Metrics]:
        """Loss -ln p(x|E_q[z]), or the objective's; the metrics are the objective's.

        Where q's mean has no closed form, the first sample is taken for it.
        """
        loss, metrics = self.then(terms, step, model)
        q = terms.q[0]
        z = q.mean if q.exact_mean else terms.z[0][0]
        unbound, variables = model.unbind()

        def distortion() -> Array:
            bound = unbound.bind(variables, mutable=list(variables.keys() - {"params"}))
            px = bound.likelihood.observe(bound.decode((z,), terms.y), terms.x, remember=False)
            return -px.log_prob(terms.x).mean()

        pretraining = step < self.steps
        reconstruction = lax.cond(pretraining, distortion, lambda: jnp.zeros_like(loss))
        return jnp.where(pretraining, reconstruction, loss), metrics
