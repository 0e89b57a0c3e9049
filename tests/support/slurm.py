"""A Slurm of one node on this machine: its real daemons in a folder of their own, on free ports of the loopback.

why = slurm.missing()                       "" or what isn't installed (Debian: slurm-wlm, munge)
with slurm.started(folder) as cluster:
    job = cluster.submit("job.slurm", "--array=0-3", SHARDS="...")
    cluster.wait(job)
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.support.ranks import free_port

T = TypeVar("T")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue", "sinfo")
CPUS = 4  # more than this machine may have: tasks of tests wait more than they compute
SECONDS = 240.0
CONFIG = """ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=30
JobRequeue=1
MinJobAge=300
SchedulerParameters=sched_interval=1,batch_sched_delay=0,requeue_delay=1
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Which of Slurm's programs this machine lacks, "" for none."""
    lacking = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    return f"not installed: {', '.join(lacking)} (Debian: slurm-wlm, munge)" if lacking else ""


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])


@dataclass(frozen=True)
class Cluster:
    """A controller and a node that run."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """This process's, without what a scheduler around the tests may have set."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return kept | {"PATH": _path(), "SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(self, *command: object, **more: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(
            [*map(str, command)],
            env=self.environment | more,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def submit(self, script: Path, *arguments: object, options: tuple[str, ...] = (), **environment: str) -> str:
        """The number of the job."""
        said = self.run("sbatch", *options, script, *arguments, **environment)
        return said.split()[-1]

    def states(self, job: str) -> dict[str, str]:
        """State of each task of a job that ran, runs or waits: "1_3" -> "RUNNING"; those that wait may be one."""
        lines = self.run("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%i %T").splitlines()
        return {name: state for name, state in (line.split() for line in lines)}

    def restarts(self, job: str) -> int:
        """How often a job or one task of an array was started again."""
        return int(re.findall(r"Restarts=(\d+)", self.run("scontrol", "show", "job", job))[0])

    def requeue(self, task: str) -> None:
        """End a job or a task and have it started again now: Slurm by itself waits two minutes."""
        self.run("scontrol", "requeue", task)
        self.until(lambda: "JobState=PENDING" in self.run("scontrol", "show", "job", task), f"{task} waits")
        self.run("scontrol", "update", f"JobId={task}", "StartTime=now")

    def wait(self, job: str) -> dict[str, str]:
        """The states of all tasks when they have ended."""
        return self.until(lambda: self._ended(job), f"job {job} ends")

    def _ended(self, job: str) -> dict[str, str]:
        states = self.states(job)
        return states if {*states.values()} <= {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"} else {}

    def until(self, there: Callable[[], T], what: str, seconds: float = SECONDS) -> T:
        """What `there` gives once it is true."""
        deadline = time.monotonic() + seconds
        while not (found := there()):
            assert time.monotonic() < deadline, f"waited {seconds:g} s until {what}; {self.logs()}"
            time.sleep(0.1)
        return found

    def logs(self) -> str:
        """The last lines of jobs and daemons."""
        files = [*self.folder.glob("*.out"), *self.folder.glob("*.log")]
        return "\n".join(f"{file.name}:\n{file.read_text(errors='replace')[-2000:]}" for file in files)


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Cluster]:
    """A cluster whose daemons end with the context; its jobs are cancelled before."""
    cluster, host = Cluster(folder), socket.gethostname().partition(".")[0]
    (folder / "state").mkdir(parents=True)
    (folder / "spool").mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o400)
    key.chmod(0o600)
    key.write_bytes(secrets.token_bytes(256))
    (folder / "slurm.conf").write_text(
        CONFIG.format(host=host, folder=folder, user=getpass.getuser(), controller=free_port(), node=free_port(),
                      cpus=CPUS)
    )  # fmt: skip
    daemons = []
    with contextlib.ExitStack() as stack:
        for command in (
            ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}",
             f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged-own.log",
             f"--seed-file={folder}/munge.seed"],
            ["slurmctld", "-D", "-c"],
            ["slurmd", "-D", "-c", "-N", host],
        ):  # fmt: skip
            log = stack.enter_context((folder / f"{command[0]}.log").open("wb"))
            daemons.append(subprocess.Popen(command, env=cluster.environment, cwd=folder, stdout=log, stderr=log))
            if command[0] == "munged":
                cluster.until((folder / "munge.socket").exists, "munge listens")
        try:
            cluster.until(lambda: _idle(cluster), "the node is idle")
            yield cluster
        finally:
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                cluster.run("scancel", "--user", getpass.getuser())
                cluster.until(lambda: not cluster.run("squeue", "-h"), "no job is left", 40)
            for daemon in reversed(daemons):
                daemon.terminate()
                try:
                    daemon.wait(20)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait(10)


def _idle(cluster: Cluster) -> bool:
    with contextlib.suppress(AssertionError):  # the controller doesn't answer yet
        return "idle" in cluster.run("sinfo", "-h", "-o", "%T")
    return False
