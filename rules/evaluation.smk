"""Completions, utility and scores.

input   a checkpoint, a patch, the prompts and attacks of a suite, the environment of its engine
output  results/completions/{model}/{compression}/{patch}/{suite}.jsonl,
        results/attacks/... (suffixes that are optimised against the checkpoint),
        results/utility/... (log-likelihoods and lm-eval's tasks), results/scores/...
steps   start an engine on the checkpoint, check that it agrees with Transformers,
        ask everything that the suite measures, stop it; label the completions
        later, so that a new judge needs no model; where the suite names a
        model as judge, serve that and ask it about each completion
"""

from aird.evaluation.judge import text_judges
from aird.plugin import ENGINES, JUDGES

CELL = "{model}/{compression}/{patch}/{suite}"


def suite_prompts(kind):
    """Return an input function that names the prompt set of a suite."""
    return lambda wildcards: prompts(
        getattr(CONFIGURATION.suites[wildcards.suite], kind).set
    )


def patch_input(template):
    """Return an input function that names a patch's file, or nothing for the plain checkpoint."""
    return lambda wildcards: (
        [] if wildcards.patch == PLAIN else [template.format(**wildcards)]
    )


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
    """Return the files of a suite's own lm-eval tasks, those in subfolders too; Snakemake then watches them."""
    folder = CONFIGURATION.suites[wildcards.suite].task_folder
    if folder is None:
        return []
    return sources(
        sorted(
            str(path)
            for path in Path(folder).rglob("*")
            if path.is_file()
            and not any(
                part.startswith(".") or part == "__pycache__"
                for part in path.relative_to(folder).parts
            )
        )
    )


def engine_of(wildcards):
    """Return the name of the engine that serves a cell."""
    return CONFIGURATION.engine_of(wildcards.model, wildcards.compression)


def engine_environment(wildcards):
    """Return the record of the environment that a cell's engine runs in, if it has one."""
    return environment_record(engine_of(wildcards))


def engine_settings(wildcards):
    """Return the settings of a cell's engine."""
    cell = CONFIGURATION.served_cell(
        wildcards.model, wildcards.compression, wildcards.patch
    )
    return canonical_json(
        CONFIGURATION.engine_settings(engine_of(wildcards)).of(cell).asked()
    )


def optimised_attacks(wildcards):
    """Return the attacks of a suite whose texts are made for each checkpoint."""
    return optimised(CONFIGURATION.suites[wildcards.suite].attacks)


OPTIMISED = [
    name for name, suite in CONFIGURATION.suites.items() if optimised(suite.attacks)
]
OPTIMISE_CODE = checkpoint_code(
    "optimise_attacks",
    "suite",
    {
        name: attack_plugins(optimised(suite.attacks))
        for name, suite in CONFIGURATION.suites.items()
    },
)
# The files of the engines that serve something here.
ENGINE_FILES = {name: ENGINES.file(name) for name in CONFIGURATION.engines_used()}
EVALUATION_CODE = {
    engine: checkpoint_code(
        "evaluate_suite",
        "suite",
        {
            name: [*attack_plugins(suite.attacks), file]
            for name, suite in CONFIGURATION.suites.items()
        },
    )
    for engine, file in ENGINE_FILES.items()
}


def evaluation_code(wildcards):
    """Return the code of an evaluation: that of its own format, attacks and engine, and no other's."""
    return EVALUATION_CODE[engine_of(wildcards)](wildcards)


def attacks(wildcards):
    """Return the texts of a suite's attacks, where it has some: those of all cells, and those of this one."""
    paths = [f"{RESULTS}/attacks/{wildcards.suite}.json"]
    if wildcards.suite in OPTIMISED:
        paths += [f"{RESULTS}/attacks/{CELL.format(**wildcards)}.json"]
    return paths if wildcards.suite in ATTACKED else []


def optimised_on(wildcards):
    """Return the prompt sets that suffixes are optimised on."""
    attacks = optimised_attacks(wildcards).values()
    return [
        prompts(name) for name in sorted({attack.prompts.set for attack in attacks})
    ]


def optimised_settings(wildcards):
    """Return how suffixes are optimised; `count` is of what is asked."""
    return canonical_json(
        {
            name: attack.model_dump(exclude={"count"})
            for name, attack in optimised_attacks(wildcards).items()
        }
    )


def key_value_cache_dtype(wildcards):
    """Return the type of the key/value cache that a compression asks for, if it does."""
    return CONFIGURATION.cache_dtype_of(wildcards.compression)


# One string per suite, made once and not once per job.
SERVING_SETTINGS = CONFIGURATION.serving.model_dump(exclude={"engine"})
SUITE_SETTINGS = {
    name: canonical_json({"suite": suite.asked(), "serving": SERVING_SETTINGS})
    for name, suite in CONFIGURATION.suites.items()
}


