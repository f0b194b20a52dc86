"""The same subjects in three hands: restyling held-out emoji, against the true pictures.

    vae-jax train experiments/emoji_styles.py --workdir runs/emoji_styles/run
    vae-jax figures experiments/emoji_styles.py --quick

Published: nothing to compare with. The pictures are OpenMoji's, Twemoji's and Fluent's, in splits
by subject (`emoji_styles`, which needs its file in --manual-dir). Encoded with its own style and
decoded with another, a picture of a test subject is compared with the picture that the other family
has of it. What it has to beat is the training picture of that style that is nearest to the true one
in squared error: no retrieval from the training split comes nearer.

Ours: not yet run at full length.
"""

import numpy as np
import optax

from vae_jax import (
    ELBO,
    VAE,
    ConvDecoder,
    ConvEncoder,
    DiagonalGaussian,
    Experiment,
    HorizontalFlip,
    LabelEmbedding,
    Laplace,
    RandomShift,
    StandardNormal,
    generate,
    load,
    metrics,
)
from vae_jax.metrics import Estimate
from vae_jax.run import Run


def experiment(
    *,
    latent_dim: int = 128,
    width: int = 32,
    scale: float = 0.1,
    beta: float = 1.0,
    num_steps: int = 20_000,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    quick: bool = False,
) -> Experiment:
    """A conditional VAE of strided convolutions, given the style: z is left to say the subject.

    Args:
        latent_dim: the dimensions of z.
        width: the features of the finest map, at half resolution; each coarser one has twice as
            many, up to four times.
        scale: the scale of the Laplace distribution of a pixel.
        beta: the weight of the KL.
        num_steps: the number of optimizer steps.
        batch_size: the images in a step.
        learning_rate: Adam's, which decays to zero along a cosine.
        quick: 600 steps of half the features, for a look.
    """
    if quick:
        width, num_steps = width // 2, 600
    loaded = load("emoji_styles", "grey")
    widths = [width, 2 * width, 4 * width, 4 * width]
    return Experiment(
        data=loaded,
        model=VAE(
            encoder=ConvEncoder(widths, dense=256),
            posterior=DiagonalGaussian(latent_dim),
            prior=StandardNormal(latent_dim),
            decoder=ConvDecoder([*widths[::-1], width], dense=256),
            likelihood=Laplace(scale=scale),
            labels=LabelEmbedding(3, 8),
        ),
        objective=ELBO(beta=beta),
        augment=(HorizontalFlip(), RandomShift(3)),
        optimizer=optax.chain(
            optax.clip_by_global_norm(3000.0),
            optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps)),
        ),
        num_steps=num_steps,
        batch_size=batch_size,
        ema_decay=0.99 if quick else 0.999,
        log_every=100,
        checkpoint_every=200 if quick else 1000,
    )


def restyled(run: Run) -> dict[tuple[str, str], np.ndarray]:
    """The test subjects in each style as each other, bytes `[160, 64, 64, 3]`, by (from, to)."""
    found = {}
    for source in run.class_names:
        others = [each for each in run.class_names if each != source]
        _, drawn, _, _ = generate.restyle(run, source, others, num=160)
        found |= {
            (source, to): np.rint(255 * drawn[:, i]).astype(np.uint8) for i, to in enumerate(others)
        }
    return found


def scores(run: Run) -> list[dict[str, Estimate]]:
    """SSIM, PSNR and their gains over the nearest training picture, for each pair of styles.

    Intervals are over subjects.
    """
    data, names = run.experiment.data, run.class_names
    rows = []
    for (source, to), drawn in restyled(run).items():
        style = names.index(to)
        true, known = data.test.images[style::3], data.train.images[style::3]
        nearest = known[metrics.nearest(true, known)]
        found = {"from": source, "to": to}
        for name, measure in {"SSIM": metrics.ssim, "PSNR": metrics.psnr}.items():
            ours, theirs = measure(drawn, true), measure(nearest, true)
            found |= {name: Estimate.mean(ours), f"nearest {name}": Estimate.mean(theirs)}
            found[f"{name} gain"] = Estimate.mean(ours - theirs)
        rows.append(found)
    return rows
