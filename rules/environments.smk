"""The environments of engines and recipes that cannot share one with the jobs, and this machine's arithmetic.

input   a complete lock file
output  results/environments/{environment}.json: where its Python is, and its versions;
        arithmetic.json: the type that every job and server computes in
steps   make a virtual environment, install the lock, import the tool once; time short
        matrix products once per results folder

A plug-in says what its environment holds. For an engine, `executable` below `engines`
in the configuration replaces it.
"""

# By their names, with the configuration's own settings of those that engines have.
ENVIRONMENTS = {
    kind.environment.name: (kind.environment, CONFIGURATION.engine_settings(name))
    for name, kind in CONFIGURATION.engine_kinds.items()
    if kind.environment is not None
} | {
    settings.environment.name: (settings.environment, None)
    for settings in CONFIGURATION.compressions.values()
    if settings.environment is not None
}


def environment_record(name):
    """Return the record of the environment that an engine runs in, if it has one."""
    environment = CONFIGURATION.engine_kinds[name].environment
    return (
        []
        if environment is None
        else [f"{RESULTS}/environments/{environment.name}.json"]
    )


def lock_of(name):
    """Return the lock of an environment, or nothing where the user brings the environment.

    Asked by functions only, as the executor is not known yet while the workflow is parsed.
    """
    environment, settings = ENVIRONMENTS[name]
    if settings is not None and settings.executable is not None:
        return []
    if settings is not None and settings.lock is not None:
        return sources([settings.lock])
    on_gpus = environment.gpu_lock is not None and has_gpus()
    lock = environment.gpu_lock if on_gpus else environment.lock
    return sources([os.path.relpath(PROJECT / "envs" / lock)])


def environment_lock(wildcards):
    """Return the lock to install, if there is one."""
    return lock_of(wildcards.environment)


def environment_settings(wildcards):
    """Return where an environment is, and what is in it."""
    environment, settings = ENVIRONMENTS[wildcards.environment]
    return canonical_json(
        {
            "executable": None if settings is None else settings.executable,
            "modules": environment.modules,
            "packages": environment.packages,
        }
    )


rule measure_arithmetic:
    input:
        code=code("measure_arithmetic"),
    output:
        ARITHMETIC,
    log:
        f"{RESULTS}/logs/environments/arithmetic.log",
    benchmark:
        f"{RESULTS}/benchmarks/environments/arithmetic.tsv"
    # Everything that runs a model waits for it.
    priority: 20
    conda:
        "../envs/core.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        **flags(
            settings=canonical_json(CONFIGURATION.compute_dtype),
        ),
    message:
        "Measuring which arithmetic is fast here (once)"
    shell:
        'python "$SCRIPTS"/measure_arithmetic.py {params.flags:q} > {log:q} 2>&1'


rule build_environment:
    input:
        code=code("build_environment"),
        lock=environment_lock,
    output:
        f"{RESULTS}/environments/{{environment}}.json",
    log:
        f"{RESULTS}/logs/environments/{{environment}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/environments/{{environment}}.tsv"
    wildcard_constraints:
        environment=one_of(ENVIRONMENTS),
    conda:
        "../envs/core.yaml"
    resources:
        mem_mb=lambda wildcards: ENVIRONMENTS[wildcards.environment][0].memory_mb,
        runtime=lambda wildcards: ENVIRONMENTS[wildcards.environment][0].minutes,
    params:
        **flags(
            settings=environment_settings,
            environment=lambda wildcards, output: os.path.splitext(output[0])[0],
        ),
    message:
        "Making the environment {wildcards.environment} (once)"
    shell:
        'python "$SCRIPTS"/build_environment.py {params.flags:q} > {log:q} 2>&1'
