# A CUDA image:  docker build -t vae_jax .
#                docker run --gpus all -v "$PWD/runs:/work/runs" vae_jax train quickstart
# CUDA's libraries come with JAX's wheels; the host needs NVIDIA's driver and container toolkit.
FROM python:3.13-slim
WORKDIR /work
COPY pyproject.toml README.md LICENSE /src/
COPY vae_jax /src/vae_jax
COPY experiments /src/experiments
RUN pip install --no-cache-dir "/src[cuda,prepare]" && rm -r /src
ENTRYPOINT ["vae-jax"]
