"""Check what a configuration says about this machine's files, before any job starts.

Nothing heavy is imported and no large file is read: the workflow does this
whenever it is parsed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aird.configuration.checks import attack_sources, model_sources
from aird.configuration.configuration import Configuration
from aird.configuration.messages import ConfigurationError, show
from aird.configuration.prompt_checks import unmet, uses
from aird.evaluation.hand_labels import read_labels
from aird.models.config_json import experts_of
from aird.models.refusals import (
    ADAPTER,
    ADAPTER_INSIDE,
    GGUF_MODELS,
    checkpoint_refusal,
    original_refusal,
    patch_refusal,
)
from aird.patching.methods import method_of
from aird.settings.base import ORIGINAL, PLAIN
from aird.settings.models import Model
from aird.settings.prompt_files import read_instructions, read_texts
from aird.settings.prompts import PromptSet, TextFile
from aird.settings.sources import ModelSource
from aird.settings.suites import Suite
from aird.support.checkpoint_patterns import weight_files
from aird.support.gpus import spreading_obstacle

# Local prompt files beyond this size are left to the job that reads them anyway.
LARGEST_PROMPT_FILE = 10_000_000


def check_files(
    configuration: Configuration, configuration_files: Iterable[str | Path] = (), software_is_here: bool = True
) -> None:
    """Check that the local files exist that a configuration names, and that they can be used.

    Args:
        configuration: a checked configuration.
        configuration_files: the files that it was read from, to find keys that stand in them twice.
        software_is_here: jobs run the programs of this machine, and not those of an image of their own.

    Raises:
        ConfigurationError: with one line per mistake.
    """
    mistakes: list[str] = []
    for path in configuration_files:
        try:
            load_yaml_strictly(Path(path))
        except ConfigurationError as error:
            mistakes += str(error).splitlines()
        except OSError:
            pass  # Snakemake says so itself.
    for name, prompt_set in configuration.prompt_sets.items():
        mistakes += _prompt_file(configuration, name, prompt_set)
    for name in configuration.corpora:
        mistakes += _corpus_file(configuration, name)
    for key, source in model_sources(configuration):
        mistakes += _model_files(key, source, ready_made=key.startswith("compressions."))
    for key, file in attack_sources(configuration):
        if file.path is not None and not Path(file.path).is_file():
            mistakes.append(_absent(f"{key}.path", file.path, "the file of the attack's text"))
    for name, model in configuration.models.items():
        mistakes += _heads(f"models.{name}", model)
        mistakes += _unused_dtype(f"models.{name}", model)
    mistakes += _patched_rotations(configuration)
    mistakes += _unconvertible(configuration)
    mistakes += _uncompressed_experts(configuration)
    for name, suite in configuration.suites.items():
        mistakes += _task_files(f"suites.{name}", suite)
        mistakes += _judge_files(f"suites.{name}", suite)
    mistakes += _hand_labels(configuration.hand_labels)
    for name, engine in configuration.engines.items():
        for key, wanted in (
            ("lock", "the lock file of an environment"),
            ("executable", "the Python of an environment"),
        ):
            value = getattr(engine, key, None)
            if value is not None and (software_is_here or key == "lock") and not Path(value).is_file():
                holds = configuration.engine_kinds[name].title
                mistakes.append(_absent(f"engines.{name}.{key}", value, f"{wanted} with {holds}"))
    if not software_is_here:
        mistakes += _environments_of_images(configuration)
    if mistakes:
        raise ConfigurationError("\n".join(mistakes))


def load_yaml_strictly(path: Path) -> Any:
    """Return the content of a YAML file; a key that stands twice in a table is an error.

    YAML's own loader keeps the last of them and says nothing.

    Raises:
        ConfigurationError: repeated keys, one line for each, or a file that is not YAML.
    """
    # Imported here: whoever only checks values needs no YAML.
    import yaml

    repeated: list[str] = []

    class StrictLoader(yaml.SafeLoader):
        """Collects repeated keys."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            """Return the mapping of a node."""
            seen: dict[str, int] = {}
            for key, _ in node.value:
                line = key.start_mark.line + 1
                if isinstance(key, yaml.ScalarNode) and key.value != "<<" and key.value in seen:
                    first = seen[key.value]
                    repeated.append(
                        f"{path}, line {line}: key {show(key.value)} stands already in line {first}; remove one"
                    )
                elif isinstance(key, yaml.ScalarNode):
                    seen[key.value] = line
            return super().construct_mapping(node, deep)

    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        raise ConfigurationError(f"{path}: cannot be read as YAML; correct it ({text})") from error
    if repeated:
        raise ConfigurationError("\n".join(repeated))
    return content


def _absent(key: str, path: str, wanted: str, kind: str = "file") -> str:
    home = ", with ~ written out" if path.startswith("~") else ""
    return f"{key}: there is no such {kind}; name {wanted}{home} (found: {show(path)})"


def _environments_of_images(configuration: Configuration) -> Iterator[str]:
    """Yield what needs an environment that the workflow would build: it would end with the image of its own job."""
    image = "each job runs in an image of its own here, which keeps no environment that another job builds"
    for name in configuration.engines_used():
        kind = configuration.engine_kinds[name]
        if kind.environment is not None and getattr(configuration.engine_settings(name), "executable", None) is None:
            yield f"engines.{name}.executable: {image}; name the Python of the image that has {kind.title}"
    for name in sorted({compression for _, compression, _ in configuration.cells()} - {ORIGINAL}):
        made = configuration.compressions[name]
        if made.environment is not None:
            yield (
                f"compressions.{name}: {image}, as `recipe: {made.recipe}` needs; leave it out, or run "
                "the workflow without `shared-fs-usage: none`"
            )


def _read_here(settings: TextFile) -> Path | None:
    """Return the local file of texts, unless it is left to the job that reads it."""
    if settings.source is None or settings.source.path is None:
        return None
    path = Path(settings.source.path)
    if path.is_file() and (settings.format == "parquet" or path.stat().st_size > LARGEST_PROMPT_FILE):
        return None
    return path


def _corpus_file(configuration: Configuration, name: str) -> Iterator[str]:
    """Yield what is wrong with a local corpus, as far as it shows without a tokenizer."""
    settings = configuration.corpora[name]
    key, path = f"corpora.{name}", _read_here(settings)
    if path is None:
        return
    if not path.is_file():
        yield _absent(f"{key}.source.path", str(path), "a file of texts")
        return
    try:
        texts = read_texts(path, settings)
    except (ValueError, AttributeError) as error:
        yield f"{key}: {' '.join(str(error).split())}; correct format, records or field, or the file"
        return
    # A token is one byte at least; each text has an end token, and perhaps a space that the tokenizer adds.
    tokens = sum(len(text.encode()) + 2 for text in texts)
    for compression, made in configuration.compressions.items():
        chosen = getattr(made, "calibration", None)
        if chosen is not None and chosen.corpus == name and chosen.sequences * chosen.length > tokens:
            yield (
                f"compressions.{compression}.calibration: asks for more than {path.name} holds, {tokens} tokens at "
                f"most; write fewer sequences, or name more text (found: {chosen.sequences} of {chosen.length} tokens)"
            )


def _prompt_file(configuration: Configuration, name: str, settings: PromptSet) -> Iterator[str]:
    key, path = f"prompt_sets.{name}", _read_here(settings)
    if path is None:
        return
    if not path.is_file():
        yield _absent(f"{key}.source.path", str(path), "a file of instructions")
        return
    try:
        rows = read_instructions(path, settings)
    except (ValueError, AttributeError) as error:
        text = " ".join(str(error).split())
        yield f"{key}: {text}; correct format, records, field or split_field, or the file"
        return
    held = len({text for text, _ in rows})
    wanted = sum((settings.splits or {}).values())
    if wanted > held:
        yield f"{key}.splits: ask for more than {path.name} holds; write {held} in sum at most (found: {wanted})"
    for use in uses(configuration):
        count = use.selection.count
        if use.selection.set == name and use.selection.split is None and count is not None and count > held:
            yield f"{use.count_key}: asks for more than {path.name} holds; write at most {held} (found: {count})"
    if settings.split_field is not None:
        sizes = Counter(sorted(split for _, split in rows if isinstance(split, str)))
        yield from unmet(configuration, name, sizes, "use one that its file has")


def _model_files(key: str, source: ModelSource, ready_made: bool) -> Iterator[str]:
    """Yield what is wrong with a local model; a ready-made one has its original's chat template."""
    if source.path is None:
        return
    path = Path(source.path)
    where = f"(found: {show(source.path)})"
    if path.is_file():
        with open(path, "rb") as stream:
            holds_gguf = stream.read(4) == b"GGUF"
        if not holds_gguf:
            yield f"{key}.path: is a file, but no GGUF file; name a *.gguf file or a model's folder {where}"
        elif not source.is_gguf:  # as are the files of Ollama
            yield f"{key}.path: is a GGUF file, but its name does not say so; link it under a *.gguf name {where}"
        return
    if not path.is_dir():
        yield _absent(f"{key}.path", source.path, "a model's folder or a GGUF file")
        return
    if source.is_gguf:
        yield f"{key}.path: is a folder, but named like a GGUF file; link it under a name without .gguf {where}"
    if source.sha256 is not None:
        yield f"{key}.sha256: is for a GGUF file, but the path is a folder; leave it out"
    if not (path / "config.json").is_file():
        yield f"{key}.path: the folder holds no config.json; name a model's folder in Hugging Face format {where}"
    elif not weight_files(path):
        yield f"{key}.path: the folder holds no *.safetensors; convert the model with save_pretrained first {where}"
    elif (path / ADAPTER).is_file():
        yield f"{key}.path: the folder {ADAPTER_INSIDE} {where}"
    elif ready_made:
        if reason := checkpoint_refusal(_config(path)):
            yield f"{key}.path: {reason} {where}"
    elif reason := original_refusal(_config(path)):
        yield f"{key}.path: {reason} {where}"
    elif not _has_chat_template(path):
        yield (
            f"{key}.path: the folder holds no chat template; use the chat (instruct) version of the model, or put "
            f"a chat_template.jinja into it {where}"
        )


