"""Start a SLURM cluster of two nodes on this machine, with its own key, ports and folders."""

import contextlib
import dataclasses
import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest
from conftest import ROOT

# Addresses, because JAX connects to the name of the first node.
NODES = ("127.0.0.1", "127.0.0.2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=100000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=60
NodeName={nodes[0]},{nodes[1]} NodeHostname={host} Port=[{ports[1]},{ports[2]}] CPUs={cpus}
PartitionName=low Nodes=ALL OverSubscribe=EXCLUSIVE Default=YES PriorityTier=1
PartitionName=grace Nodes=ALL OverSubscribe=EXCLUSIVE PriorityTier=1 GraceTime=60
PartitionName=high Nodes=ALL OverSubscribe=EXCLUSIVE PriorityTier=2 PreemptMode=OFF
"""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A running cluster. `environment` has the variables for its commands and jobs."""

    environment: dict[str, str]

    def call(self, *words, cwd=ROOT):
        """Run a command of SLURM and return its output."""
        result = subprocess.run([*map(str, words)], env=self.environment, cwd=cwd, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    def submit(self, log, flags, *options, script="examples/slurm.sbatch"):
        """Submit a script with flags for train.py, and return the number of the job."""
        # The script's own numbers are for machines with GPUs.
        small = ("--cpus-per-task=1", "--gpus-per-node=0", f"--output={log}")
        return self.call("sbatch", "--parsable", *small, *options, script, *flags)

    def show(self, job):
        """Return the fields of a job, such as "JobState"."""
        return dict(re.findall(r"(\w+)=(\S*)", self.call("scontrol", "show", "job", job)))

    def start_soon(self, job):
        """Start a requeued job soon, and not after SLURM's delay of two minutes. At once, slurmd would refuse the job."""
        wait_until(lambda: self.show(job)["JobState"] == "PENDING", 600)
        self.call("scontrol", "update", f"JobId={job}", "StartTime=now+10")

    def wait_for(self, job, timeout=1800):
        """Wait until a job ends, and return its state."""
        states = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        wait_until(lambda: self.show(job)["JobState"] in states, timeout)
        return self.show(job)["JobState"]


def wait_until(is_true, timeout):
    deadline = time.monotonic() + timeout
    while not is_true():
        assert time.monotonic() < deadline, f"nothing happened within {timeout} s"
        time.sleep(0.5)


def _free_ports(count):
    with contextlib.ExitStack() as stack:
        return [stack.enter_context(socket.create_server(("", 0))).getsockname()[1] for _ in range(count)]


@contextlib.contextmanager
def start_cluster(folder):
    """Start the daemons, and end them with the block. Skip the test if SLURM is not installed."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"], "/usr/sbin", "/sbin"])
    if missing := [name for name in PROGRAMS if not shutil.which(name, path=path)]:
        pytest.skip(f"needs {', '.join(missing)}: install slurm-wlm and munge with the system package manager")
    user = getpass.getuser()
    for name in ("munge", "state"):
        (folder / name).mkdir(mode=0o700)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    config = folder / "slurm.conf"
    config.write_text(
        CONFIG.format(
            host=socket.gethostname(),
            nodes=NODES,
            folder=folder,
            ports=_free_ports(3),
            user=getpass.getuser(),
            cpus=os.cpu_count(),
        )
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment |= {"SLURM_CONF": str(config), "PATH": path, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    munge = [f"--{name}-file={folder}/munge/{name}" for name in ("key", "pid", "log", "seed")]
    commands = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge/socket", *munge],
        ["slurmctld", "-D", "-f", config],
        *(["slurmd", "-D", "-f", config, "-N", node] for node in NODES),
    ]
    with contextlib.ExitStack() as stack:
        for command in commands:
            log = stack.enter_context((folder / f"{command[0]}-{command[-1]}".replace("/", "_")).open("w"))
            process = subprocess.Popen([*map(str, command)], env=environment, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            time.sleep(1)
        cluster = Cluster(environment)
        wait_until(
            lambda: cluster.call("sinfo", "--noheader", "--Node", "--format=%T", "-p", "low").split() == ["idle"] * 2, 60
        )
        yield cluster
        cluster.call("scancel", "--user", user)
        wait_until(lambda: not cluster.call("squeue", "--noheader"), 300)
