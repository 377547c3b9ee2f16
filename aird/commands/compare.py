"""`aird compare`: compare the refusal directions of a model and of its compressed form."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aird.commands.evaluate import tokenizer_source
from aird.commands.inputs import (
    MODEL_HELP,
    ModelFolder,
    check_output,
    check_results_apart,
    check_same_chat,
    open_model_folder,
    recorded_chat,
    take_gpus_for,
)
from aird.commands.prompt_files import prompt_files
from aird.commands.search import (
    add_search_arguments,
    describe,
    read_provenance,
    read_search_prompts,
    run_search,
    search_settings,
    write_search,
)

SUMMARY = "compare the refusal directions of a model and of its compressed form"
DESCRIPTION = """\
Did compression move the refusal direction?

The cosine between the two directions at the original's site, and between each model's own, each with a null:
the same cosine between two halves of the original's own prompts. Below the null, something changed. The corrected
cosine takes out the noise of both estimates: it is near 1 where the direction stayed. Lost refusal does not follow
from any of them."""
EPILOG = """\
examples:
  aird compare Qwen/Qwen2.5-1.5B-Instruct my-quantised-model \\
      --harmful harmful.txt --harmless harmless.txt --output comparison
  aird compare direction-of-original direction-of-compressed --output comparison
      (folders that `aird direction` wrote, from the same prompts and with the same refusal tokens)

files in the output folder:
  comparison.json   cosines, their bootstrap intervals, nulls and p-values, the corrected cosine, how far the
                    source site moved, norm ratio, projections, every site
  original/, compressed/   as `aird direction` writes them, for each model that was searched here

common errors:
  "rest on other prompts": make both folders from the same prompt files with the same --seed and sizes
  "other refusal tokens": search the compressed model with --refusal-tokens of the original"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("original", help=f"{MODEL_HELP}; or a folder that `aird direction` wrote")
    parser.add_argument("compressed", help="the same for the compressed model")
    add_search_arguments(parser, required=False)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where the files go")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from aird.directions.comparison import Side, compare_directions
    from aird.directions.search import is_search, load_search
    from aird.support.files import write_json

    names = ("original", "compressed")
    ready = {name: is_search(Path(getattr(arguments, name))) for name in names}
    for name in (name for name in names if ready[name]):
        check_results_apart(Path(getattr(arguments, name)), "direction.json")
    for folder in (arguments.output, *(arguments.output / name for name in names if not ready[name])):
        check_output(folder)
    prompts = None if all(ready.values()) else read_search_prompts(arguments)
    models: dict[str, ModelFolder] = {}
    tokenizer = tokenizer_source(arguments, [getattr(arguments, name) for name in names if not ready[name]])
    for name in names:
        if not ready[name]:
            made_from = models.get("original")
            text = getattr(arguments, name)
            models[name] = open_model_folder(text, arguments.trust_remote_code, made_from, tokenizer=tokenizer)
    addressed = []
    for name in names:
        text = getattr(arguments, name)
        if name in models:
            addressed.append((text, models[name].chat))
        elif provenance := read_provenance(Path(text)):  # a folder of the workflow's has none
            addressed.append((text, recorded_chat(provenance)))
    if addressed:
        check_same_chat(*addressed)
    take_gpus_for(list(models.values()))
    searches: dict[str, Any] = {}
    files = []
    for name in names:
        folder = Path(getattr(arguments, name))
        files.append(read_provenance(folder).get("prompts") if ready[name] else prompt_files(arguments))
        if ready[name]:
            searches[name] = load_search(folder)
        else:
            assert prompts is not None
            # Both are scored with the tokens that the original's refusals begin with.
            tokens = searches["original"].refusal_tokens if name == "compressed" else None
            settings = search_settings(arguments)
            searches[name] = run_search(models[name], prompts, settings, arguments.seed, tokens)
            write_search(searches[name], models[name], arguments, arguments.output / name)
            print(describe(searches[name]))
    # A folder of the workflow does not name its files; its prompt ids are compared all the same.
    _check_pair(searches["original"], searches["compressed"], files[0] == files[1] or None in files)
    original, compressed = (Side(searches[name].cache, searches[name].direction) for name in names)
    record = compare_directions(original, compressed, arguments.seed)
    write_json(arguments.output / "comparison.json", record)
    print("\n".join(describe_comparison(record)))
    print(f"  written to         {arguments.output / 'comparison.json'}")


def describe_comparison(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line per number of a comparison; each cosine is the one that is judged, of all prompts as its null is."""
    for name, null in (("cosine_same_site", "split_half_null"), ("cosine_own_source", "own_source_null")):
        cosine, low, high = record[f"{name}_shared"], record[null]["low"], record[null]["high"]
        verdict = "below the null: it changed" if cosine < low else "not below the null"
        yield f"  {name:18} {cosine:.3f}   null {low:.3f} to {high:.3f}   {verdict}"
    corrected = record["cosine_same_site_corrected"]
    value = "none" if corrected["value"] is None else f"{corrected['value']:.3f}"
    yield f"  {'corrected cosine':18} {value}   95% interval {corrected['low']:.3f} to {corrected['high']:.3f}"
    yield f"  {'norm_ratio':18} {record['norm_ratio']:.3f}"


def _check_pair(original: Any, compressed: Any, same_files: bool) -> None:
    """Check that two searches can be compared.

    Raises:
        ValueError: other prompts, other refusal tokens, or models of other shapes.
    """
    same_ids = all(group.ids == compressed.cache.groups[key].ids for key, group in original.cache.groups.items())
    if not (same_files and same_ids):
        raise ValueError(
            "the two directions rest on other prompts, so that nothing can be compared: use the same files"
        )
    if any(original.refusal_tokens.get(name) != compressed.refusal_tokens.get(name) for name in ("tokens", "lead")):
        raise ValueError(
            "the two directions were scored with other refusal tokens: search the compressed model again with "
            "--refusal-tokens of the original"
        )
    shapes = [each.cache.candidates.shape for each in (original, compressed)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"the two models have other layers, positions or width: {tuple(shapes[0])}, {tuple(shapes[1])}"
        )
