"""Every field of every public part, given what does not fit it."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import vae_jax as vj
from hostile import Row
from vae_jax import optimizers
from vae_jax.flows import MADE, CouplingNetwork

NAN, INF = float("nan"), float("inf")


class Said(NamedTuple):
    """A value that does not fit another field, and what is said of the two."""

    value: Any
    sentence: str


# What does not fit a field of each kind.
COUNT = (0, -3, 2.5, "2", True, NAN, 10**30)
INDEX = (-1, 0.5, "0", None, False, 2**32)
WEIGHT = (-0.1, NAN, INF, "1", True, 1e39, 10**400)
POSITIVE = (0, -1.0, NAN, INF, "0.1", 1e-320, 1e39)
PROPORTION = (-0.1, 1.1, NAN, "0.5")
DECAY = (-0.1, 1.0, 1.5, NAN, "0.9")
NUMBER = (NAN, -INF, "1", None)
SWITCH = (1, 0, "yes", None)
GREY_LEVELS = (0, 31, 255, 32.0, "32", True, None)
WIDTHS = (8, (8, 0), (8, 2.5), "88", b"88", None, (True,))
SOME_WIDTHS = (*WIDTHS, ())
SHAPE = (0, -1, (), (2, 0), (2, 1.5), "2", b"2", 2.0, None)
DIM = (0, -1, 2.0, (3, 2), "2", None)
AT_LEAST_2 = (1, 0, -2, 2.0, "3")
UNCALLED = nn.initializers.he_normal, nn.initializers.normal
FUNCTION = ("relu", 1.0, None, vj.MLP)
INITIALIZER = ("he_normal", 1.0, None, vj.MLP, int, max, *UNCALLED)
NETWORK = ("mlp", vj.MLP, jnp.tanh, None, optax.adam(1e-3))
POSTERIOR = (vj.DiagonalGaussian, vj.StandardNormal(2), "gaussian", 2, None)
PRIOR = (vj.StandardNormal, vj.DiagonalGaussian(2), "normal", None)
LIKELIHOOD = (vj.Bernoulli, vj.MLP((3,)), "bernoulli", None)
OBJECTIVE = (vj.ELBO, "elbo", 1.0, None, vj.MLP((3,)))
OPTIMIZER = (1e-3, "adam", optax.adam, None, optax.constant_schedule(1e-3))
OUTPUT = ("vectors", "", None, 1)
STAGES = (8, (8, 8), ((8,), ()), ((8,), (0,)), (), None)
PAIR = (4, (4,), (4, 4, 4), (4, 0), None)
LEVELS = (8, (8, 1), (8, 2.5), (), "88", Said((2**16, 2**16), "4,294,967,296 codes"))
BLOCKS = (2, (-1, 2), (), "22", b"22", None)
PER_LEVEL = (0, (4, 0), "4", None)
NET = ("bottleneck", 3, None, int, vj.Bernoulli(), jnp.tanh)
KERNELS = {"activation": FUNCTION, "kernel_init": INITIALIZER}
SCALED = {"squash": FUNCTION, "kernel_init": INITIALIZER}
OPTIONAL_SCALE = (0, -1.0, NAN, INF, "0.1")
RESNET = {"width": COUNT, "bottleneck": SWITCH, "large_stem": SWITCH}
XCEPTION: dict[str, Any] = {"stem": (2, 2), "entry": (2,), "middle": 0, "exit": (2, 2, 2)}
IN_XCEPTION = {
    "stem": PAIR,
    "entry": SOME_WIDTHS,
    "middle": INDEX,
    "exit": (3, (3, 3), (3, 3, 0), None),
}
Values = tuple[Any, ...]
Field = dict[str, Values]


UNEQUAL = (*COUNT, Said(7, "do not divide its width of 7: give a multiple."))
PATCHES = {"patch_size": COUNT, "width": UNEQUAL}
HEADS = {"num_layers": COUNT, "num_heads": (*COUNT, Said(3, "The 3 heads of "))}

TRANSPORTED: Field = {
    "shape": SHAPE,
    "network": ("mlp", vj.MLP, jnp.tanh, optax.adam(1e-3)),
    "num_classes": (0, -3, 2.5, "2", True, NAN),
    "drop_labels": PROPORTION,
    "guidance": (*WEIGHT, Said(1.0, "no classes to be guided to: give num_classes")),
    "sampler": ("euler", None, 1),
}
TOKENS: Field = {
    "width": UNEQUAL,
    **HEADS,
    "num_classes": TRANSPORTED["num_classes"],
    "drop_labels": PROPORTION,
    "guidance": TRANSPORTED["guidance"],
    "temperature": WEIGHT,
}
CODES: Field = TOKENS | {
    "top_k": (0, -1, 2.5, "3", True),
    "top_p": (0, -0.1, 1.1, NAN, "0.9"),
}
MODEL: Field = {
    "prior": PRIOR,
    "likelihood": LIKELIHOOD,
    "critic": ("critic", 1, vj.LatentCritic),
    "labels": (10, "digits", vj.MLP((3,)), vj.LabelEmbedding),
    "image_shape": (28, (28, 28), (28, 28, 0), "28", None),
}
HIERARCHY = MODEL | {
    "encoders": ((), vj.MLP((3,)), (vj.MLP,), Said((vj.MLP((3,)),), "encoders of"), "mlp"),
    "posteriors": (
        vj.DiagonalGaussian(2),
        (vj.DiagonalGaussian(2), vj.StandardNormal(2)),
        Said((), "posteriors of"),
    ),
    "decoders": (vj.MLP((3,)), Said((vj.MLP((3,)),), "decoders of"), (None, None)),
    "conditionals": (vj.DiagonalGaussian(2), Said((), "conditionals of"), (vj.MLP((3,)),)),
}


def layers(*sizes: int) -> dict[str, Any]:
    """The parts of a hierarchy with layers of these sizes."""
    return {
        "encoders": tuple(vj.MLP((4,)) for _ in sizes),
        "posteriors": tuple(vj.DiagonalGaussian(size) for size in sizes),
        "decoders": tuple(vj.MLP((4,)) for _ in sizes),
        "conditionals": tuple(vj.DiagonalGaussian(size) for size in sizes[:-1]),
        "prior": vj.StandardNormal(sizes[-1]),
        "likelihood": vj.Bernoulli(),
    }


def _fields_of(part: Any) -> dict[str, Any]:
    linens = {"parent", "name"} if isinstance(part, nn.Module) else set()
    names = {field.name for field in dataclasses.fields(part) if field.init} - linens
    return {name: getattr(part, name) for name in names}


ATTENTION = vj.AxialAttention()
# Each class, arguments that fit, and for each field what does not.
CONSTRUCTORS: dict[type, tuple[dict[str, Any], Field]] = {
    # Posteriors
    vj.DiagonalGaussian: (
        {"shape": 2},
        {
            "shape": SHAPE,
            "kernel_init": INITIALIZER,
            "log_scale_range": (
                1.0,
                (1.0,),
                Said((2.0, 1.0), "give the lower limit first"),
                (1.0, NAN),
                ("0", 1.0),
                None,
            ),
        },
    ),
    vj.FullCovarianceGaussian: ({"dim": 2}, {"dim": DIM, "kernel_init": INITIALIZER}),
    vj.Deterministic: ({"shape": 2}, {"shape": SHAPE, "kernel_init": INITIALIZER}),
    vj.VonMisesFisher: ({"dim": 3}, {"dim": AT_LEAST_2, "kernel_init": INITIALIZER}),
    vj.PlanarFlow: ({"dim": 2}, {"dim": DIM, "num_flows": COUNT}),
    vj.HouseholderFlow: ({"dim": 2}, {"dim": DIM, "num_flows": COUNT}),
    vj.SylvesterFlow: (
        {"dim": 2, "num_ortho": 2},
        {
            "dim": DIM,
            "num_ortho": (*COUNT, Said(3, "cannot have 3 orthonormal vectors of 2 components")),
            "num_flows": COUNT,
        },
    ),
    vj.HouseholderSylvesterFlow: (
        {"dim": 2},
        {"dim": DIM, "num_reflections": COUNT, "num_flows": COUNT},
    ),
    vj.TriangularSylvesterFlow: ({"dim": 2}, {"dim": DIM, "num_flows": COUNT}),
    vj.InverseAutoregressiveFlow: (
        {"dim": 2},
        {"dim": (*DIM, 1), "num_flows": COUNT, "features": WIDTHS},
    ),
    **{
        cls: (
            {"num": 2, "classes": 3, "temperature": 0.5},
            {
                "num": COUNT,
                "classes": AT_LEAST_2,
                "temperature": POSITIVE,
                "kernel_init": INITIALIZER,
            },
        )
        for cls in (vj.Categorical, vj.GumbelSoftmax)
    },
    vj.VectorQuantized: (
        {"num_codes": 4, "dim": 2},
        {
            "num_codes": COUNT,
            "dim": COUNT,
            "decay": DECAY,
            "restart_below": PROPORTION,
            "kernel_init": INITIALIZER,
        },
    ),
    vj.ResidualVectorQuantized: (
        {"num_codes": 4, "dim": 2, "depth": 2},
        {
            "num_codes": COUNT,
            "dim": COUNT,
            "depth": COUNT,
            "decay": DECAY,
            "restart_below": PROPORTION,
            "kernel_init": INITIALIZER,
        },
    ),
    vj.FiniteScalarQuantized: (
        {"levels": (3, 3)},
        {
            "levels": (*LEVELS, Said((2**16, 2**16), "4,294,967,296 codes")),
            "kernel_init": INITIALIZER,
        },
    ),
    vj.LookupFree: ({"dim": 3}, {"dim": (*COUNT, 64), "kernel_init": INITIALIZER}),
    # Priors
    vj.StandardNormal: ({"shape": 2}, {"shape": SHAPE}),
    vj.StandardLaplace: ({"shape": 2}, {"shape": SHAPE}),
    vj.StandardStudentT: ({"shape": 2}, {"shape": SHAPE, "dof": OPTIONAL_SCALE}),
    vj.HypersphericalUniform: ({"dim": 3}, {"dim": AT_LEAST_2}),
    vj.UniformCategorical: ({"num": 2, "classes": 3}, {"num": COUNT, "classes": AT_LEAST_2}),
    vj.UniformConcrete: (
        {"num": 2, "classes": 3, "temperature": 0.5},
        {"num": COUNT, "classes": AT_LEAST_2, "temperature": POSITIVE},
    ),
    vj.UniformCodes: ({"shape": (2, 2)}, {"shape": PAIR}),
    vj.AutoregressiveCodes: (
        {"shape": (2, 2), "width": 8, "num_heads": 2},
        CODES | {"shape": (4, (), (2, 0), (2, 2, 2))},
    ),
    vj.MaskedCodes: (
        {"shape": (2, 2), "width": 8, "num_heads": 2},
        CODES | {"shape": PAIR, "num_steps": COUNT, "choice_temperature": WEIGHT},
    ),
    vj.GIVT: (
        {"shape": (2, 2), "width": 8, "num_heads": 2},
        TOKENS | {"shape": SHAPE, "num_components": COUNT},
    ),
    vj.GaussianMixture: (
        {"num_components": 3, "shape": 2},
        {"num_components": COUNT, "shape": SHAPE},
    ),
    vj.VampPrior: (
        {"num_components": 3},
        {
            "num_components": COUNT,
            "mean": NUMBER,
            "stddev": POSITIVE,
            "images": (
                [[0, 1]],
                "data",
                np.zeros((9, 4, 4, 1)),
                np.zeros((9, 4, 4), np.uint8),
                Said(np.zeros((2, 4, 4, 1), np.uint8), "cannot draw 3 components from 2 images"),
            ),
            "fixed": SWITCH,
            "learned_weights": SWITCH,
        },
    ),
    vj.RealNVP: ({"dim": 2}, {"dim": (*DIM, 1), "num_flows": COUNT, "features": WIDTHS}),
    vj.MaskedAutoregressiveFlow: (
        {"dim": 2},
        {"dim": (*DIM, 1), "num_flows": COUNT, "features": WIDTHS},
    ),
    vj.Diffusion: ({"shape": 2}, TRANSPORTED | {"num_steps": COUNT}),
    vj.FlowMatching: (
        {"shape": 2},
        TRANSPORTED | {"sampler": ("euler", None, 1, Said("ancestral", "take 'ode'"))},
    ),
    vj.ClassGaussian: ({"num_classes": 3, "shape": 2}, {"num_classes": COUNT, "shape": SHAPE}),
    vj.Labels: ({"num_classes": 3}, {"num_classes": COUNT}),
    vj.LabelEmbedding: ({"num_classes": 3, "width": 2}, {"num_classes": COUNT, "width": COUNT}),
    # Likelihoods
    vj.Bernoulli: ({}, {"kernel_init": INITIALIZER, "bias_init": INITIALIZER}),
    vj.Beta: ({}, {"kernel_init": INITIALIZER}),
    vj.ContinuousBernoulli: ({}, {"kernel_init": INITIALIZER}),
    vj.CategoricalPixels: ({}, {"kernel_init": INITIALIZER, "levels": GREY_LEVELS}),
    vj.Gaussian: ({}, SCALED | {"scale": OPTIONAL_SCALE, "bias_init": INITIALIZER}),
    vj.OptimalGaussian: ({}, SCALED | {"min_scale": POSITIVE}),
    vj.HeteroscedasticGaussian: ({}, SCALED | {"min_scale": POSITIVE}),
    vj.Charbonnier: ({}, SCALED | {"scale": POSITIVE, "epsilon": POSITIVE}),
    vj.Laplace: ({}, SCALED | {"scale": OPTIONAL_SCALE}),
    vj.DiscretizedLogistic: (
        {},
        {"kernel_init": INITIALIZER, "initial_scale": POSITIVE, "levels": GREY_LEVELS},
    ),
    vj.MixtureOfLogistics: (
        {},
        {
            "num_components": COUNT,
            "kernel_init": INITIALIZER,
            "initial_scale": POSITIVE,
            "levels": GREY_LEVELS,
        },
    ),
    vj.AutoregressivePixels: (
        {"pixel": vj.Bernoulli(), "width": 8, "num_heads": 2},
        {
            "pixel": (*LIKELIHOOD, Said(vj.OptimalGaussian(), "looks at all pixels of a batch")),
            "width": UNEQUAL,
            **HEADS,
        },
    ),
    vj.SeenPixels: (
        {"likelihood": vj.Bernoulli()},
        {"likelihood": (*LIKELIHOOD, Said(vj.OptimalGaussian(), "looks at all pixels of a batch"))},
    ),
    # Networks
    vj.MLP: ({"features": (3,)}, {"features": WIDTHS, **KERNELS}),
    vj.GatedMLP: ({"features": (3,)}, {"features": WIDTHS, "kernel_init": INITIALIZER}),
    vj.ConvEncoder: (
        {"features": (3,), "dense": 4},
        {
            "features": WIDTHS,
            "dense": (0, -1, 2.5, "4"),
            "kernel_size": COUNT,
            "residual_blocks": INDEX,
            **KERNELS,
        },
    ),
    vj.ConvDecoder: (
        {"features": (3,), "dense": 4},
        {
            "features": SOME_WIDTHS,
            "dense": (0, -1, 2.5, "4"),
            "kernel_size": COUNT,
            "residual_blocks": INDEX,
            "affine_last": SWITCH,
            **KERNELS,
        },
    ),
    vj.ResNetEncoder: ({"blocks": (1, 1)}, {"blocks": SOME_WIDTHS, **RESNET, "output": OUTPUT}),
    vj.ResNetDecoder: ({"blocks": (1, 1)}, {"blocks": SOME_WIDTHS, **RESNET}),
    **{
        cls: ({"widths": (3, 3)}, {"widths": SOME_WIDTHS, "blocks": COUNT})
        for cls in (vj.VQGANEncoder, vj.VQGANDecoder)
    },
    vj.VGGEncoder: (
        {"stages": ((3,),)},
        {"stages": STAGES, "output": OUTPUT, "dense": WIDTHS, "normalize": SWITCH},
    ),
    vj.VGGDecoder: (
        {"stages": ((3,),)},
        {"stages": STAGES, "dense": WIDTHS, "normalize": SWITCH},
    ),
    vj.XceptionEncoder: (XCEPTION, IN_XCEPTION | {"output": OUTPUT}),
    vj.XceptionDecoder: (XCEPTION, IN_XCEPTION),
    **{cls: ({}, PATCHES | HEADS | {"output": OUTPUT}) for cls in (vj.ViTEncoder, vj.GPTEncoder)},
    **{cls: ({}, PATCHES | HEADS | {"features": COUNT}) for cls in (vj.ViTDecoder, vj.GPTDecoder)},
    vj.AdaptiveMLP: ({}, {"width": COUNT, "num_layers": COUNT}),
    vj.DiT: ({}, PATCHES | HEADS),
    vj.UNet: (
        {},
        {
            "widths": (*SOME_WIDTHS, Said((8, 7), "do not divide its width of 7")),
            "blocks": COUNT,
            "num_heads": (*COUNT, Said(3, "The 3 heads of ")),
        },
    ),
    vj.AxialAttention: ({}, {"num_layers": COUNT, "num_heads": COUNT}),
    vj.AxialConvolution: (
        {},
        {"num_layers": COUNT, "kernel_size": COUNT, "kernel_init": INITIALIZER},
    ),
    **{
        cls: ({"layers": ATTENTION}, {"layers": NETWORK, **PATCHES})
        for cls in (vj.HorizontalEncoder, vj.VerticalEncoder)
    },
    **{
        cls: ({"layers": ATTENTION}, {"layers": NETWORK, "features": COUNT, **PATCHES})
        for cls in (vj.HorizontalDecoder, vj.VerticalDecoder)
    },
    vj.AxialEncoder: (
        {
            "horizontal": vj.HorizontalEncoder(ATTENTION),
            "vertical": vj.VerticalEncoder(ATTENTION),
        },
        {
            "horizontal": (vj.HorizontalEncoder, vj.VerticalEncoder(ATTENTION), None),
            "vertical": (vj.VerticalEncoder, vj.HorizontalEncoder(ATTENTION), "vertical"),
        },
    ),
    vj.AxialDecoder: (
        {
            "vertical": vj.VerticalDecoder(ATTENTION),
            "horizontal": vj.HorizontalDecoder(ATTENTION),
        },
        {
            "vertical": (vj.VerticalDecoder, vj.HorizontalDecoder(ATTENTION), None),
            "horizontal": (vj.HorizontalDecoder, vj.VerticalDecoder(ATTENTION), "horizontal"),
        },
    ),
    vj.SpectralNorm: ({"network": vj.MLP((3,))}, {"network": NETWORK}),
    vj.LatentCritic: (
        {"network": vj.MLP((3,))},
        {
            "network": (
                *NETWORK,
                Said(vj.ConvDecoder((3,), 3), "is a ConvDecoder, which cannot be called"),
            )
        },
    ),
    vj.ImageCritic: (
        {"body": vj.MLP((3,)), "head": vj.MLP((3,))},
        {
            "body": (
                *NETWORK,
                Said(vj.ConvDecoder((3,), 3), "is a ConvDecoder, which cannot be called"),
            ),
            "head": NETWORK,
        },
    ),
    vj.PatchCritic: ({"features": (3,)}, {"features": SOME_WIDTHS}),
    vj.Multiplier: ({}, {"initial": POSITIVE}),
    vj.Bottleneck: (
        {"features": 2, "width": 2},
        {
            "features": COUNT,
            "width": COUNT,
            "last": WEIGHT,
            "ratio": POSITIVE,
            "activation": FUNCTION,
            "excite": SWITCH,
        },
    ),
    vj.Gated: (
        {"features": 2, "width": 2},
        {"features": COUNT, "width": COUNT, "last": WEIGHT, "activation": FUNCTION},
    ),
    vj.TopDownBlock: (
        {"features": 2, "latents": 2},
        {
            "features": COUNT,
            "latents": COUNT,
            "last": WEIGHT,
            "net": NET,
            "prior_features": SWITCH,
            "relative": SWITCH,
            "smooth": SWITCH,
            "residuals": INDEX,
        },
    ),
    vj.BottomUp: (
        {"blocks": (1, 1), "width": 2},
        {
            "blocks": BLOCKS,
            "width": (*PER_LEVEL, Said((4, 4, 4), "2 levels in `blocks` and was given 3 numbers")),
            "net": NET,
        },
    ),
    vj.TopDown: (
        {"blocks": (1, 1), "width": 2, "latents": 2},
        {
            "blocks": BLOCKS,
            "width": (*PER_LEVEL, Said((4, 4, 4), "2 levels in `blocks` and was given 3 numbers")),
            "latents": PER_LEVEL,
            "block": NET,
        },
    ),
    MADE: ({"features": (3,)}, {"features": WIDTHS}),
    CouplingNetwork: ({"features": (3,)}, {"features": WIDTHS}),
    # Models
    vj.VAE: (
        _fields_of(tiny.model()),
        MODEL
        | {
            "encoder": (
                *NETWORK,
                Said(vj.ConvDecoder((3,), 3), "is a ConvDecoder, which cannot be called"),
            ),
            "posterior": POSTERIOR,
            "decoder": (
                *NETWORK,
                Said(vj.ConvEncoder((3,), 3), "is a ConvEncoder, which cannot be called"),
            ),
        },
    ),
    vj.HierarchicalVAE: (layers(3, 2), HIERARCHY),
    vj.LadderVAE: (layers(3, 2), HIERARCHY),
    vj.SkipVAE: (layers(3, 2), HIERARCHY),
    vj.DeepVAE: (
        {
            "encoder": vj.BottomUp((1, 1), 2),
            "decoder": vj.TopDown((1, 1), 2, 2),
            "likelihood": vj.Bernoulli(),
        },
        MODEL | {"encoder": (vj.MLP((3,)), vj.BottomUp), "decoder": (vj.MLP((3,)), vj.TopDown)},
    ),
    # Objectives
    vj.ELBO: (
        {},
        {"num_samples": COUNT, "beta": WEIGHT, "sticking_the_landing": SWITCH},
    ),
    vj.BalancedELBO: (
        {"beta": vj.cyclical_schedule(10)},
        {"beta": (1.0, "warm-up", None), "num_samples": COUNT},
    ),
    vj.IWAE: ({"num_samples": 2}, {"num_samples": COUNT, "doubly_reparameterized": SWITCH}),
    **{
        cls: ({"m": 2, "k": 2}, {"m": COUNT, "k": COUNT, "doubly_reparameterized": SWITCH})
        for cls in (vj.MIWAE, vj.PIWAE)
    },
    vj.CIWAE: (
        {"num_samples": 2, "beta": 0.5},
        {"num_samples": COUNT, "beta": PROPORTION, "doubly_reparameterized": SWITCH},
    ),
    vj.RenyiBound: (
        {"num_samples": 2, "alpha": 0.5},
        {"num_samples": COUNT, "alpha": NUMBER, "doubly_reparameterized": SWITCH},
    ),
    vj.WakeSleep: ({}, {"num_samples": COUNT}),
    vj.MonteCarloEM: (
        {},
        {"num_transitions": COUNT, "num_leapfrog": COUNT, "acceptance": (0.0, 1.0, NAN, "0.5")},
    ),
    vj.Capacity: (
        {"gamma": 1.0, "capacity": 1.0},
        {"gamma": WEIGHT, "capacity": WEIGHT, "num_samples": COUNT},
    ),
    vj.FreeBits: (
        {"floor": 1.0},
        {"floor": WEIGHT, "per": ("layers", "dim", None, 1), "num_samples": COUNT},
    ),
    vj.GECO: ({"tolerance": 1.0}, {"tolerance": NUMBER, "num_samples": COUNT}),
    vj.BetaTC: (
        {"beta": 1.0, "dataset_size": 10},
        {
            "beta": WEIGHT,
            "dataset_size": COUNT,
            "alpha": WEIGHT,
            "gamma": WEIGHT,
            "sampling": ("stratify", "", None),
            "num_samples": COUNT,
        },
    ),
    vj.DIPVAE: (
        {"lambda_off": 1.0, "lambda_diagonal": 1.0},
        {"lambda_off": WEIGHT, "lambda_diagonal": WEIGHT, "covariance_of": ("mu", "x", None)},
    ),
    vj.FactorVAE: ({"gamma": 1.0}, {"gamma": WEIGHT}),
    vj.InfoVAE: (
        {"alpha": 0.0, "lambda_": 2.0},
        {
            "alpha": (1.5, NAN, "0", None, Said(-2.0, "give lambda_ >= 3")),
            "lambda_": (*WEIGHT, Said(0.5, "a reward for the distance")),
            "kernel": ("rbf", 1.0, vj.RBF, None),
            "num_samples": COUNT,
        },
    ),
    vj.WAE: ({"weight": 1.0}, {"weight": WEIGHT, "kernel": ("rbf", 1.0, vj.RBF, None)}),
    vj.IMQ: (
        {},
        {"variance": POSITIVE, "scales": (1.0, (), (1.0, 0.0), (1.0, NAN), "1", None)},
    ),
    vj.RBF: ({}, {"variance": POSITIVE}),
    vj.AdversarialAutoencoder: ({}, {"weight": WEIGHT}),
    vj.VAEGAN: ({"gamma": 1.0}, {"gamma": WEIGHT}),
    vj.LearnedPerceptual: ({}, {"num_steps": COUNT}),
    vj.Perceptual: (
        {"objective": vj.ELBO()},
        {"objective": OBJECTIVE, "weight": WEIGHT, "features": ("lpips", 1.0, None)},
    ),
    vj.PatchGAN: (
        {"objective": vj.ELBO()},
        {
            "objective": (*OBJECTIVE, Said(vj.FactorVAE(1.0), "plays against a critic of its own")),
            "weight": WEIGHT,
            "first_step": INDEX,
        },
    ),
    vj.Pretrain: ({"num_steps": 1, "then": vj.ELBO()}, {"num_steps": INDEX, "then": OBJECTIVE}),
    vj.RAE: ({}, {"beta": WEIGHT, "l2": WEIGHT, "gradient_penalty": WEIGHT}),
    vj.VQVAE: ({}, {"commitment": WEIGHT, "entropy": WEIGHT}),
    # Around the model
    vj.AIS: ({}, {"num_temperatures": COUNT, "num_chains": COUNT, "num_leapfrog": INDEX}),
    vj.HorizontalFlip: ({}, {}),
    vj.RandomShift: ({"pixels": 1}, {"pixels": INDEX}),
    vj.RandomAffine: (
        {"degrees": 1.0, "stretch": 0.1, "shift": 1.0},
        {"degrees": WEIGHT, "stretch": WEIGHT, "shift": WEIGHT},
    ),
    vj.BrightnessJitter: ({"amount": 0.1}, {"amount": PROPORTION}),
    vj.ColourJitter: ({"amount": 0.1}, {"amount": PROPORTION}),
    vj.Split: (
        {"images": tiny.images(3, 0), "labels": None},
        {"images": ([[1]], None), "labels": ([1, 2, 3], 1)},
    ),
    vj.Data: (
        _fields_of(tiny.data()),
        {
            "name": (None, 3),
            "protocol": ("grey", None),
            "train": (tiny.images(3, 0), None),
            "valid": (tiny.images(3, 0), None),
            "test": (tiny.images(3, 0), None),
            "split_rule": (None, 3),
            "class_names": (3, "01", (0, 1)),
        },
    ),
    vj.Experiment: (
        _fields_of(tiny.experiment()),
        {
            "data": ("mnist", vj.Data, None, tiny.images(3, 0)),
            "model": (vj.VAE, "vae", None, vj.MLP((3,))),
            "objective": OBJECTIVE,
            "augment": (vj.HorizontalFlip(), (vj.HorizontalFlip,), ("flip",), None),
            "optimizer": OPTIMIZER,
            "num_steps": COUNT,
            "batch_size": COUNT,
            "accumulate": COUNT,
            "compute_dtype": (
                jnp.int8,
                "int8",
                jnp.complex64,
                "bf16",
                bool,
                3,
                np.float64,
                jnp.float8_e4m3fn,
            ),
            "remat": SWITCH,
            "ema_decay": DECAY,
            "shuffle": SWITCH,
            "log_every": COUNT,
            "checkpoint_every": (*COUNT, Said(7, "is 7, no multiple of log_every, 5")),
            "validate_every": (*COUNT, Said(7, "is 7, no multiple of log_every, 5")),
            "validate_images": (*COUNT, Said(10**6, "give no more, or leave it out")),
            "patience": COUNT,
            "keep_checkpoints": COUNT,
            "skip_above": OPTIONAL_SCALE,
            "max_nonfinite": COUNT,
            "start": (3, True, Path("runs/first")),
        },
    ),
}
"""Public classes, and their functions' arguments."""


