# Checks and repairs on NVIDIA GPUs, with vLLM as the server and bitsandbytes for NF4 and LLM.int8:
#     docker build -f docker/cuda.Dockerfile -t aird-cuda .
#     docker run --rm --gpus all -v "$PWD:/work" aird-cuda check original compressed --report check.html
FROM python:3.11-slim
# vLLM compiles kernels when it starts.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/aird
COPY pyproject.toml README.md LICENSE ./
COPY aird aird
COPY envs/vllm-cuda.lock.txt envs/vllm-cuda.lock.txt
RUN pip install --no-cache-dir ".[bitsandbytes,tasks]"
# vLLM pins other versions of the same libraries, so it has an environment of its own.
RUN python -m venv /opt/vllm && /opt/vllm/bin/pip install --no-cache-dir --no-deps -r envs/vllm-cuda.lock.txt
ENV AIRD_VLLM_PYTHON=/opt/vllm/bin/python
WORKDIR /work
ENTRYPOINT ["aird"]
CMD ["--help"]
