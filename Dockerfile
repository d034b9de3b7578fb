# One file, three images:
#   docker build --target vehicle -t misfire-vehicle .   scores and uploads; no torch
#   docker build --target fleet   -t misfire-fleet .     collector and console; no torch
#   docker build --target train   -t misfire-train .     trains, judges, exports, retrains
# On a Jetson, build the vehicle on NVIDIA's image, which brings TensorRT, and take the matching ONNX Runtime:
#   docker build --target vehicle --build-arg BASE=<l4t image with python3> --build-arg VEHICLE_EXTRA=gpu .
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS wheel
WORKDIR /src
RUN python3 -m venv /opt/build && /opt/build/bin/pip install --no-cache-dir --quiet build
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY runtime runtime
COPY train train
COPY export export
COPY fleet fleet
RUN PIP_CONSTRAINT=/src/constraints.txt /opt/build/bin/python -m build --wheel --outdir /wheels

# What all images share: a user without rights, a venv that it cannot write, and /data that it can.
FROM ${BASE} AS base
RUN useradd --system --uid 10001 --create-home misfire && mkdir /data && chown misfire /data \
    && python3 -m venv /opt/misfire
ENV PATH=/opt/misfire/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
COPY --from=wheel /wheels /wheels
COPY constraints.txt /wheels/
WORKDIR /data
VOLUME /data
ENTRYPOINT ["misfire"]
CMD ["--help"]

FROM base AS vehicle
ARG VEHICLE_EXTRA=cpu
RUN pip install --no-cache-dir --quiet -c /wheels/constraints.txt "$(ls /wheels/*.whl)[${VEHICLE_EXTRA},replay]" \
    && ! python3 -c 'import torch' 2>/dev/null
USER misfire
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9464/healthz', timeout=4)"]
CMD ["run", "--help"]

FROM base AS fleet
RUN pip install --no-cache-dir --quiet -c /wheels/constraints.txt "$(ls /wheels/*.whl)[fleet]" \
    && mkdir /srv/blobs && chown misfire /srv/blobs
USER misfire
CMD ["fleet", "--help"]

FROM base AS train
RUN pip install --no-cache-dir --quiet -c /wheels/constraints.txt "$(ls /wheels/*.whl)[train,export,fleet]"
USER misfire
CMD ["train", "--help"]
