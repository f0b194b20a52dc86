"""Combinations without a meaning: the first way out is the one that the user more likely wants."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tiny

import vae_jax as vj
from hostile import Row
from vae_jax.data.datasets import find_protocol

TINY = tiny.experiment()


def combined(protocol: str = "dynamic", objective: vj.ELBO | Any = None, **parts: Any) -> object:
    """The plain experiment with other parts."""
    data = dataclasses.replace(TINY.data, protocol=find_protocol(protocol))
    model = TINY.model.clone(**parts)
    return dataclasses.replace(TINY, data=data, model=model, objective=objective or vj.ELBO())


def in_colour(likelihood: Any, protocol: str) -> object:
    """An experiment on colour pictures."""
    data = vj.Data.from_arrays("photos", np.zeros((9, 4, 4, 3), np.uint8), protocol=protocol)
    model = TINY.model.clone(likelihood=likelihood, image_shape=())
    return dataclasses.replace(TINY, data=data, model=model)


LADDER = {
    "encoders": (vj.MLP((4,)), vj.MLP((4,))),
    "posteriors": (vj.DiagonalGaussian(3), vj.DiagonalGaussian(2)),
    "decoders": (vj.MLP((4,)), vj.MLP((4,))),
    "conditionals": (vj.DiagonalGaussian(3),),
    "prior": vj.StandardNormal(2),
    "likelihood": vj.Bernoulli(),
}
CODES = {"posterior": vj.VectorQuantized(4, 2), "prior": vj.UniformCodes((1, 1))}
SPHERE = {"posterior": vj.VonMisesFisher(3), "prior": vj.HypersphericalUniform(3)}
ONE_HOT = {"posterior": vj.Categorical(2, 3, 0.5), "prior": vj.UniformCategorical(2, 3)}
POINT = {"posterior": vj.Deterministic(2)}
CRITIC = vj.LatentCritic(vj.MLP((4,)))


def layered(objective: Any) -> object:
    """A ladder with this objective."""
    model = vj.LadderVAE(**LADDER)
    return dataclasses.replace(TINY, model=model, objective=objective)


# Each with the first way out in the sentence, and what precedes it.
SITUATIONS: dict[str, tuple[Any, str]] = {
    # Likelihood and data
    **{
        f"{type(likelihood).__name__} of binary images": (
            partial(combined, likelihood=likelihood),
            "(protocol dynamic of bars): take the protocol dequantize or grey; or of likelihoods, "
            "these do: Bernoulli.",
        )
        for likelihood in (
            vj.Laplace(),
            vj.Gaussian(),
            vj.OptimalGaussian(),
            vj.HeteroscedasticGaussian(),
            vj.ContinuousBernoulli(),
        )
    },
    "Beta of binary images": (
        partial(combined, likelihood=vj.Beta()),
        "take the protocol dequantize; or of likelihoods, these do: Bernoulli.",
    ),
    **{
        f"{type(likelihood).__name__} of binary images": (
            partial(combined, likelihood=likelihood),
            "take the protocol grey; or of likelihoods, these do: Bernoulli.",
        )
        for likelihood in (
            vj.DiscretizedLogistic(),
            vj.MixtureOfLogistics(2),
            vj.CategoricalPixels(),
            vj.AutoregressivePixels(vj.CategoricalPixels(), 8, 1, 1),
        )
    },
    "Bernoulli of grey images": (
        partial(combined, "grey"),
        "take the protocol dynamic or fixed or threshold; or of likelihoods, these do: Categ",
    ),
    "Bernoulli of dequantized images": (
        partial(combined, "dequantize"),
        "take the protocol dynamic or fixed or threshold; or of likelihoods, these do: Beta, ",
    ),
    "Bernoulli of colours": (
        partial(in_colour, vj.Bernoulli(), "grey"),
        "gives no probability to uint8 images (protocol grey of photos): of likelihoods, these "
        "do: CategoricalPixels",
    ),
    "Beta of grey images": (
        partial(combined, "grey", likelihood=vj.Beta()),
        "take the protocol dequantize; or of likelihoods",
    ),
    "DiscretizedLogistic of dequantized images": (
        partial(combined, "dequantize", likelihood=vj.DiscretizedLogistic()),
        "take the protocol grey; or of likelihoods",
    ),
    "DiscretizedLogistic of five bits": (
        partial(combined, "five_bits", likelihood=vj.DiscretizedLogistic()),
        "of likelihoods, these do: CategoricalPixels(levels=32), DiscretizedLogistic(levels=32), ",
    ),
    "MixtureOfLogistics of 32 levels and images of 256": (
        partial(combined, "grey", likelihood=vj.MixtureOfLogistics(levels=32)),
        "take the protocol five_bits; or of likelihoods, these do: Categ",
    ),
    # Objective and posterior
    **{
        f"{type(objective).__name__} of codes": (
            partial(combined, objective=objective, **CODES),
            "VectorQuantized lacks: take the objective VQVAE(); or of posteriors",
        )
        for objective in (
            vj.ELBO(),
            vj.IWAE(2),
            vj.MIWAE(2, 2),
            vj.FreeBits(1.0, per="layer"),
            vj.Capacity(1.0, 1.0),
            vj.WakeSleep(),
            vj.InfoVAE(0.0, 2.0),
        )
    },
    "WAE of codes": (
        partial(combined, objective=vj.WAE(1.0), **CODES),
        "take the objective VQVAE(); or of posteriors",
    ),
    "ELBO of points": (
        partial(combined, **POINT),
        "Deterministic lacks: take the objective RAE() or WAE(...); or of posteriors, these do: ",
    ),
    "IWAE of points": (
        partial(combined, objective=vj.IWAE(2), **POINT),
        "take the objective RAE() or WAE(...); or of posteriors",
    ),
    "VQVAE of Gaussians": (
        partial(combined, objective=vj.VQVAE()),
        "DiagonalGaussian lacks; of posteriors, these do: FiniteScalarQuantized, LookupFree, ",
    ),
    "RAE of Gaussians": (
        partial(combined, objective=vj.RAE()),
        "which DiagonalGaussian has; of posteriors, these do: Deterministic; or take another "
        "objective, such as ELBO().",
    ),
    "BetaTC of unit vectors": (
        partial(combined, objective=vj.BetaTC(1.0, 90), **SPHERE),
        "VonMisesFisher lacks; of posteriors, these do: DiagonalGaussian; or take another",
    ),
    "DReG gradients of one-hot vectors": (
        partial(combined, objective=vj.IWAE(2, doubly_reparameterized=True), **ONE_HOT),
        "Categorical lacks; of posteriors, these do: DiagonalGaussian, FullCovarianceGaussian",
    ),
    "DIPVAE of one-hot vectors": (
        partial(combined, objective=vj.DIPVAE(1.0, 1.0), **ONE_HOT),
        "Categorical lacks; of posteriors, these do: DiagonalGaussian; or take another",
    ),
    # Objective and model
    **{
        f"{type(objective).__name__} of a ladder": (
            partial(layered, objective),
            "LadderVAE has several: take another objective, such as ELBO(), or a VAE.",
        )
        for objective in (
            vj.BetaTC(1.0, 90),
            vj.WakeSleep(),
            vj.WAE(1.0),
            vj.PIWAE(2, 2),
            vj.RAE(),
            vj.Pretrain(1, vj.ELBO()),
        )
    },
    "FactorVAE without a critic": (
        partial(combined, objective=vj.FactorVAE(1.0)),
        "give the model critic=LatentCritic(...).",
    ),
    "GECO without a multiplier": (
        partial(combined, objective=vj.GECO(1.0)),
        "give the model critic=Multiplier(...).",
    ),
    "VAEGAN with a critic of latents": (
        partial(combined, objective=vj.VAEGAN(1.0), critic=CRITIC),
        "give the model critic=ImageCritic(...) instead of LatentCritic.",
    ),
    "ELBO with a critic of latents": (
        partial(combined, critic=CRITIC),
        "ELBO has no use for a critic: take FactorVAE(...) or AdversarialAutoencoder() for an",
    ),
    "ELBO with a critic of patches": (
        partial(combined, critic=vj.PatchCritic((4,))),
        "ELBO has no use for a critic: take PatchGAN(...) for an objective, or leave PatchCritic",
    ),
    "ELBO with a critic of images": (
        partial(combined, critic=vj.ImageCritic(vj.MLP((4,)), vj.MLP((4,)))),
        "take VAEGAN(...) for an objective, or leave ImageCritic out of the model",
    ),
    "ELBO with a multiplier": (
        partial(combined, critic=vj.Multiplier()),
        "take GECO(...) for an objective, or leave Multiplier out of the model",
    ),
    "WAE with a learned prior": (
        partial(combined, objective=vj.WAE(1.0), prior=vj.GaussianMixture(3, 2)),
        "take a fixed one (StandardNormal, StandardLaplace); `vae-jax sample --prior` fits",
    ),
    "FreeBits with a mixture": (
        partial(combined, objective=vj.FreeBits(1.0), prior=vj.GaussianMixture(3, 2)),
        "which GaussianMixture does not have; these do: StandardLaplace, StandardNormal",
    ),
    "VAEGAN of pixels one after the other": (
        partial(
            combined,
            objective=vj.VAEGAN(1.0),
            critic=vj.ImageCritic(vj.MLP((4,)), vj.MLP((4,))),
            likelihood=vj.AutoregressivePixels(vj.Bernoulli(), 8, 1, 1),
        ),
        "take a likelihood of independent pixels, such as Gaussian",
    ),
    "IWAE of a prior of which training knows a bound": (
        partial(combined, prior=vj.Diffusion(2), objective=vj.IWAE(3)),
        "and training has only a noisy bound on that of Diffusion: take the objective ELBO()",
    ),
    # Prior and posterior
    "unit vectors with the default prior": (
        partial(combined, posterior=vj.VonMisesFisher(3)),
        "the latents of VonMisesFisher; of priors, these do: HypersphericalUniform, VampPrior; or",
    ),
    "one-hot vectors with the default prior": (
        partial(combined, posterior=vj.Categorical(2, 3, 0.5)),
        "the latents of Categorical; of priors, these do: AutoregressiveCodes, UniformCategorical",
    ),
    "codes with the default prior": (
        partial(combined, posterior=vj.VectorQuantized(4, 2), objective=vj.VQVAE()),
        "the latents of VectorQuantized; of priors, these do: AutoregressiveCodes, MaskedCodes",
    ),
    "the default posterior with a prior of unit vectors": (
        partial(combined, prior=vj.HypersphericalUniform(3)),
        "the latents of DiagonalGaussian; of posteriors, these do: VonMisesFisher; or of priors",
    ),
    "the default posterior with a prior of codes": (
        partial(combined, prior=vj.UniformCodes((1, 1))),
        "the latents of DiagonalGaussian; of posteriors, these do: FiniteScalarQuantized",
    ),
    "VampPrior of a flow whose networks all examples share": (
        partial(combined, posterior=vj.InverseAutoregressiveFlow(2), prior=vj.VampPrior(3)),
        "which InverseAutoregressiveFlow does not have; of posteriors, these do: DiagonalG",
    ),
    # Batches in parts
    "LookupFree in parts of a batch": (
        lambda: dataclasses.replace(
            TINY,
            accumulate=2,
            objective=vj.VQVAE(),
            model=TINY.model.clone(posterior=vj.LookupFree(2), prior=vj.UniformCodes((1, 1))),
        ),
        "LookupFree looks at the batch as a whole, so it cannot be taken in parts: leave accum",
    ),
    "InfoVAE in parts of a batch": (
        lambda: dataclasses.replace(TINY, accumulate=2, objective=vj.InfoVAE(0.0, 2.0)),
        "leave accumulate at 1, and take more devices or a smaller batch",
    ),
    "running codebooks in parts of a batch": (
        lambda: dataclasses.replace(
            TINY, accumulate=2, objective=vj.VQVAE(), model=TINY.model.clone(**CODES)
        ),
        "leave accumulate at 1",
    ),
}


def _of_act(act: Any, _: Path) -> None:
    act()


ROWS = [Row(name, partial(_of_act, act), said) for name, (act, said) in SITUATIONS.items()]
