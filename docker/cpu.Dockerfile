# Checks and repairs on a processor, by Transformers and llama.cpp:
#     docker build -f docker/cpu.Dockerfile -t aird .
#     docker run --rm -v "$PWD:/work" aird check original compressed --report check.html
# A mirror, or an index of PyTorch's builds for processors, is named by --build-arg PIP_EXTRA_INDEX_URL=...
FROM python:3.11-slim
ARG PIP_EXTRA_INDEX_URL=""
ARG TORCH="torch==2.13.0"
WORKDIR /opt/aird
COPY pyproject.toml README.md LICENSE ./
COPY aird aird
RUN pip install --no-cache-dir "$TORCH" .
WORKDIR /work
ENTRYPOINT ["aird"]
CMD ["--help"]
