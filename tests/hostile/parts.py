"""Parts that do not fit together, in the plain experiment of `tiny`."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import tiny
from flax import nnx

import vae_jax as vj
from hostile import Row
from vae_jax.data import SplitName
from vae_jax.interfaces import Model, Prior

TINY = tiny.experiment()
NET = vj.MLP((4,))
CONV = vj.ConvEncoder((3,), None)
CLASSES = vj.LabelEmbedding(8, 2)
ATTENTION = vj.AxialAttention(1, 1)


class Crooked(nn.Module):
    """A user's network with a fault.

    Attributes:
        fault: which.
    """

    fault: str

    @nn.compact
    def __call__(self, x: Any, image_shape: Any = None) -> Any:
        """Fails."""
        match self.fault:
            case "name":
                return x + undefined  # pyright: ignore
            case "shape":
                return nn.Dense(3)(x) @ jnp.ones((5, 5))
            case "list":
                return [nn.Dense(3)(x.reshape(len(x), -1))]
            case "none":
                return None
            case "attribute":
                return x.flat_features
            case "twice":
                return nn.Dense(3, name="a")(nn.Dense(4, name="a")(x.reshape(len(x), -1)))
            case "batch":
                return x.reshape(-1)[None]
        raise KeyError(self.fault)


class Empty(Model):
    """A user's model that forgot everything."""


class EmptyPrior(Prior):
    """A user's prior that forgot everything."""


def model(**parts: Any) -> Any:
    """The plain model with other parts, in an experiment."""
    return experiment(model=TINY.model.clone(**parts))


def experiment(**fields: Any) -> vj.Experiment:
    """The plain experiment with other fields."""
    return dataclasses.replace(TINY, **fields)


def layered(kind: type = vj.HierarchicalVAE, **parts: Any) -> vj.Experiment:
    """A model of two layers with other parts, in the plain experiment."""
    fitting: dict[str, Any] = {
        "encoders": (vj.MLP((4,)), vj.MLP((4,))),
        "posteriors": (vj.DiagonalGaussian(3), vj.DiagonalGaussian(2)),
        "decoders": (vj.MLP((4,)), vj.MLP((4,))),
        "conditionals": (vj.DiagonalGaussian(3),),
        "prior": vj.StandardNormal(2),
        "likelihood": vj.Bernoulli(),
    }
    return experiment(model=kind(**fitting | parts))


def unlabelled(*splits: SplitName) -> vj.Data:
    """The plain data with labels in these splits alone."""
    data = TINY.data
    return vj.Data.from_arrays(
        "bars",
        *(data[split].images for split in ("train", "valid", "test")),
        protocol="dynamic",
        labels={split: np.asarray(data[split].labels) for split in splits},
    )


TWO, ONE = (vj.MLP((4,)), vj.MLP((4,))), (vj.MLP((4,)),)
LADDER = partial(layered, vj.LadderVAE)
PSEUDO = np.zeros((20, 28, 28, 1), np.uint8)
FITS = "The parts of the model do not fit together: "