def suite_serve(wildcards):
    """Return in which form a patch is served; other checkpoints have but one."""
    suite = CONFIGURATION.suites[wildcards.suite]
    return suite.serve if wildcards.patch in ADAPTERS else "adapter"


JUDGED = [
    name for name, suite in CONFIGURATION.suites.items() if suite.judge is not None
]


def judge_files(wildcards):
    """Return the files of a judge's local folder; Snakemake then watches them."""
    return local_files(CONFIGURATION.suites[wildcards.suite].judge.source.path)


def judge_settings(wildcards):
    """Return how a suite's judge is asked, and what its server is started with."""
    judge = CONFIGURATION.suites[wildcards.suite].judge.asked()
    engine = CONFIGURATION.engine_settings(CONFIGURATION.judge_engine).asked()
    return canonical_json({"judge": judge, "engine": engine})


JUDGE_CODE = {
    name: code(
        "judge_completions",
        JUDGES.file(CONFIGURATION.suites[name].judge.kind),
        ENGINE_FILES[CONFIGURATION.judge_engine],
    )
    for name in JUDGED
}
# Who labels the completions of each suite: judges of texts, and the model that is asked, if there is one.
LABELLED_BY = {
    name: {
        "judges": list(dict.fromkeys([*text_judges(), *suite.judges])),
        "judge": None if suite.judge is None else suite.judge.kind,
    }
    for name, suite in CONFIGURATION.suites.items()
}
JUDGE_FILES = {
    name: [JUDGES.file(judge) for judge in (*by["judges"], by["judge"]) if judge]
    for name, by in LABELLED_BY.items()
}
SCORE_CODE = {
    name: code("score_completions", *files) for name, files in JUDGE_FILES.items()
}


def judge_gpus(wildcards):
    """Return the GPUs of a job that asks a suite's judge."""
    wanted = CONFIGURATION.suites[wildcards.suite].judge.gpus
    return gpus_here(wanted, f"suites.{wildcards.suite}.judge.gpus")


def judge_memory(wildcards):
    """Return the memory of such a job, MB."""
    judge = CONFIGURATION.suites[wildcards.suite].judge
    imported = [Path(RESULTS) / "judges" / wildcards.suite / "checkpoint"]
    widened = not has_gpus() and CONFIGURATION.compute_dtype != "checkpoint"
    return 8000 + weight_megabytes(
        judge.source, judge.parameters, imported, float32=widened
    )


def evaluation_memory(wildcards):
    """Return the memory of a job with a server, MB."""
    settings = CONFIGURATION.engine_settings(engine_of(wildcards))
    more = 0 if has_gpus() else 1024 * settings.memory_gib
    return memory(8000 + more)(wildcards)


def judgement(wildcards):
    """Return the judge's answers on a cell's completions, where the suite has a judge."""
    path = f"{RESULTS}/judgements/{{model}}/{{compression}}/{{patch}}/{{suite}}.jsonl"
    return [path.format(**wildcards)] if wildcards.suite in JUDGED else []


# One file for all suites: a label says itself which reply it is of.
HAND_LABELS = [] if CONFIGURATION.hand_labels is None else [CONFIGURATION.hand_labels]


rule optimise_attacks:
    input:
        **model_job(OPTIMISE_CODE),
        checkpoint=ancient(CHECKPOINT),
        manifest=MANIFEST,
        adapter=ancient(patch_input(ADAPTER)),
        adapter_statistics=patch_input(ADAPTER_STATISTICS),
        prompts=optimised_on,
    output:
        f"{RESULTS}/attacks/{CELL}.json",
    log:
        f"{RESULTS}/logs/attacks/{CELL}.log",
    benchmark:
        f"{RESULTS}/benchmarks/attacks/{CELL}.tsv"
    wildcard_constraints:
        suite=one_of(OPTIMISED),
    conda:
        "../envs/core.yaml"
    threads: THREADS
    resources:
        mem_mb=memory(4000),
        runtime=240,
        gpu=gpus,
    params:
        **flags(
            settings=optimised_settings,
            seed=SEED,
        ),
    message:
        "Optimising suffixes against {wildcards.model}, {wildcards.compression}, {wildcards.patch} for suite"
        " {wildcards.suite}"
    shell:
        'python "$SCRIPTS"/optimise_attacks.py --gpus {resources.gpu} {params.flags:q} > {log:q} 2>&1'


