# `metricgold serve` on the CPU: no torch. Build from the repository's root, after an export:
#
#   docker build -f docker/serve.Dockerfile -t metricgold-serve .
#   docker run --rm -p 127.0.0.1:8000:8000 -e METRICGOLD_SERVE_TOKEN --read-only --tmpfs /tmp \
#       -v "$PWD/artifacts/onnx:/model:ro" metricgold-serve
#
# METRICGOLD_SERVE_TOKEN must be set in the environment: inside the container the service listens
# on all addresses, and refuses to without a token.
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 ORT_DISABLE_TELEMETRY=1
WORKDIR /opt/metricgold

# What the service needs first, so that a change of the code does not install it again.
COPY pyproject.toml ./
COPY requirements/lock.txt requirements/lock.txt
RUN mkdir -p metricgold && printf '__version__ = "0"\n' > metricgold/__init__.py \
    && pip install -c requirements/lock.txt ".[serve,cpu]" && pip uninstall -y metricgold \
    && rm -rf metricgold build
COPY metricgold metricgold
COPY export export
RUN pip install --no-deps . && rm -rf build && useradd --system --no-create-home serve
USER serve
WORKDIR /tmp

EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 CMD ["python", "-c", \
    "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["metricgold", "serve", "--model", "/model", "--host", "0.0.0.0", "--port", "8000"]
