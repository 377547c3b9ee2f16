"""AIRD patches: W' = W_c + r r^T (a W_c + b W_o), a rank-1 edit (aird/patching/edits.py).

input   the original's refusal direction, both checkpoints
output  results/patches/{model}/{compression}/{patch}/: adapter/ (PEFT, rank 1) and
        statistics.json; merged/ on request
steps   read the edited matrices, compute the row r^T (a W_c + b W_o), write the adapter; or
        fit the row on the direction prompts, module by module; or learn the rows from the
        original's recorded replies and choose their strength on validation prompts
"""

ADAPTER = f"{RESULTS}/patches/{{model}}/{{compression}}/{{patch}}/adapter"
ADAPTER_STATISTICS = (
    f"{RESULTS}/patches/{{model}}/{{compression}}/{{patch}}/statistics.json"
)


rule make_patch:
    input:
        code=code("make_patch"),
        original=ancient(ORIGINAL_CHECKPOINT),
        original_manifest=ORIGINAL_MANIFEST,
        original_direction=ORIGINAL_DIRECTION,
        original_record=ORIGINAL_DIRECTION_RECORD,
        compressed=ancient(CHECKPOINT),
        compressed_manifest=MANIFEST,
        own=own_direction,
    output:
        adapter=directory(ADAPTER),
        statistics=ADAPTER_STATISTICS,
    log:
        f"{RESULTS}/logs/patches/{{model}}/{{compression}}/{{patch}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/patches/{{model}}/{{compression}}/{{patch}}.tsv"
    wildcard_constraints:
        patch=one_of(patches_by("scale", "project")),
    conda:
        "../envs/core.yaml"
    resources:
        mem_mb=3000,
        runtime=30,
    params:
        settings=patch_settings,
    message:
        "Patching {wildcards.model}, {wildcards.compression} by {wildcards.patch}"
    shell:
        'python "$SCRIPTS"/make_patch.py'
        " --original {input.original:q}"
        " --original-manifest {input.original_manifest:q}"
        " --original-direction {input.original_direction:q}"
        " --original-record {input.original_record:q}"
        " --compressed {input.compressed:q}"
        " --compressed-manifest {input.compressed_manifest:q}"
        " --own {input.own:q}"
        " --settings {params.settings:q}"
        " --adapter {output.adapter:q}"
        " --statistics {output.statistics:q}"
        " > {log:q} 2>&1"


rule fit_patch:
    input:
        code=code("fit_patch"),
        arithmetic=rules.measure_arithmetic.output,
        original=ancient(ORIGINAL_CHECKPOINT),
        original_manifest=ORIGINAL_MANIFEST,
        original_direction=ORIGINAL_DIRECTION,
        original_record=ORIGINAL_DIRECTION_RECORD,
        compressed=ancient(CHECKPOINT),
        compressed_manifest=MANIFEST,
        own=own_direction,
        harmful=prompts(DIRECTIONS.harmful),
        harmless=prompts(DIRECTIONS.harmless),
    output:
        adapter=directory(ADAPTER),
        statistics=ADAPTER_STATISTICS,
    log:
        f"{RESULTS}/logs/patches/{{model}}/{{compression}}/{{patch}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/patches/{{model}}/{{compression}}/{{patch}}.tsv"
    wildcard_constraints:
        patch=one_of(patches_by("fit")),
    conda:
        "../envs/core.yaml"
    threads: THREADS
    resources:
        mem_mb=6000,
        runtime=60,
        gpu=gpus,
    params:
        settings=tuned_patch_settings({"train": DIRECTIONS.train}),
        seed=SEED,
    message:
        "Fitting {wildcards.patch} to {wildcards.model}, {wildcards.compression}"
    shell:
        'python "$SCRIPTS"/fit_patch.py'
        " --arithmetic {input.arithmetic:q}"
        " --original {input.original:q}"
        " --original-manifest {input.original_manifest:q}"
        " --original-direction {input.original_direction:q}"
        " --original-record {input.original_record:q}"
        " --compressed {input.compressed:q}"
        " --compressed-manifest {input.compressed_manifest:q}"
        " --own {input.own:q}"
        " --harmful {input.harmful:q}"
        " --harmless {input.harmless:q}"
        " --settings {params.settings:q}"
        " --seed {params.seed}"
        " --adapter {output.adapter:q}"
        " --statistics {output.statistics:q}"
        " > {log:q} 2>&1"


