# rhostream with every extra, on a CPU or on CUDA:
#
#   docker build -t rhostream .
#   docker build -t rhostream:cuda --build-arg BASE=pytorch/pytorch:latest .
#   docker run --rm -u $(id -u) -v $PWD:/work rhostream train --shards data/train-*.tar --il il --run runs/rho
#
# BASE is any image with Python 3.11 or newer. One with a torch (2.10 or newer) keeps it; else TORCH_INDEX says where torch
# comes from, by default the builds for a CPU, which are a tenth as large.
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_BREAK_SYSTEM_PACKAGES=1

WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY rhostream ./rhostream
RUN python -c "import torch" 2>/dev/null || python -m pip install -c constraints.txt --index-url "${TORCH_INDEX}" torch
RUN grep -v '^torch==' constraints.txt > others.txt && python -m pip install -c others.txt '.[all]' && rhostream doctor

WORKDIR /work
USER 1000
ENTRYPOINT ["rhostream"]
CMD ["--help"]
