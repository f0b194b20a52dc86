"""The distance of a reconstruction from its original, image by image."""

import numpy as np

from vae_jax.errors import VaeJaxError
from vae_jax.metrics.spaces import check_images

WINDOW, WINDOW_SD = 11, 1.5  # pixels
C_1, C_2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(images: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """The peak signal-to-noise ratio, 10 log10(255^2 / MSE), in dB; infinite for equal images.

    Args:
        images: uint8 `[N, H, W, C]`.
        originals: the same shape.

    Returns:
        `[N]`.

    Raises:
        VaeJaxError: the two arrays differ in dtype or shape, or are not images.
    """
    x, y = _pair(images, originals)
    error = ((x - y) ** 2).mean((1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / error)


def ssim(images: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """The structural similarity: the mean over pixels and channels of

    (2 m_x m_y + C_1)(2 s_xy + C_2) / ((m_x^2 + m_y^2 + C_1)(s_x^2 + s_y^2 + C_2)),

    with means, variances and covariance under a Gaussian window of 11x11 pixels inside the image;
    smaller images have a window of the largest odd side that fits.

    Args:
        images: uint8 `[N, H, W, C]`.
        originals: the same shape.

    Returns:
        `[N]`, at most 1, the value of equal images.

    Raises:
        VaeJaxError: the two arrays differ in dtype or shape, or are not images.

    References:
        Wang et al. (2004), "Image quality assessment: from error visibility to structural
            similarity".
    """
    x, y = _pair(images, originals)
    smaller = min(WINDOW, *x.shape[1:3])
    side = smaller - 1 + smaller % 2
    window = np.exp(-0.5 * ((np.arange(side) - side // 2) / WINDOW_SD) ** 2)
    window /= window.sum()

    def local_mean(values: np.ndarray) -> np.ndarray:
        for axis in (1, 2):
            length = values.shape[axis] - side + 1
            shifted = [np.take(values, i + np.arange(length), axis) for i in range(side)]
            values = np.tensordot(window, np.stack(shifted), 1)
        return values

    m_x, m_y = local_mean(x), local_mean(y)
    s_xx, s_yy = local_mean(x**2) - m_x**2, local_mean(y**2) - m_y**2
    s_xy = local_mean(x * y) - m_x * m_y
    luminance = (2 * m_x * m_y + C_1) / (m_x**2 + m_y**2 + C_1)
    structure = (2 * s_xy + C_2) / (s_xx + s_yy + C_2)
    return (luminance * structure).mean((1, 2, 3))


def nearest_pictures(images: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """The index of each image's nearest candidate in squared error, `[N]`; ties go to the first.

    Args:
        images: uint8 `[N, H, W, C]`.
        candidates: uint8 `[M, H, W, C]`.

    Raises:
        VaeJaxError: the two arrays differ in the shape of an image, or are not images.
    """
    images, candidates = check_images(images), check_images(candidates)
    if images.shape[1:] != candidates.shape[1:]:
        raise VaeJaxError(
            f"Images {images.shape[1:]} have no nearest ones among candidates "
            f"{candidates.shape[1:]}: give both the same shape."
        )
    flat = candidates.reshape(len(candidates), -1).astype(np.float64)
    squares = (flat**2).sum(1)  # whole numbers below 2^53, so that nothing is rounded
    x = images.reshape(len(images), -1).astype(np.float64)
    return (squares - 2 * (x @ flat.T)).argmin(1)


def _pair(images: np.ndarray, originals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    images, originals = check_images(images), check_images(originals)
    if images.shape != originals.shape:
        raise VaeJaxError(
            f"Images of shape {images.shape} cannot be compared with originals of shape "
            f"{originals.shape}: give both the same."
        )
    return images.astype(np.float64), originals.astype(np.float64)
