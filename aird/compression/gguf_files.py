"""Write a checkpoint as a GGUF file, converted and quantised by llama.cpp's own code.

1. Find out how the tokenizer is written so that llama.cpp splits text as Transformers does: the converter's own way,
   else byte-level BPE with one of the usual pre-tokenizers. The converter knows tokenizers by a hash, and writes some
   that it does not know in a way that llama.cpp cannot load.
2. Convert without loss, and quantise.
3. Decode what was written, for all that reads weights, and compare it with the original.

The converter runs in this project's Python; the quantiser and llama.cpp's tokenizers in an environment of their own
(`envs/gguf.lock.txt`), where the converter lies as well.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypedDict

import torch

from aird.compression.given_tokenizer import PROBES
from aird.compression.programs import gguf_converter, gguf_quantiser
from aird.models.checkpoint import Checkpoint, read_checkpoint
from aird.models.generation_settings import ends_of_text
from aird.models.gguf_file import MODEL_FILE, read_gguf
from aird.models.gguf_import import dequantise_gguf_weights
from aird.models.loading import configuration_of, load_tokenizer, stored_dtype
from aird.prompts.chat import render
from aird.support.files import write_json

# Of byte-level BPE, where the converter does not know the tokenizer: llama.cpp's names.
PRE_TOKENIZERS = ("gpt-2", "llama-bpe", "qwen2", "smollm")
UNQUANTISED = {torch.bfloat16: "MOSTLY_BF16", torch.float16: "MOSTLY_F16", torch.float32: "ALL_F32"}
# Of one tensor. Two bits lose a third; rows or columns in another order, more than the matrix itself.
LARGEST_ERROR = 0.6
LOG_TAIL_LINES = 12


class Described(TypedDict):
    """Versions of llama.cpp, its binding and its converter, and the folder of an environment's packages."""

    versions: dict[str, str]
    packages: str


@functools.cache
def describe_environment(python: Path) -> Described:
    """Return what an environment holds; check that it can be imported.

    Raises:
        RuntimeError: they cannot be imported; the message has the last lines of the output.
    """
    found: Described = json.loads(_quantiser(python, "describe")[-1])
    return found


def write_gguf(source: Checkpoint, output: Path, type_: str | None, python: Path) -> None:
    """Write a checkpoint as a GGUF file (`model.gguf`) and as the dense weights that this file holds.

    Args:
        source: the checkpoint.
        output: an existing folder.
        type_: llama.cpp's name of the mixture of types, such as "Q4_K_M"; None quantises nothing.
        python: the interpreter of an environment with cyllama and the converter.

    Raises:
        RuntimeError: a program of llama.cpp failed.
        ValueError: the converter does not know the architecture, llama.cpp has no tokenizer that splits text as the
            model's does, no matrix could take the type, or the weights that come back are not the original's.
    """
    target = output / MODEL_FILE
    with TemporaryDirectory(prefix=".gguf.", dir=output) as name:
        scratch = Path(name)
        pre_tokenizer = _find_pre_tokenizer(source.folder, scratch, python)
        whole = scratch / "whole.gguf"
        failure = _convert(source.folder, scratch, python, {whole: pre_tokenizer}).get(str(whole))
        if failure is not None:
            raise ValueError(f"{source.folder} cannot be converted to GGUF: {failure}")
        if type_ is None:
            whole.replace(target)
        else:
            threads = os.environ.get("OMP_NUM_THREADS") or str(len(os.sched_getaffinity(0)))
            _quantiser(python, "quantise", whole, target, type_, threads)
    dequantise_gguf_weights(target, output, stored_dtype(source.folder), configuration_of(source.folder))
    _check_decoded(read_weights(output, source), source)
    if type_ is not None:
        _check_types(target, type_)


def _find_pre_tokenizer(source: Path, scratch: Path, python: Path) -> str:
    """Return the pre-tokenizer to note, "" for the converter's own choice, with which llama.cpp reads text rightly.

    Raises:
        ValueError: there is none.
    """
    tokenizer = load_tokenizer(source)
    conversation = [{"role": "user", "content": PROBES[0]}]
    texts = [*PROBES, render(tokenizer, conversation, True)]
    wanted = {
        "tokens": [tokenizer(text, add_special_tokens=False).input_ids for text in texts],
        "texts": texts,
        "ends": ends_of_text(source),
    }
    request = scratch / "texts.json"
    write_json(request, {"texts": texts, "ends": wanted["ends"]})
    for pre_tokenizers in ([""], PRE_TOKENIZERS):
        files = {scratch / f"vocabulary-{name or 'own'}.gguf": name for name in pre_tokenizers}
        failures = _convert(source, scratch, python, files, vocabulary=True)
        for file, name in files.items():
            if str(file) not in failures and _split(python, file, request) == wanted:
                return name
    raise ValueError(
        f"llama.cpp has no tokenizer that splits text as that of {source} does, so a GGUF file of this model would be "
        "asked other tokens than were measured"
    )


