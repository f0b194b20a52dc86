"""A user's own parts: what they declare, what they are, and what objectives make of both."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import tiny
from flax import struct
from jax import Array

import vae_jax as vj
from hostile import Row
from vae_jax import given, random
from vae_jax.deep import TopLayer
from vae_jax.distributions import Distribution, Elementwise, LaplaceDistribution
from vae_jax.interfaces import Objective, Part, Posterior, Prior
from vae_jax.networks.critics import critic_of
from vae_jax.networks.top_down import Layer

ELBO = vj.ELBO()


@struct.dataclass
class Whole(Distribution):
    """N(loc, I), of which only whole draws have a density."""

    loc: Array
    event_ndims: int = struct.field(pytree_node=False, default=1, kw_only=True)

    @property
    def mean(self) -> Array:
        """The location."""
        return self.loc

    def sample(self, key: Any, sample_shape: Any = ()) -> Array:
        """Reparameterized."""
        return self.loc + random.draw(jax.random.normal, key, sample_shape, self.loc.shape)

    def log_prob(self, value: Any) -> Array:
        """Without its constant."""
        axes = tuple(range(-self.event_ndims, 0))
        return -0.5 * ((value - self.loc) ** 2).sum(axes)


@struct.dataclass
class Logistic(Elementwise):
    """The logistic distribution of scale one, without `std`."""

    def sample(self, key: Any, sample_shape: Any = ()) -> Array:
        """Reparameterized."""
        return self.loc + random.draw(jax.random.logistic, key, sample_shape, self.loc.shape)

    def component_log_prob(self, value: Any) -> Array:
        """By JAX."""
        return jax.scipy.stats.logistic.logpdf(value - self.loc)


class Own(Posterior):
    """q(z|x) of one location for each component, declared to be of independent ones.

    Attributes:
        made: what it is.
        shape: the shape of z.
    """

    made: Callable[..., Distribution] = Whole
    shape: Any = (2,)

    traits = frozenset({"density", "path", "factors", "amortized", "noise"})

    @nn.compact
    def __call__(self, features: Any) -> Any:
        """The distribution."""
        loc = self.affine(features, self.shape, "loc", nn.initializers.lecun_normal())
        return self.made(loc, event_ndims=len(self.shape))


class Codes(Own):
    """Declared to be of codes."""

    space = "codes"
    traits = frozenset({"codebook"})


class OwnPrior(Prior):
    """p(z) at zero, declared to be of independent components.

    Attributes:
        made: what it is.
    """

    made: Callable[..., Distribution] = Whole

    factors = True

    def __call__(self, model: Any, y: Any = None) -> Any:
        """The distribution."""
        return self.made(jnp.zeros(2), event_ndims=1)


class PriorOfCodes(OwnPrior):
    """The same for maps of 2x2 codes of one component."""

    spaces = frozenset({"codes"})

    def __call__(self, model: Any, y: Any = None) -> Any:
        """The distribution."""
        return self.made(jnp.zeros((2, 2, 1)), event_ndims=3)


class Block(nn.Module):
    """A block of a deep hierarchy with LaplaceDistribution distributions, or without q(z | h, a).

    Attributes:
        features, latents, last: as those of `TopDownBlock`.
        infers: whether there is a q(z | h, a).
    """

    features: int
    latents: int
    last: float = 1.0
    infers: bool = True

    @nn.compact
    def __call__(self, h: Any, a: Any, draw: Any) -> Any:
        """The state as it is, and the layer."""
        loc = nn.Dense(self.latents)(h)
        p = LaplaceDistribution(loc, jnp.ones_like(loc), event_ndims=3)
        q = p if self.infers and a is not None else None
        return h, Layer(draw(p, q), p, q)


class Deeper(vj.LatentCritic):
    """A user's own critic."""


class Embedding(vj.Labels):
    """A user's own labels, which networks are not given."""


class Unasked(Objective):
    """It plays against a critic that it does not require."""

    def __call__(self, terms: Any, step: Any, model: Any) -> Any:
        """The critic's logits."""
        return critic_of(model)(terms.z[0][0]).mean(), terms.bound_metrics()


