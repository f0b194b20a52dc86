"""A deterministic bottom-up and a stochastic top-down path through the resolutions of an image.

The state h runs down from a learned start. In each block z_l is drawn from q(z_l | h, a) or
p(z_l | h), where a is the activation of the bottom-up path, and its projection is added to h.
Levels count the halvings of the image: level 0 is the image's resolution.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, TypeVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Float
from typing_extensions import override

from vae_jax.distributions import LOG_SCALE_RANGE, Distribution, Normal, Shape, limited
from vae_jax.errors import VaeJaxError
from vae_jax.given import Bounds, Count, Index, Weight, taking
from vae_jax.interfaces import Part
from vae_jax.networks.layers import Conv, ConvTranspose, Dense, average_pool, halvings, upsample
from vae_jax.networks.residual import Bottleneck, Residual, scaled

Own = TypeVar("Own")
Out = TypeVar("Out")
Draw = Callable[[Distribution, Distribution | None], Array]
"""The rule by which a block obtains z_l from p(z_l | h) and q(z_l | h, a), None without a."""
Choose = Callable[[Distribution, Distribution | None, Own], Array]
"""The rule by which a block obtains z_l from p(z_l | h), q(z_l | h, a) and the layer's input."""
Blocks = Annotated[
    Sequence[Index], Bounds(least=1), "the number of blocks of each level, such as (2, 2, 0, 1)"
]
Net = Annotated[
    Residual, taking(64, 64, 1.0, name="net"), "what makes residual networks, such as Bottleneck"
]
PerLevel = Annotated[
    Count | Sequence[Count], "a whole number of at least 1, or a tuple of one for each level"
]
"""One number for each level, or the same for all."""

# Child (2021): finer maps have no learned start, only the state from the level above.
LARGEST_START = 64
SMOOTHING = math.log(2)
LEAST_SMOOTHED = -40.0  # the scale is 2^-40 there


@struct.dataclass
class Layer:
    """A layer of latents, or several layers of equal shape stacked along a leading axis.

    Attributes:
        z: the latents, `[N, h, w, c]`.
        p: p(z | h).
        q: q(z | h, a); None if there is no a.
    """

    z: Float[Array, "*layers N h w c"]
    p: Distribution
    q: Distribution | None


def leading_zeros(blocks: Sequence[int]) -> int:
    """The number of levels before the first with `blocks`; the last level always counts as one."""
    return next((level for level, count in enumerate(blocks[:-1]) if count), len(blocks) - 1)


def check_levels(part: Part, blocks: Sequence[int], *values: PerLevel) -> None:
    """Check that each of the values has a number for each level.

    Args:
        part: the network, for messages.
        blocks: the number of blocks at each level.
        values: the values to check, each one number or a sequence.

    Raises:
        VaeJaxError: a value has more or fewer numbers than levels.
    """
    for each in values:
        if isinstance(each, Sequence) and len(each) != len(blocks):
            raise VaeJaxError(
                f"{type(part).__name__} has {len(blocks)} levels in `blocks` and was given "
                f"{len(each)} numbers, {tuple(each)}: give one for each level, or one for all."
            )


def at(values: PerLevel, level: int) -> int:
    """The value at a level: `values[level]`, or `values` if it is one number."""
    return values if isinstance(values, int) else values[level]


def scale_of(s: Float[Array, "*shape"], smooth: bool) -> Float[Array, "*shape"]:
    """A scale from any real s, one at zero: exp(s) or, if `smooth`, softplus(s ln 2) / ln 2.

    The softplus smooths the gradient, which never exceeds one (Hazami et al. 2022, section 4.2).
    Neither is ever zero or infinite: s is `limited`.
    """
    if smooth:
        return jax.nn.softplus(SMOOTHING * limited(s, LEAST_SMOOTHED, jnp.inf)) / SMOOTHING
    return jnp.exp(limited(s, *LOG_SCALE_RANGE))


