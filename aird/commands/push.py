"""`aird push`: publish an adapter on a model hub, with what was measured about it."""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aird.commands.evaluate import check_adapter
from aird.patching.model_card import renamed_card

SUMMARY = "publish an adapter on a model hub, with its numbers and its verdict"
DESCRIPTION = """\
Upload an adapter that `aird patch` wrote to a repository of the Hugging Face hub.

Its card goes with it and says what was measured. An adapter without numbers is not published: give the verdict that
`aird check --patch ADAPTER --json` wrote, or push an adapter of the workflow with its card of results/cards/."""
EPILOG = """\
examples:
  aird check original compressed --patch adapter --json verdict.json
  aird push adapter organisation/my-model-aird --verdict verdict.json
  aird push adapter organisation/my-model-aird --verdict verdict.json --base organisation/my-4bit-model
      (the adapter was made for a folder; on the hub it needs the name of the model there, and if that is a GGUF file
      of another name, organisation/name:file.gguf)
  aird push results/patches/M/C/aird/adapter organisation/M-C-aird --card results/cards/M/C/aird/README.md --base ...

files that go out: adapter_config.json, adapter_model.safetensors, README.md (the card with the numbers)

The token is the one of `hf auth login` or HF_TOKEN; it needs leave to write.

common errors:
  "is the name of a folder": say with --base which hub model the adapter belongs on
  "a path of this machine": the card or the adapter's configuration names a folder that nobody else has
  "is about another patch": the verdict was made with other weights; run `aird check` again
  "was made for": the verdict was measured on another model; check the one that the adapter is for
  "is about another adapter": the card was written for other weights"""

CARD = "README.md"
WEIGHTS = "adapter_model.safetensors"
CONFIGURATION = "adapter_config.json"
REPOSITORY = re.compile(r"\w[\w.-]*/[\w.-]+")
BASE = re.compile(rf"{REPOSITORY.pattern}(:[\w./-]+\.gguf)?", re.IGNORECASE)
# As `patch_card` writes it.
HASH_IN_CARD = re.compile(rf"SHA-256 of `{re.escape(WEIGHTS)}` \| `(\w+)`")
# An absolute path of two names or more; a URL and a closing tag are none.
LOCAL_PATH = re.compile(r"(?<![\w/:.<])~?/[\w.-]+/[\w./-]+")
NUMBERS, LIMITS = "## Numbers\n", "## Limits\n"  # headings of a card, of aird/patching and aird/reporting


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("adapter", type=Path, help="the adapter's folder")
    parser.add_argument("repository", help="where it goes: organisation/name; it is made if it does not exist")
    parser.add_argument("--verdict", type=Path, metavar="FILE", help="what `aird check --patch --json` wrote")
    parser.add_argument(
        "--card", type=Path, metavar="FILE", help="a card of results/cards/ instead of the folder's own"
    )
    parser.add_argument("--base", metavar="HUB_ID", help="hub id of the compressed model that the adapter belongs on")
    parser.add_argument("--private", action="store_true", help="make the repository private if it is made")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from aird.support.files import read_json

    folder: Path = arguments.adapter
    check_adapter("ADAPTER", folder)
    for name in (WEIGHTS, CARD):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} holds no {name}: name the folder that `aird patch` wrote")
    if not REPOSITORY.fullmatch(arguments.repository):
        raise ValueError(f"REPOSITORY: {arguments.repository} is no hub id; write organisation/name")
    if arguments.base is not None and not BASE.fullmatch(arguments.base):
        raise ValueError(
            f"--base: {arguments.base} is no hub id; write organisation/name (and :file.gguf if it is one)"
        )
    for option in ("verdict", "card"):
        path = getattr(arguments, option)
        if path is not None and not path.is_file():
            raise ValueError(f"--{option}: there is no file {path}")
    configuration = read_json(folder / CONFIGURATION)
    made_for = str(configuration["base_model_name_or_path"])
    base = arguments.base or made_for
    if not BASE.fullmatch(base) or (arguments.base is None and Path(base).exists()):
        raise ValueError(
            f"the adapter was made for {base}, which is the name of a folder; nobody else has it, so say with --base "
            "which hub model it belongs on"
        )
    file = Path(made_for.rpartition(":")[2]).name
    if file.lower().endswith(".gguf") and ":" not in base:
        base = f"{base}:{file}"
    verdict = read_json(arguments.verdict) if arguments.verdict else None
    if verdict is not None:
        _check_verdict(verdict, folder, arguments.verdict)
        _check_measured(verdict["facts"], configuration, base, arguments.verdict)
    source: Path = arguments.card or folder / CARD
    text = source.read_text(encoding="utf-8")
    _check_card(text, folder, source)
    card = published_card(text, verdict, made_for, base)
    configuration["base_model_name_or_path"] = base
    if base != made_for:
        configuration.pop("revision", None)  # a commit of the other repository
    for place, text in ((source, card), (folder / CONFIGURATION, json.dumps(configuration))):
        if found := LOCAL_PATH.search(text):
            raise ValueError(
                f"{place} would publish a path of this machine, {found[0]}; write a name in its place, and push again"
            )
    print(f"  uploaded to     {upload(folder, arguments.repository, card, configuration, arguments.private)}")


