"""The checked configuration, and what all rules share.

Nothing heavy is imported here: the workflow is parsed on every start and in
every cluster job.
"""

import atexit
import gc
import os
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
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
from planning import Plan, flags, one_of, settings_json, shell_prefix
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

# What the jobs get, under the names that rules have for it (workflow/planning.py).
PLAN = Plan(workflow, CONFIGURATION, PROJECT, RESULTS)
THREADS, ALL_THREADS = PLAN.threads()
code, sources = PLAN.code, PLAN.sources
has_gpus, gpus_here, gpus = PLAN.has_gpus, PLAN.gpus_here, PLAN.gpus
weights_mb, memory = PLAN.weights_mb, PLAN.memory

shell.prefix(
    shell_prefix(
        PROJECT, "conda" in str(workflow.deployment_settings.deployment_method).lower()
    )
)


onstart:
    # Snakemake's own lock is off in the profile: it outlives a killed run.
    if workflow.exec_mode == ExecMode.DEFAULT:
        try:
            hold_run_lock(Path(".snakemake/aird.lock"))
        except RuntimeError as error:
            raise WorkflowError(str(error))
        with atomic_file(Path(".snakemake/aird.grid.json")) as grid:
            grid.write_text(TABLE_SETTINGS, encoding="utf-8")


wildcard_constraints:
    prompt_set=one_of(CONFIGURATION.prompt_sets),
    corpus=one_of(CONFIGURATION.corpora),
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


# The type that every job and server computes in.
ARITHMETIC = f"{RESULTS}/environments/arithmetic.json"


def model_job(code):
    """Return the inputs that every job has that runs a model: its code, and the arithmetic that it computes in."""
    return {"code": code, "arithmetic": ARITHMETIC}


def prompts(name):
    """Return the file of a prompt set."""
    return f"{RESULTS}/prompts/{name}.jsonl"


def corpus(name):
    """Return the file of a text corpus."""
    return f"{RESULTS}/corpora/{name}.jsonl"


# The checkpoint folder and its manifest. Snakemake does not see edits inside a folder,
# so what depends on a checkpoint depends on its manifest and checks the hashes in it.
CHECKPOINT = f"{RESULTS}/models/{{model}}/{{compression}}/checkpoint"
MANIFEST = f"{RESULTS}/models/{{model}}/{{compression}}/manifest.json"
ORIGINAL_CHECKPOINT = f"{RESULTS}/models/{{model}}/{ORIGINAL}/checkpoint"
ORIGINAL_MANIFEST = f"{RESULTS}/models/{{model}}/{ORIGINAL}/manifest.json"