class TopDownBlock(Part):
    """p(z | h), q(z | h, a), h + the projection of z, h + R(h).

    Attributes:
        features: the number of features of h.
        latents: the number of channels c of z.
        last: the factor of the initial weights of the layers whose output is added to h,
            1/sqrt(N) for N blocks.
        net: the constructor of the residual networks.
        prior_features: whether the network of p(z | h) also adds features to h, as in the VDVAE.
        relative: whether the network of q(z | h, a) outputs the shift from p's location and the
            ratio to p's scale, as in the NVAE.
        smooth: whether scales are a softplus instead of an exponential (`scale_of`), as in the
            Efficient-VDVAE.
        residuals: the number of networks R after z.

    References:
        Child (2021), "Very deep VAEs generalize autoregressive models and can outperform them on
            images", figure 3.
        Vahdat & Kautz (2020), "NVAE: a deep hierarchical variational autoencoder".
        Hazami et al. (2022), "Efficient-VDVAE: less is more".
    """

    features: Count
    latents: Count
    last: Weight = 1.0
    net: Net = Bottleneck
    prior_features: bool = True
    relative: bool = False
    smooth: bool = False
    residuals: Index = 1

    @nn.compact
    def __call__(
        self, h: Float[Array, "N h w F"], a: Float[Array, "N h w A"] | None, draw: Draw
    ) -> tuple[Float[Array, "N h w F"], Layer]:
        """Pass through the block.

        Args:
            h: the state, `[N, h, w, F]`.
            a: the activation of the bottom-up path, or None.
            draw: the rule by which the block obtains z.

        Returns:
            The state after the block, and its layer; densities are float32 for any type of h.
        """
        c, features = self.latents, self.features
        of_q = None
        if a is not None:
            both = jnp.concatenate([h, a], -1)
            of_q = self.net(2 * c, features, name="posterior")(both).astype(jnp.float32)
        of_p = self.net(
            2 * c + (features if self.prior_features else 0), features, 0.0, name="prior"
        )(h)
        if self.prior_features:
            h = h + of_p[..., 2 * c :]
        of_p = of_p.astype(jnp.float32)
        p = Normal(of_p[..., :c], scale_of(of_p[..., c : 2 * c], self.smooth), event_ndims=3)
        q = None
        if of_q is not None:
            loc, scale = of_q[..., :c], scale_of(of_q[..., c:], self.smooth)
            if self.relative:
                loc, scale = p.loc + loc, p.scale * scale
            q = Normal(loc, scale, event_ndims=3)
        z = draw(p, q)
        project = Dense(features, kernel_init=scaled(self.last), name="project")
        h = h + project(z.astype(h.dtype))
        for number in range(self.residuals):
            h = h + self.net(features, features, self.last, name=f"residual_{number}")(h)
        return h, Layer(z, p, q)


class BottomUp(Part):
    """The bottom-up path: residual networks; each level ends with a mean over 2x2 pixels.

    Attributes:
        blocks: the number of residual networks at each level, the image's first. A level with 0
            only halves the map: by a mean, or by a convolution of stride 2 if no level before it
            has residual networks.
        width: the number of features at each level.
        net: the constructor of the residual networks.

    Raises:
        VaeJaxError: `width` is a tuple with more or fewer levels than `blocks`.

    References:
        Child (2021), "Very deep VAEs generalize autoregressive models and can outperform them on
            images".
    """

    blocks: Blocks
    width: PerLevel
    net: Net = Bottleneck

    @nn.nowrap
    @override
    def check(self) -> None:
        super().check()
        check_levels(self, self.blocks, self.width)

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"]) -> tuple[Float[Array, "N h w F"], ...]:
        """Images x `[N, H, W, C]` to the activations of each level, level 0 first."""
        ends = sum(count > 0 for count in self.blocks[:-1])
        last = (sum(self.blocks) + ends) ** -0.5
        conv = partial(Conv, use_bias=True, kernel_init=scaled(1.0))
        coarser = leading_zeros(self.blocks)
        h, found = x, list[Array]()
        for level, count in enumerate(self.blocks):
            width = at(self.width, level)
            if level < coarser:
                found.append(h)
                h = conv(at(self.width, level + 1), 4, stride=2, name=f"halve_{level}")(h)
                continue
            if level == 0:
                h = conv(width, name="in")(h)
            if width != h.shape[-1]:
                h = Dense(width, kernel_init=scaled(1.0), name=f"width_{level}")(h)
            if count:
                net = self.net(width, width, last, name=f"blocks_{level}")

                def step(net: nn.Module, h: Array, _: None) -> tuple[Array, None]:
                    return h + net(h), None

                h, _ = scanned(step, count)(net, h, None)
            found.append(h)
            if level < len(self.blocks) - 1:
                if count:
                    h = h + self.net(width, width, last, name=f"end_{level}")(h)
                h = average_pool(h)
        return tuple(found)


