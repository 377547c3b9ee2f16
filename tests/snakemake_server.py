"""A process that has imported Snakemake and forks for each run: the import takes longer than a plan of the tiny grid.

Each line of its input is one run as JSON. It answers with the run's exit code.
"""

from __future__ import annotations

import json
import os
import sys

import pydantic
import yaml
from snakemake.cli import LoggerPluginRegistry, ReportPluginRegistry, StoragePluginRegistry, main

READY = (pydantic.BaseModel, yaml.safe_load, LoggerPluginRegistry(), ReportPluginRegistry(), StoragePluginRegistry())
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(order["folder"])  # the first entry of sys.path is "", the working folder
        os.environ.clear()
        os.environ.update(order["environment"])
        for number, (path, flags) in enumerate(
            [(os.devnull, os.O_RDONLY), *((order[name], os.O_WRONLY) for name in ("stdout", "stderr"))]
        ):
            os.dup2(os.open(path, flags), number)
        main(order["arguments"])  # it exits
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
