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
# # Many devices
#
# The same code uses every device at hand. A CPU can pretend to have several, which has to be said
# before JAX starts; on GPUs and TPUs leave this cell out.

# %%
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

# %%
import jax
import optax

import vae_jax as vj

jax.devices()

# %% [markdown]
# A batch is split among the devices. Each example's noise depends on the seed, the step and its
# position in the whole batch, so that one device and two compute the same gradients.

# %%
model = vj.VAE(
    encoder=vj.MLP((100,)),
    posterior=vj.DiagonalGaussian(8),
    prior=vj.StandardNormal(8),
    decoder=vj.MLP((100,)),
    likelihood=vj.Bernoulli(),
)
experiment = vj.Experiment(
    data=vj.load("mnist_5k"),
    model=model,
    objective=vj.ELBO(),
    optimizer=optax.adam(1e-3),
    batch_size=100,
    num_steps=300,
)
run = vj.train(experiment, "runs/many_devices")
run

# %% [markdown]
# Several seeds are replicas of one program, a device for each where there are enough.

# %%
seeds = vj.train(experiment, "runs/many_seeds", num_seeds=2)
vj.evaluate(seeds, num_samples=20)

# %%
vj.plots.learning_curves({"valid": seeds.metric("valid_neg_elbo")})

# %% [markdown]
# Several processes, as under Slurm or on a TPU pod, are given the same command with `--distributed`;
# see the page on many devices.
