"""What the rules plan with: the command line, the code, the GPUs, the memory and the threads of a job.

Nothing heavy is imported here: the workflow is parsed on every start and in every cluster job.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snakemake.exceptions import WorkflowError
from snakemake.io import sourcecache_entry
from snakemake_interface_executor_plugins.settings import ExecMode

from aird.configuration.memory import weight_megabytes
from aird.settings.base import ORIGINAL
from aird.support.code_dependencies import code_files, code_hash
from aird.support.files import atomic_file, canonical_json

if TYPE_CHECKING:
    from pydantic import BaseModel
    from snakemake.io import Wildcards
    from snakemake.workflow import Workflow

    from aird.configuration.configuration import Configuration

# Inputs that Snakemake watches and no script is told: its code, and the files that its settings name.
WATCHED = ("code", "files")


def one_of(names: Iterable[str]) -> str:
    """Return a regular expression that matches exactly these names."""
    return "|".join(map(re.escape, names)) or "(?!)"


def settings_json(settings: BaseModel, only: Collection[str] | None = None) -> str:
    """Return typed settings, or only some of them, as one canonical JSON string.

    This is the form of every rule's parameters: Snakemake compares nothing else reliably.
    """
    values = settings.model_dump()
    return canonical_json({key: value for key, value in values.items() if only is None or key in only})


def flags(inputs: Collection[str] | None = None, **params: object) -> dict[str, object]:
    """Return parameters of a rule, and besides as `flags` the command line of its job.

    The command line names each input, output and parameter once: `harmless=...` of the rule is `--harmless` of the
    script. What is empty or None is left out. As `flags` reads the input, Snakemake does not compare it with
    what an earlier run had; inputs and the other parameters are compared themselves.

    Args:
        inputs: names of those inputs that the script is told; by default all but `WATCHED`.
        params: values, or functions as Snakemake takes them, of `wildcards` and perhaps `input` and `output`.
    """
    functions = {name: _function(value) for name, value in params.items()}

    def command_line(wildcards: Any, input: Any, output: Any) -> list[str]:
        given = dict(input.items())
        told = [name for name in given if (name not in WATCHED if inputs is None else name in inputs)]
        values = {name: given[name] for name in told}
        values |= {name: function(wildcards, input, output) for name, function in functions.items()}
        # An output without a name is the only one, or a list of equals.
        values |= dict(output.items()) or {"output": output}
        return list(_words(values))

    return {**params, "flags": command_line}


def _function(value: object) -> Callable[[Any, Any, Any], object]:
    """Return a parameter as a function of wildcards, input and output."""
    if not callable(value):
        return lambda wildcards, input, output: value
    wanted = inspect.signature(value).parameters.keys() & {"input", "output"}
    return lambda wildcards, input, output: value(
        wildcards, **{name: files for name, files in (("input", input), ("output", output)) if name in wanted}
    )


def _words(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        words = [value] if isinstance(value, str | int) else list(value or ())
        if words:
            yield f"--{name.replace('_', '-')}"
            yield from map(str, words)


def shell_prefix(project: Path, conda: bool) -> str:
    """Return what every command of a job begins with.

    Jobs run with the Python that runs Snakemake and find the library in the project's folder, unless each has a conda
    environment of its own. Waiting threads spin for microseconds only: not at all costs a job a quarter of its speed,
    longer makes jobs on shared cores ten times slower. Progress bars would bury a log's lines. A job ends when this
    process does (aird/support/lifetime.py); PPID is bash's name for it.

    Args:
        project: the project's folder.
        conda: whether each job has a conda environment.
    """
    searched = [str(project), *filter(None, [os.environ.get("PYTHONPATH")])]
    prefix = (
        "set -euo pipefail; export GOMP_SPINCOUNT=20000 KMP_BLOCKTIME=1 TQDM_DISABLE=1 AIRD_RUN=$PPID"
        f" PYTHONPATH={shlex.quote(os.pathsep.join(searched))}"
        f" SCRIPTS={shlex.quote(os.path.relpath(project / 'workflow' / 'scripts'))}"
    )
    own = "" if conda else f' PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"'
    return f"{prefix}{own}; "


class Plan:
    """What the jobs of a grid get: code, threads, GPUs and memory.

    Args:
        workflow: Snakemake's.
        configuration: as checked.
        project: the project's folder.
        results: the folder of the results.
    """

    def __init__(self, workflow: Workflow, configuration: Configuration, project: Path, results: str) -> None:
        self.workflow = workflow
        self.configuration = configuration
        self.project = project
        self.results = Path(results)
        self.in_job = workflow.exec_mode != ExecMode.DEFAULT
        self.has_gpu = shutil.which("nvidia-smi") is not None
        self.code = functools.cache(self._code)
        self.hash_of = functools.cache(code_hash)

    def threads(self) -> tuple[int, int]:
        """Return the threads of a job that computes with tensors, and those of one on which everything waits.

        The first are half the cores: two jobs run side by side, so that one's start (a single-threaded affair of many
        seconds) overlaps the other's work. Snakemake lowers both to what there is.
        """
        # `workflow.cores` would stop calls without --cores, such as --unlock.
        cores = self.workflow.resource_settings.cores or 16
        if not self.in_job:
            return max(1, min(16, cores) // 2), min(16, cores)
        # A job of a cluster takes what it asked for when it was sent, not half of it again, and no more: Slurm refuses
        # a step that wants more than its job has. Where processes are not bound, --cores is the whole machine.
        asked = int(os.environ.get("SLURM_CPUS_PER_TASK", cores))
        return min(8, asked), min(16, asked)

    def _code(self, script: str, *modules: Path | str, words: bool = False, shown: tuple[Path, ...] = ()) -> list[str]:
        """Return a file with the hashes of a script, of every library file that it runs, and of their lock.

        A change of one of them is another file, and so reruns the node. One input instead of twenty: planning takes
        half the time. The hash in the name keeps a job that is at work apart from code that is edited meanwhile:
        Snakemake records a job's inputs when it ends, and any plan in between would have put new content into a file
        of one name. Records of earlier code stay for that reason; they are small.

        Args:
            script: name of the script.
            modules: those that the script chooses at run time, such as plug-ins: files, or dotted names of the project.
                A rule whose script serves several plug-ins calls this in an input function, so that an edit of one
                plug-in reruns its own jobs only.
            words: count the words for readers as well, for jobs that show them.
            shown: plug-ins of which the script shows words and settings, and does not run their work.
        """
        chosen = [each if isinstance(each, Path) else self._module_file(each) for each in modules]
        files = code_files(self.project / "workflow" / "scripts" / f"{script}.py", self.project, *chosen, shown=shown)
        files.append(self.project / "envs" / "core.lock.txt")
        lines = [f"{self.hash_of(path, words)}  {os.path.relpath(path, self.project)}" for path in files]
        text = "\n".join(lines) + "\n"
        # A file's name has its limit; the hash tells records apart.
        names = [self._module_name(path) for path in chosen] if len(chosen) < 4 else ["plug-ins"]
        version = hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]
        record = self.results / "code" / f"{'+'.join([script, *names])}.{version}.sha256"
        if not record.is_file():
            with atomic_file(record) as temporary:
                temporary.write_text(text, encoding="utf-8")
        return self.sources([str(record)])

    def _module_file(self, name: str) -> Path:
        """Return the file of a module of the project by its dotted name."""
        return self.project.joinpath(*name.split(".")).with_suffix(".py")

    def _module_name(self, path: Path) -> str:
        """Return what the record of a script's code calls a module: its dotted name, else its file's."""
        if not path.is_relative_to(self.project):
            return path.stem
        return ".".join(path.relative_to(self.project).with_suffix("").parts)

    def sources(self, paths: Iterable[str]) -> list[str]:
        """Return files of the user's or the project's own as inputs.

        With object storage every other path lies in the bucket, while these come to each job with the
        workflow's sources.
        """
        if self.workflow.storage_settings.default_storage_provider is None:
            return list(paths)
        return [sourcecache_entry(path, path) for path in paths]

    def has_gpus(self) -> bool:
        """Return whether this machine has GPUs, or a cluster does that the jobs go to.

        A function, as the executor is not known yet while the workflow is parsed. A job of a cluster gives the answer
        of the run that submitted it. For a plan Snakemake replaces the executor, and only `use_threads` still tells
        of it.
        """
        started = self.workflow.execution_settings is not None
        return self.has_gpu or self.workflow.remote_exec or (started and self.workflow.use_threads)

    def gpus_here(self, wanted: int, key: str) -> int:
        """Return how many GPUs a job gets that wants some: as many where there are any, else none.

        Snakemake would lower the number to what all jobs together may use, and say nothing. Inside a job that a
        scheduler runs, the number is not decided again: the job takes what it sees.

        Args:
            wanted: number of GPUs.
            key: of the configuration, which says so.
        """
        if self.in_job:
            return wanted
        limit = self.workflow.global_resources.get("gpu")
        limit = getattr(limit, "value", limit)
        if not self.has_gpus() or limit == 0:
            return 0
        if isinstance(limit, int) and limit < wanted:
            raise WorkflowError(
                f"{key} is {wanted}, but this run may use {limit}; start it with --resources gpu={wanted} or more"
            )
        return wanted

    def gpus(self, wildcards: Wildcards) -> int:
        """Return the GPUs of a job that runs a model. The profile limits how many are used at once."""
        name = wildcards.model
        return self.gpus_here(self.configuration.models[name].gpus, f"models.{name}.gpus")

    def weights_mb(self, model: str, float32: bool = False) -> float:
        """Return the memory that a model's weights take once, MB; `float32`: where jobs may compute in that type."""
        settings = self.configuration.models[model]
        imported = [self.results / "models" / model / kind / "checkpoint" for kind in (ORIGINAL, "source")]
        widened = float32 and not self.has_gpus() and self.configuration.compute_dtype != "checkpoint"
        return weight_megabytes(settings.source, settings.parameters, imported, widened)

    def memory(self, base_mb: float, times: float = 1.0) -> Callable[[Wildcards], int]:
        """Return a function that gives a job's memory: a base, and the model's weights so many times."""
        return lambda wildcards: round(base_mb + times * self.weights_mb(wildcards.model, float32=True))
