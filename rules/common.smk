"""The checked configuration, and what all rules share.

Nothing heavy is imported here: the workflow is parsed on every start and in
every cluster job.
"""

import atexit
import functools
import gc
import hashlib
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.io import sourcecache_entry
from snakemake.jobs import Job
from snakemake.logging import logger
from snakemake.settings.enums import Quietness
from snakemake_interface_executor_plugins.settings import ExecMode, SharedFSUsage

# The project's folder: where this file's own folder is, whether the project is the workflow or a module
# of another one. The library is imported from it, whatever is installed elsewhere.
PROJECT = Path(
    os.path.abspath(
        os.path.join(workflow.current_basedir.get_path_or_uri(secret_free=True), "..")
    )
)
sys.path[:0] = [str(PROJECT / part) for part in ("", "workflow", "workflow/plugins")]

from aird_progress import attach
from aird_progress.state import earlier_seconds
from planning import flags
from aird.settings.base import ORIGINAL, PLAIN
from aird.configuration.loading import load_configuration
from aird.configuration.local_files import check_files
from aird.configuration.memory import weight_megabytes
from aird.configuration.messages import ConfigurationError
from aird.support.checkpoint_patterns import (
    CARD,
    CODE,
    DESCRIPTION,
    WEIGHTS,
    matching_files,
)
from aird.support.code_dependencies import code_files, code_hash
from aird.support.files import atomic_file, canonical_json
from aird.support.lifetime import hold_run_lock

RESULTS = "results"

# Whether jobs run the programs of this machine, and not those of an image of their own.
SOFTWARE_IS_HERE = (
    SharedFSUsage.SOFTWARE_DEPLOYMENT in workflow.storage_settings.shared_fs_usage
)

# A pod gets declared variables only, and Snakemake refuses to declare one that is not set. Other jobs inherit it.
if not SOFTWARE_IS_HERE and "HF_TOKEN" in os.environ:

    envvars:
        "HF_TOKEN",


try:
    CONFIGURATION = load_configuration(config)
    check_files(CONFIGURATION, workflow.configfiles, software_is_here=SOFTWARE_IS_HERE)
except ConfigurationError as error:
    raise WorkflowError(
        f"The configuration has mistakes (keys: config/README.md):\n{error}"
    )

SEED = CONFIGURATION.seed

