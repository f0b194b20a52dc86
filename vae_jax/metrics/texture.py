"""Texture as features: how strong stripes of each width and direction are, and go together."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax.metrics.spaces import check_images, in_chunks

WAVELENGTHS = (3, 6, 12)  # pixels
DIRECTIONS = 4
BANDWIDTH = 1 / 3  # standard deviation of a band's frequencies, in units of its centre
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)


def texture(images: np.ndarray) -> np.ndarray:
    """Mean magnitudes of 12 Gabor bands of the luminance, and the roots of their covariances.

    A band multiplies the Fourier transform of the image, mirrored at its edges and without its
    mean, by 2 exp(-|f - f_0|^2 / (2 s^2)), s = |f_0| / 3; the magnitude of the result is the local
    amplitude of stripes near the frequency f_0: wavelengths of 3, 6 and 12 pixels in 4 directions.
    Covariances are over places; sign(c) sqrt|c| has the unit of the magnitudes.

    Args:
        images: uint8 `[N, H, W, C]`, C = 1 or 3, of any size.

    Returns:
        `[N, 12 + 78]`.

    Raises:
        VaeJaxError: they are no such images.

    References:
        Manjunath & Ma (1996), Texture features for browsing and retrieval of image data. Tuzel et
        al. (2006), Region covariance.
    """
    return in_chunks(_texture, check_images(images))


def gabor_bank(height: int, width: int) -> np.ndarray:
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


@jax.jit
def _texture(images: Array) -> Array:
    x = images / 255.0
    x = x[..., 0] if x.shape[-1] == 1 else x @ jnp.array(LUMINANCE)
    height, width = x.shape[1:]
    mirrored = jnp.pad(x, ((0, 0), (0, height), (0, width)), mode="symmetric")
    bank = jnp.asarray(gabor_bank(2 * height, 2 * width), jnp.float32)
    spectrum = jnp.fft.fft2(mirrored)

    def magnitude(band: Array) -> Array:
        return jnp.abs(jnp.fft.ifft2(spectrum * band)[:, :height, :width])

    magnitudes = jax.lax.map(magnitude, bank).reshape(len(bank), len(x), -1)
    mean = magnitudes.mean(-1)
    centred = magnitudes - mean[..., None]
    covariance = jnp.einsum("anp,bnp->nab", centred, centred) / centred.shape[-1]
    pairs = covariance[:, *np.triu_indices(len(bank))]
    return jnp.concatenate([mean.T, jnp.sign(pairs) * jnp.sqrt(jnp.abs(pairs))], -1)