rule evaluate_suite:
    input:
        **model_job(evaluation_code),
        environment=engine_environment,
        checkpoint=ancient(CHECKPOINT),
        manifest=MANIFEST,
        adapter=ancient(patch_input(ADAPTER)),
        adapter_statistics=patch_input(ADAPTER_STATISTICS),
        reference=reference_completions,
        harmful=suite_prompts("harmful"),
        harmless=suite_prompts("harmless"),
        tasks=task_files,
        attacks=attacks,
    output:
        completions=f"{RESULTS}/completions/{CELL}.jsonl",
        utility=f"{RESULTS}/utility/{CELL}.json",
    log:
        job=f"{RESULTS}/logs/evaluation/{CELL}.log",
        server=f"{RESULTS}/logs/evaluation/{CELL}.server.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluation/{CELL}.tsv"
    # As urgent as the directions: its numbers are the first findings, and it waits for little.
    priority: 10
    conda:
        "../envs/core.yaml"
    threads: THREADS
    resources:
        mem_mb=evaluation_memory,
        runtime=240,
        gpu=gpus,
    params:
        **flags(
            settings=lambda wildcards: SUITE_SETTINGS[wildcards.suite],
            serve=suite_serve,
            engine=engine_of,
            engine_settings=engine_settings,
            key_value_cache_dtype=key_value_cache_dtype,
            seed=SEED,
        ),
    message:
        "Serving {wildcards.model}, {wildcards.compression}, {wildcards.patch} for suite {wildcards.suite}"
    shell:
        'python "$SCRIPTS"/evaluate_suite.py --gpus {resources.gpu} --server-log {log.server:q}'
        " {params.flags:q} > {log.job:q} 2>&1"


rule import_judge:
    input:
        code=code("import_judge"),
        files=judge_files,
    output:
        checkpoint=directory(f"{RESULTS}/judges/{{suite}}/checkpoint"),
        manifest=f"{RESULTS}/judges/{{suite}}/manifest.json",
    log:
        f"{RESULTS}/logs/judges/{{suite}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/judges/{{suite}}.tsv"
    wildcard_constraints:
        suite=one_of(JUDGED),
    retries: 2
    conda:
        "../envs/core.yaml"
    resources:
        mem_mb=4000,
        runtime=120,
    params:
        **flags(
            settings=lambda wildcards: canonical_json(
                CONFIGURATION.suites[wildcards.suite].judge.imported()
            ),
        ),
    message:
        "Importing the judge of suite {wildcards.suite}"
    shell:
        'python "$SCRIPTS"/import_judge.py {params.flags:q} > {log:q} 2>&1'


rule judge_completions:
    input:
        **model_job(lambda wildcards: JUDGE_CODE[wildcards.suite]),
        environment=environment_record(CONFIGURATION.judge_engine),
        judge=ancient(rules.import_judge.output.checkpoint),
        judge_manifest=rules.import_judge.output.manifest,
        completions=rules.evaluate_suite.output.completions,
    output:
        f"{RESULTS}/judgements/{CELL}.jsonl",
    log:
        job=f"{RESULTS}/logs/judgements/{CELL}.log",
        server=f"{RESULTS}/logs/judgements/{CELL}.server.log",
    benchmark:
        f"{RESULTS}/benchmarks/judgements/{CELL}.tsv"
    wildcard_constraints:
        suite=one_of(JUDGED),
    conda:
        "../envs/core.yaml"
    threads: THREADS
    resources:
        mem_mb=judge_memory,
        runtime=120,
        gpu=judge_gpus,
    params:
        **flags(
            settings=judge_settings,
            engine=CONFIGURATION.judge_engine,
            seed=SEED,
        ),
    message:
        "Judging {wildcards.model}, {wildcards.compression}, {wildcards.patch}, {wildcards.suite}"
    shell:
        'python "$SCRIPTS"/judge_completions.py --gpus {resources.gpu} --server-log {log.server:q}'
        " {params.flags:q} > {log.job:q} 2>&1"


rule score_completions:
    input:
        code=lambda wildcards: SCORE_CODE[wildcards.suite],
        completions=rules.evaluate_suite.output.completions,
        utility=rules.evaluate_suite.output.utility,
        judgement=judgement,
        reference=reference_completions,
        hand_labels=sources(HAND_LABELS),
    output:
        f"{RESULTS}/scores/{CELL}.json",
    log:
        f"{RESULTS}/logs/scores/{CELL}.log",
    benchmark:
        f"{RESULTS}/benchmarks/scores/{CELL}.tsv"
    # A second's work that somebody waits for: a run tells the rates as soon as they are counted.
    priority: 20
    conda:
        "../envs/core.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        **flags(
            judges=lambda wildcards: LABELLED_BY[wildcards.suite]["judges"],
            judge=lambda wildcards: LABELLED_BY[wildcards.suite]["judge"],
            seed=SEED,
        ),
    message:
        "Scoring {wildcards.model}, {wildcards.compression}, {wildcards.patch}, {wildcards.suite}"
    shell:
        'python "$SCRIPTS"/score_completions.py {params.flags:q} > {log:q} 2>&1'
