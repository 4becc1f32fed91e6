# The service alone: no compiler, no pip, no tests, no embedded PostgreSQL. Settings come from the environment
# (.env.example); without API_KEYS, JWT_ISSUER or AUTH=off it does not start, since it listens on every address.
# The base is a Debian that brings Python >= 3.11 with venv, and ca-certificates. A digest fixes it, and so the result:
# --build-arg PYTHON_IMAGE=python:3.13-slim@sha256:...
ARG PYTHON_IMAGE=python:3.13-slim

# Nothing of this stage remains but /opt/users-api, so its steps stay apart: each is cached, and has its reason above it.
# hadolint global ignore=DL3059
FROM ${PYTHON_IMAGE} AS build
# Without a version, since a Debian's mirror keeps the newest alone: a build with an older one would fail some day.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends binutils && rm -rf /var/lib/apt/lists/*
# The service gets an environment without pip; what installs into it and makes its wheel lies in another one.
RUN python3 -m venv --without-pip /opt/users-api && python3 -m venv /opt/build
WORKDIR /build
# Another index than PyPI. It stays in the history of this stage: no password belongs in it.
ARG PIP_INDEX_URL
COPY requirements-build.lock requirements.lock ./
RUN /opt/build/bin/pip install --no-cache-dir --no-compile --no-deps --require-hashes \
    --requirement requirements-build.lock
# The lock is the whole: Swagger UI's files come in a package for Flask, which would install that.
RUN /opt/build/bin/pip --python /opt/users-api/bin/python install --no-cache-dir --no-compile --no-deps --require-hashes \
    --requirement requirements.lock
# What only a debugger or a compiler wants is most of some extensions. psycopg's stay as they are: they have been patched to
# find the libraries beside them, which strip may break.
RUN rm -r /opt/users-api/lib/python3*/site-packages/yoyo/tests && \
    find /opt/users-api/lib -name '*.so' -not -path '*/site-packages/psycopg*' -exec strip --strip-unneeded {} + && \
    find /opt/users-api/lib \( -name '*.py[xi]' -o -name '*.px[di]' \) -delete
COPY pyproject.toml README.md LICENSE ./
COPY api api
COPY sql sql
COPY migrations migrations
# Compiled here, since nothing that a start compiles could be kept; and not for files of a certain date, which is what pip
# does: in an image a date is rounded.
RUN /opt/build/bin/python -m hatchling build --target wheel --directory dist && \
    /opt/build/bin/pip --python /opt/users-api/bin/python install --no-cache-dir --no-compile --no-deps dist/*.whl && \
    python3 -m compileall -q --invalidation-mode unchecked-hash /opt/users-api/lib
# The bill of materials: every package of the environment, as it is installed. Without a time and a random number.
RUN /opt/build/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
    --output-file /opt/users-api/sbom.cdx.json /opt/users-api/bin/python

FROM ${PYTHON_IMAGE}
ARG PYTHON_IMAGE
# What depends on the checkout is added by .ci/image and docker-bake.hcl: its revision, and where it is published.
# There is no label for the time: the image itself has one, which SOURCE_DATE_EPOCH sets.
LABEL org.opencontainers.image.title="users-api" \
      org.opencontainers.image.description="A users API on Neon Postgres: raw SQL, no ORM, one statement for an ordinary request." \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}"
COPY --from=build /opt/users-api /opt/users-api
ENV PATH=/opt/users-api/bin:$PATH PYTHONUNBUFFERED=1
# A number, by which Kubernetes sees that it is not root. Any other does as well: no file is written, no name looked up.
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Without site-packages and with two modules it takes 15 ms of a core; a command of the service would take 300.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python3", "-ISc", "\
import os, socket; \
s = socket.create_connection((b'localhost', int(os.getenv('PORT') or 8000)), 2); \
s.sendall(b'GET /health HTTP/1.0\\r\\n\\r\\n'); \
raise SystemExit(not s.recv(15).startswith(b'HTTP/1.1 200'))"]
ENTRYPOINT ["users-api"]
CMD ["serve", "--host", "0.0.0.0"]
