"""`aird export`: write a patch in the format of another program."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aird.commands.evaluate import check_adapter
from aird.commands.inputs import open_model_folder
from aird.settings.sources import read_hub_name

SUMMARY = "write a patch for llama.cpp: a GGUF LoRA"
DESCRIPTION = """\
Write a patch as a GGUF file that llama.cpp, and what is built on it, loads beside the GGUF model that it repairs.

Every matrix that the patch edits is looked for in the GGUF model. It must be there under llama.cpp's name, with the
same numbers in the same order as in its decoded form; otherwise nothing is written."""
EPILOG = """\
examples:
  aird patch original model-Q4_K_M.gguf --harmful harmful.txt --harmless harmless.txt --output adapter
  aird export --gguf adapter adapter.gguf
  llama-server -m model-Q4_K_M.gguf --lora adapter.gguf
  aird export --gguf --merged adapter model-repaired.gguf
      (one file, for Ollama and LM Studio: edited matrices are stored in 16 bits, all others stay as they are)
  aird export --gguf adapter adapter.gguf --base model-Q8_0.gguf
      (the patch was made for another form of the model: measure it on this one)

files:
  adapter.gguf   general.type "adapter", adapter.type "lora"; two tensors of a few KB for each edited matrix

common errors:
  "holds no GGUF file": the patch was made for another format; name the GGUF model with --base"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("patch", type=Path, help="the adapter folder that `aird patch` wrote")
    parser.add_argument("output", type=Path, help="the file to write; an earlier export is replaced")
    parser.add_argument("--gguf", action="store_true", required=True, help="as a GGUF LoRA (the only format so far)")
    parser.add_argument(
        "--merged", action="store_true", help="write the whole model with the patch in it, for programs without LoRA"
    )
    parser.add_argument("--base", metavar="MODEL", help="the GGUF model (default: what the patch was made for)")


def _made_for(configuration: Mapping[str, Any]) -> str | None:
    """Return what an adapter was made for, at its commit if that is one of the hub."""
    base, revision = configuration.get("base_model_name_or_path"), configuration.get("revision")
    hub = read_hub_name(base) if base and revision else None
    if hub is None:
        return base
    return f"{hub.repository}@{revision}" + (f":{hub.file}" if hub.file else "")


def _check_output(output: Path, kind: str) -> None:
    """Check that nothing but an earlier export stands where the file is to be written; a model is never replaced.

    Raises:
        ValueError: something else does, such as the model itself.
    """
    import gguf

    from aird.models.gguf_file import KIND

    if not output.exists():
        return
    try:
        known = gguf.GGUFReader(output).get_field(KIND)
    except Exception:  # a folder, another file, or a damaged one: the reader raises whatever that leads to
        known = None
    if kind == "model" or known is None or known.contents() != "adapter":
        raise ValueError(f"OUTPUT: {output} exists already and is no exported patch; it would be lost: name a new file")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from aird.models.gguf_file import read_gguf, served_gguf
    from aird.patching.gguf_adapter import write_gguf_adapter
    from aird.patching.gguf_merge import write_merged_gguf
    from aird.support.files import read_json

    check_adapter("PATCH", arguments.patch)
    _check_output(arguments.output, "model" if arguments.merged else "adapter")
    base = arguments.base or _made_for(read_json(arguments.patch / "adapter_config.json"))
    if not base:
        raise ValueError(f"{arguments.patch} does not say what it was made for; name the GGUF model with --base")
    model = open_model_folder(base, arguments.trust_remote_code, asked=False)
    file = served_gguf(model.folder)
    if file is None:
        raise ValueError(f"{base} holds no GGUF file, which llama.cpp needs; name the GGUF model with --base")
    write = write_merged_gguf if arguments.merged else write_gguf_adapter
    modules = write(arguments.patch, model.folder, read_gguf(file), arguments.output)
    print(f"  edits           {', '.join(modules[:4])}{' ...' if len(modules) > 4 else ''}")
    print(f"  written to      {arguments.output}")
    served = model.source if model.source.is_file() else file
    use = str(arguments.output) if arguments.merged else f"{served} --lora {arguments.output}"
    print(f"  use it          llama-server -m {use}")
