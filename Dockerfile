# The service without training, and (--target loadtest) its load test: see docs/image.md.

# Any image with glibc and either python3 (3.11 to 3.13) or apt-get, which installs it.
# For ENGINE=gpu it must have CUDA 13 and cuDNN 9, unless EXTRAS names cuda.
ARG BASE_IMAGE=python:3.11-slim-bookworm
# cpu or gpu.
ARG ENGINE=cpu
# Any of tracing, grpc, signing and cuda (the libraries that ENGINE=gpu loads, 1.5 GB), such as "tracing grpc", or empty.
ARG EXTRAS=tracing
# baked: the image holds models/. mounted: /models is empty, for a volume.
ARG MODELS=baked

FROM ${BASE_IMAGE} AS base
# The distribution's release sets the version of Python; CUDA's images have none.
# hadolint ignore=DL3008
RUN command -v python3 \
    || { apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*; }

FROM base AS builder
# hadolint ignore=DL3008
RUN python3 -c "import ensurepip" \
    || { apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*; }
RUN python3 -m venv /opt/build && python3 -m venv --without-pip /opt/venv
WORKDIR /src

# The two secrets are optional, for networks that have their own index or certificate authority.
FROM builder AS dependencies
ARG ENGINE
ARG EXTRAS
COPY requirements/${ENGINE}.txt requirements/tracing.txt requirements/grpc.txt requirements/signing.txt \
    requirements/cuda.txt ./
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca-certificates,target=/etc/ssl/certs/ca-certificates.crt \
    for lock in "${ENGINE}" ${EXTRAS}; do set -- "$@" --requirement "${lock}.txt"; done \
    && /opt/build/bin/pip --python /opt/venv/bin/python install --report /opt/build/report.json \
    --no-cache-dir --only-binary :all: --require-hashes "$@"
# Remove what the service never loads, 60 of 222 MB: tests, onnxruntime's tools and its C library, which the Python module
# does not use.
RUN find /opt/venv/lib \( -name tests -o -name "libonnxruntime.so.*" -o -path "*/onnxruntime/tools" \
    -o -path "*/onnxruntime/transformers" -o -path "*/onnxruntime/quantization" \) -prune -exec rm -r {} +

FROM builder AS loadtest-dependencies
COPY requirements/loadtest.txt ./
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca-certificates,target=/etc/ssl/certs/ca-certificates.crt \
    /opt/build/bin/pip --python /opt/venv/bin/python install \
    --no-cache-dir --only-binary :all: --require-hashes --requirement loadtest.txt
RUN find /opt/venv/lib -name tests -prune -exec rm -r {} +

FROM builder AS project
COPY requirements/build.txt requirements/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca-certificates,target=/etc/ssl/certs/ca-certificates.crt \
    /opt/build/bin/pip install \
    --no-cache-dir --only-binary :all: --require-hashes --requirement requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY service service
# Separate from the dependencies, so that a change of the code changes only a small layer.
RUN /opt/build/bin/pip install --no-cache-dir --no-deps --no-index --no-build-isolation \
    --target /opt/inkserve .

FROM base AS models-mounted
RUN mkdir /models

FROM scratch AS models-baked
COPY models /models

# hadolint ignore=DL3006
FROM models-${MODELS} AS models

# What the service's image holds, with the hashes of the archives that pip installed.
FROM dependencies AS sbom
COPY requirements/sbom.txt ./
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca-certificates,target=/etc/ssl/certs/ca-certificates.crt \
    /opt/build/bin/pip install \
    --no-cache-dir --only-binary :all: --require-hashes --requirement sbom.txt
COPY .ci/sbom.py ./
COPY --from=models /models /models
COPY --from=project /opt/inkserve /opt/inkserve
RUN /opt/build/bin/python sbom.py /opt/venv/lib/python3*/site-packages /opt/inkserve \
    --report /opt/build/report.json --models /models --output /opt/inkserve.cdx.json

FROM base AS loadtest
LABEL org.opencontainers.image.title="inkserve-loadtest" \
    org.opencontainers.image.description="Load for inkserve: locust, real digits, checked answers" \
    org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/venv/bin:${PATH} \
    LOCUST_LOCUSTFILE=/opt/loadtest/loadtests/locustfile.py
COPY --from=loadtest-dependencies /opt/venv /opt/venv
COPY tests/digits/digits.raw tests/digits/*.png /opt/loadtest/tests/digits/
COPY loadtests/locustfile.py /opt/loadtest/loadtests/
USER 65532:65532
WORKDIR /opt/loadtest
ENTRYPOINT ["locust"]

FROM base AS service-cpu
ENV INKSERVE_PROVIDER=cpu

FROM base AS service-gpu
ENV INKSERVE_PROVIDER=cuda

# hadolint ignore=DL3006
FROM service-${ENGINE} AS service
# Switches off onnxruntime's usage reports, for which it would keep a database in the home folder.
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONPATH=/opt/inkserve \
    PYTHONSAFEPATH=1 \
    ORT_DISABLE_TELEMETRY=1 \
    INKSERVE_HOST=0.0.0.0 \
    INKSERVE_PORT=8000 \
    INKSERVE_MODELS_DIR=/models
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=models /models /models
COPY --from=project /opt/inkserve /opt/inkserve
COPY --from=sbom /opt/inkserve.cdx.json /opt/inkserve/
# A number, because Kubernetes' runAsNonRoot cannot check a name. The user need not exist.
USER 65532:65532
WORKDIR /opt/inkserve
EXPOSE 8000
STOPSIGNAL SIGTERM
# Liveness, not readiness: an orchestrator replaces an unhealthy container, and must not replace one that drains.
# The port opens only after every model is warm, so the first success also means ready.
# Over TLS it verifies nothing, and needs INKSERVE_SSL_CLIENT_AUTH to be off, optional or required-except-probes.
# http.client instead of urllib, because urllib would use HTTP_PROXY for the loopback address.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["python3", "-c", "\
import http.client, os, ssl; \
at = '127.0.0.1', int(os.environ['INKSERVE_PORT']); \
c = http.client.HTTPSConnection(*at, timeout=2, context=ssl._create_unverified_context()) \
if os.environ.get('INKSERVE_SSL_CERTFILE') else http.client.HTTPConnection(*at, timeout=2); \
c.request('GET', '/v2/health/live'); \
assert c.getresponse().status == 200"]
# SIGHUP reloads the models. Ignored until Python has a handler, it cannot kill a process that is starting: PID 1 is
# safe from it anyway, but not a process below --init or in a shared PID namespace.
ENTRYPOINT ["env", "--ignore-signal=HUP", "python3", "-m", "service"]
# Last, so that a new revision rebuilds no layer.
ARG VERSION=0.2.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="inkserve" \
    org.opencontainers.image.description="MNIST generators and classifiers over HTTP, batched across requests" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
