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
# # A paper's table
#
# Rainforth et al. (2018) and Burda et al. (2015) in small: bounds with more samples, their cells as a
# grid of the experiment `miwae`, its table as the command `vae-jax table` writes it.

# %%
from pathlib import Path

import vae_jax as vj
from vae_jax.experiment import find_file

cells = [
    {"objective": objective, "m": 1, "k": k, "data": "mnist_5k", "epochs": 5}
    for objective in ("elbo", "iwae")
    for k in (1, 8)
]
runs = vj.train_grid(find_file("miwae"), "runs/papers_table", cells)

# %% [markdown]
# Each cell is the run that would be made alone, and has a folder of its own.

# %%
list(runs)

# %% [markdown]
# What follows are commands, here called from Python: `vae-jax evaluate runs/papers_table
# --num-samples 64`, and so on. 5 epochs are few: the published order shows later.

# %%
from vae_jax.cli import main

main(["evaluate", "runs/papers_table", "--num-samples", "64"])

# %%
by = ["--rows", "objective", "--columns", "k"]
main(["table", "runs/papers_table", *by, "--out", "runs/table.tex"])

# %%
print(Path("runs/table.tex").read_text())

# %%
main(["compare", "runs/papers_table"])

# %%
bounds = {name: run.metric("valid_neg_elbo") for name, run in runs.items()}
vj.plots.save(vj.plots.learning_curves(bounds), Path("runs/papers_table/bounds.pdf"))
