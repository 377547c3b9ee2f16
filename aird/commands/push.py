"""`aird push`: publish an adapter on a model hub, with what was measured about it."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aird.commands.evaluate import check_adapter
from aird.commands.patch import statistics_of
from aird.patching.model_card import facts_table, patch_card
from aird.support.files import read_json, sha256_of, write_json

SUMMARY = "publish an adapter on a model hub, with its numbers and its verdict"
DESCRIPTION = """\
Upload an adapter that `aird patch` wrote to a repository of the Hugging Face hub.

A card goes with it, made from what `aird patch` wrote beside the adapter, and says what was measured. An adapter
without numbers is not published: give the verdict that `aird check --patch ADAPTER --json` wrote, or of an adapter of
the workflow the numbers beside its card."""
EPILOG = """\
examples:
  aird check original compressed --patch adapter --json verdict.json
  aird push adapter organisation/my-model-aird --verdict verdict.json
  aird push adapter organisation/my-model-aird --verdict verdict.json --base organisation/my-4bit-model
      (the adapter was made for a folder; on the hub it needs the name of the model there, and if that is a GGUF file
      of another name, organisation/name:file.gguf)
  aird push results/patches/M/C/P/adapter organisation/name --numbers results/cards/M/C/P/numbers.json --base ...

files that go out: adapter_config.json, adapter_model.safetensors, README.md (the card with the numbers)

The token is the one of `hf auth login` or HF_TOKEN; it needs leave to write.

