"""Tables, figures and what the report shows.

input   the records of every node of the grid
output  results/tables/*.csv, results/figures/*.svg
steps   collect records into tidy tables, one kind of result each; draw figures from
        the tables. `snakemake --report results/report.html` makes the report.
"""

# A dictionary keeps the configuration's order.
PAIRS = list(
    dict.fromkeys(
        (model, compression) for model, compression, _ in CONFIGURATION.cells()
    )
)
TABLE_NAMES = "summary rates tasks paired directions projections sites candidates patches compressions".split()
TABLE_CAPTIONS = {name: f"{name}_table" for name in ("summary", "directions", "paired")}


TABLES = [f"{RESULTS}/tables/{name}.csv" for name in TABLE_NAMES]
SUITE_FIGURES = ["refusal", "frontier", "utility"]
DIRECTION_FIGURES = ["candidates", "sites"]
FIGURES = [
    f"{RESULTS}/figures/{name}.{suite}.svg"
    for name in SUITE_FIGURES
    for suite in CONFIGURATION.suites
]
FIGURES += [f"{RESULTS}/figures/{name}.svg" for name in DIRECTION_FIGURES]


# Asked for by the main target as well, so that a deleted one is made again.
SCORES = [
    f"{RESULTS}/scores/{'/'.join(cell)}/{suite}.json"
    for cell in CONFIGURATION.cells()
    for suite in CONFIGURATION.suites
]


rule make_tables:
    input:
        code=code("make_tables"),
        scores=SCORES,
        directions=[
            f"{RESULTS}/directions/{model}/{compression}/{file}"
            for model, compression in PAIRS
            for file in ("direction.json", "scores.csv", "verification.json")
        ],
        comparisons=[
            f"{RESULTS}/comparisons/{model}/{compression}.json"
            for model, compression in PAIRS
            if compression != ORIGINAL
        ],
        manifests=[
            f"{RESULTS}/models/{model}/{compression}/manifest.json"
            for model, compression in PAIRS
        ],
        patches=[
            f"{RESULTS}/patches/{'/'.join(cell)}/statistics.json"
            for cell in CONFIGURATION.cells()
            if cell[2] != PLAIN
        ],
    output:
        [table(name) for name in TABLE_NAMES],
    log:
        f"{RESULTS}/logs/reporting/tables.log",
    benchmark:
        f"{RESULTS}/benchmarks/reporting/tables.tsv"
    conda:
        "../envs/core.yaml"
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        settings=canonical_json(
            {
                "cells": list(CONFIGURATION.cells()),
                "pairs": PAIRS,
                "suites": list(CONFIGURATION.suites),
                "original": ORIGINAL,
                "plain": PLAIN,
            }
        ),
        results=results_folder,
        tables=written_tables_folder,
    message:
        "Making the tables"
    shell:
        'python "$SCRIPTS"/make_tables.py'
        " --results {params.results:q}"
        " --settings {params.settings:q}"
        " --output {params.tables:q}"
        " > {log:q} 2>&1"


rule make_suite_figure:
    input:
        code=code("make_figures"),
        tables=TABLES,
    output:
        report(
            f"{RESULTS}/figures/{{name}}.{{suite}}.svg",
            caption="../workflow/report/figure.rst",
            category="Figures",
            labels={"figure": "{name}", "suite": "{suite}"},
        ),
    log:
        f"{RESULTS}/logs/reporting/{{name}}.{{suite}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/reporting/{{name}}.{{suite}}.tsv"
    wildcard_constraints:
        name=one_of(SUITE_FIGURES),
    conda:
        "../envs/core.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        tables=tables_folder,
    message:
        "Drawing {wildcards.name} of suite {wildcards.suite}"
    shell:
        'python "$SCRIPTS"/make_figures.py'
        " --tables {params.tables:q}"
        " --figure {wildcards.name:q}"
        " --suite {wildcards.suite:q}"
        " --output {output:q}"
        " > {log:q} 2>&1"


rule make_direction_figure:
    input:
        code=code("make_figures"),
        tables=TABLES,
    output:
        report(
            f"{RESULTS}/figures/{{name}}.svg",
            caption="../workflow/report/figure.rst",
            category="Figures",
            labels={"figure": "{name}"},
        ),
    log:
        f"{RESULTS}/logs/reporting/{{name}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/reporting/{{name}}.tsv"
    wildcard_constraints:
        name=one_of(DIRECTION_FIGURES),
    conda:
        "../envs/core.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        tables=tables_folder,
    message:
        "Drawing {wildcards.name}"
    shell:
        'python "$SCRIPTS"/make_figures.py'
        " --tables {params.tables:q}"
        " --figure {wildcards.name:q}"
        " --output {output:q}"
        " > {log:q} 2>&1"