def _heads(key: str, model: Model) -> Iterator[str]:
    """Yield what keeps vLLM from spreading a local model over its GPUs."""
    if model.source.path is not None:
        obstacle = spreading_obstacle(_config(Path(model.source.path)), model.gpus)
        if obstacle is not None:
            yield f"{key}.gpus: {obstacle}; write another number (found: {model.gpus})"


def _unused_dtype(key: str, model: Model) -> Iterator[str]:
    """Yield a type that would change nothing: only a GGUF file is dequantised to one."""
    if "dtype" in model.model_fields_set and not model.source.is_gguf:
        yield (
            f"{key}.dtype: is the type that a GGUF file is dequantised to, and this source keeps its own; leave dtype "
            f"out (found: {model.dtype})"
        )


def _patched_rotations(configuration: Configuration) -> Iterator[str]:
    """Yield patches of local checkpoints that can be served but not patched."""
    said = set()
    for model, compression, patch in configuration.cells():
        made = configuration.compressions.get(compression)
        source = None if made is None else made.ready_made.get(model)
        if patch == PLAIN or source is None or source.path is None:
            continue
        reason = patch_refusal(_quantisation(Path(source.path)))
        changes_weights = method_of(configuration.patches[patch]).adapter
        if reason and changes_weights and (compression, patch) not in said:
            said.add((compression, patch))
            yield (
                f"patches.{patch}.compressions: {compression} of {model} can be measured but not patched, as {reason}; "
                "name the other compressions here"
            )


