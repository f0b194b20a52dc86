# A CUDA image:  docker build -t vae_jax .
#                docker run --gpus all -v "$PWD/runs:/vae_jax/runs" vae_jax train quickstart
# CUDA's libraries come with JAX's wheels; the host needs NVIDIA's driver and container toolkit.
FROM python:3.13-slim
WORKDIR /vae_jax
COPY pyproject.toml README.md LICENSE source/
COPY vae_jax source/vae_jax
COPY experiments source/experiments
RUN pip install --no-cache-dir "./source[cuda,prepare]" && rm -r source
ENTRYPOINT ["vae-jax"]