class TopDown(Part):
    """The top-down path: blocks, of which those of one level have equal shapes and are scanned.

    Compile time thus grows with the number of levels that have blocks, and the parameters of a
    level's n blocks are stacked, `[n, ...]`. Each level starts from a learned map plus the state of
    the level above, upsampled.

    Attributes:
        blocks: the number of blocks, each with a layer of latents, at each level, the image's
            first; 0 skips the level, by a transposed convolution if no finer level has blocks
            either.
        width: the number of features of h at each level.
        latents: the number of channels of z at each level.
        block: the constructor of a block from `features`, `latents` and `last`, such as
            `TopDownBlock` or a partial of it.

    Raises:
        VaeJaxError: `width` or `latents` is a tuple with more or fewer levels than `blocks`.

    References:
        Child (2021), "Very deep VAEs generalize autoregressive models and can outperform them on
            images".
    """

    blocks: Blocks
    width: PerLevel
    latents: PerLevel
    block: Annotated[
        Callable[..., nn.Module],
        taking(features=64, latents=16, last=1.0, name="block"),
        "what makes a block, such as TopDownBlock or a partial of it",
    ] = TopDownBlock

    @nn.nowrap
    @override
    def check(self) -> None:
        super().check()
        check_levels(self, self.blocks, self.width, self.latents)

    def shapes(self, image_shape: Shape) -> list[tuple[int, int, int]]:
        """The shape (h, w, c) of each layer's latents, the top layer first."""
        sizes = halvings(image_shape, len(self.blocks) - 1)
        return [
            (*size, at(self.latents, level))
            for level, size in self._levels(sizes)
            for _ in range(self.blocks[level])
        ]

    def _levels(self, sizes: Sequence[Shape]) -> Iterator[tuple[int, tuple[int, int]]]:
        """The levels, the coarsest first, and their sizes."""
        levels = reversed(range(len(self.blocks)))
        return ((level, (size[0], size[1])) for level, size in zip(levels, sizes, strict=True))

    @nn.compact
    def __call__(
        self,
        number: int,
        image_shape: Shape,
        activations: Sequence[Float[Array, "N h w A"]] | None,
        choose: Choose[Own],
        inputs: Sequence[Own],
        condition: Float[Array, "N V"] | None = None,
    ) -> tuple[Float[Array, "N H W F"], list[Layer]]:
        """The last state h, and the layers of each level that has blocks, the coarsest first.

        Args:
            number: the number of images N.
            image_shape: (H, W, C).
            activations: the activations of `BottomUp`; None to draw from the prior.
            choose: the rule by which a block obtains its latents.
            inputs: the layers' inputs, trees of arrays, the top layer first.
            condition: vectors whose affine map is added to the start of each level.
        """
        last = sum(self.blocks) ** -0.5
        h, layers, first = None, [], 0
        coarser = leading_zeros(self.blocks)
        for level, size in self._levels(halvings(image_shape, len(self.blocks) - 1)):
            if level < coarser:
                assert h is not None
                features, name = at(self.width, level), f"double_{level}"
                h = ConvTranspose(features, kernel_init=scaled(1.0), name=name)(
                    jax.nn.gelu(h), size
                )
                continue
            width, count = at(self.width, level), self.blocks[level]
            h = None if h is None else upsample(h, size)
            if not count:
                continue
            h = self._start(h, number, level, size)
            if condition is not None:
                dense = nn.Dense(width, kernel_init=scaled(1.0), name=f"condition_{level}")
                h = h + dense(condition)[:, None, None]
            block = self.block(
                features=width, latents=at(self.latents, level), last=last, name=f"blocks_{level}"
            )
            a = None if activations is None else activations[level]

            def step(
                block: nn.Module, h: Array, own: Own, a: Array | None = a
            ) -> tuple[Array, Layer]:
                return block(h, a, lambda p, q: choose(p, q, own))

            own = jax.tree.map(lambda *each: jnp.stack(each), *inputs[first : first + count])
            h, layer = scanned(step, count)(block, h, own)
            layers.append(layer)
            first += count
        assert h is not None
        gain = self.param("gain", nn.initializers.ones, h.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, h.shape[-1:])
        return h * gain + bias, layers

    def _start(self, above: Array | None, number: int, level: int, size: tuple[int, int]) -> Array:
        """The state at the start of a level, from that of the level above, if any."""
        shape = (*size, at(self.width, level))
        if above is not None:
            if above.shape[-1] != shape[-1]:
                dense = Dense(shape[-1], kernel_init=scaled(1.0), name=f"width_{level}")
                above = cast(Array, dense(above))
            if max(size) > LARGEST_START:
                return above
        start = cast(Array, self.param(f"start_{level}", nn.initializers.zeros, shape))
        return jnp.broadcast_to(start, (number, *shape)) if above is None else above + start


def scanned(
    step: Callable[..., tuple[Array, Out]], length: int
) -> Callable[..., tuple[Array, Out]]:
    """A `step` of a module and a state, repeated `length` times, each with separate parameters."""
    return nn.scan(step, {"params": 0}, split_rngs={"params": True}, length=length)