def published_card(card: str, verdict: Mapping[str, Any] | None, made_for: str, base: str) -> str:
    """Return the card that goes to the hub.

    Args:
        card: the adapter's own, with or without a section of numbers.
        verdict: what `aird check` wrote; None where the card has numbers.
        made_for: how the card calls the base: a folder, a GGUF file, a compression of the workflow, or a hub id.
        base: the hub id that is put there instead, with `:file.gguf` for a GGUF file.

    Raises:
        ValueError: neither numbers nor a verdict.
    """
    if verdict is None and NUMBERS not in card:
        raise ValueError(
            "nothing was measured about this adapter, so it is not published: give --verdict with what "
            "`aird check ORIGINAL COMPRESSED --patch ADAPTER --json FILE` wrote, or --card with one of results/cards/"
        )
    card = renamed_card(card, made_for, base)
    if verdict is None:
        return card
    # Tags of chat settings may hold what ends a cell of a table.
    cells = {name: value.replace("|", "\\|") for name, value in _published(verdict["facts"], base).items()}
    facts = "".join(f"| {name} | {value} |\n" for name, value in cells.items())
    section = (
        f"## Verdict of `aird check`\n\n**{verdict['outcome'].capitalize()}.** {verdict['text']}\n\n"
        f"| | |\n|---|---|\n{facts}\n"
    )
    if LIMITS not in card:
        return f"{card}\n{section}"
    return card.replace(LIMITS, section + LIMITS, 1)


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
    import huggingface_hub

    from aird.prompts.sources import hub_errors
    from aird.support.files import write_json

    with (
        tempfile.TemporaryDirectory(prefix="aird-push-") as temporary,
        hub_errors(f"repository {repository}", "written"),
    ):
        changed = Path(temporary)
        (changed / CARD).write_text(card, encoding="utf-8")
        write_json(changed / CONFIGURATION, configuration)
        files = {name: (changed / name) for name in (CARD, CONFIGURATION)} | {WEIGHTS: folder / WEIGHTS}
        hub = huggingface_hub.HfApi()
        hub.create_repo(repository, private=private or None, exist_ok=True)
        commit = hub.create_commit(
            repository,
            [huggingface_hub.CommitOperationAdd(name, path) for name, path in files.items()],
            commit_message="An AIRD adapter with what was measured about it",
        )
    return str(commit.commit_url)


def _check_verdict(verdict: Any, adapter: Path, path: Path) -> None:
    """Check that a verdict is one of `aird check` on this adapter.

    Raises:
        ValueError: it is not.
    """
    from aird.support.files import sha256_of

    if not isinstance(verdict, dict) or not {"outcome", "text", "facts"} <= verdict.keys():
        raise ValueError(f"--verdict: {path} is not what `aird check --json` wrote")
    if verdict["facts"].get("patch") != sha256_of(adapter / WEIGHTS):
        raise ValueError(
            f"--verdict: {path} is about another patch, or about none; make it with "
            f"`aird check ORIGINAL COMPRESSED --patch {adapter} --json {path}`"
        )


def _check_measured(facts: Mapping[str, str], configuration: Mapping[str, Any], base: str, path: Path) -> None:
    """Check that a verdict is about the model that an adapter was made for, or the one that it is published for.

    Args:
        facts: of the verdict.
        configuration: of the adapter; its `revision` is the commit of a model on the hub.
        base: the hub id that the adapter is published for.
        path: the verdict's file.

    Raises:
        ValueError: it is about another model or commit, or does not say about which.
    """
    made_for, commit = str(configuration["base_model_name_or_path"]), configuration.get("revision")
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


def _check_card(card: str, adapter: Path, path: Path) -> None:
    """Check that a card that says of which weights it is says it of these.

    Raises:
        ValueError: it is about others.
    """
    from aird.support.files import sha256_of

    named = HASH_IN_CARD.search(card)
    if named and named[1] != sha256_of(adapter / WEIGHTS):
        raise ValueError(
            f"{path} is about another adapter, or the weights of {adapter} were changed: it names another SHA-256 of "
            f"{WEIGHTS}; name with --card the one that was written for these weights"
        )
