"""Does the original's direction come back in patched checkpoints? For the patches that `directions.patched` names.

input   a compressed checkpoint with a patch's adapter on it, the direction prompts, the original's direction
output  results/restorations/{model}/{compression}/{patch}/: activations.safetensors, verification.json,
        comparison.json
steps   capture the patched checkpoint's activations, and ablate and add the original's direction on held-out
        prompts; compare the original, the compressed and the patched checkpoint at the original's site
"""

RESTORATION = f"{RESULTS}/restorations/{{model}}/{{compression}}/{{patch}}"


rule examine_patched:
    input:
        **model_job(checkpoint_code("examine_patched")),
        checkpoint=ancient(CHECKPOINT),
        manifest=MANIFEST,
        adapter=ancient(ADAPTER),
        statistics=ADAPTER_STATISTICS,
        direction=ORIGINAL_DIRECTION,
        record=ORIGINAL_DIRECTION_RECORD,
        refusal_tokens=rules.refusal_tokens.output,
        harmful=prompts(DIRECTIONS.harmful),
        harmless=prompts(DIRECTIONS.harmless),
    output:
        cache=f"{RESTORATION}/activations.safetensors",
        verification=f"{RESTORATION}/verification.json",
    log:
        f"{RESULTS}/logs/restorations/{{model}}/{{compression}}/{{patch}}/examination.log",
    benchmark:
        f"{RESULTS}/benchmarks/restorations/{{model}}/{{compression}}/{{patch}}/examination.tsv"
    wildcard_constraints:
        patch=one_of(DIRECTIONS.patched),
    conda:
        "../envs/core.yaml"
    threads: THREADS
    resources:
        mem_mb=memory(4000),
        runtime=180,
        gpu=gpus,
    params:
        **flags(
            settings=settings_json(
                DIRECTIONS,
                only=set(
                    "harmful harmless train validation test test_new_tokens".split()
                ),
            ),
            seed=SEED,
        ),
    message:
        "Looking for the original's direction in {wildcards.model}, {wildcards.compression}, patched by"
        " {wildcards.patch} (claim C5)"
    shell:
        'python "$SCRIPTS"/examine_patched.py --gpus {resources.gpu} {params.flags:q} > {log:q} 2>&1'


rule compare_restored:
    input:
        code=code("compare_restored"),
        original_cache=f"{RESULTS}/activations/{{model}}/{ORIGINAL}.safetensors",
        original_direction=ORIGINAL_DIRECTION,
        original_record=ORIGINAL_DIRECTION_RECORD,
        compressed=rules.capture_activations.output,
        patched=rules.examine_patched.output.cache,
    output:
        f"{RESTORATION}/comparison.json",
    log:
        f"{RESULTS}/logs/restorations/{{model}}/{{compression}}/{{patch}}/comparison.log",
    benchmark:
        f"{RESULTS}/benchmarks/restorations/{{model}}/{{compression}}/{{patch}}/comparison.tsv"
    wildcard_constraints:
        patch=one_of(DIRECTIONS.patched),
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
        "Comparing {wildcards.model}, {wildcards.compression}, patched by {wildcards.patch}, with the original"
    shell:
        'python "$SCRIPTS"/compare_restored.py {params.flags:q} > {log:q} 2>&1'