rule record_replies:
    input:
        code=code("record_replies"),
        arithmetic=rules.measure_arithmetic.output,
        checkpoint=ancient(ORIGINAL_CHECKPOINT),
        manifest=ORIGINAL_MANIFEST,
        harmful=prompts(DIRECTIONS.harmful),
        harmless=prompts(DIRECTIONS.harmless),
    output:
        f"{RESULTS}/patches/{{model}}/replies.safetensors",
    log:
        f"{RESULTS}/logs/patches/{{model}}/replies.log",
    benchmark:
        f"{RESULTS}/benchmarks/patches/{{model}}/replies.tsv"
    # The longest of the patches: its evaluation should not be what the run ends on.
    priority: 5
    conda:
        "../envs/core.yaml"
    threads: THREADS
    resources:
        mem_mb=4000,
        runtime=60,
        gpu=gpus,
    params:
        settings=settings_json(CONFIGURATION.replies),
        seed=SEED,
    message:
        "Recording the replies of {wildcards.model}"
    shell:
        'python "$SCRIPTS"/record_replies.py'
        " --arithmetic {input.arithmetic:q}"
        " --checkpoint {input.checkpoint:q}"
        " --manifest {input.manifest:q}"
        " --harmful {input.harmful:q}"
        " --harmless {input.harmless:q}"
        " --settings {params.settings:q}"
        " --seed {params.seed}"
        " --output {output:q}"
        " > {log:q} 2>&1"


rule calibrate_patch:
    input:
        code=code("calibrate_patch"),
        arithmetic=rules.measure_arithmetic.output,
        original=ancient(ORIGINAL_CHECKPOINT),
        original_manifest=ORIGINAL_MANIFEST,
        original_direction=ORIGINAL_DIRECTION,
        original_record=ORIGINAL_DIRECTION_RECORD,
        compressed=ancient(CHECKPOINT),
        compressed_manifest=MANIFEST,
        own=own_direction,
        replies=rules.record_replies.output,
        harmful=prompts(DIRECTIONS.harmful),
        harmless=prompts(DIRECTIONS.harmless),
    output:
        adapter=directory(ADAPTER),
        statistics=ADAPTER_STATISTICS,
    log:
        f"{RESULTS}/logs/patches/{{model}}/{{compression}}/{{patch}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/patches/{{model}}/{{compression}}/{{patch}}.tsv"
    wildcard_constraints:
        patch=one_of(patches_by("calibrate")),
    # The longest of the patches: its evaluation should not be what the run ends on.
    priority: 5
    conda:
        "../envs/core.yaml"
    threads: THREADS
    resources:
        mem_mb=6000,
        runtime=60,
        gpu=gpus,
    params:
        settings=tuned_patch_settings({"replies": CONFIGURATION.replies.model_dump()}),
        seed=SEED,
    message:
        "Calibrating {wildcards.patch} to {wildcards.model}, {wildcards.compression}"
    shell:
        'python "$SCRIPTS"/calibrate_patch.py'
        " --arithmetic {input.arithmetic:q}"
        " --original {input.original:q}"
        " --original-manifest {input.original_manifest:q}"
        " --original-direction {input.original_direction:q}"
        " --original-record {input.original_record:q}"
        " --compressed {input.compressed:q}"
        " --compressed-manifest {input.compressed_manifest:q}"
        " --own {input.own:q}"
        " --replies {input.replies:q}"
        " --harmful {input.harmful:q}"
        " --harmless {input.harmless:q}"
        " --settings {params.settings:q}"
        " --seed {params.seed}"
        " --adapter {output.adapter:q}"
        " --statistics {output.statistics:q}"
        " > {log:q} 2>&1"


