"""Restyling held-out emoji of three families, compared with the true pictures.

    vae-jax train experiments/emoji_styles.py --workdir runs/emoji_styles/run
    vae-jax figures experiments/emoji_styles.py --quick

Published: no number to compare with. The pictures are OpenMoji's, Twemoji's and Fluent's, split by
subject (`emoji_styles`, which needs its file in --manual-dir). A picture of a test subject is
encoded with its own style, decoded with another, and compared with that family's true picture of
the subject. The baseline is the training picture of the target style that is nearest to the true
one in squared error; no retrieval from the training split can come nearer.

Ours, in the quick form, by the second command: far below the baseline. The columns are the mean
SSIM with the true picture, for the restyled picture and for the nearest training picture, and the
gain of the first over the second with its 95 % interval over the 160 test subjects:

    from       to           SSIM  nearest   gain
    openmoji   twemoji     0.313    0.482  -0.169 [-0.198, -0.140]
    openmoji   fluent      0.309    0.546  -0.237 [-0.271, -0.203]
    twemoji    openmoji    0.245    0.594  -0.349 [-0.383, -0.316]
    twemoji    fluent      0.305    0.546  -0.241 [-0.274, -0.209]
    fluent     openmoji    0.280    0.594  -0.315 [-0.349, -0.281]
    fluent     twemoji     0.338    0.482  -0.144 [-0.171, -0.117]

After nine epochs the model has learned silhouettes, and that OpenMoji leaves a margin and Twemoji
does not; colours and lines are still blurred. 2026-11-29, two CPU cores shared with other work, 20
minutes, seed 0. The full form: not yet run.
"""

from pathlib import Path

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
    plots,
    train_file,
)
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
    data: str = "emoji_styles",
) -> Experiment:
    """A conditional VAE of strided convolutions, given the style, so that z encodes the subject.

    Args:
        latent_dim: the dimensions of z.
        width: the features of the finest map, at half resolution; each coarser one has twice as
            many, up to four times.
        scale: the scale of the Laplace distribution of a pixel.
        beta: the weight of the KL.
        num_steps: the number of optimizer steps.
        batch_size: the images in a step.
        learning_rate: Adam's initial learning rate, which decays to zero along a cosine.
        quick: a short form with half the latents and features, and 1,500 steps of 24 images.
        data: the data set, by name or path; its classes are the styles.
    """
    if quick:
        latent_dim, width, num_steps, batch_size, learning_rate = 64, 16, 1500, 24, 2e-3
    loaded = load(data, "grey")
    widths = [width, 2 * width, 4 * width, 4 * width]
    return Experiment(
        data=loaded,
        model=VAE(
            encoder=ConvEncoder(widths, dense=256),
            posterior=DiagonalGaussian(latent_dim),
            prior=StandardNormal(latent_dim),
            decoder=ConvDecoder([*widths[::-1], width], dense=256),
            likelihood=Laplace(scale=scale),
            labels=LabelEmbedding(len(loaded.class_names or ()), 8),
        ),
        objective=ELBO(beta=beta),
        augment=(HorizontalFlip(), RandomShift(3)),
        optimizer=optax.chain(
            optax.clip_by_global_norm(3000.0),
            optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps)),
        ),
        num_steps=num_steps,
        batch_size=batch_size,
        ema_decay=0.999,
        log_every=100,
        checkpoint_every=500,
    )


def restyled(run: Run, source: str) -> dict[str, np.ndarray]:
    """The test subjects from one style to each style, bytes `[160, 64, 64, 3]`."""
    _, drawn, _, names = generate.restyle(run, source, num=160)
    pictures = np.rint(255 * drawn).astype(np.uint8)
    return {name: pictures[:, target] for target, name in enumerate(names)}


def compare(run: Run) -> None:
    """Print SSIM, PSNR and Fréchet distances to the true pictures, for each pair of styles.

    SSIM and PSNR are also printed for the nearest training picture, with the mean gain in SSIM over
    it and its 95 % interval over subjects. PSNR is the median, because a few pictures are nearly
    the same as a training picture.
    """
    data, names = run.experiment.data, run.class_names
    learned = metrics.learned_features(run.folder, data.train)
    space = metrics.standardized(learned, data.train.images[::3])
    print("from       to          SSIM nearest    gain [95 %]              PSNR nearest   Fréchet")
    for source in names:
        for to, drawn in restyled(run, source).items():
            if to == source:
                continue
            style = names.index(to)
            true, known = (split.images[style::3] for split in (data.test, data.train))
            nearest = known[metrics.nearest_pictures(true, known)]
            ssim, its_ssim = metrics.ssim(drawn, true), metrics.ssim(nearest, true)
            psnr, its_psnr = metrics.psnr(drawn, true), metrics.psnr(nearest, true)
            gain = metrics.Estimate.mean(ssim - its_ssim)
            frechet = metrics.frechet_distance(space(drawn), space(true))
            print(
                f"{source:10} {to:10} {ssim.mean():5.3f}   {its_ssim.mean():5.3f}  "
                f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]  "
                f"{np.median(psnr):6.2f}  {np.median(its_psnr):6.2f} {frechet.value:9.1f}"
            )


def figures(*, workdir: Path = Path("runs/emoji_styles"), quick: bool = False) -> list[Path]:
    """Ten test subjects in three styles, true and restyled from OpenMoji, training missing runs.

    Args:
        workdir: the folder of the figure and of the run.
        quick: the short form of the run.
    """
    name = "quick" if quick else "run"
    run = train_file(__file__, workdir / name, {"quick": quick})
    compare(run)
    subjects, drawn = np.arange(10) * 16, restyled(run, run.class_names[0])
    rows, titles = [], []
    for style, title in enumerate(run.class_names):
        true = run.experiment.data.test.images[style::3]
        rows += [true[subjects] / 255, drawn[title][subjects] / 255]
        titles += [f"{title}, true", f"{title}, drawn"]
    figure = plots.named_rows(np.stack(rows), titles)
    return [plots.save(figure, workdir / f"{name}_styles")]
