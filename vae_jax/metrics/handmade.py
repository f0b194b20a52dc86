"""Handmade features: an image's colours, and the strengths of its stripes of each kind."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax import parallel
from vae_jax.metrics.spaces import check_images, in_chunks

LEVELS = 4  # of each of the three channels
GREY_LEVELS = 16
WAVELENGTHS = (3, 6, 12)  # pixels
DIRECTIONS = 4
BANDWIDTH = 1 / 3  # standard deviation of a band's frequencies, in units of its centre
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)


def colour(images: np.ndarray) -> np.ndarray:
    """The joint histogram of the channels, and the mean, standard deviation and skewness of each.

    A pixel counts towards the two levels next to its value in each channel, the nearer one more
    (trilinear weights), so that shifts smaller than a level show. The skewness is the cube root of
    the third central moment, which has the unit of the other two.

    Args:
        images: uint8 `[N, H, W, C]`, C = 1 or 3, of any size.

    Returns:
        `[N, 4^3 + 9]`; for grey images `[N, 16 + 3]`.

    Raises:
        VaeJaxError: `images` are of another dtype or shape.

    References:
        Swain & Ballard (1991), "Color indexing".
        Stricker & Orengo (1995), "Similarity of color images".
    """
    return in_chunks(_colour, check_images(images))


@parallel.jit
def _colour(images: Array) -> Array:
    x = images.reshape(len(images), -1, images.shape[-1]) / 255.0
    levels = GREY_LEVELS if x.shape[-1] == 1 else LEVELS
    position = x[..., None] * (levels - 1)
    weights = jnp.maximum(1 - jnp.abs(position - jnp.arange(levels)), 0)  # [N, pixels, C, levels]
    first, *others = jnp.unstack(weights, axis=2)
    joint = first
    for other in others:
        joint = (joint[..., None] * other[:, :, None]).reshape(*joint.shape[:2], -1)
    mean = x.mean(1)
    centred = x - mean[:, None]
    deviation = jnp.sqrt((centred**2).mean(1))
    skewness = jnp.cbrt((centred**3).mean(1))
    return jnp.concatenate([joint.mean(1), mean, deviation, skewness], -1)


def texture(images: np.ndarray) -> np.ndarray:
    """The mean magnitudes of 12 Gabor bands of the luminance, and the roots of their covariances.

    A band multiplies the Fourier transform of the image, mirrored at its edges and without its
    mean, by 2 exp(-|f - f_0|^2 / (2 s^2)), s = |f_0| / 3; the magnitude of the result is the local
    amplitude of stripes near the frequency f_0: wavelengths of 3, 6 and 12 pixels in 4 directions.
    Covariances are over pixels; sign(c) sqrt|c| has the unit of the magnitudes.

    Args:
        images: uint8 `[N, H, W, C]`, C = 1 or 3, of any size.

    Returns:
        `[N, 12 + 78]`.

    Raises:
        VaeJaxError: `images` are of another dtype or shape.

    References:
        Manjunath & Ma (1996), "Texture features for browsing and retrieval of image data".
        Tuzel et al. (2006), "Region covariance: a fast descriptor for detection and
            classification".
    """
    return in_chunks(_texture, check_images(images))


@parallel.jit
def _texture(images: Array) -> Array:
    x = images / 255.0
    x = x[..., 0] if x.shape[-1] == 1 else x @ jnp.array(LUMINANCE)
    height, width = x.shape[1:]
    mirrored = jnp.pad(x, ((0, 0), (0, height), (0, width)), mode="symmetric")
    bank = jnp.asarray(_gabor_bank(2 * height, 2 * width), jnp.float32)
    spectrum = jnp.fft.fft2(mirrored)

    def magnitude(band: Array) -> Array:
        return jnp.abs(jnp.fft.ifft2(spectrum * band)[:, :height, :width])

    magnitudes = jax.lax.map(magnitude, bank).reshape(len(bank), len(x), -1)
    mean = magnitudes.mean(-1)
    centred = magnitudes - mean[..., None]
    covariance = jnp.einsum("anp,bnp->nab", centred, centred) / centred.shape[-1]
    pairs = covariance[:, *np.triu_indices(len(bank))]
    return jnp.concatenate([mean.T, jnp.sign(pairs) * jnp.sqrt(jnp.abs(pairs))], -1)


def _gabor_bank(height: int, width: int) -> np.ndarray:
    """The bands over the frequencies of `numpy.fft.fft2`, `[12, height, width]`."""
    f = np.stack(np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij"))
    bands = []
    for wavelength in WAVELENGTHS:
        for direction in range(DIRECTIONS):
            angle = math.pi * direction / DIRECTIONS
            centre = np.array([math.sin(angle), math.cos(angle)]) / wavelength
            squares = ((f - centre[:, None, None]) ** 2).sum(0)
            bands.append(2 * np.exp(-0.5 * squares * (wavelength / BANDWIDTH) ** 2))
    bank = np.stack(bands)
    bank[:, 0, 0] = 0
    return bank
