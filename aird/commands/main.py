"""Parse the command line, run one command, and turn bad input into one line."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from aird import __version__
from aird.commands import cache, check, compare, direction, evaluate, export, label, patch, push
from aird.commands.gguf_tokenizers import HELP as TOKENIZER_HELP
from aird.commands.inputs import add_chat_arguments, read_chat_arguments
from aird.support import progress

COMMANDS = (check, direction, compare, patch, evaluate, label, export, push, cache)
WITHOUT_MODEL = ("label", "push", "cache")  # no model is read
WITHOUT_CHAT = (*WITHOUT_MODEL, "export")  # none is asked
BAD_INPUT = 2  # exit code, as argparse's own
FAILURE = 1
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Packages that the plain installation leaves out, and the extra that brings them.
EXTRAS = {
    "bitsandbytes": "bitsandbytes",
    "lm_eval": "tasks",
    "llmcompressor": "workflow",
    "matplotlib": "workflow",
    "tabulate": "workflow",
    "docutils": "workflow",
}

DESCRIPTION = """\
What did compression do to the refusal of a chat model, and can it be repaired?

  aird check       say whether a compressed checkpoint still refuses, with exit codes for CI
  aird direction   find the refusal direction of one model
  aird compare     compare the directions of a model and of its compressed form
  aird patch       repair a compressed model: a rank-1 adapter that PEFT and vLLM load
  aird evaluate    measure refusal, over-refusal and perplexity
  aird label       read replies by hand, and write labels without their text
  aird export      write a patch for llama.cpp: a GGUF LoRA
  aird push        publish an adapter on a model hub, with its numbers and its verdict
  aird cache       show and empty the answers that commands keep

A model is a folder in Hugging Face format, GPTQ and AWQ included, a GGUF file or a hub id
(organisation/name, with a commit or a branch after an @; organisation/name:file.gguf for one GGUF file). What the
commands write is what the workflow writes. The workflow itself, with every step cached and all tables and figures, is
`snakemake --cores all` in a checkout."""

EPILOG = """\
First steps:
  aird check --demo
  aird check Qwen/Qwen2.5-1.5B-Instruct my-quantised-model --report check.html
  aird direction Qwen/Qwen2.5-1.5B-Instruct --harmful harmful.txt --harmless harmless.txt --output direction
  aird patch Qwen/Qwen2.5-1.5B-Instruct my-quantised-model --direction direction --output adapter
  aird evaluate my-quantised-model --adapter adapter --harmful attack.txt --harmless everyday.txt --output scores

`aird COMMAND --help` explains each with its files and common errors."""


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line: thirty lines of usage would hide it."""

    def error(self, message: str) -> NoReturn:
        """End with 2."""
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}; `{self.prog} --help` lists the options\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = Parser(
        prog="aird", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--version", action="version", version=f"aird {__version__}")
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[2]
        subparser = subparsers.add_parser(
            name,
            help=command.SUMMARY,
            description=command.DESCRIPTION,
            epilog=command.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(subparser)
        if name not in WITHOUT_CHAT:
            add_chat_arguments(subparser)
            subparser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help=TOKENIZER_HELP)
        if name not in WITHOUT_MODEL:
            subparser.add_argument(
                "--trust-remote-code",
                action="store_true",
                help="run modelling code that the model brings (default: never); beside its original, a compressed "
                "model may bring the original's code alone",
            )
        subparser.add_argument("--debug", action="store_true", help="show where in the code an error arose")
        subparser.set_defaults(
            run=command.run, failure=getattr(command, "FAILURE", FAILURE), default_of=subparser.get_default
        )
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0, 2 for input that cannot work, 1 for what failed on the way.

    `aird check` has codes of its own.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser().parse_args(given)
    options.called = shlex.join(["aird", *given])
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "huggingface_hub", "aird.inference.packing"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # It warns whoever imports it of a kernel on the hub, which nobody here asks for.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Bars of every shard and tensor would bury the result.
    os.environ.setdefault("TQDM_DISABLE", "1")
    # Whoever asks whether there is a GPU must not fix which ones this process sees: `take_gpus_for` comes later.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    from aird.evaluation.server_process import signals_as_exit

    try:
        with signals_as_exit(), progress.shown():  # what was decoded into temporary folders is removed
            return _run(options)
    except ModuleNotFoundError as error:
        if options.debug or error.name not in EXTRAS:
            raise
        extra = f"pip install 'aird[{EXTRAS[error.name]}]'"
        print(f"aird {options.command}: error: this needs the package {error.name}; {extra}", file=sys.stderr)
        return BAD_INPUT
    except (ValueError, OSError, RuntimeError) as error:
        if options.debug:
            raise
        # What is wrong with the input is a ValueError or a missing file; the message says what to write.
        expected = isinstance(error, ValueError | OSError) or type(error).__name__ == "SourceError"
        text = str(error) if not expected else " ".join(str(error).split())
        print(f"aird {options.command}: error: {text or type(error).__name__}{_advice(error)}", file=sys.stderr)
        return BAD_INPUT if expected else options.failure
    except Exception as error:
        if options.debug:
            raise
        if _is_of_the_disk(error):
            print(f"aird {options.command}: error: {error}{_advice(error)}", file=sys.stderr)
            return int(options.failure)
        traceback.print_exc()  # a fault of this project, and no verdict
        print(f"aird {options.command}: error: failed in a way that it should not; please report it", file=sys.stderr)
        return int(options.failure)
    except SystemExit as ended:
        print(f"aird {options.command}: ended by a signal", file=sys.stderr)
        return int(ended.code or 0)


def _is_of_the_disk(error: Exception) -> bool:
    """Tell whether a file could not be written: safetensors has an error of its own for that, which is no OSError."""
    if type(error).__name__ == "SafetensorError":
        return "I/O error" in str(error)
    return isinstance(error, OSError) and error.errno in NO_ROOM


def _advice(error: Exception) -> str:
    """Return what to do about an error where the message alone does not say it."""
    if not _is_of_the_disk(error):
        return ""
    return f"; is a disk full? The temporary folder is {tempfile.gettempdir()}, and TMPDIR can name another"


def _run(options: argparse.Namespace) -> int:
    chat = None if options.command in WITHOUT_CHAT else read_chat_arguments(options)
    if chat is not None:
        from aird.models.loading import use_chat

        use_chat(chat)
    return int(options.run(options) or 0)
