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
# # Swap the prior, swap the likelihood
#
# One part at a time, in one line each; everything else stays.

# %%
import dataclasses

import optax

import vae_jax as vj

model = vj.VAE(
    encoder=vj.MLP((200,)),
    posterior=vj.DiagonalGaussian(10),
    prior=vj.StandardNormal(10),
    decoder=vj.MLP((200,)),
    likelihood=vj.Bernoulli(),
)
base = vj.Experiment(
    data=vj.load("mnist_5k"),
    model=model,
    objective=vj.ELBO(),
    optimizer=optax.adam(1e-3),
    batch_size=100,
    num_steps=600,
)

# %% [markdown]
# Another prior: a mixture of what the encoder makes of 100 learned images (Tomczak & Welling 2018).

# %%
vamp = dataclasses.replace(base, model=model.clone(prior=vj.VampPrior(100)))

# %% [markdown]
# Another likelihood: logistics over the 256 grey levels, and data that keep them.

# %%
grey = dataclasses.replace(
    base, data=vj.load("mnist_5k", "grey"), model=model.clone(likelihood=vj.DiscretizedLogistic())
)

# %% [markdown]
# Another objective: ten samples for each image, weighted by their importance (Burda et al. 2015).

# %%
iwae = dataclasses.replace(base, objective=vj.IWAE(10))

# %%
experiments = {"base": base, "VampPrior": vamp, "grey levels": grey, "IWAE": iwae}
runs = {name: vj.train(each, f"runs/swap/{name}") for name, each in experiments.items()}
for name, run in runs.items():
    result = vj.evaluate(run, num_samples=50)
    nll, error = result.mean["nll"][0], result.standard_error["nll"][0]
    print(f"{name:12} NLL {nll:8.2f} ± {error:.2f} nats")

# %% [markdown]
# 600 steps are few, and the VampPrior, which learns more, needs longer. The nats of grey levels are
# those of other data, 256 values a pixel instead of two, and no number beside the others. What does not fit together is refused before training, with a way out:

# %%
try:
    dataclasses.replace(base, model=model.clone(likelihood=vj.CategoricalPixels()))
except vj.VaeJaxError as error:
    print(error)

# %%
samples = {name: run.sample(36) for name, run in runs.items()}
vj.plots.sample_panels(samples)
