"""Completions, utility and scores.

input   a checkpoint, a patch, the prompts of a suite, vLLM's environment
output  results/completions/{model}/{compression}/{patch}/{suite}.jsonl,
        results/utility/... (log-likelihoods and lm-eval's tasks), results/scores/...
steps   start vLLM on the checkpoint, check that it agrees with Transformers, ask
        everything that the suite measures, stop it; label the completions later,
        so that a new judge needs no model
"""

CELL = "{model}/{compression}/{patch}/{suite}"


def suite_prompts(kind):
    """Return an input function that names the prompt set of a suite."""

    def path(wildcards):
        return prompts(getattr(CONFIGURATION.suites[wildcards.suite], kind).set)

    return path


def patch_input(template):
    """Return an input function that names a patch's file, or nothing for the plain checkpoint."""

    def path(wildcards):
        return (
            []
            if wildcards.patch == PLAIN
            else [template.format(**dict(wildcards.items()))]
        )

    return path


def reference_completions(wildcards):
    """Return the original's completions, whose harmless answers give the perplexity.

    The original itself is measured on its own.
    """
    if (wildcards.compression, wildcards.patch) == (ORIGINAL, PLAIN):
        return []
    return [
        f"{RESULTS}/completions/{wildcards.model}/{ORIGINAL}/{PLAIN}/{wildcards.suite}.jsonl"
    ]


def task_files(wildcards):
    """Return the files of a suite's own lm-eval tasks; Snakemake then watches them."""
    folder = CONFIGURATION.suites[wildcards.suite].task_folder
    if folder is None:
        return []
    return sorted(
        str(path)
        for path in Path(folder).iterdir()
        if path.is_file() and not path.name.startswith(".")
    )


def optional_flags(wildcards):
    """Return the flags of the inputs that only some cells have."""
    flags = []
    if wildcards.patch != PLAIN:
        cell = dict(wildcards.items())
        flags += ["--adapter", ADAPTER.format(**cell)]
        flags += ["--adapter-statistics", ADAPTER_STATISTICS.format(**cell)]
    for path in reference_completions(wildcards):
        flags += ["--reference", path]
    folder = CONFIGURATION.suites[wildcards.suite].task_folder
    if folder is not None:
        flags += ["--task-folder", folder]
    return flags


def suite_settings(wildcards):
    """Return the settings of a suite and of the server, without where vLLM is."""
    suite = CONFIGURATION.suites[wildcards.suite].model_dump(exclude_none=True)
    serving = CONFIGURATION.serving.model_dump(
        exclude_none=True, exclude={"executable", "url", "lock"}
    )
    return canonical_json({"suite": suite, "serving": serving})


rule evaluate_suite:
    message:
        "Serving {wildcards.model}, {wildcards.compression}, {wildcards.patch} for suite {wildcards.suite}"
    input:
        code=code("evaluate_suite"),
        environment=rules.vllm_environment.output,
        checkpoint=ancient(CHECKPOINT),
        manifest=MANIFEST,
        adapter=patch_input(ADAPTER_STATISTICS),
        reference=reference_completions,
        harmful=suite_prompts("harmful"),
        harmless=suite_prompts("harmless"),
        tasks=task_files,
    output:
        completions=f"{RESULTS}/completions/{CELL}.jsonl",
        utility=f"{RESULTS}/utility/{CELL}.json",
    log:
        job=f"{RESULTS}/logs/evaluation/{CELL}.log",
        server=f"{RESULTS}/logs/evaluation/{CELL}.server.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluation/{CELL}.tsv"
    conda:
        "../envs/core.yaml"
    params:
        settings=suite_settings,
        optional=optional_flags,
        seed=SEED,
    threads: THREADS
    resources:
        mem_mb=8000,
        runtime=240,
        gpu=1,
    shell:
        "python {input.code[0]:q}"
        " --checkpoint {input.checkpoint:q}"
        " --manifest {input.manifest:q}"
        " --environment {input.environment:q}"
        " --harmful {input.harmful:q}"
        " --harmless {input.harmless:q}"
        " {params.optional:q}"
        " --settings {params.settings:q}"
        " --seed {params.seed}"
        " --server-log {log.server:q}"
        " --completions {output.completions:q}"
        " --utility {output.utility:q}"
        " > {log.job:q} 2>&1"


rule score_completions:
    message:
        "Scoring {wildcards.model}, {wildcards.compression}, {wildcards.patch}, {wildcards.suite}"
    input:
        code=code("score_completions"),
        completions=rules.evaluate_suite.output.completions,
        utility=rules.evaluate_suite.output.utility,
    output:
        f"{RESULTS}/scores/{CELL}.json",
    log:
        f"{RESULTS}/logs/scores/{CELL}.log",
    benchmark:
        f"{RESULTS}/benchmarks/scores/{CELL}.tsv"
    conda:
        "../envs/core.yaml"
    params:
        seed=SEED,
    resources:
        mem_mb=1000,
        runtime=10,
    shell:
        "python {input.code[0]:q}"
        " --completions {input.completions:q}"
        " --utility {input.utility:q}"
        " --seed {params.seed}"
        " --output {output:q}"
        " > {log:q} 2>&1"
