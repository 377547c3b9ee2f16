"""Tables, figures and the report.

input   the records of every node of the grid
output  results/tables/*.csv, results/figures/*.svg, results/cards/, results/report.html
steps   collect records into tidy tables, one kind of result each; draw figures from
        the tables; put the numbers into each patch's model card; collect where the
        time went; put everything into one page. (Snakemake's own report, with the same
        captions and every job's code: `make snakemake-report`.)
"""

from aird.reporting import figures
from aird.reporting.grid import record_files
from aird.reporting.names import is_control, matched_controls
from aird.reporting.tables import kinds_of, plugin_files, tables_of

# A dictionary keeps the configuration's order.
PAIRS = list(
    dict.fromkeys(
        (model, compression) for model, compression, _ in CONFIGURATION.cells()
    )
)
SAME_WEIGHTS = [
    name
    for name, compression in CONFIGURATION.compressions.items()
    if not compression.changes_weights
]
PATCH_SETTINGS = {
    name: patch.model_dump() for name, patch in CONFIGURATION.patches.items()
}
# What the tables are made of.
GRID = {
    "cells": list(CONFIGURATION.cells()),
    "pairs": PAIRS,
    "cosmic": [
        pair
        for pair in PAIRS
        if pair[1] == ORIGINAL
        or (DIRECTIONS.cosmic == "all" and pair[1] not in SAME_WEIGHTS)
    ],
    "patched": DIRECTIONS.patched,
    "compensated": sorted(
        {
            patch
            for _, _, patch in CONFIGURATION.cells()
            if patch != PLAIN
            and METHOD_FILES.of(CONFIGURATION.patches[patch]).compensates
        }
    ),
    "suites": list(CONFIGURATION.suites),
    "pruned": [
        name
        for name, compression in CONFIGURATION.compressions.items()
        if compression.target_sparsity is not None
    ],
    "random": [name for name, patch in PATCH_SETTINGS.items() if is_control(patch)],
    "controls": matched_controls(PATCH_SETTINGS),
    "seed": SEED,
    "same_weights": SAME_WEIGHTS,
    "ready_made": READY_MADE,
    "plugins": CONFIGURATION.plugins,
}
# A run writes it down when it begins, for `make tables`.
TABLE_SETTINGS = canonical_json(GRID)
RECORDS = record_files(RESULTS, GRID)
SCORES = RECORDS["scores"]

MADE_TABLES = tables_of(GRID)
TABLES = [f"{RESULTS}/tables/{name}.csv" for name in MADE_TABLES]
TIMINGS = f"{RESULTS}/tables/timings.csv"
FIGURE_NAMES = [
    name
    for name in figures.figure_names(list(CONFIGURATION.suites))
    if set(figures.tables_of(name)) <= set(MADE_TABLES)
]
FIGURES = [f"{RESULTS}/figures/{name}.svg" for name in FIGURE_NAMES]
REPORT = f"{RESULTS}/report.html"
CAPTIONS = sorted(
    os.path.relpath(path) for path in (PROJECT / "workflow" / "report").glob("*.rst")
)
OWN_CAPTIONS = [Path(path).stem.removesuffix("_table") for path in CAPTIONS]

# What the engines of the grid are, for the report.
ENGINE_RECORDS = [
    record
    for name in CONFIGURATION.engines_used()
    for record in environment_record(name)
]

# Sorted, as their order means nothing here.
PATCHED_CELLS = sorted(cell for cell in CONFIGURATION.cells() if cell[2] != PLAIN)
MERGED_CELLS = [cell for cell in PATCHED_CELLS if cell[2] in ADAPTERS]
MERGED_GRID = {
    **GRID,
    "cells": MERGED_CELLS,
    "pairs": sorted({cell[:2] for cell in MERGED_CELLS}),
}
MERGED_TABLE = f"{RESULTS}/tables/merged.csv"
CARDS = [f"{RESULTS}/cards/{'/'.join(cell)}/README.md" for cell in PATCHED_CELLS]

# Cards, the report and figures show what patch methods say of themselves, cards also what judges do.
USED_METHODS = sorted(
    {METHOD_FILES.file(patch.method) for patch in CONFIGURATION.patches.values()}
)
CARD_PLUGINS = sorted(
    {*USED_METHODS, *(file for files in JUDGE_FILES.values() for file in files)}
)

# What makes all this again.
CHOSEN = {
    "--configfile": [os.path.relpath(path) for path in workflow.overwrite_configfiles],
    "--config": list(workflow.config_settings.config_args),
}
COMMAND = shlex.join(
    ["snakemake", "--cores", "all"]
    + [word for flag, values in CHOSEN.items() if values for word in (flag, *values)]
)


rule make_tables:
    input:
        **{kind: RECORDS[kind] for kind in kinds_of(MADE_TABLES.values())},
        code=code("make_tables", *plugin_files(MADE_TABLES), words=True),
    output:
        [
            report(
                f"{RESULTS}/tables/{name}.csv",
                caption=f"../workflow/report/{name if name in OWN_CAPTIONS else 'other'}_table.rst",
                category="Tables",
                labels={"table": name},
            )
            for name in MADE_TABLES
        ],
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
        **flags(
            inputs=(),
            settings=TABLE_SETTINGS,
            # With object storage this job's copies lie elsewhere.
            results=lambda wildcards, input: str(Path(input.scores[0]).parents[4]),
        ),
    message:
        "Making the tables"
    shell:
        'python "$SCRIPTS"/make_tables.py {params.flags:q} > {log:q} 2>&1'