# Half the cores for a job that computes with tensors: two run side by side, so that one's start
# (a single-threaded affair of many seconds) overlaps the other's work. The tuning, on which
# everything waits, takes all of them. Snakemake lowers both to what there is.
# (`workflow.cores` would stop calls without --cores, such as --unlock.)
CORES = workflow.resource_settings.cores or 16
ALL_THREADS = min(16, CORES)
THREADS = max(1, ALL_THREADS // 2)
if workflow.exec_mode != ExecMode.DEFAULT:
    # A job of a cluster takes what it asked for when it was sent, not half of it again, and no more: Slurm refuses a
    # step that wants more than its job has. Where processes are not bound, --cores is the whole machine.
    ASKED = int(os.environ.get("SLURM_CPUS_PER_TASK", CORES))
    ALL_THREADS, THREADS = min(16, ASKED), min(8, ASKED)


onstart:
    # Snakemake's own lock is off in the profile: it outlives a killed run.
    if workflow.exec_mode == ExecMode.DEFAULT:
        try:
            hold_run_lock(Path(".snakemake/aird.lock"))
        except RuntimeError as error:
            raise WorkflowError(str(error))
        with atomic_file(Path(".snakemake/aird.grid.json")) as grid:
            grid.write_text(TABLE_SETTINGS, encoding="utf-8")


def one_of(names):
    """Return a regular expression that matches exactly these names."""
    return "|".join(map(re.escape, names)) or "(?!)"


wildcard_constraints:
    prompt_set=one_of(CONFIGURATION.prompt_sets),
    model=one_of(CONFIGURATION.models),
    compression=one_of([ORIGINAL, *CONFIGURATION.compressions]),
    patch=one_of([PLAIN, *CONFIGURATION.patches]),
    suite=one_of(CONFIGURATION.suites),


OUTPUT = workflow.output_settings

# Two tricks that make planning quick: docs/tricks.md.
if OUTPUT.dryrun:
    # A plan is the table of what would run: on one screen, not a screen per job. Errors of a real run need the
    # lines of their job, so the profile cannot say this for both. Who asks for commands (-p), or has a logger of
    # their own (`make why`), gets the jobs.
    alone = [handler.name for handler in logger.handlers] == ["DefaultStreamHandler"]
    if alone and not (OUTPUT.printshellcmds or OUTPUT.verbose):
        Job.log_info = lambda job, *_, **__: None
    # A plan is millions of small objects that live until its end: there is no garbage to look for, and at
    # the end, when Python would look all the same, nothing to be freed one by one.
    gc.disable()
    atexit.register(gc.freeze)


def earlier_times():
    """Return how long a job of each rule took before."""
    return earlier_seconds(
        {
            known.name: str(known.benchmark)
            for known in workflow.rules
            if known.benchmark
        }
    )


# A run shows its progress (workflow/plugins/aird_progress), unless it is quiet, asked for more, or the
# project is a module of a workflow that says such things in its own way.
if (
    not OUTPUT.dryrun
    and workflow.exec_mode == ExecMode.DEFAULT
    and Path(workflow.basedir) in (PROJECT, PROJECT / "workflow")
    and not {Quietness.ALL, Quietness.PROGRESS, Quietness.RULES} & set(OUTPUT.quiet)
    and not (OUTPUT.verbose or OUTPUT.printshellcmds or OUTPUT.debug_dag)
):
    counted = {"model": CONFIGURATION.models, "suite": CONFIGURATION.suites}
    attach(logger, earlier_times, [name for name in counted if len(counted[name]) > 1])


# Jobs run with the Python that runs Snakemake and find the library in the project's folder,
# unless each has a conda environment of its own.
# Waiting threads spin for microseconds only: not at all costs a job a quarter of its speed, longer
# makes jobs on shared cores ten times slower.
# Progress bars would bury a log's lines.
# A job ends when this process does (aird/support/lifetime.py); PPID is bash's name for it.
SEARCHED = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
ENVIRONMENT = (
    "set -euo pipefail; export GOMP_SPINCOUNT=20000 KMP_BLOCKTIME=1 TQDM_DISABLE=1 AIRD_RUN=$PPID"
    f" PYTHONPATH={shlex.quote(os.pathsep.join(SEARCHED))}"
    f" SCRIPTS={shlex.quote(os.path.relpath(PROJECT / 'workflow' / 'scripts'))}"
)
if "conda" in str(workflow.deployment_settings.deployment_method).lower():
    shell.prefix(f"{ENVIRONMENT}; ")
else:
    shell.prefix(
        f'{ENVIRONMENT} PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"; '
    )


hash_of = functools.cache(code_hash)


@functools.cache
def code(script, *modules, words=False):
    """Return a file with the hashes of a script, of every library file that it runs, and of their lock.

    A change of one of them is another file, and so reruns the node. One input instead of twenty: planning takes half
    the time. The hash in the name keeps a job that is at work apart from code that is edited meanwhile: Snakemake
    records a job's inputs when it ends, and any plan in between would have put new content into a file of one name.
    Records of earlier code stay for that reason; they are small.

    `modules` are those that the script chooses at run time, such as plug-ins: files, or dotted names of the project.
    A rule whose script serves several plug-ins calls this in an input function, so that an edit of one plug-in reruns
    its own jobs only. `words` counts the words for readers as well, for jobs that show them.
    """
    start = PROJECT / "workflow" / "scripts" / f"{script}.py"
    chosen = [each if isinstance(each, Path) else module_file(each) for each in modules]
    files = code_files(start, PROJECT, *chosen)
    files.append(PROJECT / "envs" / "core.lock.txt")
    lines = [
        f"{hash_of(path, words)}  {os.path.relpath(path, PROJECT)}" for path in files
    ]
    text = "\n".join(lines) + "\n"
    # A file's name has its limit; the hash tells records apart.
    names = [module_name(path) for path in chosen] if len(chosen) < 4 else ["plug-ins"]
    name = "+".join([script, *names])
    version = hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]
    record = Path(RESULTS) / "code" / f"{name}.{version}.sha256"
    if not record.is_file():
        with atomic_file(record) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return sources([str(record)])


