# fot_jax with all its requirements, to train, evaluate or read in a container.
#   docker build --tag=fot_jax .                                   CPU
#   docker build --build-arg=JAX='jax[tpu]' --tag=fot_jax:tpu .    Cloud TPU (docs/pods.md)
#   docker run --rm --volume=./runs:/fot_jax/runs --volume=./data_cache:/fot_jax/data_cache fot_jax \
#       python -m launch.train --config=configs/tiny_code.py
FROM python:3.11-slim
# requirements.txt bounds its version
ARG JAX=jax
WORKDIR /fot_jax
COPY requirements.txt ./
RUN pip install --no-cache-dir 'uv>=0.5,<1' \
    && uv pip install --system --no-cache -r requirements.txt "${JAX}"
COPY fot_jax/ fot_jax/
COPY launch/ launch/
COPY configs/ configs/
CMD ["python", "-m", "launch.train", "--help"]
