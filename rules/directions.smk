"""Refusal directions.

input   an activation cache and its checkpoint
output  results/directions/{model}/{compression}/: scores.csv, prompt_scores.safetensors,
        direction.safetensors, direction.json, verification.json, cosmic.json;
        results/comparisons/{model}/{compression}.json
steps   score the difference in means at every (layer, position) by what adding and
        ablating it does; filter and choose; choose once more by activations alone (COSMIC);
        verify on held-out prompts; compare with the original's direction
"""

DIRECTION = f"{RESULTS}/directions/{{model}}/{{compression}}/direction.safetensors"
DIRECTION_RECORD = f"{RESULTS}/directions/{{model}}/{{compression}}/direction.json"
ORIGINAL_DIRECTION = f"{RESULTS}/directions/{{model}}/{ORIGINAL}/direction.safetensors"
ORIGINAL_DIRECTION_RECORD = f"{RESULTS}/directions/{{model}}/{ORIGINAL}/direction.json"
# What decides which scores are computed; the KL limit only chooses among them.
SCORING = set(
    "harmful harmless minimum_induce layer_fraction validation scored".split()
)
SELECTION = SCORING | {"maximum_kl", "selector", "fallback"}
COSMIC = f"{RESULTS}/directions/{{model}}/{{compression}}/cosmic.json"


rule find_cosmic_direction:
    input:
        **model_job(checkpoint_code("find_cosmic_direction")),
        checkpoint=ancient(CHECKPOINT),
        manifest=MANIFEST,
        cache=rules.capture_activations.output,
        harmful=prompts(DIRECTIONS.harmful),
        harmless=prompts(DIRECTIONS.harmless),
    output:
        COSMIC,
    log:
        f"{RESULTS}/logs/directions/{{model}}/{{compression}}/cosmic.log",
    benchmark:
        f"{RESULTS}/benchmarks/directions/{{model}}/{{compression}}/cosmic.tsv"
    conda:
        "../envs/core.yaml"
    threads: THREADS
    resources:
        mem_mb=memory(4000),
        runtime=60,
        gpu=gpus,
    params:
        **flags(
            settings=settings_json(
                DIRECTIONS,
                only={"harmful", "harmless", "layer_fraction", "maximum_kl"},
            ),
        ),
    message:
        "Choosing a direction of {wildcards.model}, {wildcards.compression} by COSMIC"
    shell:
        'python "$SCRIPTS"/find_cosmic_direction.py --gpus {resources.gpu} {params.flags:q} > {log:q} 2>&1'


rule score_candidates:
    input:
        **model_job(checkpoint_code("score_candidates")),
        checkpoint=ancient(CHECKPOINT),
        manifest=MANIFEST,
        cache=rules.capture_activations.output,
        refusal_tokens=rules.refusal_tokens.output,
        harmful=prompts(DIRECTIONS.harmful),
        harmless=prompts(DIRECTIONS.harmless),
    output:
        scores=f"{RESULTS}/directions/{{model}}/{{compression}}/scores.csv",
        prompt_scores=f"{RESULTS}/directions/{{model}}/{{compression}}/prompt_scores.safetensors",
    log:
        f"{RESULTS}/logs/directions/{{model}}/{{compression}}/scores.log",
    benchmark:
        f"{RESULTS}/benchmarks/directions/{{model}}/{{compression}}/scores.tsv"
    # Every patch waits for the original's direction, so that nothing should wait in front of it.
    priority: 10
    conda:
        "../envs/core.yaml"
    threads: THREADS
    resources:
        mem_mb=memory(6000),
        runtime=240,
        gpu=gpus,
    params:
        **flags(
            settings=settings_json(DIRECTIONS, only=SCORING),
        ),
    message:
        "Scoring candidate directions of {wildcards.model}, {wildcards.compression}"
    shell:
        'python "$SCRIPTS"/score_candidates.py --gpus {resources.gpu} {params.flags:q} > {log:q} 2>&1'


rule select_direction:
    input:
        code=code("select_direction"),
        cache=rules.capture_activations.output,
        scores=rules.score_candidates.output.scores,
        prompt_scores=rules.score_candidates.output.prompt_scores,
        cosmic=COSMIC if DIRECTIONS.may_use_cosmic else [],
    output:
        direction=DIRECTION,
        record=DIRECTION_RECORD,
    log:
        f"{RESULTS}/logs/directions/{{model}}/{{compression}}/direction.log",
    benchmark:
        f"{RESULTS}/benchmarks/directions/{{model}}/{{compression}}/direction.tsv"
    # Every patch waits for the original's direction, so that nothing should wait in front of it.
    priority: 10
    conda:
        "../envs/core.yaml"
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        **flags(
            settings=settings_json(DIRECTIONS, only=SELECTION),
            seed=SEED,
        ),
    message:
        "Choosing the refusal direction of {wildcards.model}, {wildcards.compression}"
    shell:
        'python "$SCRIPTS"/select_direction.py {params.flags:q} > {log:q} 2>&1'


rule verify_direction:
    input:
        **model_job(checkpoint_code("verify_direction")),
        checkpoint=ancient(CHECKPOINT),
        manifest=MANIFEST,
        direction=DIRECTION,
        record=DIRECTION_RECORD,
        harmful=prompts(DIRECTIONS.harmful),
        harmless=prompts(DIRECTIONS.harmless),
    output:
        f"{RESULTS}/directions/{{model}}/{{compression}}/verification.json",
    log:
        f"{RESULTS}/logs/directions/{{model}}/{{compression}}/verification.log",
    benchmark:
        f"{RESULTS}/benchmarks/directions/{{model}}/{{compression}}/verification.tsv"
    conda:
        "../envs/core.yaml"
    threads: THREADS
    resources:
        mem_mb=memory(4000),
        runtime=120,
        gpu=gpus,
    params:
        **flags(
            settings=settings_json(
                DIRECTIONS, only={"harmful", "harmless", "test", "test_new_tokens"}
            ),
            seed=SEED,
        ),
    message:
        "Verifying the direction of {wildcards.model}, {wildcards.compression} (claim C1)"
    shell:
        'python "$SCRIPTS"/verify_direction.py --gpus {resources.gpu} {params.flags:q} > {log:q} 2>&1'


rule compare_directions:
    input:
        code=code("compare_directions"),
        original_cache=f"{RESULTS}/activations/{{model}}/{ORIGINAL}.safetensors",
        original_direction=ORIGINAL_DIRECTION,
        original_record=ORIGINAL_DIRECTION_RECORD,
        cache=rules.capture_activations.output,
        direction=DIRECTION,
        record=DIRECTION_RECORD,
    output:
        f"{RESULTS}/comparisons/{{model}}/{{compression}}.json",
    log:
        f"{RESULTS}/logs/comparisons/{{model}}/{{compression}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/comparisons/{{model}}/{{compression}}.tsv"
    conda:
        "../envs/core.yaml"
    resources:
        mem_mb=2000,
        runtime=20,
    params:
        **flags(
            seed=SEED,
        ),
    message:
        "Comparing the direction of {wildcards.model}, {wildcards.compression} with the original's"
    shell:
        'python "$SCRIPTS"/compare_directions.py {params.flags:q} > {log:q} 2>&1'
