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
from vae_jax.evaluation.table import of_folders
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

# %%
from vae_jax import report

for run in runs.values():
    result = vj.evaluate(run, num_samples=64)
    report.record(run, result, seconds=0.0)
table = of_folders(
    [run.folder.path for run in runs.values()], rows="objective", columns="k", quantity="nll"
)
print(table.markdown())

# %%
print(table.latex())

# %% [markdown]
# On the command line the same is
#
#     vae-jax train miwae --objective elbo iwae --m 1 --k 1 8 \
#         --data mnist_5k --epochs 5 --workdir runs/t
#     vae-jax evaluate runs/t --num-samples 64
#     vae-jax table runs/t --rows objective --columns k --out table.tex

# %%
bounds = {f"{name}": run.metric("valid_neg_elbo") for name, run in runs.items()}
vj.plots.save(vj.plots.learning_curves(bounds), Path("runs/papers_table/bounds.pdf"))
