"""The checked configuration, and what all rules share.

Nothing heavy is imported here: the workflow is parsed on every start and in
every cluster job.
"""

import atexit
import functools
import gc
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import snakemake.common
import snakemake.rules
from snakemake.exceptions import WorkflowError
from snakemake.io import sourcecache_entry
from snakemake.jobs import Job
from snakemake.logging import logger
from snakemake.settings.enums import Quietness
from snakemake_interface_executor_plugins.settings import ExecMode

# The project's folder: where this file's own folder is, whether the project is the workflow or a module
# of another one. The library is imported from it, whatever is installed elsewhere.
PROJECT = Path(
    os.path.abspath(
        os.path.join(workflow.current_basedir.get_path_or_uri(secret_free=True), "..")
    )
)
sys.path[:0] = [str(PROJECT), str(PROJECT / "workflow" / "plugins")]

from aird_progress import attach
from aird_progress.earlier import earlier_seconds
from aird.settings.base import ORIGINAL, PLAIN
from aird.settings.loading import load_configuration
from aird.settings.local_files import check_files
from aird.settings.messages import ConfigurationError
from aird.support.code_dependencies import code_files
from aird.support.files import atomic_file, canonical_json, sha256_of
from aird.support.lifetime import hold_run_lock

RESULTS = "results"

try:
    CONFIGURATION = load_configuration(config)
    check_files(CONFIGURATION, workflow.configfiles)
except ConfigurationError as error:
    raise WorkflowError(
        f"The configuration has mistakes (keys: config/README.md):\n{error}"
    )

SEED = CONFIGURATION.seed