SITUATIONS: dict[str, tuple[Any, str]] = {
    # One module in two positions
    "one network as encoder and decoder": (
        lambda: model(encoder=NET, decoder=NET),
        "encoder and decoder of VAE are one and the same MLP",
    ),
    "one network for two layers": (
        lambda: layered(encoders=[vj.MLP((4,))] * 2),
        "encoders[0] and encoders[1] of HierarchicalVAE are one and the same MLP",
    ),
    "one posterior for two layers": (
        lambda: layered(posteriors=[vj.DiagonalGaussian(3)] * 2, prior=vj.StandardNormal(3)),
        "posteriors[0] and posteriors[1] of HierarchicalVAE are one and the same",
    ),
    "one Gaussian as posterior and conditional": (
        lambda: layered(posteriors=(same := vj.DiagonalGaussian(3), same), conditionals=(same,)),
        "one and the same DiagonalGaussian",
    ),
    "one network twice in a critic": (
        lambda: model(critic=vj.ImageCritic(NET, NET)),
        "body and head of ImageCritic are one and the same MLP",
    ),
    # Networks in each other's position
    "a decoder that is an encoder": (
        lambda: model(decoder=vj.ConvEncoder((3,), 4)),
        "give a decoder, such as MLP((64,)) or ConvDecoder",
    ),
    "an encoder that is a decoder": (
        lambda: model(encoder=vj.ConvDecoder((3,), 4)),
        "give an encoder, such as MLP((64,)) or ConvEncoder",
    ),
    "a first decoder that is an encoder": (
        lambda: layered(decoders=(vj.ConvEncoder((3,), 4), vj.MLP((4,)))),
        "decoders[0] of HierarchicalVAE is a ConvEncoder",
    ),
    "a second decoder that makes images": (
        lambda: layered(decoders=(vj.MLP((4,)), vj.ConvDecoder((3,), 4))),
        "decoders[1] of HierarchicalVAE is a ConvDecoder, which cannot be called with z alone",
    ),
    "an encoder that is a decoder, in a ladder": (
        lambda: LADDER(encoders=(vj.VGGDecoder(((3,),)), vj.MLP((4,)))),
        "encoders[0] of LadderVAE is a VGGDecoder",
    ),
    "a decoder within a spectral norm that is an encoder": (
        lambda: model(decoder=vj.SpectralNorm(vj.ConvEncoder((3,), 4))),
        FITS + "decoder, a SpectralNorm, cannot take inputs of shape (1, 2)",
    ),
    "an NNX network": (
        lambda: model(encoder=nnx.Linear(16, 4, rngs=nnx.Rngs(0))),
        "or nnx.bridge.to_linen(...) of an NNX one",
    ),
    "a function for a network": (
        lambda: model(encoder=lambda x: x.reshape(len(x), -1)),
        "encoder of VAE is the function <lambda>: give a Linen module",
    ),
    "an initializer that was not called": (
        lambda: model(encoder=vj.MLP((4,), kernel_init=nn.initializers.he_normal)),  # pyright: ignore
        "the function he_normal: give an initializer, such as nn.initializers.he_normal()",
    ),
    # Hierarchies
    "a hierarchy one encoder short": (
        lambda: layered(encoders=ONE),
        "encoders of HierarchicalVAE are 1, where 2 layers have 2",
    ),
    "a ladder one encoder short": (lambda: LADDER(encoders=ONE), "encoders of LadderVAE are 1"),
    "a hierarchy one decoder short": (
        lambda: layered(decoders=ONE),
        "decoders of HierarchicalVAE are 1, where 2 layers have 2",
    ),
    "a hierarchy one posterior short": (
        lambda: layered(posteriors=(vj.DiagonalGaussian(3),)),
        "posteriors of HierarchicalVAE are 1, where 2 layers have 2",
    ),
    "a hierarchy one conditional short": (
        lambda: layered(conditionals=()),
        "conditionals of HierarchicalVAE are 0, where 2 layers have 1",
    ),
    "a hierarchy with a conditional for its top": (
        lambda: layered(conditionals=(vj.DiagonalGaussian(3), vj.DiagonalGaussian(2))),
        "where 3 layers have 3",
    ),
    "a hierarchy with no layer": (
        lambda: layered(encoders=(), posteriors=(), decoders=(), conditionals=()),
        "encoders of HierarchicalVAE is ()",
    ),
    "a conditional of another shape than its posterior": (
        lambda: layered(conditionals=(vj.DiagonalGaussian(4),)),
        "latents have the shape (3,), the prior's (4,): give both the same",
    ),
    "a prior of another shape than the top": (
        lambda: layered(prior=vj.StandardNormal(3)),
        "latents have the shape (2,), the prior's (3,): give both the same",
    ),
    "a VampPrior on top of a hierarchy": (
        lambda: layered(prior=vj.VampPrior(3)),
        "take another prior, such as StandardNormal",
    ),
    "codes below the top of a ladder": (
        lambda: LADDER(posteriors=(vj.Categorical(1, 3, 0.5), vj.DiagonalGaussian(2))),
        "take DiagonalGaussian for posteriors and conditionals below the top",
    ),
    # Shapes
    "latents of another size than the prior's": (
        lambda: model(prior=vj.StandardNormal(3)),
        "latents have the shape (2,), the prior's (3,): give both the same",
    ),
    "latents of size one, which would broadcast": (
        lambda: model(prior=vj.StandardNormal(1)),
        "give both the same",
    ),
    "pseudo-inputs of another shape": (
        lambda: model(prior=vj.VampPrior(5, images=PSEUDO)),
        "The images of VampPrior have the shape (28, 28, 1), the model's (4, 4, 1)",
    ),
    "pseudo-inputs in colour": (
        lambda: model(prior=vj.VampPrior(5, images=np.zeros((9, 4, 4, 3), np.uint8), fixed=True)),
        "The images of VampPrior have the shape (4, 4, 3)",
    ),
    "images of another shape than the data's": (
        lambda: model(image_shape=(28, 28, 1)),
        "leave image_shape out, and the data's is taken",
    ),
    "channels first for a shape": (
        lambda: model(image_shape=(1, 4, 4)),
        "leave image_shape out, and the data's is taken",
    ),
    "a map for vectors": (
        lambda: model(decoder=vj.ConvDecoder((3, 3), None)),
        "Latents of shape (2,) do not fit a coarsest map of 2x2",
    ),
    "a map of another size": (
        lambda: model(
            encoder=CONV,
            posterior=vj.DiagonalGaussian((2, 2, 1)),
            prior=vj.StandardNormal((2, 2, 1)),
            decoder=vj.ConvDecoder((3, 3, 3), None),
        ),
        "do not fit a coarsest map of 1x1",
    ),
    "a map of features for a set": (
        lambda: model(
            encoder=CONV, posterior=vj.DiagonalGaussian((4, 1)), prior=vj.StandardNormal((4, 1))
        ),
        "take shape=(2, 2, 1), one number for a vector, or another encoder",
    ),
    "a set of vectors for another number of columns": (
        lambda: model(
            encoder=vj.VerticalEncoder(ATTENTION, 4, 2),
            posterior=vj.DiagonalGaussian((2, 1)),
            prior=vj.StandardNormal((2, 1)),
            decoder=vj.VerticalDecoder(vj.AxialAttention(1, 1), 2, 4, 1),
        ),
        "do not fit a grid of 4x4 patches",
    ),
    "features of another size than the image": (
        lambda: model(decoder=Half()),
        "take a decoder that meets the image's size",
    ),
    "a shift larger than the image": (
        lambda: experiment(augment=(vj.RandomShift(9),)),
        "RandomShift by 9 pixels does not fit images of shape (4, 4, 1)",
    ),
    "an augmentation to floats": (
        lambda: experiment(augment=(lambda image, key: image / 255,)),
        "it must keep the images' shape and bytes",
    ),
    # A user's own networks
    **{
        f"a network of the user's that fails ({fault})": (
            partial(model, encoder=Crooked(fault)),
            FITS + "encoder, a Crooked, cannot take inputs of shape (1, 4, 4, 1)",
        )
        for fault in ("name", "shape", "attribute", "twice", "else")
    },
    **{
        f"a network of the user's that returns no features ({fault})": (
            partial(model, encoder=Crooked(fault)),
            FITS + "posterior, a DiagonalGaussian, cannot take",
        )
        for fault in ("list", "none")
    },
    # A user's own parts
    "a model of the user's with nothing in it": (
        lambda: experiment(model=Empty(prior=vj.StandardNormal(2), likelihood=vj.Bernoulli())),
        "Empty is a model without posteriors, __call__, encode, decode, sample, log_prior: define",
    ),
    "a prior of the user's with nothing in it": (
        lambda: model(prior=EmptyPrior()),
        FITS + "prior, an EmptyPrior, cannot take its inputs (EmptyPrior has no __call__: define",
    ),
    # Labels
    "a prior for classes without labels": (
        lambda: model(prior=vj.ClassGaussian(8, 2)),
        "add labels=LabelEmbedding(...) to the model",
    ),
    "labels of another number of classes": (
        lambda: model(labels=vj.LabelEmbedding(10, 2)),
        "LabelEmbedding is for 10 classes, and bars has 8: set num_classes=8",
    ),
    "a prior of another number of classes": (
        lambda: model(labels=CLASSES, prior=vj.ClassGaussian(10, 2)),
        "ClassGaussian is for 10 classes, and bars has 8: set num_classes=8",
    ),
    "a conditional model of data without labels": (
        lambda: experiment(model=TINY.model.clone(labels=CLASSES), data=unlabelled()),
        "give them, as Data.from_arrays(..., labels={'train': ...}), or leave labels=",
    ),
    "a conditional model of a test split without labels": (
        lambda: experiment(model=TINY.model.clone(labels=CLASSES), data=unlabelled("train")),
        "the valid images of bars have no labels: give them",
    ),
    "a conditional model with a VampPrior": (
        lambda: model(labels=CLASSES, prior=vj.VampPrior(3)),
        "choose another prior, such as StandardNormal",
    ),
    # Critics
    "a critic whose network makes images": (
        lambda: model(critic=vj.LatentCritic(vj.ConvDecoder((3,), 4))),
        "network of LatentCritic is a ConvDecoder",
    ),
    "a critic of latents in another shape": (
        lambda: experiment(
            model=TINY.model.clone(critic=vj.LatentCritic(CONV)), objective=vj.FactorVAE(1.0)
        ),
        FITS + "critic, a LatentCritic, cannot take",
    ),
}


class Half(nn.Module):
    """A decoder to half the image's size."""

    @nn.compact
    def __call__(self, z: Any, image_shape: Any) -> Any:
        """`[N, H / 2, W / 2, 1]`."""
        height, width, _ = image_shape
        pixels = nn.Dense(height * width // 4)(z)
        return pixels.reshape(-1, height // 2, width // 2, 1)


def _of_act(act: Any, _: Path) -> None:
    act()


ROWS = [Row(name, partial(_of_act, act), said) for name, (act, said) in SITUATIONS.items()]
