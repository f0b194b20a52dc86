"""A convolutional VAE trained on your own pictures, from a folder.

    vae-jax train experiments/folder.py --images my_pictures --workdir runs/my_pictures
    vae-jax sample runs/my_pictures --num 16 --out new.png
    vae-jax train experiments/folder.py --images my_pictures --styles --workdir runs/styles
    vae-jax sample runs/styles --labels sci-fi --num 16 --out sci-fi.jpg
    vae-jax restyle runs/styles --source photo --targets photo sci-fi --out restyled.png

Published: no number, since the pictures are yours.

Ours: with `--styles` and `--size 32`, by the commands of docs/folder.md, a classifier trained on
real images assigns 675 of 1,000 drawn digits to the digit asked for (chance 0.1), and 174 of 200
drawn photographs to the group asked for (chance 0.5). 2026-11-30, two CPU cores, 36 s and 73 s of
training, seed 0. With `--size 128` training runs at 56 images/s on the same hardware.

Pictures are cut to squares of `--size` pixels; in training they are mirrored, shifted by a few
pixels, and made a little brighter, darker or differently coloured at each presentation. With
`--styles` the model is given the sub-folder of each picture, its style or class y, and z has a
Gaussian prior for each class, p(z|y): during the warm-up z learns what distinguishes the styles,
and samples of a style are then drawn accordingly.
"""

from typing import Literal

import optax

from vae_jax import (
    ELBO,
    VAE,
    BrightnessJitter,
    ClassGaussian,
    ColourJitter,
    ConvDecoder,
    ConvEncoder,
    DiagonalGaussian,
    DiscretizedLogistic,
    Experiment,
    HorizontalFlip,
    LabelEmbedding,
    MixtureOfLogistics,
    RandomShift,
    StandardNormal,
    VaeJaxError,
    load_folder,
)


def experiment(
    *,
    images: str,
    size: int = 64,
    grey: bool = False,
    styles: bool = False,
    likelihood: Literal["logistic", "mixture"] = "logistic",
    latent_dim: int = 128,
    width: int = 16,
    flip: bool = True,
    shift: int = 4,
    jitter: float = 0.05,
    learning_rate: float = 1e-3,
    batch_size: int = 16,
    num_steps: int = 5000,
) -> Experiment:
    """Strided convolutions down to 4x4, a diagonal Gaussian, discretized logistics.

    Args:
        images: the folder; sub-folders are classes.
        size: the side of the square images, at least 8.
        grey: use the pictures' grey levels instead of RGB.
        styles: give the model each picture's sub-folder, to draw pictures of a style or change it.
        likelihood: a logistic for each value, or PixelCNN++'s mixture of five, which takes longer.
        latent_dim: the dimensions of z.
        width: the features of the largest map; each halving of the image doubles them, up to 256.
        flip: mirror half of the pictures; turn off where left and right differ, as in letters.
        shift: the largest shift, in pixels.
        jitter: the largest relative change of brightness and of each colour.
        learning_rate: Adam's initial learning rate, which decays to zero along a cosine.
        batch_size: the number of pictures in a step.
        num_steps: the number of optimizer steps.
    """
    if size < 8:
        raise VaeJaxError(f"--size is {size}: it must be 8 or more.")
    data = load_folder(images, size, channels=1 if grey else 3)
    names = data.class_names if styles else ()
    if names is None:
        raise VaeJaxError(f"{images} has no sub-folders: make one of each style, or drop --styles.")
    halvings = (size // 4).bit_length() - 1  # until 4 to 7 pixels are left
    maps = [min(width << level, 256) for level in range(halvings + 1)]
    return Experiment(
        data=data,
        model=VAE(
            encoder=ConvEncoder(maps[1:], dense=256),
            posterior=DiagonalGaussian(latent_dim),
            prior=ClassGaussian(len(names), latent_dim) if names else StandardNormal(latent_dim),
            decoder=ConvDecoder(maps[::-1], dense=256),
            likelihood=DiscretizedLogistic()
            if likelihood == "logistic"
            else MixtureOfLogistics(num_components=5),
            labels=LabelEmbedding(len(names), 8) if names else None,
        ),
        # Without a warm-up the decoder first learns the pixels' colours alone, and z is never used.
        objective=ELBO(beta=optax.linear_schedule(0.0, 1.0, num_steps // 4)),
        # No RandomAffine: it smooths pictures, and a likelihood of 256 levels would learn that.
        augment=(
            *([HorizontalFlip()] if flip else []),
            RandomShift(min(shift, size // 8)),
            BrightnessJitter(jitter),
            *([] if grey else [ColourJitter(jitter)]),
        ),
        optimizer=optax.chain(
            optax.clip_by_global_norm(1000.0),
            optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps)),
        ),
        batch_size=batch_size,
        num_steps=num_steps,
        log_every=50,
        checkpoint_every=500,
    )