# Half the cores for a job that computes with tensors: two run side by side, so that one's start
# (a single-threaded affair of many seconds) overlaps the other's work. The tuning, on which
# everything waits, takes all of them. Snakemake lowers both to what there is.
# (`workflow.cores` would stop calls without --cores, such as --unlock.)
ALL_THREADS = min(16, workflow.resource_settings.cores or 16)
THREADS = max(1, ALL_THREADS // 2)

TUNED = [
    name
    for name, model in CONFIGURATION.models.items()
    if model.refusal_tuning is not None
]
UNTUNED = [name for name in CONFIGURATION.models if name not in TUNED]


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


if workflow.output_settings.dryrun:
    # A plan is the table of what would run: on one screen, not a screen per job. Errors of a real
    # run need the lines of their job, so the profile cannot say this for both.
    quiet_filters = [
        record_filter
        for handler in logger.handlers
        for record_filter in handler.filters
        if hasattr(record_filter, "quiet")
    ]
    for record_filter in quiet_filters:
        record_filter.quiet = {*record_filter.quiet, Quietness.RULES}
    # Nor are they made: formatting what nobody sees is a third of a plan's time. A logger of the
    # user's own (`make why`) still gets them.
    if len(quiet_filters) == len(logger.handlers):
        Job.log_info = lambda job, *_, **__: None
    # A plan is millions of small objects that live until its end: there is no garbage to look for, and at
    # the end, when Python would look all the same, nothing to be freed one by one.
    gc.disable()
    atexit.register(gc.freeze)
    # Snakemake asks for the parameters of the same few functions for every job: a tenth of a plan's time.
    parameters = functools.cache(snakemake.common.get_function_params)
    snakemake.common.get_function_params = parameters
    snakemake.rules.get_function_params = parameters


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
OUTPUT = workflow.output_settings
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
# A job ends when this process does (aird/support/lifetime.py); PPID is bash's name for it.
ENVIRONMENT = (
    "set -euo pipefail; export GOMP_SPINCOUNT=20000 KMP_BLOCKTIME=1 AIRD_RUN=$PPID"
    f" PYTHONPATH={shlex.quote(str(PROJECT))}"
    f" SCRIPTS={shlex.quote(os.path.relpath(PROJECT / 'workflow' / 'scripts'))}"
)
if "conda" in str(workflow.deployment_settings.deployment_method).lower():
    shell.prefix(f"{ENVIRONMENT}; ")
else:
    shell.prefix(
        f'{ENVIRONMENT} PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"; '
    )


hash_of = functools.cache(sha256_of)


def code(script):
    """Return a file with the hashes of a script, of every library file that it runs, and of their lock.

    A change of one of them changes this file, and so reruns the node. One input instead of
    twenty: planning takes half the time.
    """
    files = code_files(PROJECT / "workflow" / "scripts" / f"{script}.py", PROJECT)
    files.append(PROJECT / "envs" / "core.lock.txt")
    lines = [f"{hash_of(path)}  {os.path.relpath(path, PROJECT)}" for path in files]
    text = "\n".join(lines) + "\n"
    record = Path(RESULTS) / "code" / f"{script}.sha256"
    if not record.is_file() or record.read_text(encoding="utf-8") != text:
        with atomic_file(record) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return sources([str(record)])


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


def gpus(wildcards):
    """Return one GPU for a job that runs a model, where this machine has one or a cluster does.

    A function, as the executor is not known yet while the workflow is parsed. The profile limits
    how many run at once.
    """
    return 1 if HAS_GPU or not workflow.local_exec else 0


def prompts(name):
    """Return the file of a prompt set."""
    return f"{RESULTS}/prompts/{name}.jsonl"


# The checkpoint folder and its manifest. Snakemake does not see edits inside a folder,
# so what depends on a checkpoint depends on its manifest and checks the hashes in it.
CHECKPOINT = f"{RESULTS}/models/{{model}}/{{compression}}/checkpoint"
MANIFEST = f"{RESULTS}/models/{{model}}/{{compression}}/manifest.json"
ORIGINAL_CHECKPOINT = f"{RESULTS}/models/{{model}}/{ORIGINAL}/checkpoint"
ORIGINAL_MANIFEST = f"{RESULTS}/models/{{model}}/{ORIGINAL}/manifest.json"


# vLLM's environment


def vllm_lock():
    """Return the lock to install, or nothing where the user brings vLLM."""
    serving = CONFIGURATION.serving
    if serving.executable is not None or serving.url is not None:
        return []
    if serving.lock is not None:
        return sources([serving.lock])
    kind = "cuda" if HAS_GPU else "cpu"
    return sources([os.path.relpath(PROJECT / "envs" / f"vllm-{kind}.lock.txt")])


def environment_folder(wildcards, output):
    """Return the folder of an environment, which stands beside its record."""
    return os.path.splitext(output[0])[0]


# Prompt sets


def prompt_source(wildcards):
    """Return the local file of a prompt set, if it has one; Snakemake then watches it."""
    source = CONFIGURATION.prompt_sets[wildcards.prompt_set].source
    return (
        sources([source.path]) if source is not None and source.path is not None else []
    )


def combined_sets(wildcards):
    """Return the sets that this one joins."""
    return [
        prompts(name)
        for name in CONFIGURATION.prompt_sets[wildcards.prompt_set].combine or []
    ]


def excluded_sets(wildcards):
    """Return the sets that this one must not overlap."""
    return [
        prompts(name)
        for name in CONFIGURATION.prompt_sets[wildcards.prompt_set].disjoint_from
    ]


def prompt_set_settings(wildcards):
    """Return the settings of a prompt set."""
    return settings_json(CONFIGURATION.prompt_sets[wildcards.prompt_set])


# Models


def local_model_files(wildcards):
    """Return the files of a model's local source; Snakemake then watches them."""
    return local_files(CONFIGURATION.models[wildcards.model].source.path)


def local_files(path):
    """Return the files of a local folder, or the one file; none where there is no path."""
    if path is None:
        return []
    if os.path.isdir(path):
        return sources(
            sorted(str(file) for file in Path(path).iterdir() if file.is_file())
        )
    return sources([path])


def import_settings(wildcards):
    """Return what importing a model depends on."""
    model = CONFIGURATION.models[wildcards.model]
    return settings_json(model, only={"source", "dtype", "trust_remote_code"})


def tuning(wildcards):
    """Return the refusal tuning of a model."""
    return CONFIGURATION.models[wildcards.model].refusal_tuning


def tuning_harmful(wildcards):
    """Return the prompt set of harmful instructions that a tuning uses."""
    return prompts(tuning(wildcards).harmful.set)


def tuning_harmless(wildcards):
    """Return the prompt set of harmless instructions that a tuning uses."""
    return prompts(tuning(wildcards).harmless.set)


def tuning_settings(wildcards):
    """Return the settings of a refusal tuning."""
    return settings_json(tuning(wildcards))


# Compression


def calibration_set(wildcards):
    """Return the calibration prompts of a recipe, if it needs any."""
    settings = CONFIGURATION.compressions[wildcards.compression]
    return (
        [prompts(settings.calibration.prompt_set)] if settings.needs_calibration else []
    )


def calibration_flag(wildcards):
    """Return the flag that goes with the calibration prompts."""
    settings = CONFIGURATION.compressions[wildcards.compression]
    return "--calibration" if settings.needs_calibration else ""


def compression_environment(wildcards):
    """Return the record of GPTQModel's environment for a recipe that runs there."""
    needed = CONFIGURATION.compressions[wildcards.compression].needs_environment
    return [f"{RESULTS}/environments/gptq.json"] if needed else []


def environment_flag(wildcards):
    """Return the flag that goes with that record."""
    return "--environment" if compression_environment(wildcards) else ""


def compression_settings(wildcards):
    """Return the settings of a compression."""
    return settings_json(CONFIGURATION.compressions[wildcards.compression])


# Patches


def patches_by(*methods):
    """Return the names of the patches that are made by one of these methods."""
    return [
        name for name, patch in CONFIGURATION.patches.items() if patch.method in methods
    ]


def own_direction(wildcards):
    """Return the compressed checkpoint's own direction and its record, for a patch that asks for it.

    Any other patch neither waits for that direction nor is made again with it.
    """
    if CONFIGURATION.patches[wildcards.patch].direction != "own":
        return []
    return [path.format(**wildcards) for path in (DIRECTION, DIRECTION_RECORD)]


def patch_settings(wildcards):
    """Return what a patch's tensors depend on."""
    patch = CONFIGURATION.patches[wildcards.patch]
    return canonical_json(patch.model_dump(exclude={"compressions"}))


def tuned_patch_settings(more):
    """Return a function from wildcards to the settings of a patch that learns from prompts.

    It depends on its own settings and on `more`, which says how many prompts it sees.
    """

    def settings(wildcards):
        patch = CONFIGURATION.patches[wildcards.patch]
        values = patch.model_dump(exclude={"compressions"})
        return canonical_json({"patch": values, **more})

    return settings


# Evaluation


def suite_prompts(kind):
    """Return an input function that names the prompt set of a suite."""

    def path(wildcards):
        return prompts(getattr(CONFIGURATION.suites[wildcards.suite], kind).set)

    return path


def patch_input(template):
    """Return an input function that names a patch's file, or nothing for the plain checkpoint."""

    def path(wildcards):
        return (
            []
            if wildcards.patch == PLAIN
            else [template.format(**dict(wildcards.items()))]
        )

    return path


def reference_completions(wildcards):
    """Return the original's completions, whose harmless answers give the perplexity.

    The original itself is measured on its own.
    """
    if (wildcards.compression, wildcards.patch) == (ORIGINAL, PLAIN):
        return []
    return [
        f"{RESULTS}/completions/{wildcards.model}/{ORIGINAL}/{PLAIN}/{wildcards.suite}.jsonl"
    ]


def task_files(wildcards):
    """Return the files of a suite's own lm-eval tasks; Snakemake then watches them."""
    folder = CONFIGURATION.suites[wildcards.suite].task_folder
    if folder is None:
        return []
    return sources(
        sorted(
            str(path)
            for path in Path(folder).iterdir()
            if path.is_file() and not path.name.startswith(".")
        )
    )


def optional_flags(wildcards, input):
    """Return the flags of the inputs that only some cells have."""
    flags = []
    for name in ("adapter", "adapter_statistics", "reference"):
        for path in getattr(input, name):
            flags += [f"--{name.replace('_', '-')}", path]
    if input.tasks:
        flags += ["--task-folder", os.path.dirname(input.tasks[0])]
    return flags


# One string per suite, made once and not once per job.
SERVING_SETTINGS = CONFIGURATION.serving.model_dump(
    exclude={"executable", "url", "lock"}
)
SUITE_SETTINGS = {
    # The judge only reads the completions.
    name: canonical_json(
        {"suite": suite.model_dump(exclude={"judge"}), "serving": SERVING_SETTINGS}
    )
    for name, suite in CONFIGURATION.suites.items()
}


def suite_settings(wildcards):
    """Return the settings of a suite and of the server, without where vLLM is."""
    return SUITE_SETTINGS[wildcards.suite]


JUDGED = [
    name for name, suite in CONFIGURATION.suites.items() if suite.judge is not None
]


def judge_files(wildcards):
    """Return the files of a judge's local folder; Snakemake then watches them."""
    path = CONFIGURATION.suites[wildcards.suite].judge.source.path
    if path is None:
        return []
    return sources(sorted(str(file) for file in Path(path).iterdir() if file.is_file()))


def judge_source(wildcards):
    """Return where a suite's judge comes from."""
    return settings_json(CONFIGURATION.suites[wildcards.suite].judge.source)


def judge_settings(wildcards):
    """Return how a suite's judge is asked."""
    return settings_json(CONFIGURATION.suites[wildcards.suite].judge)


def judgement(wildcards):
    """Return the judge's answers on a cell's completions, where the suite has a judge."""
    path = f"{RESULTS}/judgements/{{model}}/{{compression}}/{{patch}}/{{suite}}.jsonl"
    return [path.format(**wildcards)] if wildcards.suite in JUDGED else []


def judgement_flag(wildcards):
    """Return the flag that goes with them."""
    return "--judgement" if wildcards.suite in JUDGED else ""


# Tables and figures


def table(name):
    """Return a table as an item of the report."""
    caption = TABLE_CAPTIONS.get(name, "other_table")
    return report(
        f"{RESULTS}/tables/{name}.csv",
        caption=f"../workflow/report/{caption}.rst",
        category="Tables",
        labels={"table": name},
    )


def results_folder(wildcards, input):
    """Return the folder of all results: with object storage, where this job's copies lie."""
    return str(input.scores[0]).removesuffix(SCORES[0].removeprefix(RESULTS))


def benchmarks_folder(wildcards, input):
    """Return the folder of the benchmark files, which stands beside that of the tables."""
    return os.path.join(os.path.dirname(tables_folder(wildcards, input)), "benchmarks")


def tables_folder(wildcards, input):
    """Return the folder of the tables that a job reads."""
    return os.path.dirname(input.tables[0])


def written_tables_folder(wildcards, output):
    """Return the folder of the tables that a job writes."""
    return os.path.dirname(output[0])


def written_cards_folder(wildcards, output):
    """Return the folder of all model cards, below which each has its model, compression and patch."""
    return str(Path(output[0]).parents[3])


def run_command(wildcards, input):
    """Return the command that makes everything again.

    As a function of `input` it is not tracked: another name of the same configuration is no change.
    """
    files = workflow.overwrite_configfiles
    chosen = ["--configfile", *map(os.path.relpath, files)] if files else []
    return shlex.join(["snakemake", "--cores", "all", *chosen])
