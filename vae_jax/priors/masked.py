"""A prior over codes that draws many at a time, in any order."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jaxtyping import Bool, Float, Int, Key
from typing_extensions import override

from vae_jax import random
from vae_jax.conditional import labels_or_zero
from vae_jax.distributions import BoundedCoded, Shape
from vae_jax.errors import VaeJaxError
from vae_jax.given import Count, Weight
from vae_jax.interfaces import Model
from vae_jax.priors.codes import CodePrior, CodeTokens, codebook_of

Noise = Callable[[Int[Array, ""]], tuple[Float[Array, "N n C"], Float[Array, "N n"]]]
"""A function from a step to the Gumbel noise of its codes and of their order."""


@struct.dataclass
class MaskedCategorical(CodeTokens):
    """One-hot codes `[n, C]`, each given any subset of the others, by a bidirectional transformer.

    Its inputs are the codes, with zeros for hidden ones, and an indicator of the hidden ones.
    """

    prior: "MaskedCodes" = struct.field(pytree_node=False)  # pyright: ignore[reportIncompatibleVariableOverride]

    def logits(
        self, one_hot: Float[Array, "N n C"], hidden: Bool[Array, "N n"], y: Int[Array, "N"] | None
    ) -> Float[Array, "N n C"]:
        """ln p(z_i | the seen codes, y) up to a constant, at every position.

        Args:
            one_hot: the codes; the values of hidden ones do not matter.
            hidden: a mask of the hidden codes.
            y: classes, or None.
        """
        seen = jnp.where(hidden[..., None], 0.0, one_hot)
        inputs = jnp.concatenate([seen, hidden[..., None].astype(seen.dtype)], -1)
        return self.outputs(inputs, y)[0]

    def log_prob(self, value: Float[Array, "*draws n C"]) -> Float[Array, "*draws"]:
        """Refused: there is only a bound, `elbo`.

        Raises:
            VaeJaxError: always.
        """
        raise VaeJaxError(
            "MaskedCodes knows no ln p(z), only a bound on it: take that, `elbo`, or fit "
            "AutoregressiveCodes."
        )

    def elbo(
        self, value: Float[Array, "*batch n C"], keys: Key[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        """n times the mean of ln p(z_i | seen codes) over one random set of hidden codes.

        The number of hidden codes is uniform on 1, ..., n, and all sets of that size are equally
        likely.
        """
        n = self.network.length
        log_p, count = self._of_hidden(value, keys, lambda u: 1 + jnp.floor(n * u))
        return n / count * log_p

    @override
    def fit_objective(
        self, value: Float[Array, "*batch n C"], keys: Key[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        """The sum of ln p(z_i | seen codes) over the hidden codes, their number as in the paper.

        It is n cos(pi u / 2), rounded up, with u uniform on [0, 1].
        """
        n = self.network.length
        log_p, _ = self._of_hidden(value, keys, lambda u: jnp.ceil(n * jnp.cos(jnp.pi / 2 * u)))
        return log_p

    def _of_hidden(
        self,
        value: Float[Array, "*batch n C"],
        keys: Key[Array, "*batch"],
        number: Callable[[Float[Array, "N"]], Float[Array, "N"]],
    ) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
        """The summed log-masses of the hidden codes, and their number."""
        flat, y = self.flat(value)
        key_number, key_order = random.purposes(keys.reshape(-1), "number", "order")
        count = number(random.draw(jax.random.uniform, key_number, (), flat.shape[:1]))
        order = random.draw(jax.random.uniform, key_order, (), flat.shape[:2])
        hidden = _rank(order) < count[:, None]
        log_p = jax.nn.log_softmax(self.logits(flat, hidden, self.told(keys, y)))
        found = jnp.where(hidden, (flat * log_p).sum(-1), 0.0).sum(-1)
        return found.reshape(keys.shape), count.reshape(keys.shape)

    @property
    def mean(self) -> Float[Array, "*batch n C"]:
        """The codes drawn without noise; not the mean."""
        shape = self.shape
        zeros = jnp.zeros(shape).reshape(-1, *shape[-2:])
        found = self._completed(*self._nothing(self.batch_shape), lambda _: (zeros, zeros[..., 0]))
        return found.reshape(shape)

    def sample(self, key: Key[Array, "..."], sample_shape: Shape = ()) -> Float[Array, "..."]:
        """Draws in `num_steps` steps; not reparameterized."""
        leading = sample_shape + self.batch_shape
        noise = self._noise(key, sample_shape, self.shape)
        return self._completed(*self._nothing(leading), noise).reshape(*leading, *self.event_shape)

    def complete(
        self, one_hot: Float[Array, "N n C"], hidden: Bool[Array, "N n"], keys: Key[Array, "N"]
    ) -> Float[Array, "N n C"]:
        """Draw the hidden codes given the seen ones.

        Args:
            one_hot: the codes; the values of hidden ones do not matter.
            hidden: a mask of the codes to draw.
            keys: typed keys, one for each draw.

        Returns:
            The codes, seen and drawn, one-hot.
        """
        return self._completed(one_hot, hidden, self._noise(keys, (), one_hot.shape))

    def _nothing(self, leading: Shape) -> tuple[Float[Array, "N n C"], Bool[Array, "N n"]]:
        """Codes that are all hidden."""
        one_hot = jnp.zeros((*leading, *self.event_shape)).reshape(-1, *self.event_shape)
        return one_hot, jnp.ones(one_hot.shape[:2], bool)

    def _noise(self, key: Key[Array, "..."], sample_shape: Shape, shape: Shape) -> Noise:
        def noise(step: Int[Array, ""]) -> tuple[Float[Array, "N n C"], Float[Array, "N n"]]:
            own = random.indexed(random.purpose(key, "step"), step)
            key_codes, key_order = random.purposes(own, "codes", "order")
            codes = random.draw(jax.random.gumbel, key_codes, sample_shape, shape)
            order = random.draw(jax.random.gumbel, key_order, sample_shape, shape[:-1])
            return codes.reshape(-1, *shape[-2:]), order.reshape(-1, shape[-2])

        return noise

    def _completed(
        self, one_hot: Float[Array, "N n C"], hidden: Bool[Array, "N n"], noise: Noise
    ) -> Float[Array, "N n C"]:
        _, y = self.flat(one_hot)
        classes, copies = self.both(y)
        first = hidden.sum(-1)

        def step(
            state: tuple[Array, Array], index: Int[Array, ""]
        ) -> tuple[tuple[Array, Array], None]:
            one_hot, hidden = state
            of_codes, of_order = noise(index)
            every = jnp.tile(one_hot, (copies, 1, 1)), jnp.tile(hidden, (copies, 1))
            logits = self.guided(jnp.split(self.logits(*every, classes), copies))
            drawn = jnp.where(hidden[..., None], self.chosen(logits, of_codes), one_hot)
            share = (index + 1) / self.prior.num_steps
            confidence = (drawn * jax.nn.log_softmax(logits)).sum(-1)
            confidence += self.prior.choice_temperature * (1 - share) * of_order
            left = jnp.floor(first * jnp.cos(jnp.pi / 2 * share))
            left = jnp.minimum(left, hidden.sum(-1) - 1)  # at least one is kept in each step
            hidden = _rank(jnp.where(hidden, confidence, jnp.inf)) < left[:, None]
            return (drawn, hidden), None

        (one_hot, _), _ = lax.scan(step, (one_hot, hidden), jnp.arange(self.prior.num_steps))
        return one_hot


def _rank(x: Float[Array, "N n"]) -> Int[Array, "N n"]:
    """The rank of each number in ascending order, from 0."""
    return jnp.argsort(jnp.argsort(x))


class MaskedCodes(CodePrior):
    """Masked code modelling with a bidirectional transformer, MaskGIT.

    The transformer learns p(z_i | seen codes). A draw begins with all codes hidden. In each of a
    few steps all hidden codes are drawn at once and the most confident ones are kept, so that
    floor(n cos(pi t / 2T)) are hidden after step t of T. Codes drawn in the same step are
    independent given the seen ones, so draws follow the joint mass only approximately. The paper's
    dropout and label smoothing are not used.

    Fitted to given latents, it maximizes the paper's sum over hidden codes, which is not a bound.
    In the ELBO the sums are weighted by the number of hidden codes so that they bound ln p(z) of
    the model that draws one code after the other in a random order:

        ln p(z) >= E_order sum_t ln p(z_t | those before) = n E_hidden mean_i ln p(z_i | seen).

    The resulting bound on ln p(x) is for that model, not for draws in a few steps by confidence,
    with guidance or at a temperature. p(z) itself is a mean over n! orders, so evaluation also uses
    the bound.

    Attributes:
        shape: the height and width (h, w) of the map of codes.
        width, num_layers, num_heads, num_classes, drop_labels: as in `TokenPrior`.
        guidance, temperature, top_k, top_p: settings of sampling, as in `CodePrior`.
        num_steps: the number T of steps of a draw.
        choice_temperature: the factor of the Gumbel noise added to the confidence, the
            log-probability of a drawn code; the noise falls to 0 by the last step. 4.5 is the value
            in the paper's code.

    References:
        Chang et al. (2022), "MaskGIT: masked generative image transformer".
        Uria et al. (2014), "A deep and tractable density estimator", equation 9, for the bound.
        Ho & Salimans (2022), "Classifier-free diffusion guidance", for guidance.

    Example:
        As a second stage, conditioned on ten classes, for a model with 7 x 7 codes:

        >>> second = fit_prior(run, MaskedCodes((7, 7), num_classes=10), "runs/masked")
    """

    shape: tuple[Count, Count]  # pyright: ignore[reportIncompatibleVariableOverride]
    width: Count = 128
    num_layers: Count = 4
    num_steps: Count = 8
    choice_temperature: Weight = 4.5

    spaces = frozenset({"codes"})
    needs = frozenset({"codebook"})
    bound_alone = True

    @property
    @override
    def exact(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """False: training has only a bound."""
        return False

    @nn.compact
    @override
    def __call__(self, model: Model, y: Int[Array, "B"] | None = None) -> BoundedCoded:
        y = None if self.num_classes is None else labels_or_zero(y, self)
        length, classes = self.codes_of(model)
        network = self.transformer(length, classes + 1, classes, causal=False)
        base = MaskedCategorical(
            network.variables, y, network.clone(parent=None), self.clone(parent=None)
        )
        return BoundedCoded(base, codebook_of(model.posteriors[-1]), self.shape)
