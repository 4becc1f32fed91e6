# The service alone: no compiler, no pip, no tests, no embedded PostgreSQL. Settings come from the environment
# (.env.example); without API_KEYS, JWT_ISSUER or AUTH=off it does not start, since it listens on every address.
# The base is a Debian that brings Python >= 3.11 with venv, and ca-certificates.
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
RUN apt-get update && apt-get install --yes --no-install-recommends binutils
# The service gets an environment without pip; what installs into it and makes its wheel lies in another one.
RUN python3 -m venv --without-pip /opt/users-api && python3 -m venv /opt/build
WORKDIR /build
# Another index than PyPI. It stays in the history of this stage: no password belongs in it.
ARG PIP_INDEX_URL
COPY requirements-build.lock requirements.lock ./
RUN /opt/build/bin/pip install --no-cache-dir --require-hashes --requirement requirements-build.lock
RUN /opt/build/bin/pip --python /opt/users-api/bin/python install --no-cache-dir --no-compile --require-hashes \
    --requirement requirements.lock
# Swagger UI's files come in a package for Flask, of whose code nothing runs here.
RUN /opt/build/bin/pip --python /opt/users-api/bin/python uninstall --yes \
    flask werkzeug jinja2 markupsafe itsdangerous blinker
# What only a debugger or a compiler wants is most of some extensions. psycopg's stay as they are: they have been patched to
# find the libraries beside them, which strip may break.
RUN cd /opt/users-api/lib/python3*/site-packages && rm -r yoyo/tests && \
    find . -name '*.so' -not -path './psycopg*' -exec strip --strip-unneeded {} + && \
    find . \( -name '*.py[xi]' -o -name '*.px[di]' \) -delete
COPY pyproject.toml README.md LICENSE ./
COPY api api
COPY sql sql
COPY migrations migrations
# Compiled here, since nothing that a start compiles could be kept; and not for files of a certain date, which is what pip
# does: in an image a date is rounded.
RUN /opt/build/bin/python -m hatchling build --target wheel --directory dist && \
    /opt/build/bin/pip --python /opt/users-api/bin/python install --no-cache-dir --no-compile --no-deps dist/*.whl && \
    python3 -m compileall -q --invalidation-mode unchecked-hash /opt/users-api/lib

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/users-api /opt/users-api
ENV PATH=/opt/users-api/bin:$PATH PYTHONUNBUFFERED=1
# A number, by which Kubernetes sees that it is not root. Any other does as well: no file is written, no name looked up.
USER 10001:10001
EXPOSE 8000
# Without site-packages and with two modules it takes 15 ms of a core; a command of the service would take 300.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python3", "-ISc", "\
import os, socket; \
s = socket.create_connection((b'localhost', int(os.getenv('PORT') or 8000)), 2); \
s.sendall(b'GET /health HTTP/1.0\\r\\n\\r\\n'); \
raise SystemExit(not s.recv(15).startswith(b'HTTP/1.1 200'))"]
ENTRYPOINT ["users-api"]
CMD ["serve", "--host", "0.0.0.0"]