class Fields(Part):
    """Bounds on what is no number."""

    count: Annotated[int | None, given.Bounds(least=1)] = None
    names: Annotated[dict[str, int] | None, given.Bounds(least=1)] = None


def namesake(kind: type, base: type = nn.Module) -> Any:
    """An instance of another class with the name of this one."""
    return type(kind.__name__, (base,), {"__call__": lambda self, x: x})()


def experiment(objective: Objective = ELBO, **parts: Any) -> vj.Experiment:
    """The plain experiment with other parts, and networks of their size."""
    model = tiny.model().clone(**parts)
    return dataclasses.replace(tiny.experiment(), model=model, objective=objective)


def of_codes(prior: Prior) -> vj.Experiment:
    """Codes by declaration."""
    return experiment(
        vj.VQVAE(),
        encoder=vj.ConvEncoder((3,), None),
        posterior=Codes(shape=(2, 2, 1)),
        prior=prior,
    )


def layered(objective: Objective) -> vj.Experiment:
    """A hierarchy whose conditional has no independent components."""
    model = vj.HierarchicalVAE(
        encoders=(vj.MLP((4,)), vj.MLP((4,))),
        posteriors=(vj.DiagonalGaussian(2), vj.DiagonalGaussian(2)),
        decoders=(vj.MLP((4,)), vj.MLP((4,))),
        conditionals=(vj.FullCovarianceGaussian(2),),
        prior=vj.StandardNormal(2),
        likelihood=vj.Bernoulli(),
    )
    return dataclasses.replace(tiny.experiment(), model=model, objective=objective)


def deep(infers: bool) -> None:
    """Draws from a deep hierarchy of the user's own blocks."""
    model = vj.DeepVAE(
        encoder=vj.BottomUp((1,), 4),
        decoder=vj.TopDown((1,), 4, 1, block=partial(Block, infers=infers)),
        likelihood=vj.Bernoulli(),
    )
    model = dataclasses.replace(tiny.experiment(), model=model).model
    key = random.key(0)
    jax.eval_shape(lambda key: model.init_with_output(key, key[None], method="sample"), key)


NO_COMPONENTS = 'a Whole, which is no Elementwise, and the part that makes it declares "factors"'
NO_CODEBOOK = "A prior over codes needs `codebook` of Codes, which has none: give it a property"
NO_STD = 'the distribution {} has no `std`: give it one, or take covariance_of="mean"'
OWN = partial(experiment, posterior=Own())
LOGISTIC = partial(experiment, posterior=Own(Logistic))

