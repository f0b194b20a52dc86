# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own images
#
# From a NumPy array to a trained model: here 2,000 discs, bytes `[N, H, W, C]`.

# %%
import numpy as np

y, x = np.mgrid[:32, :32]
centre = np.random.default_rng(0).uniform(8, 24, (2000, 2, 1, 1))
inside = (y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < 36
images = np.where(inside, 230, 25).astype(np.uint8)[..., None]

# %% [markdown]
# What follows is all that it takes; the likelihood and the prior are a line each.

# %%
import optax

import vae_jax as vj

data = vj.Data.from_arrays("discs", *np.split(images, [1800, 1900]), protocol="grey")
model = vj.VAE(
    encoder=vj.MLP((256,)),
    posterior=vj.DiagonalGaussian(4),
    prior=vj.StandardNormal(4),
    decoder=vj.MLP((256,)),
    likelihood=vj.DiscretizedLogistic(),
)
optimizer = optax.adam(2e-3)
experiment = vj.Experiment(
    data=data, model=model, objective=vj.ELBO(), optimizer=optimizer, batch_size=50, num_steps=1000
)
run = vj.train(experiment, "runs/own_images")

# %%
vj.plots.reconstructions(data.test.images[:10] / 255, run.reconstruct(data.test.images[:10]))

# %%
vj.plots.interpolations(run.interpolate(data.test.images[:3], data.test.images[3:6]))

# %% [markdown]
# An array in a file, or a folder of pictures, is the data of every experiment too:
# `vae-jax train quickstart --data discs.npy`, `vae-jax train vaegan --data photos@32x32x3`.

# %%
np.save("runs/discs.npy", images)
vj.load("runs/discs.npy")
