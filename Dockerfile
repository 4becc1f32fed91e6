# The service alone: no compiler, no tests, no embedded PostgreSQL. Settings come from the environment (.env.example);
# without API_KEYS, JWT_ISSUER or AUTH=off it does not start, since it listens on every address.
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
WORKDIR /build
RUN python3 -m venv /opt/users-api
COPY requirements.lock .
RUN /opt/users-api/bin/pip install --no-cache-dir --require-hashes --requirement requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY api api
COPY sql sql
COPY migrations migrations
RUN /opt/users-api/bin/pip install --no-cache-dir --no-deps .

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/users-api /opt/users-api
ENV PATH=/opt/users-api/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
EXPOSE 8000
ENTRYPOINT ["users-api"]
CMD ["serve", "--host", "0.0.0.0"]