def _unconvertible(configuration: Configuration) -> Iterator[str]:
    """Yield local models that a recipe would convert to GGUF and cannot."""
    for name, model in configuration.models.items():
        made = {each: configuration.compressions[each] for each in configuration.compressions_of(name)}
        recipes = [each for each in made if made[each].holds_gguf(name) and not made[each].ready_made]
        if not recipes or model.source.path is None:
            continue
        kind = _config(Path(model.source.path)).get("model_type")
        if kind is not None and kind not in GGUF_MODELS:
            yield (
                f"models.{name}.compressions: {recipes[0]} cannot be made of {name}: a model of the type {kind} does "
                f"not come back from GGUF (those that do: {', '.join(GGUF_MODELS)}); name the other compressions here"
            )


def _uncompressed_experts(configuration: Configuration) -> Iterator[str]:
    """Yield local mixtures of experts that a recipe would leave as they are; the job looks at their matrices too."""
    for name, model in configuration.models.items():
        if model.source.path is None:
            continue
        experts = experts_of(_config(Path(model.source.path)))
        if experts is None:
            continue
        key, count = experts
        for each in configuration.compressions_of(name):
            made = configuration.compressions[each]
            if made.ready_made or not made.changes_weights or made.holds_gguf(name):
                continue  # of GGUF, `_unconvertible` knows the models
            if getattr(made, "activation_bits", None) is not None:
                reason = "Transformers does not round its experts' inputs, as a server would"
            elif made.compresses_experts is False:
                reason = f"{made.recipe} does not compress experts"
            else:
                continue
            yield (
                f"models.{name}.compressions: {each} cannot be made of {name}, a mixture of experts ({key}: {count}): "
                f"{reason}; name the other compressions here, or a ready-made one"
            )


def _quantisation(folder: Path) -> Any:
    return _config(folder).get("quantization_config")


def _config(folder: Path) -> Mapping[str, Any]:
    """Return a model's config.json; nothing where it cannot be read, which is said elsewhere, or by the import."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _judge_files(key: str, suite: Suite) -> Iterator[str]:
    if suite.judge is None or suite.judge.source.path is None:
        return
    folder = Path(suite.judge.source.path)
    if not (folder / "config.json").is_file() or not weight_files(folder):
        given = f"(found: {show(suite.judge.source.path)})"
        yield f"{key}.judge.source.path: is no model; name a folder in Hugging Face format with safetensors {given}"


def _hand_labels(path: str | None) -> Iterator[str]:
    if path is None:
        return
    if not Path(path).is_file():
        yield _absent("hand_labels", path, "a file that `aird label` wrote")
        return
    try:
        read_labels(Path(path))
    except ValueError as error:
        yield f"hand_labels: {error}"


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and bool(settings.get("chat_template"))


def _task_files(key: str, suite: Suite) -> Iterator[str]:
    if suite.task_folder is None:
        return
    folder = Path(suite.task_folder)
    if not folder.is_dir():
        yield _absent(f"{key}.task_folder", suite.task_folder, "a folder of lm-eval task files", "folder")
        return
    names: list[str] = []
    for path in sorted(folder.rglob("*.yaml")):
        text = path.read_text(encoding="utf-8", errors="replace")
        names += re.findall(r"^(?:task|group):\s*[\"']?([^\s\"'#]+)", text, flags=re.MULTILINE)
    # Tasks of lm-eval itself may stand beside them, so one is enough.
    if not set(names) & set(suite.tasks):
        known = ", ".join(names) or "no task; put one there, or name another folder"
        yield f"{key}.task_folder: none of the suite's tasks is in it; add one to `tasks` from what it holds: {known}"