rule make_merged_table:
    input:
        **{
            kind: record_files(RESULTS, MERGED_GRID)[kind]
            for kind in ("manifests", "patches", "merged")
        },
        code=code("make_tables", *plugin_files(["merged"]), words=True),
    output:
        MERGED_TABLE,
    log:
        f"{RESULTS}/logs/reporting/merged.log",
    benchmark:
        f"{RESULTS}/benchmarks/reporting/merged.tsv"
    conda:
        "../envs/core.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        **flags(
            inputs=(),
            settings=canonical_json(MERGED_GRID),
            results=lambda wildcards, input: str(Path(input.patches[0]).parents[4]),
        ),
    message:
        "Making the table of merged checkpoints"
    shell:
        'python "$SCRIPTS"/make_tables.py {params.flags:q} > {log:q} 2>&1'


# Benchmark files are no inputs that Snakemake knows: the table tells of the run that made the others.
rule make_timings:
    input:
        code=code("make_tables", *plugin_files(["timings"]), words=True),
        tables=TABLES,
    output:
        TIMINGS,
    log:
        f"{RESULTS}/logs/reporting/timings.log",
    benchmark:
        f"{RESULTS}/benchmarks/reporting/timings.tsv"
    conda:
        "../envs/core.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        **flags(
            inputs=(),
            settings=TABLE_SETTINGS,
            results=lambda wildcards, input: str(Path(input.tables[0]).parents[1]),
        ),
    message:
        "Collecting where the time went"
    shell:
        'python "$SCRIPTS"/make_tables.py {params.flags:q} > {log:q} 2>&1'


rule make_figure:
    input:
        # Of a figure's code only its own module counts, and of the tables those that it shows.
        code=lambda wildcards: code(
            "make_figures",
            figures.module_of(wildcards.figure),
            words=True,
            shown=tuple(USED_METHODS),
        ),
        tables=lambda wildcards: [
            f"{RESULTS}/tables/{name}.csv"
            for name in figures.tables_of(wildcards.figure)
        ],
    output:
        report(
            f"{RESULTS}/figures/{{figure}}.svg",
            caption="../workflow/report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
    log:
        f"{RESULTS}/logs/reporting/{{figure}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/reporting/{{figure}}.tsv"
    wildcard_constraints:
        figure=one_of(FIGURE_NAMES),
    conda:
        "../envs/core.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        **flags(
            # A figure may join patches that differ in their strength alone.
            settings=canonical_json(
                {
                    name: patch.model_dump(exclude={"compressions"})
                    for name, patch in CONFIGURATION.patches.items()
                }
            ),
        ),
    message:
        "Drawing {wildcards.figure}"
    shell:
        'python "$SCRIPTS"/make_figures.py --figure {wildcards.figure:q} {params.flags:q} > {log:q} 2>&1'


rule make_cards:
    input:
        code=code("make_cards", words=True, shown=tuple(CARD_PLUGINS)),
        scores=SCORES,
        statistics=RECORDS["patches"],
    output:
        cards=CARDS,
        numbers=[f"{Path(card).parent}/numbers.json" for card in CARDS],
    log:
        f"{RESULTS}/logs/reporting/cards.log",
    benchmark:
        f"{RESULTS}/benchmarks/reporting/cards.tsv"
    conda:
        "../envs/core.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        **flags(
            inputs=(),
            settings=canonical_json(
                {"cells": PATCHED_CELLS, "suites": sorted(CONFIGURATION.suites)}
            ),
            results=lambda wildcards, input: str(Path(input.scores[0]).parents[4]),
        ),
    message:
        "Writing the model cards of the patches"
    shell:
        'python "$SCRIPTS"/make_cards.py {params.flags:q} > {log:q} 2>&1'


rule make_report:
    input:
        code=code("make_report", words=True, shown=(*RECIPE_FILES, *USED_METHODS)),
        tables=TABLES,
        timings=TIMINGS,
        figures=FIGURES,
        captions=sources(CAPTIONS),
        manifests=RECORDS["manifests"],
        records=ENGINE_RECORDS,
        arithmetic=ARITHMETIC,
        locks=lambda wildcards: [
            *sources([os.path.relpath(PROJECT / "envs" / "core.lock.txt")]),
            *(
                lock
                for record in ENGINE_RECORDS
                for lock in lock_of(Path(record).stem)
            ),
        ],
    output:
        REPORT,
    log:
        f"{RESULTS}/logs/reporting/report.log",
    benchmark:
        f"{RESULTS}/benchmarks/reporting/report.tsv"
    conda:
        "../envs/core.yaml"
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        **flags(
            # A function, as {model} in an address is no wildcard.
            settings=lambda wildcards: canonical_json(CONFIGURATION.model_dump()),
            # As a function of `input` it is not tracked: another name of the same configuration is no change.
            command=lambda wildcards, input: COMMAND,
        ),
    message:
        "Writing the report"
    shell:
        'python "$SCRIPTS"/make_report.py {params.flags:q} > {log:q} 2>&1'
