"""What a user names on the command line: models, opened and checked before anything runs, and how they are addressed.

All commands of this stage begin here; what they then run are the functions of the stages below.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from aird.commands.gguf_tokenizers import TokenizerSource
from aird.evaluation.engine import Engine
from aird.models.refusals import checkpoint_refusal
from aird.settings.base import Settings
from aird.settings.models import Chat
from aird.settings.sources import HubName, read_hub_name
from aird.settings.weights import WeightForm
from aird.support.checkpoint_patterns import is_mistrals
from aird.support.files import read_json
from aird.support.gpus import VISIBLE, free_memory, take_gpus, visible_gpus

MODEL_HELP = (
    "folder in Hugging Face format, GGUF file, or hub id, with @revision if wanted, and :file.gguf of a repository of "
    "GGUF files"
)
OPTIONS = {"maximum_new_tokens": "tokens", "maximum_model_length": "length"}  # of settings with other names
SomeSettings = TypeVar("SomeSettings", bound=Settings)
# What a model is measured as, where that is not what was given.
FORM_IN_WORDS = {
    WeightForm.TEXT_MODEL: "the text model of a wrapper of vision and language, with the wrapper's logits for a text",
    WeightForm.REPACKED: "the same integers and scales, repacked for Transformers and vLLM",
    WeightForm.DENSE_COPY: "a dense copy of its decoded weights; activations are not rounded",
}
COPY_IN_WORDS = "a dense copy of its quantised weights, which the engine cannot read here"
UNROUNDED = "; the format rounds activations, and these are not rounded"
SERVER_IN_WORDS = "what the running server has loaded, in a form that only the server knows"
GGUF_IN_WORDS = "a dense copy of its decoded weights; this says nothing about llama.cpp's own arithmetic"
WEIGHTS_SHARE = 0.8  # of a GPU's free memory; the rest is for activations
_scratch: list[tempfile.TemporaryDirectory[str]] = []  # what is decoded lives as long as the process


@dataclass(frozen=True)
class ModelFolder:
    """A model that a user named, on this machine.

    Attributes:
        folder: its files, in Hugging Face format, as Transformers, PEFT and vLLM read them.
        name: what the user calls it; a hub id without its revision, with the GGUF file where it names one.
        commit: the hub's commit; None for a local folder or file.
        source: what was given: the same folder, or one or a GGUF file that was repacked or dequantised into it.
        form: in which form it is measured.
        chat: its chat settings, of its folder or of the command; None where there are none.
    """

    folder: Path
    name: str
    commit: str | None
    source: Path
    form: WeightForm = WeightForm.AS_STORED
    chat: Chat | None = None

    @property
    def base(self) -> str:
        """What an adapter names as the model that it is for."""
        return self.name if self.commit else str(self.source.absolute())

    def measured_as(self, weights: str | None = WeightForm.AS_STORED) -> str | None:
        """Return the form in which an engine got it, in words; None where that is what was given.

        Args:
            weights: what the engine computed with, as `evaluate_suite` records it: None of a running server. Without
                an engine it is what was read here.
        """
        if weights is None:
            return SERVER_IN_WORDS
        if self.source.is_file():
            return None if weights == WeightForm.GGUF_FILE else GGUF_IN_WORDS
        form = FORM_IN_WORDS.get(self.form)
        if weights != WeightForm.DENSE_COPY:
            return form
        from aird.models.dense import rounds_activations

        copy = COPY_IN_WORDS + (UNROUNDED if rounds_activations(self.folder) else "")
        return copy if form is None else f"{form}; then {copy}"

    def record(self, weights: str | None = WeightForm.AS_STORED) -> dict[str, Any]:
        """Return what a result says about its model, and about what an engine, if one answered, measured of it."""
        chat = {} if self.chat is None else {"chat": self.chat.model_dump()}
        measured_as = self.measured_as(weights)
        form = {} if measured_as is None else {"measured_as": measured_as}
        return {"name": self.name, "commit": self.commit, **form, **chat}


def open_model_folder(
    text: str,
    trust_remote_code: bool,
    original: ModelFolder | None = None,
    asked: bool = True,
    tokenizer: TokenizerSource | None = None,
) -> ModelFolder:
    """Return the model that `text` names: a folder, a GGUF file, or `organisation/name`, or that with `@revision`.

    Of a repository of GGUF files, `:file.gguf` at its end says which one. A hub model of a format that is not read is
    refused by its config.json, before the rest is fetched.
    What Transformers, PEFT or vLLM do not read as it is (GGUF, GPTQ, AWQ, DeepSeek's FP8) is repacked or dequantised
    into a temporary folder first. Of a wrapper of vision and language the text model is written there.

    Args:
        text: what the user named.
        trust_remote_code: run the code that a model brings; of a compressed one, if it is the original's.
        original: what it was made from, where that is known: the decoded weights of a GGUF file take its type, its
            tokenizer and its ends of a text, as in the workflow. Alone they take bfloat16 and what the file says.
        asked: whether it is to answer prompts; otherwise its tokenizer is not read.
        tokenizer: where the tokenizer of a GGUF file without an original comes from.

    Raises:
        ValueError: none of these, no chat model in safetensors, of a format that is not read, with other code than its
            original's where that is trusted, or one that the chat settings do not fit.
        SourceError: the hub does not have it, or cannot be reached.
    """
    from aird.models.importing import check_folder_format, check_same_code
    from aird.models.loading import load_tokenizer, read_chat, trust_code
    from aird.prompts.chat import check_chat
    from aird.prompts.sources import SourceError

    if trust_remote_code:
        trust_code()
    path = Path(text).expanduser()
    commit = None
    if path.exists():
        source, name = path, text
    else:
        hub = read_hub_name(text)
        if hub is None:
            raise ValueError(
                f"{text} is no folder and no file; name a model folder in Hugging Face format (config.json, "
                "*.safetensors, tokenizer), a GGUF file, or a hub id such as Qwen/Qwen2.5-7B-Instruct"
            )
        name = hub.repository if hub.file is None else f"{hub.repository}:{hub.file}"
        try:
            source, commit = _fetched(hub, trust_remote_code)
        except SourceError as error:
            raise SourceError(f"there is no folder {text} here, and as a hub id: {error}") from error
    if source.is_dir():
        check_folder_format(source)
        if original is not None:
            check_same_code(source, original.source if original.source.is_dir() else original.folder)
    # A GGUF file of the hub's cache is a link to a file without an ending.
    absolute = source.resolve() if source.is_dir() else source.absolute()
    beside = original.folder if original is not None and source.is_file() else None
    alone = source.is_file() and original is None and asked
    own = tokenizer.of(absolute) if tokenizer is not None and alone else None
    folder, form = _readable(absolute, trust_remote_code, beside, asked, own)
    try:
        if asked:
            folder = _read_by_its_file(folder, trust_remote_code)
            check_chat(load_tokenizer(folder))
    except OSError as error:
        raise ValueError(f"{text} holds no tokenizer that can be read: {error}") from error
    return ModelFolder(source if folder == absolute else folder, name, commit, source, form, read_chat(folder))


def take_gpus_for(models: Sequence[ModelFolder], engines: Sequence[Engine] = ()) -> None:
    """Take the fewest visible GPUs that hold each of these models, of which one at a time is in memory.

    Has to be called before CUDA is first used. Of a machine's only GPU nothing is asked; where it holds no model,
    `load_model` leaves a part in main memory.

    Args:
        models: those that are to run; with none, nothing is taken.
        engines: who serves them; some deal attention heads.

    Raises:
        ValueError: all visible GPUs together do not hold one, or its heads cannot be dealt to as many as it needs.
    """
    ids = visible_gpus()
    if not ids or not models:
        return
    free = free_memory()
    if len(ids) == 1 or any(name not in free for name in ids):  # such as a part of a GPU, which cannot be several
        take_gpus(1)
        return
    from aird.models.loading import load_structure, stored_dtype
    from aird.models.placement import largest_share

    sized = [(load_structure(each.folder), stored_dtype(each.folder).itemsize) for each in models]
    obstacle = None
    for count in range(1, len(ids) + 1):
        share = max(largest_share(structure, count) * size for structure, size in sized)
        roomy = [name for name in ids if WEIGHTS_SHARE * free[name] >= share]
        if len(roomy) < count:
            continue
        configs = [read_json(each.folder / "config.json") for each in models]
        obstacles = (engine.spreading_obstacle(config, count) for config in configs for engine in engines)
        obstacle = next(filter(None, obstacles), None)
        if obstacle is None:
            take_gpus(count, among=roomy)
            return
    if obstacle is not None:
        raise ValueError(
            f"{models[-1].name} cannot be served on the GPUs that it needs: {obstacle}; let another engine answer"
        )
    weights = max(largest_share(structure, 1) * size for structure, size in sized)
    told = ", ".join(f"{free[name] / 1e9:.0f} GB of GPU {name}" for name in ids)
    raise ValueError(
        f"the visible GPUs do not hold {weights / 1e9:.0f} GB of weights and their activations ({told} are free); end "
        f"what else runs there, or show others by {VISIBLE}"
    )


def holds_model(folder: Path) -> bool:
    """Tell whether a folder holds a model, in Hugging Face format or as GGUF files."""
    return (folder / "config.json").is_file() or any(folder.glob("*.gguf"))


def check_results_apart(folder: Path, results: str) -> None:
    """Check that a folder of stored results is none of a model: whoever made the model may have put them there.

    Args:
        folder: the folder.
        results: the file in it that is one of stored results.

    Raises:
        ValueError: it is.
    """
    if holds_model(folder):
        raise ValueError(
            f"{folder} holds a model and stored results ({results}), so it is not clear which one is meant, or whether "
            f"the results are this model's; move {results} away, or name a folder with the results alone"
        )


def check_output(folder: Path) -> None:
    """Check that results are not written into the folder of a model, whose own they would then seem to be.

    Raises:
        ValueError: they would be, or the folder is a file.
    """
    if folder.is_file():
        raise ValueError(f"--output: {folder} is a file; name a folder")
    if holds_model(folder):
        raise ValueError(f"--output: {folder} holds a model; name a folder of its own for the results")


def _fetched(hub: HubName, trust_remote_code: bool) -> tuple[Path, str]:
    """Return the local folder or GGUF file of a hub model, and its commit.

    Raises:
        ValueError: it is of a format that is not read.
        SourceError: the hub does not have it, or cannot be reached.
    """
    from aird.prompts.sources import config_from_hub, model_file_from_hub, model_from_hub

    if hub.file is not None:
        return model_file_from_hub(hub.repository, hub.revision, hub.file)
    config, commit = config_from_hub(hub.repository, hub.revision)  # before gigabytes are fetched
    if reason := checkpoint_refusal(config):
        raise ValueError(f"{hub.repository} {reason}")
    return model_from_hub(hub.repository, commit, trust_remote_code), commit


@functools.cache
def _readable(
    source: Path, trust_remote_code: bool, original: Path | None, asked: bool, tokenizer: Path | None
) -> tuple[Path, WeightForm]:
    """Return a folder with a model as Transformers, PEFT and vLLM read it, and in which form that is; once."""
    import torch

    from aird.compression.ready_made import readable_form, write_readable
    from aird.models.gguf_file import MODEL_FILE
    from aird.models.gguf_import import dequantise_gguf_weights
    from aird.models.importing import check_weights, holds_wrapper, write_text_model

    if source.is_dir() and (reason := checkpoint_refusal(read_json(source / "config.json"))):
        raise ValueError(f"{source} {reason}")
    wrapper = source.is_dir() and holds_wrapper(source, trust_remote_code)
    form = WeightForm.TEXT_MODEL if wrapper else readable_form(source)
    if form == WeightForm.AS_STORED:
        folder = _without_mistrals(source)
        check_weights(folder, source)
        return folder, form
    if form == WeightForm.TEXT_MODEL:  # in other forms each weight is read where it is written
        check_weights(source, source)
    print(f"Reading {source.name}: {form} ...", flush=True)
    _scratch.append(tempfile.TemporaryDirectory(prefix="aird-decoded-"))
    folder = Path(_scratch[-1].name)
    if wrapper:
        write_text_model(source, folder, trust_remote_code)
    elif source.is_file() and not asked:
        dequantise_gguf_weights(source, folder, torch.bfloat16)
    else:
        write_readable(source, folder, form, original, tokenizer)
    check_weights(folder, source)
    if source.is_file():
        (folder / MODEL_FILE).symlink_to(source)
    return folder, form


def _without_mistrals(source: Path) -> Path:
    """Return a model folder without Mistral's own files: itself, or a temporary one of links to the other files."""
    return _linked(source) if any(map(is_mistrals, source.iterdir())) else source


@functools.cache
def _read_by_its_file(folder: Path, trust_remote_code: bool) -> Path:
    """Return a model folder whose tokenizer all read by its file: itself, or a temporary one of links; once."""
    from aird.models.tokenizer_file import is_read_by_its_file, let_its_file_be_read

    if is_read_by_its_file(folder, trust_remote_code):
        return folder
    linked = _linked(folder)
    let_its_file_be_read(linked, trust_remote_code)  # the link to the class's file becomes a file
    return linked


def _linked(source: Path) -> Path:
    """Return a temporary folder of links to the files of a model folder, but for Mistral's own."""
    _scratch.append(tempfile.TemporaryDirectory(prefix="aird-linked-"))
    folder = Path(_scratch[-1].name)
    for path in source.iterdir():
        if not is_mistrals(path):
            (folder / path.name).symlink_to(path)
    return folder


def add_chat_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says how a model is addressed: the options of the configuration's `models.NAME.chat`."""
    parser.add_argument("--system-prompt", metavar="TEXT", help="system prompt of every conversation")
    parser.add_argument(
        "--template-argument",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a value that the chat template asks for, such as enable_thinking=false; may be repeated",
    )
    thoughts = parser.add_mutually_exclusive_group()
    thoughts.add_argument(
        "--thinking",
        nargs=2,
        metavar=("START", "END"),
        help="tags of a model that thinks, such as '<think>' '</think>'",
    )
    thoughts.add_argument(
        "--no-thinking", action="store_true", help="the model never thinks, though its template knows such tags"
    )


def read_chat_arguments(arguments: argparse.Namespace) -> Chat | None:
    """Return the chat settings that a command's options give; None without any.

    Raises:
        ValueError: an option cannot be.
    """
    values: dict[str, Any] = {}
    for text in arguments.template_argument:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--template-argument: {text} is not NAME=VALUE, such as enable_thinking=false")
        try:
            read = json.loads(value)
        except ValueError:
            read = value
        values[name] = read if isinstance(read, bool | int | float) else value
    thinking = dict(zip(("start", "end"), arguments.thinking, strict=True)) if arguments.thinking else None
    chat = validated(
        Chat,
        {
            "system_prompt": arguments.system_prompt,
            "template_arguments": values,
            "thinking": thinking,
            "thinks": not arguments.no_thinking,
        },
    )
    return None if chat == Chat() else chat


def check_same_chat(*addressed: tuple[str, Chat | None]) -> None:
    """Check that all that is compared is addressed in one way.

    Args:
        addressed: what a message calls each, and its chat settings.

    Raises:
        ValueError: two differ.
    """
    (first, chat), *others = ((name, chat or Chat()) for name, chat in addressed)
    for name, other in others:
        if other != chat:
            raise ValueError(
                f"{first} and {name} have different chat settings ({chat.in_words()} and {other.in_words()}), so their "
                "answers differ by these too; give both the same, by options such as --system-prompt or --thinking"
            )


def recorded_chat(provenance: Mapping[str, Any]) -> Chat:
    """Return the chat settings of the model that a result's record (`ModelFolder.record`) is about."""
    return Chat.model_validate(provenance.get("model", {}).get("chat", {}))


def above_zero(text: str) -> int:
    """Return a whole number above 0, for argparse."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is no whole number above 0")
    return int(text)


def validated(kind: type[SomeSettings], values: dict[str, Any]) -> SomeSettings:
    """Return typed settings.

    Raises:
        ValueError: one line for each value that cannot be.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        messages = [
            f"--{OPTIONS.get(str(each['loc'][-1]), str(each['loc'][-1]).replace('_', '-'))}: "
            f"{each['msg'].removeprefix('Value error, ')} (found: {each['input']})"
            if each["loc"]
            else f"--{kind.__name__.lower()}: {each['msg'].removeprefix('Value error, ')}"
            for each in error.errors()
        ]
        raise ValueError("; ".join(messages)) from None
