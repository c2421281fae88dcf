# Like `dxflrs/garage`: one program at the root. Its binary is the only file of the context.
ARG BASE=inheritune-debian:bookworm
FROM ${BASE}
COPY garage /garage
CMD ["/garage", "server"]
