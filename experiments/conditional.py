"""Class-conditional VAEs: p(x|z, y) and q(z|x, y), Kingma et al. (2014), Sohn et al. (2015).

    vae-jax train experiments/conditional.py --data fashion_mnist --workdir runs/conditional/fashion_mnist
    vae-jax evaluate runs/conditional/fashion_mnist --num-samples 1000
    vae-jax sample runs/conditional/fashion_mnist --label Sneaker --num 16 --out sneakers.jpg
    vae-jax restyle runs/conditional/fashion_mnist --from Pullover --to Dress --out dresses.png
    python scripts/tell_apart.py runs/conditional/fashion_mnist
    vae-jax figures experiments/conditional.py --data fashion_mnist

Kingma et al. (2014) and Sohn et al. (2015) have no number that is ours to reproduce: the former
classify with few labels, the latter complete images. What their figures show is that y decides the
class and z the style: samples of each class, and one image's z decoded with every class. The last
command but one says how many samples a classifier of real images takes for what they shall be. Ours,
with command, hardware and seed, stand in docs/gallery.md.
"""  # noqa: E501

from pathlib import Path
from typing import Literal

import optax

from vae_jax import (
    ELBO,
    MLP,
    VAE,
    Bernoulli,
    ClassGaussian,
    DiagonalGaussian,
    Experiment,
    LabelEmbedding,
    StandardNormal,
    generate,
    load,
    plots,
    train_file,
)
from vae_jax.standard_figures import samples

Dataset = Literal["mnist", "fashion_mnist", "mnist_5k"]


def experiment(
    *,
    data: Dataset = "mnist",
    prior: Literal["normal", "class"] = "normal",
    latent_dim: int = 20,
    hidden: int = 400,
    label_width: int = 10,
    learning_rate: float = 1e-3,
    epochs: int = 30,
) -> Experiment:
    """An MLP with a Bernoulli decoder, given the class.

    Args:
        data: binarized anew at every presentation.
        prior: p(z) = N(0, I), or p(z|y), a Gaussian learned for each class.
        latent_dim: dimensions of z.
        hidden: units of each of the two hidden layers of encoder and decoder.
        label_width: components of each class's vectors.
        learning_rate: Adam's, which decays to zero along a cosine.
        epochs: passes over the training images, in batches of 100.
    """
    loaded = load(data)
    assert loaded.class_names is not None
    classes = len(loaded.class_names)
    num_steps = epochs * len(loaded.train) // 100
    return Experiment(
        data=loaded,
        model=VAE(
            encoder=MLP((hidden, hidden)),
            posterior=DiagonalGaussian(latent_dim),
            prior=StandardNormal(latent_dim)
            if prior == "normal"
            else ClassGaussian(classes, latent_dim),
            decoder=MLP((hidden, hidden)),
            likelihood=Bernoulli(),
            labels=LabelEmbedding(classes, label_width),
            image_shape=loaded.image_shape,
        ),
        objective=ELBO(),
        optimizer=optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps)),
        batch_size=100,
        num_steps=num_steps,
    )


def figures(
    *, workdir: Path = Path("runs/conditional"), data: Dataset = "mnist", epochs: int = 30
) -> list[Path]:
    """Samples of each class, and validation images decoded with each, training what is missing.

    Args:
        workdir: holds the run, in a folder of the data's name, and the figures.
        data: as of `experiment`.
        epochs: as of `experiment`.
    """
    run = train_file(__file__, workdir / data, {"data": data, "epochs": epochs})
    names = generate.class_names(run)
    restyled = generate.restyle(run, "valid", 3, range(len(names)), 10)
    figure = plots.restyled(*restyled, names[3], names)
    return [
        plots.save(samples(run), workdir / f"{data}_samples.png"),
        plots.save(figure, workdir / f"{data}_restyled.png"),
    ]