SITUATIONS: dict[str, tuple[Callable[[], object], str]] = {
    # Components
    "own components that are none, free bits": (lambda: OWN(vj.FreeBits(0.1)), NO_COMPONENTS),
    "own components that are none, maps": (lambda: OWN(vj.FreeBits(0.1, "map")), NO_COMPONENTS),
    "own components that are none, layers": (lambda: OWN(vj.FreeBits(0.1, "layer")), ""),
    "own components that are none, perceptual": (
        lambda: OWN(vj.Perceptual(vj.FreeBits(0.1), 1.0, lambda x: [x])),
        NO_COMPONENTS,
    ),
    "own components that are none, pretrained": (
        lambda: OWN(vj.Pretrain(2, vj.FreeBits(0.1))),
        NO_COMPONENTS,
    ),
    "own components that are none, total correlation": (
        lambda: OWN(vj.BetaTC(2.0, 90)),
        NO_COMPONENTS,
    ),
    "own components that are none, covariance of z": (
        lambda: OWN(vj.DIPVAE(1.0, 1.0)),
        NO_STD.format("Whole"),
    ),
    "own components that are none, covariance of means": (
        lambda: OWN(vj.DIPVAE(1.0, 1.0, "mean")),
        "",
    ),
    "own components, free bits": (lambda: LOGISTIC(vj.FreeBits(0.1)), ""),
    "own components, total correlation": (lambda: LOGISTIC(vj.BetaTC(2.0, 90)), ""),
    "own components without deviations, covariance of z": (
        lambda: LOGISTIC(vj.DIPVAE(1.0, 1.0)),
        NO_STD.format("Logistic"),
    ),
    "own prior's components that are none, free bits": (
        lambda: experiment(vj.FreeBits(0.1), prior=OwnPrior()),
        NO_COMPONENTS,
    ),
    "own prior's components that are none, total correlation": (
        lambda: experiment(vj.BetaTC(2.0, 90), prior=OwnPrior()),
        "",
    ),
    "own prior's components, free bits": (
        lambda: experiment(vj.FreeBits(0.1), prior=OwnPrior(Logistic)),
        "",
    ),
    "a conditional without components, free bits": (
        lambda: layered(vj.FreeBits(0.1)),
        "FreeBits needs conditionals with independent components, which FullCovarianceGaussian",
    ),
    "a conditional without components, free bits of layers": (
        lambda: layered(vj.FreeBits(0.1, "layer")),
        "",
    ),
    # Codes
    "own codes without a codebook, uniform": (
        lambda: of_codes(vj.UniformCodes((2, 2))),
        NO_CODEBOOK,
    ),
    "own codes without a codebook, autoregressive": (
        lambda: of_codes(vj.AutoregressiveCodes((2, 2), 4, 1, 1)),
        NO_CODEBOOK,
    ),
    "own codes without a codebook, masked": (
        lambda: of_codes(vj.MaskedCodes((2, 2), 4, 1, 1)),
        NO_CODEBOOK,
    ),
    "own codes that are none": (
        lambda: of_codes(PriorOfCodes()),
        'a Whole, which is no Quantized, and the part that makes it declares "codebook"',
    ),
    # Critics, labels, paths
    "own critic": (
        lambda: experiment(vj.FactorVAE(1.0), critic=Deeper(vj.MLP((4,)))),
        "",
    ),
    "a critic by its name alone": (
        lambda: experiment(vj.FactorVAE(1.0), critic=namesake(vj.LatentCritic)),
        "FactorVAE plays against a critic: give the model critic=LatentCritic(...)",
    ),
    "a critic that is not required and not there": (
        lambda: jax.eval_shape(
            lambda: nn.init(
                lambda model: Unasked()(
                    model(jnp.zeros((1, 4, 4, 1)), random.key(0)[None]), jnp.int32(0), model
                ),
                tiny.model(),
            )(random.key(0))
        ),
        "the model has none: give the model critic=",
    ),
    "own labels": (lambda: experiment(labels=Embedding(8), prior=vj.ClassGaussian(8, 2)), ""),
    "labels by their name alone": (
        lambda: experiment(labels=namesake(vj.Labels)),
        "labels of VAE is a Labels: give a LabelEmbedding, or None",
    ),
    "terms without a path": (
        lambda: vj.Terms(*[None] * 12).weigh(jnp.ones((1, 1))),  # pyright: ignore
        "take those of model.held(terms)",
    ),
    # Deep hierarchies
    "the top layer of a deep hierarchy in a VAE": (
        lambda: experiment(prior=TopLayer()),
        "TopLayer is the prior of a DeepVAE, made by its decoder, and this is a VAE",
    ),
    "own block without q": (lambda: deep(False), "A block of the decoder returned no q(z | h, a)"),
    "own block without a Normal": (
        lambda: deep(True),
        "made it a LaplaceDistribution: let it make a Normal",
    ),
    # Bounds
    "own fields without a number": (Fields, ""),
    "own field below its bound": (lambda: Fields(0), "count of Fields is 0"),
    "own field with an entry": (lambda: Fields(1, {"a": 1}), ""),
    "own field without an entry": (lambda: Fields(1, {}), "names of Fields is"),
}


def _of_act(act: Any, _: Path) -> None:
    act()


ROWS = [Row(name, partial(_of_act, act), said) for name, (act, said) in SITUATIONS.items()]
