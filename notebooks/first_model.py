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
# # A first model
#
# A variational autoencoder on 5,000 digits: trained, measured, looked at. A minute on two cores.

# %%
import optax

import vae_jax as vj

data = vj.load("mnist_5k")
data

# %% [markdown]
# A model is *encoder × posterior × prior × decoder × likelihood*, each a constructor.

# %%
model = vj.VAE(
    encoder=vj.MLP((400,)),
    posterior=vj.DiagonalGaussian(20),
    prior=vj.StandardNormal(20),
    decoder=vj.MLP((400,)),
    likelihood=vj.Bernoulli(),
)
experiment = vj.Experiment(
    data=data,
    model=model,
    objective=vj.ELBO(),
    optimizer=optax.adam(1e-3),
    batch_size=100,
    num_steps=1000,
)

# %% [markdown]
# Training writes a run folder. Run this cell again: it goes on where it was stopped, or says that it
# is finished.

# %%
run = vj.train(experiment, "runs/first_model")
run

# %% [markdown]
# The negative log-likelihood of the test images, bounded with K = 100 samples, in nats and with its
# standard error; and what the other numbers are.

# %%
result = vj.evaluate(run, num_samples=100)
result

# %% [markdown]
# A figure as the value of a cell shows itself; `vj.plots.save` writes it as .png, .pdf or .svg.

# %%
curves = {"train": run.metric("neg_elbo"), "valid": run.metric("valid_neg_elbo")}
vj.plots.learning_curves(curves, ylabel="negative ELBO [nats per image]")

# %%
vj.plots.image_grid(run.sample(60), columns=15)

# %% [markdown]
# All of this on one page, with the standard figures as files beside it.

# %%
vj.report_on(run, evaluation=result)

# %% [markdown]
# Images to latents and back, as NumPy arrays.

# %%
images = data.test.images[:10]
q = run.encode(images)
vj.plots.reconstructions(images / 255, run.decode(q.mean))
