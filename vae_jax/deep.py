"""Deep hierarchies with a deterministic state that runs top-down through all resolutions."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key
from typing_extensions import override

from vae_jax import random
from vae_jax.distributions import Distribution, Normal, exact_kl
from vae_jax.errors import VaeJaxError
from vae_jax.interfaces import Layers, Model, Posterior, Prior
from vae_jax.likelihoods import MixtureOfLogistics
from vae_jax.networks.top_down import BottomUp, Choose, Layer, TopDown
from vae_jax.posteriors import DiagonalGaussian
from vae_jax.vae import Terms, weigh_paths, with_batch, with_parameters_held

Own = TypeVar("Own")
Temperature = float | Sequence[float] | Float[Array, "L"]
"""The factor of the prior's scales: one, or one for each layer, the bottom layer first."""


class TopLayer(Prior):
    """p(z_L) of a `DeepVAE`, computed by its topmost block from the learned start."""

    factors = True

    @override
    def __call__(self, model: Model, y: Int[Array, "B"] | None = None) -> Distribution:
        if not isinstance(model, DeepVAE):
            raise VaeJaxError(
                f"TopLayer is the prior of a DeepVAE, made by its decoder, and this is a "
                f"{type(model).__name__}: take another prior, such as StandardNormal."
            )
        return model.top(y)


