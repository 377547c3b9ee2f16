"""Compressed checkpoints.

input   the original checkpoint; calibration prompts, if the recipe needs them
output  results/models/{model}/{compression}/checkpoint and manifest.json
steps   compress by one recipe of the registry (aird/compression/registry.py),
        measure sparsity, bits per weight and hashes, fail if nothing happened
"""


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


def compression_settings(wildcards):
    """Return the settings of a compression."""
    return settings_json(CONFIGURATION.compressions[wildcards.compression])


rule compress_model:
    message:
        "Compressing {wildcards.model} by {wildcards.compression}"
    wildcard_constraints:
        compression=one_of(CONFIGURATION.compressions),
    input:
        code=code("compress_model"),
        original=ancient(ORIGINAL_CHECKPOINT),
        original_manifest=ORIGINAL_MANIFEST,
        calibration=calibration_set,
    output:
        checkpoint=directory(CHECKPOINT),
        manifest=MANIFEST,
    log:
        f"{RESULTS}/logs/compression/{{model}}/{{compression}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/compression/{{model}}/{{compression}}.tsv"
    conda:
        "../envs/core.yaml"
    params:
        settings=compression_settings,
        calibration=calibration_flag,
    threads: THREADS
    resources:
        mem_mb=8000,
        runtime=120,
        gpu=1,
    shell:
        "python {input.code[0]:q}"
        " --original {input.original:q}"
        " --original-manifest {input.original_manifest:q}"
        " {params.calibration} {input.calibration:q}"
        " --settings {params.settings:q}"
        " --checkpoint {output.checkpoint:q}"
        " --manifest {output.manifest:q}"
        " > {log:q} 2>&1"