def module_file(name):
    """Return the file of a module of the project by its dotted name."""
    return PROJECT.joinpath(*name.split(".")).with_suffix(".py")


def module_name(path):
    """Return what the record of a script's code calls a module: its dotted name in the project, else its file's."""
    if not path.is_relative_to(PROJECT):
        return path.stem
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts)


# The type that every job and server computes in.
ARITHMETIC = f"{RESULTS}/environments/arithmetic.json"


def model_job(code):
    """Return the inputs that every job has that runs a model: its code, and the arithmetic that it computes in."""
    return {"code": code, "arithmetic": ARITHMETIC}


def sources(paths):
    """Return files of the user's or the project's own as inputs.

    With object storage every other path lies in the bucket, while these come to each job with the
    workflow's sources.
    """
    if workflow.storage_settings.default_storage_provider is None:
        return list(paths)
    return [sourcecache_entry(path, path) for path in paths]


def settings_json(settings, only=None):
    """Return typed settings, or only some of them, as one canonical JSON string.

    This is the form of every rule's parameters: Snakemake compares nothing else reliably.
    """
    values = settings.model_dump()
    return canonical_json(
        {key: value for key, value in values.items() if only is None or key in only}
    )


HAS_GPU = shutil.which("nvidia-smi") is not None


def has_gpus():
    """Return whether this machine has GPUs, or a cluster does that the jobs go to.

    A function, as the executor is not known yet while the workflow is parsed. A job of a cluster gives the answer of
    the run that submitted it. For a plan Snakemake replaces the executor, and only `use_threads` still tells of it.
    """
    settings = workflow.execution_settings
    return (
        HAS_GPU
        or workflow.remote_exec
        or (settings is not None and workflow.use_threads)
    )


def gpus_here(wanted, key):
    """Return how many GPUs a job gets that wants some: as many where there are any, else none.

    Snakemake would lower the number to what all jobs together may use, and say nothing. Inside a job that a
    scheduler runs, the number is not decided again: the job takes what it sees.
    """
    if workflow.exec_mode != ExecMode.DEFAULT:
        return wanted
    limit = workflow.global_resources.get("gpu")
    limit = getattr(limit, "value", limit)
    if not has_gpus() or limit == 0:
        return 0
    if isinstance(limit, int) and limit < wanted:
        raise WorkflowError(
            f"{key} is {wanted}, but this run may use {limit}; start it with --resources gpu={wanted} or more"
        )
    return wanted


def gpus(wildcards):
    """Return the GPUs of a job that runs a model. The profile limits how many are used at once."""
    name = wildcards.model
    return gpus_here(CONFIGURATION.models[name].gpus, f"models.{name}.gpus")


def weights_mb(model, float32=False):
    """Return the memory that a model's weights take once, MB; `float32`: in that type, where jobs may compute in it."""
    settings = CONFIGURATION.models[model]
    imported = [
        Path(RESULTS) / "models" / model / kind / "checkpoint"
        for kind in (ORIGINAL, "source")
    ]
    widened = float32 and not has_gpus() and CONFIGURATION.compute_dtype != "checkpoint"
    return weight_megabytes(settings.source, settings.parameters, imported, widened)


def memory(base_mb, times=1.0):
    """Return a function that gives a job's memory: a base, and the model's weights so many times."""
    return lambda wildcards: round(
        base_mb + times * weights_mb(wildcards.model, float32=True)
    )


def prompts(name):
    """Return the file of a prompt set."""
    return f"{RESULTS}/prompts/{name}.jsonl"


# The checkpoint folder and its manifest. Snakemake does not see edits inside a folder,
# so what depends on a checkpoint depends on its manifest and checks the hashes in it.
CHECKPOINT = f"{RESULTS}/models/{{model}}/{{compression}}/checkpoint"
MANIFEST = f"{RESULTS}/models/{{model}}/{{compression}}/manifest.json"
ORIGINAL_CHECKPOINT = f"{RESULTS}/models/{{model}}/{ORIGINAL}/checkpoint"
ORIGINAL_MANIFEST = f"{RESULTS}/models/{{model}}/{ORIGINAL}/manifest.json"
