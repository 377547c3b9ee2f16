"""A real Slurm on one machine, with fake GPUs: installed from Debian's packages, started, stopped."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from debian import install_packages

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
SETTINGS = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
JobAcctGatherType=jobacct_gather/none
MinJobAge=7200
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} Gres=gpu:fake:2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
# Devices that exist everywhere stand for two GPUs.
GPUS = "Name=gpu Type=fake File=/dev/tty0\nName=gpu Type=fake File=/dev/tty1\n"


class NoSlurm(Exception):
    """Slurm cannot be set up here; the message says why."""


@contextmanager
def running_slurm(folder: Path) -> Iterator[None]:
    """Run a single-node Slurm while the context is open; its state and logs go to `folder`."""
    if os.environ.get("AIRD_TEST_SLURM") != "1":
        raise NoSlurm("AIRD_TEST_SLURM=1 lets this test install Slurm and write /etc/slurm (.ci/run does)")
    if os.geteuid() != 0:
        raise NoSlurm("installing and starting Slurm needs root")
    if Path("/etc/slurm/slurm.conf").exists() and "ClusterName=test" not in Path("/etc/slurm/slurm.conf").read_text():
        raise NoSlurm("this machine has a Slurm of its own")
    _install()
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    host = os.uname().nodename.split(".")[0]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 - 500
    settings = SETTINGS.format(host=host, folder=folder, cores=os.cpu_count(), memory=memory)
    Path("/etc/slurm").mkdir(exist_ok=True)
    Path("/etc/slurm/slurm.conf").write_text(settings, encoding="utf-8")
    Path("/etc/slurm/gres.conf").write_text(GPUS, encoding="utf-8")
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    daemons = []
    try:
        _run("runuser", "-u", "munge", "--", "munged", "--force")
        for name in ("slurmctld", "slurmd"):
            daemons.append(subprocess.Popen([name, "-D"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        _wait_until_idle(folder)
        yield
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
        subprocess.run(["pkill", "-u", "munge", "munged"], check=False)
        for name in ("slurm.conf", "gres.conf"):
            Path("/etc/slurm", name).unlink(missing_ok=True)


def _install() -> None:
    if shutil.which("slurmctld") and shutil.which("slurmd") and shutil.which("sbatch") and shutil.which("munged"):
        return
    if shutil.which("apt-get") is None:
        raise NoSlurm("Slurm is not installed, and there is no apt-get to install it")
    install_packages(PACKAGES, NoSlurm)


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _wait_until_idle(folder: Path) -> None:
    for _ in range(60):
        found = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False).stdout
        if "idle" in found:
            return
        time.sleep(1)
    logs = "".join(path.read_text()[-1500:] for path in folder.glob("*.log"))
    raise RuntimeError(f"Slurm did not start: {found}\n{logs}")
