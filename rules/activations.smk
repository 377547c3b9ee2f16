"""Activation caches.

input   a checkpoint, the direction prompts, the model's refusal tokens
output  results/directions/{model}/refusal_tokens.json,
        results/activations/{model}/{compression}.safetensors
steps   find the tokens that the original's refusals begin with; run each
        checkpoint once over the prompts, and keep the input of every block at
        every post-instruction token, per prompt; the candidate directions are
        their differences in means
"""

DIRECTIONS = CONFIGURATION.directions


rule refusal_tokens:
    input:
        **model_job(code("find_refusal_tokens")),
        checkpoint=ancient(ORIGINAL_CHECKPOINT),
        manifest=ORIGINAL_MANIFEST,
        harmful=prompts(DIRECTIONS.harmful),
        harmless=prompts(DIRECTIONS.harmless),
    output:
        f"{RESULTS}/directions/{{model}}/refusal_tokens.json",
    log:
        f"{RESULTS}/logs/activations/{{model}}/refusal_tokens.log",
    benchmark:
        f"{RESULTS}/benchmarks/activations/{{model}}/refusal_tokens.tsv"
    # Every patch waits for the original's direction, so that nothing should wait in front of it.
    priority: 10
    conda:
        "../envs/core.yaml"
    threads: THREADS
    resources:
        mem_mb=memory(4000),
        runtime=60,
        gpu=gpus,
    params:
        **flags(
            settings=settings_json(DIRECTIONS, only={"harmful", "harmless", "train"}),
            seed=SEED,
        ),
    message:
        "Finding the tokens that {wildcards.model}'s refusals begin with"
    shell:
        'python "$SCRIPTS"/find_refusal_tokens.py --gpus {resources.gpu} {params.flags:q} > {log:q} 2>&1'


rule capture_activations:
    input:
        **model_job(checkpoint_code("capture_activations")),
        checkpoint=ancient(CHECKPOINT),
        manifest=MANIFEST,
        refusal_tokens=rules.refusal_tokens.output,
        harmful=prompts(DIRECTIONS.harmful),
        harmless=prompts(DIRECTIONS.harmless),
    output:
        f"{RESULTS}/activations/{{model}}/{{compression}}.safetensors",
    log:
        f"{RESULTS}/logs/activations/{{model}}/{{compression}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/activations/{{model}}/{{compression}}.tsv"
    # Every patch waits for the original's direction, so that nothing should wait in front of it.
    priority: 10
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
                DIRECTIONS, only={"harmful", "harmless", "train", "validation"}
            ),
            seed=SEED,
        ),
    message:
        "Capturing activations of {wildcards.model}, {wildcards.compression}"
    shell:
        'python "$SCRIPTS"/capture_activations.py --gpus {resources.gpu} {params.flags:q} > {log:q} 2>&1'
