# What CI runs, on a bare machine: docker build --file docker/ci.Dockerfile --tag reptrt-ci .
FROM python:3.12.11-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home reptrt
USER reptrt
RUN mkdir /home/reptrt/src
WORKDIR /home/reptrt/src
COPY --chown=reptrt . .
CMD [".ci/run"]