FUNCTIONS: dict[Callable[..., object], tuple[dict[str, Any], Field]] = {
    vj.cyclical_schedule: (
        {"num_steps": 10},
        {
            "num_steps": COUNT,
            "num_cycles": (*COUNT, Said(11, "num_cycles of cyclical_schedule is 11")),
            "ratio": (0, -0.5, 1.5, NAN, "0.5"),
        },
    ),
    optimizers.by_group: (
        {"default": optax.adam(1e-3)},
        {"default": OPTIMIZER, "critic": OPTIMIZER},
    ),
    optimizers.switched: (
        {"num_steps": 1, "first": optax.adam(1e-3), "then": optax.adam(1e-3)},
        {"num_steps": INDEX, "first": OPTIMIZER, "then": OPTIMIZER},
    ),
    optimizers.lagging_inference: (
        {"optimizer": optax.adam(1e-3), "encoder_steps": 2, "num_steps": 6},
        {"optimizer": OPTIMIZER, "encoder_steps": COUNT, "num_steps": COUNT},
    ),
    optimizers.spectral_regularization: (
        {"weight": 0.1},
        {"weight": WEIGHT, "iterations": COUNT},
    ),
}


def _refused(
    make: Callable[..., object], fitting: dict[str, Any], name: str, values: Values, _: Path
) -> None:
    """Tries each value, and ends with the refusal of the last."""
    refusals: list[vj.VaeJaxError] = []
    for each in values:
        said = each if isinstance(each, Said) else Said(each, f"{name} of {make.__name__} is ")
        with pytest.raises(vj.VaeJaxError) as refusal:
            make(**fitting | {name: said.value})
        sentence = str(refusal.value)
        assert said.sentence in sentence, each
        assert sentence.endswith("."), each
        assert "\n" not in sentence, each
        refusals.append(refusal.value)
    raise refusals[-1]


ROWS = [
    Row(
        f"{make.__name__}({name}=...)",
        partial(_refused, make, fitting, name, values),
        make.__name__,
    )
    for make, (fitting, fields) in [*CONSTRUCTORS.items(), *FUNCTIONS.items()]
    for name, values in fields.items()
]