common errors:
  "is the name of a folder": say with --base which hub model the adapter belongs on
  "a path of this machine": the verdict or the adapter's configuration names a folder that nobody else has
  "is about another patch": the verdict was made with other weights; run `aird check` again
  "was made for": the verdict was measured on another model; check the one that the adapter is for
  "is about another adapter": the numbers, or what stands beside the adapter, are of other weights"""

CARD = "README.md"
WEIGHTS = "adapter_model.safetensors"
CONFIGURATION = "adapter_config.json"
REPOSITORY = re.compile(r"\w[\w.-]*/[\w.-]+")
BASE = re.compile(rf"{REPOSITORY.pattern}(:[\w./-]+\.gguf)?", re.IGNORECASE)
# An absolute path of two names or more; a URL and a closing tag are none.
LOCAL_PATH = re.compile(r"(?<![\w/:.<])~?/[\w.-]+/[\w./-]+")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("adapter", type=Path, help="the adapter's folder")
    parser.add_argument("repository", help="where it goes: organisation/name; it is made if it does not exist")
    parser.add_argument("--verdict", type=Path, metavar="FILE", help="what `aird check --patch --json` wrote")
    parser.add_argument("--numbers", type=Path, metavar="FILE", help="numbers.json of results/cards/, of the workflow")
    parser.add_argument("--base", metavar="HUB_ID", help="hub id of the compressed model that the adapter belongs on")
    parser.add_argument("--private", action="store_true", help="make the repository private if it is made")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    folder: Path = arguments.adapter
    check_adapter("ADAPTER", folder)
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} holds no {WEIGHTS}: name the folder that `aird patch` wrote")
    weights = sha256_of(folder / WEIGHTS)
    record = _record(folder, weights)
    base = _hub_name(arguments, str(record["base"]))
    verdict = _read(arguments, "verdict", {"outcome", "text", "facts"}, "`aird check --json` wrote")
    if verdict is not None:
        if verdict["facts"].get("patch") != weights:
            raise ValueError(
                f"--verdict: {arguments.verdict} is about another patch, or about none; make it with "
                f"`aird check ORIGINAL COMPRESSED --patch {folder} --json {arguments.verdict}`"
            )
        _check_measured(verdict["facts"], record, base, arguments.verdict)
    numbers = _read(arguments, "numbers", {"weights", "suites"}, "the workflow wrote beside a card")
    if numbers is not None and numbers["weights"].get(WEIGHTS) != weights:
        raise ValueError(f"--numbers: {arguments.numbers} is about another adapter; name that of these weights")
    configuration = read_json(folder / CONFIGURATION) | {"base_model_name_or_path": base}
    if base != record["base"]:
        configuration.pop("revision", None)  # a commit of the other repository
    card = published_card(record, base, numbers and numbers["suites"], verdict)
    for name, text in ((CARD, card), (CONFIGURATION, json.dumps(configuration))):
        if found := LOCAL_PATH.search(text):
            raise ValueError(f"{name} would publish a path of this machine, {found[0]}; make what names it again")
    print(f"  uploaded to     {upload(folder, arguments.repository, card, configuration, arguments.private)}")


def _record(folder: Path, weights: str) -> dict[str, Any]:
    """Return what was written about an adapter, beside its folder.

    Raises:
        ValueError: that is missing, or is about weights with another SHA-256.
    """
    places = (statistics_of(folder), folder.parent / "statistics.json")  # of `aird patch`, and of the workflow
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ValueError(f"there is no {places[0]}, which `aird patch` wrote beside {folder}; the card is made of it")
    record: dict[str, Any] = read_json(path)
    if record["weights"].get(WEIGHTS) != weights:
        raise ValueError(f"{path} is about another adapter, or the weights of {folder} were changed; patch again")
    return record


def _hub_name(arguments: argparse.Namespace, made_for: str) -> str:
    """Return the hub id that an adapter is published for, with `:file.gguf` for a GGUF file.

    Raises:
        ValueError: a name is no hub id, or may be one of a folder.
    """
    if not REPOSITORY.fullmatch(arguments.repository):
        raise ValueError(f"REPOSITORY: {arguments.repository} is no hub id; write organisation/name")
    if arguments.base is not None and not BASE.fullmatch(arguments.base):
        raise ValueError(
            f"--base: {arguments.base} is no hub id; write organisation/name (and :file.gguf if it is one)"
        )
    base: str = arguments.base or made_for
    if not BASE.fullmatch(base) or (arguments.base is None and Path(base).exists()):
        raise ValueError(
            f"the adapter was made for {base}, which is the name of a folder; nobody else has it, so say with --base "
            "which hub model it belongs on"
        )
    file = Path(made_for.rpartition(":")[2]).name
    return f"{base}:{file}" if file.lower().endswith(".gguf") and ":" not in base else base


def _read(arguments: argparse.Namespace, option: str, keys: set[str], what: str) -> dict[str, Any] | None:
    """Return the JSON file that an option names, if it names one.

    Raises:
        ValueError: there is no such file, or it is another one.
    """
    path: Path | None = getattr(arguments, option)
    if path is None:
        return None
    if not path.is_file():
        raise ValueError(f"--{option}: there is no file {path}")
    found = read_json(path)
    if not isinstance(found, dict) or not keys <= found.keys():
        raise ValueError(f"--{option}: {path} is not what {what}")
    return found


def published_card(
    record: Mapping[str, Any],
    base: str,
    numbers: Mapping[str, Any] | None = None,
    verdict: Mapping[str, Any] | None = None,
) -> str:
    """Return the card that goes to the hub.

    Args:
        record: what was written about the adapter.
        base: the hub id that it is published for, with `:file.gguf` for a GGUF file.
        numbers: of the workflow's suites (`aird.reporting.evaluated_card.numbers_section`).
        verdict: what `aird check` wrote.

    Raises:
        ValueError: neither numbers nor a verdict.
    """
    from aird.reporting.evaluated_card import numbers_section

    if numbers is None and verdict is None:
        raise ValueError(
            "nothing was measured about this adapter, so it is not published: give --verdict with what "
            "`aird check ORIGINAL COMPRESSED --patch ADAPTER --json FILE` wrote, or --numbers of results/cards/"
        )
    sections = [] if numbers is None else [numbers_section(numbers)]
    if verdict is not None:
        # Tags of chat settings may hold what ends a cell of a table.
        facts = {name: value.replace("|", "\\|") for name, value in _published(verdict["facts"], base).items()}
        said = f"**{verdict['outcome'].capitalize()}.** {verdict['text']}"
        sections.append(f"## Verdict of `aird check`\n\n{said}\n\n{facts_table(facts)}")
    # The commit of another repository says nothing of this one.
    known = record if base == record["base"] else {**record, "revision": None}
    return patch_card(known, base, record["licence"], sections=sections)


def _published(facts: Mapping[str, str], base: str) -> dict[str, str]:
    """Return a verdict's facts without what names folders, programs and servers of this machine."""
    known = {name: value for name, value in facts.items() if name not in ("command", "patch", "patched model")}
    if "compressed" in known:
        known["compressed"] = f"{base} with this adapter"
    if facts.get("patched model") != base:
        known.pop("compressed commit", None)  # a commit of the other repository
    original = known.get("original")
    # A folder may have a name like a hub id, and need not be here.
    if original is not None and "original commit" not in known:
        known["original"] = f"{Path(original).name}, not on the hub"
    if "answered by" in known:
        answered = re.sub(r" \([^()]*/[^()]*\)", "", known["answered by"])  # whose Python
        known["answered by"] = re.sub(r"the server at \S*[^\s:]", "a running server", answered)
    return known


