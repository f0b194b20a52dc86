"""Checks of images x, latents z and labels y against their model."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, Protocol, TypeVar, cast

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from vae_jax.errors import VaeJaxError
from vae_jax.given.fields import shown

P = ParamSpec("P")
Result = TypeVar("Result")
Shape = tuple[int, ...]

AnyArray = np.ndarray | Array


def array(value: object, what: str, axes: str) -> AnyArray:
    """An array with the axes of a text such as "[N, H, W, C]".

    Args:
        value: the array to check.
        what: its name, for messages.
        axes: the text.

    Raises:
        VaeJaxError: the value is no array, or one with another number of axes.
    """
    if not isinstance(value, np.ndarray | Array):
        raise VaeJaxError(f"{what} is {shown(value)}: give an array {axes}.")
    if value.ndim != axes.partition("]")[0].count(",") + 1:
        raise VaeJaxError(f"{what} has the shape {value.shape}: give {axes}.")
    return _whole(value, what)


def _whole(value: AnyArray, what: str) -> AnyArray:
    """Refuse a masked array, since its mask would be ignored."""
    if isinstance(value, np.ma.MaskedArray):
        raise VaeJaxError(
            f"{what} is a masked array, whose mask would be lost: give its values, .filled(...)."
        )
    return value


def _known(value: AnyArray) -> np.ndarray:
    """The values that can be checked: none while a program is traced."""
    return np.zeros(0) if isinstance(value, Tracer) else np.asarray(value)


def pictures(
    value: object, what: str = "An array of pictures", axes: str = "[N, H, W, C]"
) -> np.ndarray:
    """Pictures of one channel or three, on the host.

    Args:
        value: the pictures to check.
        what: their name, for messages.
        axes: a text such as "[N, H, W, C]".

    Raises:
        VaeJaxError: the value is no array, has other axes or channels, or holds no picture.
    """
    found = np.asarray(array(value, what, axes))
    if found.shape[-1] not in (1, 3):
        way = "C = 1 or 3"
        if found.shape[-3] in (1, 3):
            way = f"channels last, np.moveaxis(images, {found.ndim - 3}, -1)"
        raise VaeJaxError(f"{what} has the shape {found.shape}: give {axes}, {way}.")
    if not found.size:
        raise VaeJaxError(f"{what} has the shape {found.shape}: give {axes}, at least one.")
    return found


def laid_out(x: object, image_shape: Shape) -> AnyArray:
    """Images x `[N, H, W, C]` of the shape `image_shape`, (H, W, C), and of any type.

    Raises:
        VaeJaxError: the images have another layout or shape.
    """
    height, width, channels = image_shape
    axes = f"[N, {height}, {width}, {channels}]"
    if not isinstance(x, np.ndarray | Array):
        raise VaeJaxError(f"x is {shown(x)}: give an array {axes}.")
    if x.ndim != 4 or x.shape[1:] != image_shape:
        way = f"give {axes}"
        if x.shape[1:] == (channels, height, width):
            way = "its channels come first: give them last, x.transpose(0, 2, 3, 1)"
        elif x.shape == image_shape:
            way = "it is one image: give x[None]"
        elif x.size and x.ndim < 4 and math.prod(x.shape[1:]) == math.prod(image_shape):
            way = f"give x.reshape(-1, {height}, {width}, {channels})"
        raise VaeJaxError(f"x has the shape {x.shape}, the model's images {image_shape}: {way}.")
    return _whole(x, "x")


def images(x: object, image_shape: Shape, pixels_in_unit: bool) -> AnyArray:
    """Images `[N, H, W, C]` in the form of a protocol.

    Args:
        x: the images to check.
        image_shape: (H, W, C) of the model.
        pixels_in_unit: whether pixels are in [0, 1].

    Raises:
        VaeJaxError: the images have another layout, shape, type or range.
    """
    x = laid_out(x, image_shape)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise VaeJaxError(
            f"x is {x.dtype}, and a model takes floats in the form of its data's protocol: make "
            "them by data.protocol.apply(x, keys), or give bytes to run.encode."
        )
    if (pixels := _known(x)).size:
        low, high = float(pixels.min()), float(pixels.max())
        if not max(abs(low), abs(high)) <= LARGEST:
            raise VaeJaxError("x has pixels that are not finite: mend them, or leave them out.")
        if pixels_in_unit and not -TOLERANCE <= low <= high <= 1 + TOLERANCE:
            raise VaeJaxError(
                f"x goes from {low:.4g} to {high:.4g}, and pixels from 0 to 1: divide pixels of "
                "0 to 255 by 255."
            )
    return x


def mask(value: object, count: int, size: Shape) -> np.ndarray:
    """The mask of missing pixels, booleans `[N, H, W]`, on the host.

    Args:
        value: the mask to check, `[H, W]` or `[N, H, W]`.
        count: the number of images N.
        size: (H, W).

    Raises:
        VaeJaxError: the mask has another type or shape.
    """
    height, width = size
    way = f"[{height}, {width}], one for all images, or [{count}, {height}, {width}]"
    if not isinstance(value, np.ndarray | Array):
        raise VaeJaxError(
            f"mask is {shown(value)}: give booleans {way}, True where pixels are missing."
        )
    if value.dtype != bool:
        raise VaeJaxError(
            f"mask is {value.dtype}: give booleans {way}, True where pixels are missing, such as "
            "mask > 0."
        )
    if value.ndim in (3, 4) and value.shape[-3:-1] == (height, width) and value.shape[-1] <= 4:
        raise VaeJaxError(
            f"mask has the shape {value.shape}, and pixels are missing with all their channels: "
            f"give {way}, such as mask.any(-1)."
        )
    if value.shape not in ((height, width), (count, height, width)):
        raise VaeJaxError(f"mask has the shape {value.shape}: give {way}.")
    return np.broadcast_to(np.asarray(value), (count, height, width))


LARGEST = float(np.finfo(np.float32).max)
"""The largest float32, in which models compute."""

TOLERANCE = 1e-3
"""The largest rounding error of a pixel outside of [0, 1], or of the length of a unit vector."""


def labels(y: object, num_classes: int | None) -> AnyArray | None:
    """Classes `[N]`, or `[1]`, one for all.

    Args:
        y: the labels to check.
        num_classes: the number of classes of the model; None if it takes no labels.

    Raises:
        VaeJaxError: the labels have another shape, type or range, or the model is not conditional.
    """
    if y is None:
        return None
    if num_classes is None:
        raise VaeJaxError(
            "The model takes no labels: leave y out, or train it with labels=LabelEmbedding(...)."
        )
    if isinstance(y, np.ndarray | Array) and y.ndim == 2 and y.shape[1] == num_classes:
        raise VaeJaxError(f"y has the shape {y.shape}: give integers [N], y.argmax(-1).")
    y = array(y, "y", "[N]")
    if not jnp.issubdtype(y.dtype, jnp.integer) or not len(y):
        raise VaeJaxError(f"y is {y.dtype} {y.shape}: give integers [N], or [1], one for all.")
    if (found := _known(y)).size and not 0 <= found.min() <= found.max() < num_classes:
        raise VaeJaxError(
            f"y goes from {found.min()} to {found.max()}, and there are {num_classes} classes: "
            f"give 0 to {num_classes - 1}."
        )
    return y


def latents(z: object, shape: Shape, space: str, what: str = "z") -> AnyArray:
    """Latents `[..., *event]` of one layer.

    Args:
        z: the latents to check.
        shape: the event shape.
        space: their space, as in `vae_jax.interfaces.Space`.
        what: their name, for messages.

    Raises:
        VaeJaxError: the latents have another shape or type, or are not in the space.
    """
    axes = f"[..., {', '.join(map(str, shape))}]"
    if not isinstance(z, np.ndarray | Array):
        raise VaeJaxError(f"{what} is {shown(z)}: give an array {axes}.")
    if z.shape[max(z.ndim - len(shape), 0) :] != shape:
        raise VaeJaxError(f"{what} has the shape {z.shape}: give {axes}, as the model's latents.")
    if not jnp.issubdtype(z.dtype, jnp.floating):
        raise VaeJaxError(f"{what} is {z.dtype}: give floats {axes}.")
    if (found := _known(z)).size:
        if not (abs(found) <= LARGEST).all():
            raise VaeJaxError(f"{what} has values that are not finite: leave them out.")
        length = np.linalg.norm(found, axis=-1) if space == "sphere" else found.max(-1)
        if space in ("sphere", "onehot") and (abs(length - 1) > TOLERANCE).any():
            wanted = "unit" if space == "sphere" else "one-hot"
            raise VaeJaxError(f"{what} holds other than {wanted} vectors: give {axes} of those.")
    return z


def layers(
    zs: object, shapes: Sequence[Shape], spaces: Sequence[str], fewest: int | None = None
) -> None:
    """Check latents of every layer.

    Args:
        zs: the latents to check.
        shapes: the event shapes of the layers.
        spaces: the spaces of the layers.
        fewest: the number of layers that suffice instead of all.

    Raises:
        VaeJaxError: there is another number of layers, or one does not fit.
    """
    if not isinstance(zs, tuple | list) or len(zs) not in (len(shapes), fewest):
        raise VaeJaxError(
            f"zs is {shown(zs)}: give a tuple with the latents of each layer, of which there "
            f"{'is one, (z,)' if len(shapes) == 1 else f'are {len(shapes)}'}."
        )
    for layer, (z, shape, space) in enumerate(zip(zs, shapes, spaces, strict=False), start=1):
        latents(z, shape, space, "z" if len(shapes) == 1 else f"z_{layer}")


def top_layers(zs: object, shapes: Sequence[Shape], spaces: Sequence[str]) -> None:
    """Check latents of the top n layers, for any n.

    Args: zs, shapes, spaces: as in `layers`.
    """
    given = len(zs) if isinstance(zs, tuple | list) else 0
    n = given if 0 < given <= len(shapes) else len(shapes)
    layers(zs, shapes[-n:], spaces[-n:])


class Door(Protocol):
    """An object that checks arguments before its methods get them, such as a model."""

    def admit(
        self,
        variables: object,
        method: str,
        args: Sequence[object],
        kwargs: Mapping[str, object],
    ) -> None:
        """Refuse arguments that do not fit.

        Args: as in `Model.admit`.
        """


def admitted(function: Callable[P, Result]) -> Callable[P, Result]:
    """Linen's `apply` or `init_with_output`, called once the model has admitted the arguments."""

    @nn.nowrap
    @functools.wraps(function)
    def admitting(*args: P.args, **kwargs: P.kwargs) -> Result:
        model, variables, *rest = args
        method = kwargs.get("method") or "__call__"
        if not isinstance(method, str):  # a function, perhaps one of the model's
            name = getattr(method, "__name__", "")
            own = getattr(type(model), name, None)
            method = name if getattr(method, "__func__", method) is own else ""
        cast(Door, model).admit(variables, method, rest, kwargs)
        return function(*args, **kwargs)

    return admitting
