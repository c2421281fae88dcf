# As `rust`, with the toolchain of the machine that builds, Debian's own is too old. Both that and
# the certificates of those whom it trusts are given as context.
ARG BASE=inheritune-debian:bookworm
FROM ${BASE}
RUN apt-get update -q \
 && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends g++ make python3 python3-pip \
 && rm -rf /var/lib/apt/lists/*
COPY ca-certificates.crt /etc/ssl/certs/
COPY toolchain/ /usr/local/
