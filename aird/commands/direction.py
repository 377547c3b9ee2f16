"""`aird direction`: find the refusal direction of one model."""

from __future__ import annotations

import argparse
from pathlib import Path

from aird.commands.evaluate import tokenizer_source
from aird.commands.inputs import MODEL_HELP, check_output, open_model_folder, take_gpus_for
from aird.commands.search import (
    add_search_arguments,
    describe,
    read_search_prompts,
    run_search,
    search_settings,
    write_search,
)

SUMMARY = "find the refusal direction of one model"
DESCRIPTION = """\
Find the direction in a model's residual stream that mediates refusal (Arditi et al., arXiv 2406.11717).

The mean activation over harmful instructions minus that over harmless ones, at every layer and every token
after the instruction, gives the candidates; of those, the one is chosen whose ablation stops refusal best,
whose addition causes it, and which moves harmless answers least."""
EPILOG = """\
examples:
  aird direction Qwen/Qwen2.5-1.5B-Instruct --harmful harmful.txt --harmless harmless.csv --output direction
  aird direction Qwen/Qwen2.5-1.5B-Instruct@<commit> --harmful harmful.jsonl --field goal ...
  aird direction results/models/M/original/checkpoint \\
      --harmful results/prompts/harmful.jsonl --harmless results/prompts/harmless.jsonl --output direction
      (prompt sets of the workflow, with their splits: the same direction as in results/directions/M/original)
  aird direction my-quantised-model --refusal-tokens direction/refusal_tokens.json ...
      (a compressed model is scored with the tokens of its original's refusals)

files in the output folder:
  direction.safetensors   unit [d_model] and norm [1], float64
  direction.json          site, how it was chosen, its scores, how many prompts were kept
  scores.csv              induce, KL and bypass of every candidate
  refusal_tokens.json     the tokens that the model's refusals begin with
  activations.safetensors what `aird compare` needs
  provenance.json         model, commit, hashes of the prompt files, seed

common errors:
  "ask for 160 instructions, but it has 60": lower --train and --validation, or give more prompts
  "only 0 refusals were seen": the model does not refuse; its direction means little
  do not take the prompts that you will measure refusal on: that leaks"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("model", help=MODEL_HELP)
    add_search_arguments(parser)
    parser.add_argument(
        "--refusal-tokens", type=Path, metavar="FILE", help="refusal_tokens.json of the original of this model"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where the files go")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from aird.support.files import read_json

    check_output(arguments.output)
    prompts = read_search_prompts(arguments)
    tokens = None
    if arguments.refusal_tokens is not None:
        if not arguments.refusal_tokens.is_file():
            raise ValueError(f"--refusal-tokens: there is no file {arguments.refusal_tokens}")
        tokens = read_json(arguments.refusal_tokens)
    tokenizer = tokenizer_source(arguments, [arguments.model])
    model = open_model_folder(arguments.model, arguments.trust_remote_code, tokenizer=tokenizer)
    take_gpus_for([model])
    search = run_search(model, prompts, search_settings(arguments), arguments.seed, tokens)
    write_search(search, model, arguments, arguments.output)
    print(describe(search))
    print(f"  written to      {arguments.output}")
