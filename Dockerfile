# resdet in a container, on a GPU or a CPU. docs/INSTALL.md says how to build and run it.
#
#   TORCH_INDEX: index of torch's CPU builds, for an image without CUDA. Empty: PyPI's builds, which
#                bring CUDA along and run on a CPU, too.
#   EXTRAS:      the extras to install.
ARG BASE=python:3.12-slim

FROM ${BASE} AS wheel
WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE ./
COPY engine engine
COPY backbones backbones
COPY detection detection
COPY configs configs
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM ${BASE}
ARG TORCH_INDEX=
ARG EXTRAS=export,fast
# Triton's kernels on a GPU and loop.compile build C++ code when they run.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
# Both from one index: a CPU build of torch cannot load PyPI's torchvision.
RUN if [ -n "${TORCH_INDEX}" ]; then \
        pip install --no-cache-dir --index-url "${TORCH_INDEX}" "torch>=2.11" "torchvision>=0.26"; \
    fi
COPY --from=wheel /dist /dist
RUN pip install --no-cache-dir "$(ls /dist/*.whl)[${EXTRAS}]"
# `docker run --user` may give any user id: caches go where every user may write.
ENV HOME=/tmp USER=resdet
RUN useradd --uid 1000 resdet && mkdir --mode 1777 /work
USER resdet
WORKDIR /work
ENTRYPOINT ["resdet"]
CMD ["--help"]
