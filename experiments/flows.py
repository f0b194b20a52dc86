"""Normalizing flows in place of a Gaussian, in q(z|x) (van den Berg et al. 2018) or in p(z).

    vae-jax table experiments/flows.py --quick
    vae-jax figures experiments/flows.py
    vae-jax train experiments/flows.py --posterior sylvester --workdir runs/flows/sylvester
    vae-jax train experiments/flows.py --prior realnvp --workdir runs/flows/realnvp
    vae-jax evaluate runs/flows/sylvester --num-samples 1000

Published: Sylvester flows compare favourably with planar and inverse autoregressive ones on several
data sets (van den Berg et al. 2018, abstract). The paper's numbers could not be read here and are
left out. Their recipe is another: gated convolutions, 64 latents, 4 flows of each kind,
Adamax at 5e-4, up to 2,000 epochs, and MNIST binarized once.

Ours on Caltech 101: negative ELBO of the 2,307 test images, nats, mean ± sd over seeds 0 to 2, at
the best validation bound, and seconds of training of three seeds in one program; 2026-11-30, two
CPU cores that did other work too, by

    vae-jax table experiments/flows.py --data caltech101_silhouettes --patience 50 --epochs 200 \
        --seeds 3 --num-samples 500

    q(z|x)                   -ELBO             training
    Gaussian                 142.15 ± 0.55       107 s
    planar                   142.51 ± 0.56       118 s
    Householder              143.00 ± 0.45       124 s
    orthogonal Sylvester     136.66 ± 0.33       954 s
    Householder Sylvester    136.14 ± 0.56     1,400 s
    triangular Sylvester     136.16 ± 0.84       635 s
    IAF                      136.94 ± 1.07       204 s

On Frey Faces, by the same with `--data frey_faces --epochs 300`, -ELBO of the 200 test images:
planar 1770.5 ± 1.1, Gaussian 1778.3 ± 1.1, Householder 1779.0 ± 3.7, the three Sylvester flows
1783.8 ± 2.5 to 1784.7 ± 2.4, IAF 1785.2 ± 3.2, a miss (124 to 1,251 s of training). On MNIST:

    q(z|x)        p(z)       ours      training
    Gaussian      N(0, I)    105.34    16 s
    Sylvester     N(0, I)    101.92    88 s
    Gaussian      RealNVP    100.08    21 s
    Gaussian      MAF        100.61    17 s

The second table: negative ELBO in nats on the 10,000 validation images of dynamically binarized
MNIST after five epochs, by the second command; 2026-11-30, two CPU cores, seed 0. Fixed
binarization, the paper's: not yet run.
"""

from itertools import product
from pathlib import Path
from typing import Literal

import optax

from vae_jax import (
    ELBO,
    VAE,
    Bernoulli,
    DiagonalGaussian,
    DiscretizedLogistic,
    Experiment,
    GatedMLP,
    HouseholderFlow,
    HouseholderSylvesterFlow,
    InverseAutoregressiveFlow,
    MaskedAutoregressiveFlow,
    PlanarFlow,
    RealNVP,
    StandardNormal,
    SylvesterFlow,
    TriangularSylvesterFlow,
    generate,
    load,
    plots,
    train_file,
)

LATENTS = 32
DATA = "caltech101_silhouettes", "frey_faces", "binarized_mnist"
POSTERIORS = {
    "gaussian": DiagonalGaussian(LATENTS),
    "planar": PlanarFlow(LATENTS, num_flows=8),
    "householder": HouseholderFlow(LATENTS, num_flows=8),
    "sylvester": SylvesterFlow(LATENTS, num_flows=4, num_ortho=16),
    "householder_sylvester": HouseholderSylvesterFlow(LATENTS, num_flows=4),
    "triangular_sylvester": TriangularSylvesterFlow(LATENTS, num_flows=4),
    "iaf": InverseAutoregressiveFlow(LATENTS),
}
PRIORS = {
    "standard": StandardNormal(LATENTS),
    "realnvp": RealNVP(LATENTS),
    "maf": MaskedAutoregressiveFlow(LATENTS),
}


def experiment(
    *,
    posterior: Literal[
        "gaussian",
        "planar",
        "householder",
        "sylvester",
        "householder_sylvester",
        "triangular_sylvester",
        "iaf",
    ] = "gaussian",
    prior: Literal["standard", "realnvp", "maf"] = "standard",
    data: str = "mnist",
    epochs: int = 20,
    patience: int | None = None,
) -> Experiment:
    """Gated fully connected networks, with a flow on one side or on both.

    Args:
        posterior: q(z|x).
        prior: p(z).
        data: the data set, by name or path; grey digits are binarized at every presentation, while
            Frey Faces stay grey.
        epochs: the number of passes over the training images; the weight of the KL rises from 0 to
            1 over the first tenth.
        patience: the number of epochs without a better validation bound after which training ends.
    """
    loaded = load(data)
    batch_size = 100
    steps_per_epoch = len(loaded.train) // batch_size
    num_steps = epochs * len(loaded.train) // batch_size
    return Experiment(
        data=loaded,
        model=VAE(
            encoder=GatedMLP((300, 300)),
            posterior=POSTERIORS[posterior],
            prior=PRIORS[prior],
            decoder=GatedMLP((300, 300)),
            likelihood=Bernoulli() if loaded.support == "binary" else DiscretizedLogistic(),
            image_shape=loaded.image_shape,
        ),
        objective=ELBO(beta=optax.linear_schedule(0.0, 1.0, max(1, num_steps // 10))),
        optimizer=optax.chain(
            optax.clip_by_global_norm(100.0),
            optax.adam(optax.cosine_decay_schedule(1e-3, num_steps)),
        ),
        batch_size=batch_size,
        num_steps=num_steps,
        patience=patience,
        log_every=100 if patience is None else steps_per_epoch,
        validate_every=None if patience is None else steps_per_epoch,
        checkpoint_every=500 if patience is None else 10 * steps_per_epoch,
    )


def table(*, quick: bool = False) -> list[dict[str, object]]:
    """Three data sets and every posterior; the quick form has few digits and two flows."""
    if quick:
        few = {"data": "mnist_5k", "epochs": 60}
        names = "gaussian", "iaf", "triangular_sylvester"
        return [{**few, "posterior": name} for name in names]
    return [{"data": data, "posterior": name} for data, name in product(DATA, POSTERIORS)]


def figures(*, workdir: Path = Path("runs/flows"), epochs: int = 5) -> list[Path]:
    """Validation bounds and samples of four models, training missing runs.

    Args:
        workdir: the folder of the figures and of a run for each model.
        epochs: the number of passes over the training images.
    """
    models = {
        "gaussian": ("Gaussian q and p", {}),
        "sylvester": ("Sylvester q", {"posterior": "sylvester"}),
        "realnvp": ("RealNVP p", {"prior": "realnvp"}),
        "maf": ("autoregressive p", {"prior": "maf"}),
    }
    runs = {
        title: train_file(__file__, workdir / name, {"epochs": epochs, **arguments})
        for name, (title, arguments) in models.items()
    }
    bounds = {f"valid, {name}": run.metric("valid_neg_elbo") for name, run in runs.items()}
    samples = {name: generate.sample(run, 100) for name, run in runs.items()}
    return [
        plots.save(
            plots.learning_curves(bounds, ylabel="negative ELBO [nats per image]"),
            workdir / "bounds",
        ),
        plots.save(plots.sample_panels(samples), workdir / "samples"),
    ]
