# runtime and runtime-torch of deploy/Dockerfile, of programs that were built on this machine: the context is the folder that
# scripts/cluster/stage-images.sh makes, BASE is deploy/Dockerfile's target `base`. Both machines need the same release of Debian.
ARG BASE=inheritune-base:latest

FROM ${BASE} AS runtime-prebuilt
COPY bin/ /usr/local/bin/

FROM runtime-prebuilt AS runtime-torch-prebuilt
USER root
COPY torch/bin/ /usr/local/bin/
COPY torch/lib/ /opt/libtorch/lib/
RUN echo /opt/libtorch/lib > /etc/ld.so.conf.d/libtorch.conf && ldconfig
USER inheritune
