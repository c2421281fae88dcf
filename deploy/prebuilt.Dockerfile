# The images runtime and runtime-torch of deploy/Dockerfile, from programs that were built on this
# machine. The context is the folder that scripts/cluster/stage-images.sh creates. BASE is the target `base`
# of deploy/Dockerfile. This machine and BASE must use the same Debian release.
ARG BASE=inheritune-base:latest

FROM ${BASE} AS runtime-prebuilt
COPY bin/ /usr/local/bin/

FROM runtime-prebuilt AS runtime-torch-prebuilt
USER root
COPY torch/bin/ /usr/local/bin/
COPY torch/lib/ /opt/libtorch/lib/
RUN echo /opt/libtorch/lib > /etc/ld.so.conf.d/libtorch.conf && ldconfig
USER inheritune
