"""Few pictures: a recipe of augmentation, early stopping and free bits against plain training.

    vae-jax figures experiments/small_data.py
    vae-jax train experiments/small_data.py --num-images 200 --workdir runs/small_data/mine

The first command trains both on the first 200 and the first 1,000 training images of Fashion-MNIST
and writes the NLL of all test images, mean ± sd over seeds. Plain training minimizes the negative
ELBO to the end. The recipe turns, stretches and moves the images a little, makes them brighter or
darker, averages the parameters over the last thousand steps or so, gives each latent a rate of
`free_bits` that costs nothing (Kingma et al. 2016, appendix C.8), and takes the checkpoint that
does best on half as many validation images. The table also has plain training stopped like that, to
tell what the rest is worth. The amounts were chosen on validation images. No published number;
ours, with command, hardware and seeds, stand in docs/results.md.
"""

from itertools import product
from pathlib import Path
from typing import Literal

import optax

from vae_jax import (
    ELBO,
    MLP,
    VAE,
    Bernoulli,
    BrightnessJitter,
    Data,
    DiagonalGaussian,
    Experiment,
    FreeBits,
    RandomAffine,
    StandardNormal,
    evaluate,
    load,
    load_run,
    plots,
    train_file,
)
from vae_jax.checkpoint import Which
from vae_jax.standard_figures import curves

LATENTS = 20
SIZES = (200, 1000)
CHECKPOINTS: dict[bool, tuple[Which, ...]] = {False: ("latest", "best"), True: ("best",)}


def experiment(
    *,
    num_images: int = 200,
    recipe: bool = True,
    dataset: Literal["fashion_mnist", "mnist_5k"] = "fashion_mnist",
    degrees: float = 3.0,
    stretch: float = 0.08,
    shift: float = 0.7,
    brightness: float = 0.3,
    free_bits: float = 0.1,
    num_steps: int = 20_000,
) -> Experiment:
    """MLPs, diagonal Gaussian, Bernoulli, dynamic binarization.

    Args:
        num_images: the first so many training images; half as many validation images.
        recipe: augment the images, average the parameters, and leave some of the rate free.
        dataset: fashion_mnist, or mnist_5k, whose ink is always black: its brightness stays.
        degrees: by which the recipe turns an image at most.
        stretch: the part of its height, and of its width, by which it grows or shrinks at most.
        shift: the most pixels by which it moves.
        brightness: the largest part by which it gets brighter or darker.
        free_bits: nats of each latent's rate that the recipe leaves free.
        num_steps: optimizer steps of 100 images.
    """
    whole = load(dataset)
    data = Data.from_arrays(
        f"{dataset}_{num_images}",
        whole.train.images[:num_images],
        whole.valid.images[: num_images // 2],
        whole.test.images,
        protocol=whole.protocol.name,
        split_rule=f"the first of the training and of the validation images of {dataset}",
    )
    affine = RandomAffine(degrees, stretch, shift)
    jitter = [BrightnessJitter(brightness)] if dataset == "fashion_mnist" else []
    return Experiment(
        data=data,
        model=VAE(
            encoder=MLP((400,)),
            posterior=DiagonalGaussian(LATENTS),
            prior=StandardNormal(LATENTS),
            decoder=MLP((400,)),
            likelihood=Bernoulli(),
            image_shape=data.image_shape,
        ),
        objective=FreeBits(free_bits) if recipe else ELBO(),
        augment=(affine, *jitter) if recipe else (),
        optimizer=optax.adam(1e-3),
        batch_size=100,
        num_steps=num_steps,
        ema_decay=0.999 if recipe else None,
        checkpoint_every=200,
    )


def figures(
    *,
    workdir: Path = Path("runs/small_data"),
    dataset: Literal["fashion_mnist", "mnist_5k"] = "fashion_mnist",
    num_steps: int = 20_000,
    seeds: int = 3,
    num_samples: int = 500,
) -> list[Path]:
    """Validation bounds of both, and the table of test NLLs, training what is missing.

    Args:
        workdir: holds a run for each, the figure and the table.
        dataset: fashion_mnist or mnist_5k.
        num_steps: optimizer steps of 100 images.
        seeds: replicas of each.
        num_samples: K of the importance-weighted bound.
    """
    bounds, rows = {}, []
    for num_images, recipe in product(SIZES, (False, True)):
        name = f"{'recipe' if recipe else 'plain'}_{num_images}"
        arguments = {
            "num_images": num_images,
            "recipe": recipe,
            "dataset": dataset,
            "num_steps": num_steps,
        }
        run = train_file(__file__, workdir / name, arguments, num_seeds=seeds)
        bounds[f"valid, {name}"] = curves(run, {"": "valid_neg_elbo"})[""]
        for checkpoint in CHECKPOINTS[recipe]:
            found = evaluate(load_run(workdir / name, checkpoint), num_samples=num_samples)
            nll = found.mean["nll"]
            spread = f" ± {nll.std(ddof=1):.2f}" if seeds > 1 else ""
            rows.append(f"| {name} | {found.checkpoint} | {nll.mean():.2f}{spread} |")
    table = "\n".join(("| run | checkpoint | test NLL, nats |", "|---|---|---|", *rows))
    written = workdir / "comparison.md"
    written.write_text(
        f"{table}\n\nAll test images of {dataset}, K = {num_samples}; mean ± sd of {seeds} seeds.\n"
    )
    figure = plots.learning_curves(bounds, ylabel="negative ELBO [nats per image]")
    return [plots.save(figure, workdir / "bounds.png"), written]
