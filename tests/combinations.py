"""Every public posterior, prior, likelihood and objective, and what fits what, written by hand.

Apart from the declarations of the parts, so that either can be wrong: a new part has to be added.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import tiny

import vae_jax as vj
from vae_jax.compatibility import LIKELIHOODS as LIKELIHOOD_CLASSES

D, N, C = 2, 2, 3  # real and unit vectors [D], one-hot and probability vectors [N, C]
GRID = (2, 2)  # of codes
SMALL: dict[str, Any] = {"width": 4, "num_layers": 1, "num_heads": 1}


def mlp(width: int = 6) -> vj.MLP:
    return vj.MLP((width,))


# Posterior: how to make it, its space, and what it is: d density, p path, f factors, a amortized,
# n noise, c codebook.
POSTERIORS: dict[str, tuple[Callable[[], Any], str, str]] = {
    "DiagonalGaussian": (lambda: vj.DiagonalGaussian(D), "real", "dpfan"),
    "FullCovarianceGaussian": (lambda: vj.FullCovarianceGaussian(D), "real", "dpan"),
    "PlanarFlow": (lambda: vj.PlanarFlow(D, num_flows=1), "real", "dpan"),
    "HouseholderFlow": (lambda: vj.HouseholderFlow(D, num_flows=1), "real", "dpan"),
    "SylvesterFlow": (lambda: vj.SylvesterFlow(D, num_flows=1, num_ortho=2), "real", "dpan"),
    "HouseholderSylvesterFlow": (lambda: vj.HouseholderSylvesterFlow(D, 1, 1), "real", "dpan"),
    "TriangularSylvesterFlow": (lambda: vj.TriangularSylvesterFlow(D, 2), "real", "dpan"),
    "InverseAutoregressiveFlow": (lambda: vj.InverseAutoregressiveFlow(D, 1, (4,)), "real", "dpn"),
    "Deterministic": (lambda: vj.Deterministic(D), "real", "a"),
    "VonMisesFisher": (lambda: vj.VonMisesFisher(D), "sphere", "dpan"),
    "Categorical": (lambda: vj.Categorical(N, C, 0.7), "onehot", "dan"),
    "GumbelSoftmax": (lambda: vj.GumbelSoftmax(N, C, 0.7), "simplex", "dpan"),
    "VectorQuantized": (lambda: vj.VectorQuantized(3, D), "codes", "c"),
    "ResidualVectorQuantized": (lambda: vj.ResidualVectorQuantized(3, D, 2), "codes", "c"),
    "FiniteScalarQuantized": (lambda: vj.FiniteScalarQuantized((3, 2)), "codes", "c"),
    "LookupFree": (lambda: vj.LookupFree(2), "codes", "c"),
}
# Prior: how to make it for z of a space, its spaces, what it asks of the posterior, and whether it
# f factorizes, l is learned or b has a bound in training.
PRIORS: dict[str, tuple[Callable[[], Any], set[str], str, str]] = {
    "StandardNormal": (lambda: vj.StandardNormal(D), {"real"}, "", "f"),
    "StandardLaplace": (lambda: vj.StandardLaplace(D), {"real"}, "", "f"),
    "StandardStudentT": (lambda: vj.StandardStudentT(D), {"real"}, "", "fl"),
    "ClassGaussian": (lambda: vj.ClassGaussian(8, D), {"real"}, "", "fl"),
    "GaussianMixture": (lambda: vj.GaussianMixture(3, D), {"real"}, "", "l"),
    "VampPrior": (lambda: vj.VampPrior(3), {"real", "sphere"}, "da", "l"),
    "RealNVP": (lambda: vj.RealNVP(D, 2, (4,)), {"real"}, "", "l"),
    "MaskedAutoregressiveFlow": (
        lambda: vj.MaskedAutoregressiveFlow(D, 2, (4,)),
        {"real"},
        "",
        "l",
    ),
    "Diffusion": (lambda: vj.Diffusion(D, vj.AdaptiveMLP(4, 1)), {"real"}, "", "lb"),
    "FlowMatching": (lambda: vj.FlowMatching(D, vj.AdaptiveMLP(4, 1)), {"real"}, "", "lb"),
    "HypersphericalUniform": (lambda: vj.HypersphericalUniform(D), {"sphere"}, "", ""),
    "UniformCategorical": (lambda: vj.UniformCategorical(N, C), {"onehot"}, "", ""),
    "UniformConcrete": (lambda: vj.UniformConcrete(N, C, 0.7), {"simplex"}, "", ""),
    "UniformCodes": (lambda: vj.UniformCodes(GRID), {"codes"}, "c", "f"),
    "AutoregressiveCodes": (lambda: vj.AutoregressiveCodes, {"codes", "onehot"}, "", "l"),
    "MaskedCodes": (lambda: vj.MaskedCodes(GRID, **SMALL), {"codes"}, "c", "lb"),
    "GIVT": (lambda: vj.GIVT(D, **SMALL, num_components=2), {"real"}, "", "l"),
}
SUPPORTS = {"threshold": "binary", "grey": "uint8", "dequantize": "unit"}
# Likelihood: the first protocol whose images it declares a probability of.
LIKELIHOODS: dict[str, str] = {
    part.__name__: next(name for name, kind in SUPPORTS.items() if kind in part.supports)
    for part in LIKELIHOOD_CLASSES
}

VECTORS = {"real", "sphere"}
ANY = {"real", "sphere", "onehot", "simplex", "codes"}


def latent_critic() -> Any:
    return vj.LatentCritic(mlp())


def image_critic() -> Any:
    return vj.ImageCritic(mlp(), mlp())


def patch_critic() -> Any:
    return vj.PatchCritic((4,))


def halves(images: Any) -> Any:
    """Maps of features: the images and their complements."""
    return [images, 1 - images]


# Objective: how to make it, what it needs of q, what q must not be, the spaces, and its critic;
# "F" is a prior that factorizes, "L" that a learned prior would never learn, "E" that ln p(z) has
# to be exact, "I" that p(x|z) is of one image.
OBJECTIVES: dict[str, tuple[Any, str, str, set[str], Any]] = {
    "ELBO": (vj.ELBO(2, beta=0.5), "d", "", ANY, None),
    "ELBO, sticking the landing": (vj.ELBO(sticking_the_landing=True), "dp", "", ANY, None),
    "FreeBits": (vj.FreeBits(0.1), "dfF", "", ANY, None),
    "FreeBits per layer": (vj.FreeBits(0.1, "layer"), "d", "", ANY, None),
    "FreeBits per map": (vj.FreeBits(0.1, "map"), "dfF", "", ANY, None),
    "BalancedELBO": (vj.BalancedELBO(lambda step: step / 10), "d", "", ANY, None),
    "Capacity": (vj.Capacity(2.0, 1.0), "d", "", ANY, None),
    "GECO": (vj.GECO(1.0), "d", "", ANY, vj.Multiplier),
    "IWAE": (vj.IWAE(3), "dE", "", ANY, None),
    "IWAE, DReG": (vj.IWAE(3, doubly_reparameterized=True), "dpE", "", ANY, None),
    "MIWAE": (vj.MIWAE(2, 2, doubly_reparameterized=True), "dpE", "", ANY, None),
    "PIWAE": (vj.PIWAE(2, 2), "dE", "", ANY, None),
    "CIWAE": (vj.CIWAE(3, 0.5), "dE", "", ANY, None),
    "RenyiBound": (vj.RenyiBound(3, 0.5), "dE", "", ANY, None),
    "BetaTC": (vj.BetaTC(2.0, 90), "dfaF", "", ANY, None),
    "FactorVAE": (vj.FactorVAE(2.0), "dpF", "", {"real"}, latent_critic),
    "DIPVAE": (vj.DIPVAE(1.0, 1.0), "df", "", {"real"}, None),
    "InfoVAE": (vj.InfoVAE(0.5, 2.0), "d", "", VECTORS, None),
    "WAE": (vj.WAE(2.0), "L", "c", VECTORS, None),
    "AdversarialAutoencoder": (vj.AdversarialAutoencoder(), "L", "c", ANY, latent_critic),
    "VAEGAN": (vj.VAEGAN(0.1), "d", "", ANY, image_critic),
    "PatchGAN": (vj.PatchGAN(vj.ELBO()), "d", "", ANY, patch_critic),
    "Perceptual": (vj.Perceptual(vj.ELBO(), 1.0, halves), "d", "", ANY, None),
    "Pretrain": (vj.Pretrain(2, vj.ELBO()), "d", "", {"real"}, None),
    "RAE": (vj.RAE(0.1, 0.1, 0.1), "L", "nc", {"real"}, None),
    "WakeSleep": (vj.WakeSleep(), "d", "", ANY, None),
    "MonteCarloEM": (vj.MonteCarloEM(2, 2), "EI", "", {"real"}, None),
    "VQVAE": (vj.VQVAE(), "c", "", ANY, None),
}
Triple = tuple[str, str, str]  # posterior, prior, objective
Combination = tuple[str, str, str, str]  # posterior, prior, likelihood, objective


def prior_fits(posterior: str, prior: str) -> bool:
    _, space, q_is = POSTERIORS[posterior]
    _, spaces, needs, _ = PRIORS[prior]
    return space in spaces and set(needs) <= set(q_is)


def objective_fits(posterior: str, prior: str, objective: str) -> bool:
    _, space, q_is = POSTERIORS[posterior]
    _, needs, excludes, spaces, _ = OBJECTIVES[objective]
    p_is = PRIORS[prior][3]
    return (
        space in spaces
        and {need for need in needs if need.islower()} <= set(q_is)
        and not set(excludes) & set(q_is)
        and ("F" not in needs or "f" in p_is)
        and ("L" not in needs or "l" not in p_is)
        and ("E" not in needs or "b" not in p_is)
    )


def likelihood_fits(likelihood: str, objective: str) -> bool:
    return "I" not in OBJECTIVES[objective][1] or likelihood != "OptimalGaussian"


@cache
def triples() -> list[Triple]:
    """Every compatible posterior, prior and objective."""
    return [
        (posterior, prior, objective)
        for posterior, prior, objective in itertools.product(POSTERIORS, PRIORS, OBJECTIVES)
        if prior_fits(posterior, prior) and objective_fits(posterior, prior, objective)
    ]


def one_for_each_part() -> Iterator[Triple]:
    """Few of `triples` in which every part occurs, of an objective's settings the last.

    Greedy: each time the one of which most parts are new, and the others were used least.
    """
    objectives = {type(made): name for name, (made, *_) in OBJECTIVES.items()}
    used, every = Counter[str](), {*POSTERIORS, *PRIORS, *objectives.values()}

    def gain(triple: Triple) -> tuple[int, int]:
        new = sum(part in every and not used[part] for part in triple)
        return new, -sum(used[part] for part in triple)

    while every - set(used):
        best = max(triples(), key=gain)
        used.update(best)
        yield best


def build(combination: Combination) -> tuple[Any, Any, str]:
    """The model, the objective and the name of the data's protocol."""
    posterior, prior, likelihood, objective = combination
    q = POSTERIORS[posterior][0]()
    p = PRIORS[prior][0]()
    if prior == "AutoregressiveCodes":
        shape = (N,) if POSTERIORS[posterior][1] == "onehot" else GRID
        p = p(shape, **SMALL)
    make_critic = OBJECTIVES[objective][4]
    codes = POSTERIORS[posterior][1] == "codes"
    model = vj.VAE(
        encoder=vj.ConvEncoder((4,), dense=None) if codes else mlp(),
        posterior=q,
        prior=p,
        decoder=mlp(),
        likelihood=getattr(vj, likelihood)(),
        critic=None if make_critic is None else make_critic(),
        labels=vj.LabelEmbedding(8, 2) if prior == "ClassGaussian" else None,
        image_shape=tiny.IMAGE_SHAPE,
    )
    return model, OBJECTIVES[objective][0], LIKELIHOODS[likelihood]
