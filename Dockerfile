# An image with the project installed, `rankmixer`, `torchx` and `torchrun` on PATH, for a user who is not root:
#   docker build -t rankmixer:1 .                            # CPU
#   docker build -t rankmixer:1 --build-arg DEVICE=cuda .    # CUDA: its libraries come with torch's wheels
# TORCH and pip's indexes are build arguments too; the head of the Makefile says which torch is small on a CPU.
FROM python:3.11-slim

# make installs; g++ is what torch.compile calls (model.compile).
RUN apt-get update && apt-get install --yes --no-install-recommends g++ make && rm -rf /var/lib/apt/lists/*

ARG DEVICE=cpu
ARG TORCH=torch==2.13.0
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL

WORKDIR /opt/rankmixer
COPY . .
RUN PIP_NO_CACHE_DIR=1 make venv DEVICE="$DEVICE" TORCH="$TORCH" PYTHON=python3.11
ENV PATH=/opt/rankmixer/.venv/bin:$PATH

RUN useradd --create-home rankmixer
USER rankmixer
WORKDIR /home/rankmixer
CMD ["rankmixer", "--help"]
