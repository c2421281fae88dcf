# Like `rust`, with the toolchain of the build machine, because Debian's is too old. The context
# contains the toolchain and the certificates that the build machine trusts.
ARG BASE=inheritune-debian:bookworm
FROM ${BASE}
RUN apt-get update -q \
 && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends g++ make python3 python3-pip \
 && rm -rf /var/lib/apt/lists/*
COPY ca-certificates.crt /etc/ssl/certs/
COPY toolchain/ /usr/local/
