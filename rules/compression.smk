"""Compressed checkpoints.

input   the original checkpoint; calibration prompts and GPTQModel's environment, if the recipe needs them
output  results/models/{model}/{compression}/checkpoint and manifest.json
steps   compress by one recipe of the registry (aird/compression/registry.py),
        measure sparsity, bits per weight and hashes, fail if nothing happened
"""


rule compress_model:
    input:
        code=code("compress_model"),
        arithmetic=rules.measure_arithmetic.output,
        original=ancient(ORIGINAL_CHECKPOINT),
        original_manifest=ORIGINAL_MANIFEST,
        calibration=calibration_set,
        environment=compression_environment,
    output:
        checkpoint=directory(CHECKPOINT),
        manifest=MANIFEST,
    log:
        f"{RESULTS}/logs/compression/{{model}}/{{compression}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/compression/{{model}}/{{compression}}.tsv"
    wildcard_constraints:
        compression=one_of(CONFIGURATION.compressions),
    conda:
        "../envs/core.yaml"
    threads: THREADS
    resources:
        mem_mb=8000,
        runtime=120,
        gpu=gpus,
    params:
        settings=compression_settings,
        calibration=calibration_flag,
        environment=environment_flag,
    message:
        "Compressing {wildcards.model} by {wildcards.compression}"
    shell:
        'python "$SCRIPTS"/compress_model.py'
        " --arithmetic {input.arithmetic:q}"
        " --original {input.original:q}"
        " --original-manifest {input.original_manifest:q}"
        " {params.calibration} {input.calibration:q}"
        " {params.environment} {input.environment:q}"
        " --settings {params.settings:q}"
        " --checkpoint {output.checkpoint:q}"
        " --manifest {output.manifest:q}"
        " > {log:q} 2>&1"
