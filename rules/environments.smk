"""Environments of vLLM, of llama.cpp, of GPTQModel and of GGUF's tools, and the type of arithmetic of this machine.

input   a complete lock file
output  results/environments/vllm.json, llama_cpp.json, gptq.json, gguf.json: where its Python is, and its versions;
        arithmetic.json: the type that every job and server computes in
steps   make a virtual environment, install the lock, import the tool once; time short
        matrix products once per results folder

vLLM pins other versions than the compression libraries, so it is a server
program in an environment of its own. `serving.executable` or `serving.url` in
the configuration replace it. llama.cpp's server is asked for where a checkpoint
is a GGUF file; its environment is one package.
"""

# What of `serving` says where vLLM is. The rest says how an engine is started.
PLACE = {"executable", "url", "lock"}
# Which engine it is, and where the others are.
ENGINES = {"engine", "llama_cpp_executable", "urls"}


def vllm_lock(wildcards):
    """Return the lock to install, or nothing where the user brings vLLM.

    A function, as the executor is not known yet while the workflow is parsed.
    """
    serving = CONFIGURATION.serving
    if serving.executable or serving.url or serving.urls:
        return []
    if serving.lock is not None:
        return sources([serving.lock])
    kind = "cuda" if has_gpus() else "cpu"
    return sources([os.path.relpath(PROJECT / "envs" / f"vllm-{kind}.lock.txt")])


def llama_cpp_lock():
    """Return the lock to install, or nothing where the user brings xllamacpp."""
    if CONFIGURATION.serving.llama_cpp_executable is not None:
        return []
    return sources([os.path.relpath(PROJECT / "envs" / "llama-cpp.lock.txt")])


def place_of_vllm(wildcards):
    """Return where vLLM is, as settings. A function, as {model} in an address is no wildcard."""
    only = PLACE if CONFIGURATION.serving.urls is None else PLACE | {"urls"}
    return settings_json(CONFIGURATION.serving, only=only)


def environment_folder(wildcards, output):
    """Return the folder of an environment, which stands beside its record."""
    return os.path.splitext(output[0])[0]


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


rule vllm_environment:
    input:
        code=code("build_environment"),
        lock=vllm_lock,
    output:
        f"{RESULTS}/environments/vllm.json",
    log:
        f"{RESULTS}/logs/environments/vllm.log",
    benchmark:
        f"{RESULTS}/benchmarks/environments/vllm.tsv"
    conda:
        "../envs/core.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        **flags(
            settings=place_of_vllm,
            environment=environment_folder,
        ),
    message:
        "Making vLLM's environment (once)"
    shell:
        'python "$SCRIPTS"/build_environment.py {params.flags:q} > {log:q} 2>&1'


use rule vllm_environment as llama_cpp_environment with:
    input:
        code=code("build_environment"),
        lock=llama_cpp_lock(),
    output:
        f"{RESULTS}/environments/llama_cpp.json",
    log:
        f"{RESULTS}/logs/environments/llama_cpp.log",
    benchmark:
        f"{RESULTS}/benchmarks/environments/llama_cpp.tsv"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        **flags(
            settings=canonical_json(
                {
                    "engine": "llama.cpp",
                    "executable": CONFIGURATION.serving.llama_cpp_executable,
                }
            ),
            environment=environment_folder,
        ),
    message:
        "Making llama.cpp's environment (once)"


rule gptq_environment:
    input:
        code=code("build_tool_environment", "aird.compression.recipes.optimum_gptq"),
        lock=sources([os.path.relpath(PROJECT / "envs" / "gptq.lock.txt")]),
    output:
        f"{RESULTS}/environments/gptq.json",
    log:
        f"{RESULTS}/logs/environments/gptq.log",
    benchmark:
        f"{RESULTS}/benchmarks/environments/gptq.tsv"
    conda:
        "../envs/core.yaml"
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        **flags(
            environment=environment_folder,
            module="aird.compression.recipes.optimum_gptq",
        ),
    message:
        "Making GPTQModel's environment (once)"
    shell:
        'python "$SCRIPTS"/build_tool_environment.py {params.flags:q} > {log:q} 2>&1'


use rule gptq_environment as gguf_environment with:
    input:
        code=code("build_tool_environment", "aird.compression.gguf_files"),
        lock=sources([os.path.relpath(PROJECT / "envs" / "gguf.lock.txt")]),
    output:
        f"{RESULTS}/environments/gguf.json",
    log:
        f"{RESULTS}/logs/environments/gguf.log",
    benchmark:
        f"{RESULTS}/benchmarks/environments/gguf.tsv"
    resources:
        mem_mb=1000,
        runtime=20,
    params:
        **flags(
            environment=environment_folder,
            module="aird.compression.gguf_files",
        ),
    message:
        "Making the environment of llama.cpp's quantiser (once)"
