"""Compressed checkpoints.

input   the original checkpoint; calibration prompts or a corpus, and an environment of its own, if the recipe needs them
output  results/models/{model}/{compression}/checkpoint and manifest.json
steps   compress by one recipe (aird/compression/recipes/),
        or import a checkpoint that somebody else made (aird/compression/ready_made.py),
        measure sparsity, bits per weight and hashes, fail if nothing happened
"""

from aird.models.format import files_of
from aird.plugin import RECIPES

READY_MADE = [
    name for name, made in CONFIGURATION.compressions.items() if made.ready_made
]
MADE = [name for name in CONFIGURATION.compressions if name not in READY_MADE]
# The code of the format that each checkpoint is stored in; before it is imported it may be any.
FORMAT_FILES = {
    ORIGINAL: [],
    **{
        name: files_of(None if made.ready_made else made.storage_format)
        for name, made in CONFIGURATION.compressions.items()
    },
}
# An edit of one recipe makes its own checkpoints again. Written while the workflow is parsed, as those of methods.
RECIPE_CODE = {
    name: code(
        "compress_model",
        RECIPES.file(CONFIGURATION.compressions[name].recipe),
        *FORMAT_FILES[name],
    )
    for name in MADE
}
# For jobs that show what recipes are called.
RECIPE_FILES = sorted(
    {RECIPES.file(made.recipe) for made in CONFIGURATION.compressions.values()}
)


def checkpoint_code(script, wildcard=None, chosen=None):
    """Return an input function that names the code of a script that reads a checkpoint, with that of its format.

    `chosen` are the files of other plug-ins that it takes, by the values of `wildcard`.
    """
    records = {
        (value, name): code(script, *files, *formats)
        for value, files in (chosen or {None: []}).items()
        for name, formats in FORMAT_FILES.items()
    }
    return lambda wildcards: records[
        wildcard and wildcards[wildcard], wildcards.compression
    ]


def given_source(wildcards):
    """Return where a model's ready-made checkpoint comes from."""
    sources_of = CONFIGURATION.compressions[wildcards.compression].ready_made
    if wildcards.model not in sources_of:
        raise WorkflowError(
            f"compressions.{wildcards.compression} is a ready-made checkpoint and has none of {wildcards.model}; "
            f"add compressions.{wildcards.compression}.sources.{wildcards.model}"
        )
    return sources_of[wildcards.model]


def compression_memory(wildcards):
    """Return the memory of a compression, MB; of one that decodes its GGUF file as of the import of such a file."""
    if CONFIGURATION.compressions[wildcards.compression].holds_gguf(wildcards.model):
        return 8000 + 3 * weights_mb(wildcards.model)
    return memory(8000, times=1.5)(wildcards)


def given_memory(wildcards):
    """Return the memory of such an import, MB; of GGUF as of a model's own."""
    times = 3 if given_source(wildcards).is_gguf else 1
    return 8000 + times * weights_mb(wildcards.model)


def compression_gpus(wildcards):
    """Return the GPUs of a compression: one, on which one block of the model is at a time, or none of some recipes."""
    recipe = RECIPES.of(CONFIGURATION.compressions[wildcards.compression])
    return gpus_here(1, "gpu") if recipe.gpu else 0


def calibration_texts(wildcards):
    """Return the file of the prompts or the corpus that a recipe is calibrated on, if it needs any."""
    settings = CONFIGURATION.compressions[wildcards.compression]
    if not settings.needs_calibration:
        return []
    chosen = settings.calibration
    return prompts(chosen.prompt_set) if chosen.prompt_set else corpus(chosen.corpus)


def compression_environment(wildcards):
    """Return the record of the environment of its own that a recipe runs in, if it does."""
    environment = CONFIGURATION.compressions[wildcards.compression].environment
    return [f"{RESULTS}/environments/{environment.name}.json"] if environment else []


def compression_settings(wildcards):
    """Return the settings of a compression."""
    # Who serves it, and with which cache, changes no weight.
    settings = CONFIGURATION.compressions[wildcards.compression]
    return canonical_json(
        settings.model_dump(exclude={"engine", "key_value_cache_dtype"})
    )


rule compress_model:
    input:
        **model_job(lambda wildcards: RECIPE_CODE[wildcards.compression]),
        original=ancient(ORIGINAL_CHECKPOINT),
        original_manifest=ORIGINAL_MANIFEST,
        calibration=calibration_texts,
        environment=compression_environment,
    output:
        checkpoint=directory(CHECKPOINT),
        manifest=MANIFEST,
    log:
        f"{RESULTS}/logs/compression/{{model}}/{{compression}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/compression/{{model}}/{{compression}}.tsv"
    wildcard_constraints:
        compression=one_of(MADE),
    conda:
        "../envs/core.yaml"
    threads: THREADS
    resources:
        mem_mb=compression_memory,
        runtime=120,
        gpu=compression_gpus,
    params:
        **flags(
            settings=compression_settings,
        ),
    message:
        "Compressing {wildcards.model} by {wildcards.compression}"
    shell:
        'python "$SCRIPTS"/compress_model.py --gpus {resources.gpu} {params.flags:q} > {log:q} 2>&1'


rule import_given:
    input:
        code=code("import_given", *files_of(None)),
        original=ancient(ORIGINAL_CHECKPOINT),
        original_manifest=ORIGINAL_MANIFEST,
        files=lambda wildcards: model_files(given_source(wildcards), wildcards.model),
    output:
        checkpoint=directory(CHECKPOINT),
        manifest=MANIFEST,
    log:
        f"{RESULTS}/logs/compression/{{model}}/{{compression}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/compression/{{model}}/{{compression}}.tsv"
    wildcard_constraints:
        compression=one_of(READY_MADE),
    retries: 2
    conda:
        "../envs/core.yaml"
    threads: THREADS
    resources:
        mem_mb=given_memory,
        runtime=120,
    params:
        **flags(
            recipe=lambda wildcards: CONFIGURATION.compressions[
                wildcards.compression
            ].recipe,
            settings=lambda wildcards: settings_json(given_source(wildcards)),
        ),
    message:
        "Importing {wildcards.compression} of {wildcards.model}"
    shell:
        'python "$SCRIPTS"/import_given.py {params.flags:q} > {log:q} 2>&1'
