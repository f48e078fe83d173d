# The application: the worker unless the arguments say otherwise (any `python -m app` command runs here).
# Training on a GPU needs the libraries that [tool.uv] exclude-dependencies leaves out: this image is for CPUs.

FROM python:3.11-slim-bookworm AS environment
WORKDIR /srv/streamforge
COPY pyproject.toml requirements.lock ./
# What the application needs and nothing of the dev group; versions and hashes are those of the lock.
RUN python -m venv .venv \
    && sed -n '/^uv==/,/[^\\]$/p' requirements.lock > uv.txt \
    && pip install --no-cache-dir --require-hashes --no-deps -r uv.txt \
    && uv pip install --no-cache --compile-bytecode --python .venv/bin/python \
        -r pyproject.toml --constraints requirements.lock

FROM node:22-bookworm-slim AS dashboard
WORKDIR /srv/dashboard
COPY dashboard ./
RUN npm ci && npm run build -- --outDir /srv/built

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="StreamForge" \
      org.opencontainers.image.licenses="MIT"
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /srv/streamforge --shell /usr/sbin/nologin streamforge \
    && install -d -o 10001 -g 10001 /srv/streamforge/var
# Not /app: there, `import app` would find the folder and not the package.
WORKDIR /srv/streamforge
COPY --from=environment /srv/streamforge/.venv .venv
COPY pyproject.toml LICENSE ./
COPY app app
COPY --from=dashboard /srv/built app/web/static/dashboard
COPY adapters adapters
COPY agents agents
COPY tables tables
COPY models models
ENV PATH=/srv/streamforge/.venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    DATA_DIR=/srv/streamforge/var
USER 10001:10001
VOLUME /srv/streamforge/var
EXPOSE 6066
# The worker listens on loopback unless WEB_BIND says otherwise, and then it wants an API_TOKEN.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:6066/health/live', timeout=4)"]
CMD ["python", "-m", "app", "worker"]