def upload(folder: Path, repository: str, card: str, configuration: Mapping[str, Any], private: bool) -> str:
    """Upload an adapter in one commit, and return the commit's address.

    Args:
        folder: the adapter; nothing in it is changed.
        repository: organisation/name; made if it does not exist.
        card, configuration: what README.md and adapter_config.json say on the hub.
        private: of a repository that is made.

    Raises:
        SourceError: the hub refused, or cannot be reached.
    """
    from huggingface_hub import HfApi

    from aird.prompts.sources import hub_errors

    with (
        tempfile.TemporaryDirectory(prefix="aird-push-") as temporary,
        hub_errors(f"repository {repository}", "written"),
    ):
        changed = Path(temporary)
        (changed / CARD).write_text(card, encoding="utf-8")
        write_json(changed / CONFIGURATION, configuration)
        shutil.copyfile(folder / WEIGHTS, changed / WEIGHTS)
        hub = HfApi()
        hub.create_repo(repository, private=private or None, exist_ok=True)
        message = "An AIRD adapter with what was measured about it"
        return str(hub.upload_folder(repo_id=repository, folder_path=changed, commit_message=message).commit_url)


def _check_measured(facts: Mapping[str, str], record: Mapping[str, Any], base: str, path: Path) -> None:
    """Check that a verdict is about the model that an adapter was made for, or the one that it is published for.

    Args:
        facts: of the verdict.
        record: of the adapter; its `revision` is the commit of a model on the hub.
        base: the hub id that the adapter is published for.
        path: the verdict's file.

    Raises:
        ValueError: it is about another model or commit, or does not say about which.
    """
    made_for, commit = str(record["base"]), record.get("revision")
    again = f"make it again with `aird check ORIGINAL {base} --patch ADAPTER --json {path}`"
    measured = facts.get("patched model")
    if measured is None:
        raise ValueError(f"--verdict: {path} does not say on which model the patch was; {again}")
    folder = Path(measured)
    same_folder = folder.is_absolute() and folder.resolve() == Path(made_for).resolve()
    if measured not in (made_for, base) and not same_folder:
        raise ValueError(f"--verdict: {path} is about {measured}, and the adapter was made for {made_for}; {again}")
    found = facts.get("compressed commit")
    if measured == made_for and commit is not None and found != commit:
        raise ValueError(
            f"--verdict: {path} is about commit {found} of {measured}, and the adapter was made for {commit}; "
            f"check {measured}@{commit}"
        )