def _split(python: Path, file: Path, request: Path) -> dict[str, object] | None:
    """Return what llama.cpp makes of the texts; None where it cannot load the vocabulary, at which it aborts."""
    try:
        found: dict[str, object] = json.loads(_quantiser(python, "split", file, request)[-1])
    except RuntimeError:
        return None
    return found


def _convert(
    source: Path, scratch: Path, python: Path, files: dict[Path, str], vocabulary: bool = False
) -> dict[str, str]:
    """Have the converter write files with the pre-tokenizers that are named; return why some were not written.

    Raises:
        ValueError: it does not know the architecture.
    """
    request = scratch / "request.json"
    kind = UNQUANTISED[stored_dtype(source)]
    entries = [
        {"path": str(path.absolute()), "pre_tokenizer": name, "vocabulary": vocabulary} for path, name in files.items()
    ]
    write_json(
        request, {"source": str(source.absolute()), "type": kind, "ends": ends_of_text(source), "files": entries}
    )
    packages = describe_environment(python)["packages"]
    command = [sys.executable, gguf_converter.__file__, str(request)]
    result = _run(command, {"PYTHONPATH": packages, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"})
    if result.returncode == gguf_converter.UNKNOWN:
        raise ValueError(f"{source} cannot be converted to GGUF: {result.stderr.splitlines()[-1]}")
    if result.returncode != 0:
        raise RuntimeError(f"llama.cpp's converter failed:\n{_tail(result.stderr)}")
    failures: dict[str, str] = json.loads(result.stdout.splitlines()[-1])["failures"]
    return {str(path): failures[str(path.absolute())] for path in files if str(path.absolute()) in failures}


def _quantiser(python: Path, *arguments: object) -> list[str]:
    """Run a command of the other environment; return the lines that it printed.

    Raises:
        RuntimeError: it failed.
    """
    # llama.cpp would have a debugger print where it aborts, for seconds.
    changes = {"PYTHONPATH": "", "GGML_NO_BACKTRACE": "1"}
    result = _run([str(python), gguf_quantiser.__file__, *map(str, arguments)], changes)
    if result.returncode != 0:
        raise RuntimeError(f"llama.cpp failed in {python} ({arguments[0]}):\n{_tail(result.stderr)}")
    return result.stdout.splitlines()


def _run(command: Sequence[str], changes: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **changes}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, errors="replace")


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-LOG_TAIL_LINES:])


def _check_types(file: Path, wanted: str) -> None:
    """Check that some matrix has the type that was asked for, or is a K-quant where one was.

    llama.cpp mixes K-quants in one file, and takes another type where columns do not fit: a Q2_K file of a model with
    896 columns holds Q3_K where they are 4864, and Q4_0 elsewhere.

    Raises:
        ValueError: none has.
    """
    types = read_gguf(file).types()
    found = any(name.endswith("_K") for name in types) if "_K" in wanted else wanted in types
    if not found:
        stored = ", ".join(f"{count} x {name}" for name, count in types.items())
        raise ValueError(
            f"llama.cpp could store no matrix of this model as {wanted} (it took {stored}): blocks of K-quants hold "
            "256 columns; take Q4_0, Q5_0 or Q8_0"
        )


def read_weights(folder: Path, source: Checkpoint) -> Checkpoint:
    """Return the decoded weights in a folder, with the original's configuration."""
    decoded = read_checkpoint(folder)
    return Checkpoint(folder, source.config, decoded.tensors)


def _check_decoded(decoded: Checkpoint, source: Checkpoint) -> None:
    """Check that the weights that come back from the file are the original's, rounded.

    Raises:
        ValueError: names the first tensor that is absent, or is another one.
    """
    for name in sorted(decoded.tensors.keys() ^ source.tensors.keys()):
        side = "lost" if name in source.tensors else "added"
        raise ValueError(f"the way through GGUF has {side} the tensor {name}; this model's weights do not come back")
    for name, tensor in source.tensors.items():
        original, ours = tensor.load().float(), decoded.tensors[name].load().float()
        error = (
            float((ours - original).norm() / original.norm().clamp_min(1e-30)) if ours.shape == original.shape else 1
        )
        if error > (LARGEST_ERROR if original.ndim > 1 else 0.01):
            raise ValueError(
                f"the tensor {name} comes back from GGUF as another one (relative error {error:.2f}), so what "
                "llama.cpp runs would not be what is measured here"
            )