rule tune_lora:
    input:
        code=code("tune_lora"),
        compressed=ancient(CHECKPOINT),
        compressed_manifest=MANIFEST,
        original_manifest=ORIGINAL_MANIFEST,
        harmful=prompts(DIRECTIONS.harmful),
        harmless=prompts(DIRECTIONS.harmless),
    output:
        adapter=directory(ADAPTER),
        statistics=ADAPTER_STATISTICS,
    log:
        f"{RESULTS}/logs/patches/{{model}}/{{compression}}/{{patch}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/patches/{{model}}/{{compression}}/{{patch}}.tsv"
    wildcard_constraints:
        patch=one_of(patches_by("lora")),
    conda:
        "../envs/core.yaml"
    threads: THREADS
    resources:
        mem_mb=8000,
        runtime=120,
        gpu=gpus,
    params:
        settings=tuned_patch_settings({"train": CONFIGURATION.replies.train_harmful}),
        seed=SEED,
    message:
        "Tuning {wildcards.patch} of {wildcards.model}, {wildcards.compression}"
    shell:
        'python "$SCRIPTS"/tune_lora.py'
        " --compressed {input.compressed:q}"
        " --compressed-manifest {input.compressed_manifest:q}"
        " --original-manifest {input.original_manifest:q}"
        " --harmful {input.harmful:q}"
        " --harmless {input.harmless:q}"
        " --settings {params.settings:q}"
        " --seed {params.seed}"
        " --adapter {output.adapter:q}"
        " --statistics {output.statistics:q}"
        " > {log:q} 2>&1"


rule write_system_prompt:
    input:
        code=code("write_system_prompt"),
    output:
        adapter=directory(ADAPTER),
        statistics=ADAPTER_STATISTICS,
    log:
        f"{RESULTS}/logs/patches/{{model}}/{{compression}}/{{patch}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/patches/{{model}}/{{compression}}/{{patch}}.tsv"
    wildcard_constraints:
        patch=one_of(patches_by("system_prompt")),
    conda:
        "../envs/core.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        settings=patch_settings,
    message:
        "Writing {wildcards.patch} for {wildcards.model}, {wildcards.compression}"
    shell:
        'python "$SCRIPTS"/write_system_prompt.py'
        " --settings {params.settings:q}"
        " --base {wildcards.compression:q}"
        " --adapter {output.adapter:q}"
        " --statistics {output.statistics:q}"
        " > {log:q} 2>&1"


rule merge_patch:
    input:
        code=code("merge_patch"),
        compressed=ancient(CHECKPOINT),
        compressed_manifest=MANIFEST,
        adapter=ancient(ADAPTER),
        statistics=ADAPTER_STATISTICS,
    output:
        checkpoint=directory(
            f"{RESULTS}/patches/{{model}}/{{compression}}/{{patch}}/merged/checkpoint"
        ),
        manifest=f"{RESULTS}/patches/{{model}}/{{compression}}/{{patch}}/merged/manifest.json",
    log:
        f"{RESULTS}/logs/patches/{{model}}/{{compression}}/{{patch}}.merge.log",
    benchmark:
        f"{RESULTS}/benchmarks/patches/{{model}}/{{compression}}/{{patch}}.merge.tsv"
    wildcard_constraints:
        patch=one_of(
            [
                name
                for name in CONFIGURATION.patches
                if name not in patches_by("system_prompt")
            ]
        ),
    conda:
        "../envs/core.yaml"
    resources:
        mem_mb=4000,
        runtime=30,
    message:
        "Merging {wildcards.patch} into {wildcards.model}, {wildcards.compression}"
    shell:
        'python "$SCRIPTS"/merge_patch.py'
        " --compressed {input.compressed:q}"
        " --compressed-manifest {input.compressed_manifest:q}"
        " --adapter {input.adapter:q}"
        " --statistics {input.statistics:q}"
        " --checkpoint {output.checkpoint:q}"
        " --manifest {output.manifest:q}"
        " > {log:q} 2>&1"