class DeepVAE(Model, kw_only=True):
    """p(x, z) = p(z_L) p(z_{L-1} | z_L) ... p(z_1 | z_2, ..., z_L) p(x | z_1, ..., z_L).

    A deterministic state h, whose start is learned, runs top-down through all resolutions. At each
    of L blocks z_l is drawn from q(z_l | h, a) or p(z_l | h), Gaussians of independent components,
    where a are the bottom-up activations, and z_l updates h; x is drawn from the last h. Thus
    every z_l depends on all layers above, and `decode` takes all layers.

    `Terms.kl` has for each layer the exact KL given the latents above, averaged over their K
    samples.

    Attributes:
        encoder: the bottom-up network.
        decoder: the top-down blocks.
        prior: p(z_L), a part of the decoder.
        likelihood: p(x | z), on the last state h.
        critic: the module that the objective plays against, if it needs one.
        labels: the embedding of classes y, on which all densities then depend: appended to x in the
            encoder, and added to h at each resolution of the decoder.
        image_shape: (H, W, C); by default that of an experiment's data.

    References:
        Child (2021), "Very deep VAEs generalize autoregressive models and can outperform them on
            images".

    Example:
        Latents of 16 channels, two layers at each of 7x7, 14x14 and 28x28 pixels:

        >>> model = DeepVAE(
        ...     encoder=BottomUp(blocks=(2, 2, 2), width=32),
        ...     decoder=TopDown(blocks=(2, 2, 2), width=32, latents=16),
        ...     likelihood=Bernoulli(),
        ... )
    """

    encoder: BottomUp
    decoder: TopDown
    prior: Prior = TopLayer()

    def setup(self):
        """Refuse an encoder and a decoder of different depth.

        Raises:
            VaeJaxError: their numbers of levels differ, or the decoder has no block.
        """
        super().setup()
        up, down = len(self.encoder.blocks), len(self.decoder.blocks)
        if up != down:
            raise VaeJaxError(
                f"The encoder has {up} levels and the decoder {down}: give both `blocks` the same "
                "length, with 0 for a level without blocks."
            )
        if not sum(self.decoder.blocks):
            raise VaeJaxError("The decoder has no block: give it at least one layer of latents.")

    @classmethod
    def vdvae_cifar10(cls, width: int = 384) -> "DeepVAE":
        """The VDVAE for CIFAR-10 (Child 2021): 43 layers, 39M parameters.

        Args:
            width: the number of features at each level; the paper's by default.
        """
        return cls._vdvae((11, 6, 6, 3, 0, 3), (22, 11, 6, 3, 0, 1), width)

    @classmethod
    def vdvae_imagenet32(cls, width: int = 512) -> "DeepVAE":
        """The VDVAE for ImageNet at 32x32 (Child 2021): 78 layers, 119M parameters.

        Args:
            width: the number of features at each level; the paper's by default.
        """
        return cls._vdvae((15, 9, 8, 6, 0, 6), (41, 20, 10, 5, 0, 2), width)

    @classmethod
    def vdvae_imagenet64(cls, width: int = 512) -> "DeepVAE":
        """The VDVAE for ImageNet at 64x64 (Child 2021): 75 layers, 125M parameters.

        Args:
            width: the number of features at each level; the paper's by default.
        """
        return cls._vdvae((11, 20, 9, 8, 7, 0, 5), (13, 32, 16, 8, 4, 0, 2), width)

    @classmethod
    def _vdvae(cls, up: Sequence[int], down: Sequence[int], width: int) -> "DeepVAE":
        return cls(
            encoder=BottomUp(up, width),
            decoder=TopDown(down, width, latents=16),
            likelihood=MixtureOfLogistics(),
        )

    @property
    @override
    def decoded_layers(self) -> int:
        return len(self.posteriors)

    @property
    def posteriors(self) -> Sequence[Posterior]:
        """The declarations of q(z_l | h, a) of each layer, the bottom layer first."""
        shapes = reversed(self.decoder.shapes(self.image_shape))
        return tuple(DiagonalGaussian(shape, parent=None) for shape in shapes)

    @override
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        keys: Key[Array, "B"],
        num_samples: int = 1,
        y: Int[Array, "_"] | None = None,
    ) -> Terms:
        batch = num_samples, len(x)
        activations = [jnp.tile(a, (num_samples, 1, 1, 1)) for a in self._activations(x, y)]
        of_samples = random.indexed(
            random.purpose(keys, "posterior"), jnp.arange(num_samples)[:, None]
        ).reshape(-1)

        def sampled(_: Distribution, q: Distribution | None, layer: Array) -> Array:
            return _inferred(q).sample(random.indexed(of_samples, layer))

        h, found = self._down(len(of_samples), activations, sampled, self._numbers(), y)

        def apart(leaf: Array) -> Array:
            return leaf.reshape(leaf.shape[0], *batch, *leaf.shape[2:])

        levels = [jax.tree.map(apart, level) for level in found]
        log_pz = [level.p.log_prob(level.z) for level in levels]
        log_qz = [_inferred(level.q).log_prob(level.z) for level in levels]
        kls = [exact_kl(_inferred(level.q), level.p) for level in levels]
        means = [kl.mean(1) for kl in kls if kl is not None]
        layers = [layer for level in levels for layer in _unstacked(level)][::-1]
        px = self.likelihood.observe(self._likelihood(h, batch), x)
        return Terms(
            x=x,
            y=y,
            keys=keys,
            z=tuple(layer.z for layer in layers),
            path=None,
            log_px=px.log_prob(x),
            log_pz=jnp.concatenate(log_pz)[::-1],
            log_qz=jnp.concatenate(log_qz)[::-1],
            kl=jnp.concatenate(means)[::-1] if len(means) == len(kls) else None,
            q=tuple(_inferred(layer.q) for layer in layers),
            p=tuple(layer.p for layer in layers),
            reconstruction=px.mean,
        )

    @override
    def held(self, terms: Terms) -> Terms:
        zs, path = weigh_paths(terms.z)
        px, log_pz = self._generate(zs, terms.y)
        px = self.likelihood.observe(px, terms.x, remember=False)
        log_qz = with_parameters_held(DeepVAE._log_posteriors, self, terms.x, zs, terms.y)
        return dataclasses.replace(
            terms, z=zs, path=path, log_px=px.log_prob(terms.x), log_pz=log_pz, log_qz=log_qz
        )

    def _log_posteriors(
        self, x: Float[Array, "B H W C"], zs: Layers, y: Int[Array, "_"] | None
    ) -> Float[Array, "L K B"]:
        """ln q(z_l | x, z_{l+1}, ...) of every layer."""
        activations = [jnp.tile(a, (len(zs[0]), 1, 1, 1)) for a in self._activations(x, y)]
        _, levels = self._at(zs, activations, y)
        log_qz = [_inferred(level.q).log_prob(level.z) for level in levels]
        return jnp.concatenate(log_qz)[::-1].reshape(-1, *zs[0].shape[:2])

    @override
    def encode(self, x: Float[Array, "B H W C"], y: Int[Array, "_"] | None = None) -> Distribution:
        """q(z_1 | x, y, z_2, ..., z_L), batch `[B]`, with the layers above at their means."""
        return self.infer(x, y)[0]

    @override
    def infer(
        self, x: Float[Array, "B H W C"], y: Int[Array, "_"] | None = None
    ) -> tuple[Distribution, ...]:
        return tuple(_inferred(layer.q) for layer in self._at_means(x, y))

    @override
    def decode(self, zs: Layers, y: Int[Array, "B"] | None = None) -> Distribution:
        px, _ = self._generate(zs, y)
        return px

    @override
    def log_prior(self, zs: Layers, y: Int[Array, "B"] | None = None) -> Float[Array, "..."]:
        _, log_pz = self._generate(zs, y)
        return log_pz.sum(0)

    @override
    def log_densities(
        self, x: Float[Array, "B H W C"], zs: Layers, y: Int[Array, "_"] | None = None
    ) -> tuple[Float[Array, "... B"], Float[Array, "... B"]]:
        px, log_pz = self._generate(zs, y)
        return px.log_prob(x), log_pz.sum(0)

    @override
    def sample(
        self,
        keys: Key[Array, "N"],
        y: Int[Array, "B"] | None = None,
        temperature: Temperature = 1.0,
    ) -> tuple[Layers, Distribution]:
        """Latents `[N, h, w, c]` of every layer from the prior, and p(x|z).

        Args:
            keys: typed keys.
            y: the labels of a conditional model; N is a multiple of their number B.
            temperature: the factor of the scales of p(z_l | h).

        Returns:
            The latents, and p(x|z).

        Raises:
            VaeJaxError: a block's p(z_l | h) is not a `Normal`.
        """
        numbers = self._numbers()
        own = random.purpose(keys, "prior")
        factors = jnp.broadcast_to(jnp.asarray(temperature, jnp.float32), (len(numbers),))[::-1]

        def sampled(p: Distribution, q: Distribution | None, layer: tuple[Array, Array]) -> Array:
            number, factor = layer
            return _tempered(p, factor).sample(random.indexed(own, number))

        inputs = list(zip(numbers, factors, strict=True))
        h, found = self._down(len(keys), None, sampled, inputs, y)
        zs = [layer.z for level in found for layer in _unstacked(level)]
        return tuple(zs[::-1]), self._likelihood(h, (len(keys),))

    def decode_top(self, zs: Layers, y: Int[Array, "B"] | None = None) -> Distribution:
        """p(x | z) for the top n layers, those below at the means of their priors.

        Args:
            zs: latents `[..., h, w, c]` of the top n layers, z_L last, as `zs[-n:]` of all.
            y: the labels of a conditional model.
        """
        batch = zs[-1].shape[:-3]
        flat = [z.reshape(-1, *z.shape[-3:]) for z in zs]
        number, shapes = len(flat[0]), self.decoder.shapes(self.image_shape)
        absent = [jnp.zeros((number, *shape)) for shape in shapes[len(zs) :]]
        known = jnp.arange(len(shapes)) < len(zs)

        def mean_unless_known(
            p: Distribution, q: Distribution | None, layer: tuple[Array, Array]
        ) -> Array:
            z, is_known = layer
            return jnp.where(is_known, z, p.mean)

        inputs = list(zip([*flat[::-1], *absent], known, strict=True))
        h, _ = self._down(number, None, mean_unless_known, inputs, y)
        return self._likelihood(h, batch)

    def top(self, y: Int[Array, "B"] | None = None) -> Distribution:
        """p(z_L), batch `[]`; or p(z_L | y), batch `[B]`, given labels y."""

        def mean(p: Distribution, q: Distribution | None, layer: Array) -> Array:
            return p.mean

        number = 1 if y is None else len(y)
        _, found = self._down(number, None, mean, self._numbers(), y)
        p = _unstacked(found[0])[0].p
        return p if y is not None else jax.tree.map(lambda leaf: leaf[0], p)

    def _numbers(self) -> list[Int[Array, ""]]:
        """The numbers of the layers in the order of inference, 0 for the top layer."""
        return list(jnp.arange(sum(self.decoder.blocks)))

    def _activations(
        self, x: Float[Array, "B H W C"], y: Int[Array, "_"] | None
    ) -> tuple[Float[Array, "B ..."], ...]:
        return self.encoder(x if self.labels is None else self.labels.for_encoder(x, y))

    def _down(
        self,
        number: int,
        activations: Sequence[Float[Array, "N ..."]] | None,
        choose: Choose[Own],
        inputs: Sequence[Own],
        y: Int[Array, "_"] | None,
    ) -> tuple[Float[Array, "N ..."], list[Layer]]:
        condition = None
        if self.labels is not None:
            condition = self.labels.for_decoder(jnp.zeros((number, 0)), y)
        return self.decoder(number, self.image_shape, activations, choose, inputs, condition)

    def _likelihood(self, h: Float[Array, "N ..."], batch: tuple[int, ...]) -> Distribution:
        return with_batch(self.likelihood(h, self.image_shape), batch)

    def _at_means(self, x: Float[Array, "B H W C"], y: Int[Array, "_"] | None) -> list[Layer]:
        """The layers, the bottom layer first, at the means of their posteriors."""

        def mean(_: Distribution, q: Distribution | None, layer: Array) -> Array:
            return _inferred(q).mean

        _, found = self._down(len(x), self._activations(x, y), mean, self._numbers(), y)
        return [layer for level in found for layer in _unstacked(level)][::-1]

    def _generate(
        self, zs: Layers, y: Int[Array, "B"] | None
    ) -> tuple[Distribution, Float[Array, "L ..."]]:
        """p(x|z), and ln p(z_l | z_{l+1}, ...) of every layer, for latents `[..., h, w, c]`."""
        h, levels = self._at(zs, None, y)
        log_pz = jnp.concatenate([level.p.log_prob(level.z) for level in levels])[::-1]
        batch = zs[-1].shape[:-3]
        return self._likelihood(h, batch), log_pz.reshape(-1, *batch)

    def _at(
        self,
        zs: Layers,
        activations: Sequence[Float[Array, "N ..."]] | None,
        y: Int[Array, "_"] | None,
    ) -> tuple[Float[Array, "N ..."], list[Layer]]:
        """The last h and the levels, the top one first, at given latents `[..., h, w, c]`."""
        flat = [z.reshape(-1, *z.shape[-3:]) for z in zs][::-1]

        def given(p: Distribution, q: Distribution | None, z: Array) -> Array:
            return z

        h, found = self._down(len(flat[0]), activations, given, flat, y)
        # In bfloat16 the decoder has rounded the latents; the densities are at the given ones.
        ends = itertools.accumulate(len(level.z) for level in found)
        levels = [
            dataclasses.replace(level, z=jnp.stack(flat[end - len(level.z) : end]))
            for level, end in zip(found, ends, strict=True)
        ]
        return h, levels


def _inferred(q: Distribution | None) -> Distribution:
    """q(z_l | h, a), which a block returns if it is given activations."""
    if q is None:
        raise VaeJaxError(
            "A block of the decoder returned no q(z | h, a) for activations a: return one, as "
            "TopDownBlock does."
        )
    return q


def _unstacked(level: Layer) -> list[Layer]:
    """The layers of a level."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], level) for i in range(len(level.z))]


def _tempered(p: Distribution, temperature: Float[Array, ""]) -> Distribution:
    if not isinstance(p, Normal):
        raise VaeJaxError(
            "A temperature is a factor of the scale of p(z | h), and a block of the decoder made "
            f"it a {type(p).__name__}: let it make a Normal, as TopDownBlock does."
        )
    return dataclasses.replace(p, scale=temperature * p.scale)
