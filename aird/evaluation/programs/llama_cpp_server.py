"""Run llama.cpp's own HTTP server: `python llama_cpp_server.py --model FILE --port PORT --mark MARK ...`.

Runs in the environment that has xllamacpp, which holds that server; this file imports nothing else but the standard
library. The server listens on the loopback address, and calls its model by the mark.
"""

from __future__ import annotations

import argparse
import signal
from importlib import import_module
from importlib.metadata import version
from typing import Any


def main() -> None:
    """Load the model, and serve until a signal ends the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "mark"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("port", "length", "sequences", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--adapter", help="a LoRA adapter, a GGUF file")
    parser.add_argument("--cache", help="type of the cached keys and values, by ggml's name in lower case")
    arguments = parser.parse_args()
    library: Any = import_module("xllamacpp")
    parameters = library.CommonParams()
    parameters.model.path = arguments.model
    parameters.model_alias = {arguments.mark}
    parameters.model_tags = {version("xllamacpp")}  # llama.cpp's own build number is not in the wheel
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = arguments.port
    parameters.n_parallel = arguments.sequences
    parameters.n_ctx = arguments.sequences * arguments.length
    parameters.cpuparams.n_threads = arguments.threads
    parameters.cpuparams_batch.n_threads = arguments.threads
    parameters.cors_origins = "http://127.0.0.1"  # else any page in a browser of this machine may ask
    parameters.offline = True
    parameters.ui = False
    # Else each sequence may grow into what is another's.
    parameters.kv_unified = False
    parameters.ctx_shift = False
    if arguments.cache is not None:
        kind = library.ggml_type[f"GGML_TYPE_{arguments.cache.upper()}"]
        parameters.cache_type_k, parameters.cache_type_v = kind, kind
        # Without it llama.cpp reads quantised keys only.
        parameters.flash_attn_type = library.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    if arguments.adapter is not None:
        parameters.lora_adapters = [library.CommonAdapterLoraInfo(arguments.adapter, 1.0)]
    server = library.Server(parameters)  # listens while this object lives
    print(f"listening at {server.listening_address}", flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
