"""A Slurm of several nodes on this machine, for tests: real daemons, no systemd, no containers.

Every node is a slurmd in name spaces of its own (host name, processes, /dev/shm), so that ending it
is a power cut. It runs as root and as a normal user.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "unshare")
NODES = 3
CPUS = 4
_FOREIGN = ("SLURM_", "SBATCH_", "SRUN_", "PMIX_", "OMPI_COMM")
_JOBS = {
    "OMPI_MCA_btl_tcp_if_include": "lo",
    "OMPI_MCA_oob_tcp_if_include": "lo",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}

CONFIGURATION = """
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={d}/munge/socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={d}/state
SlurmdSpoolDir={d}/spool/%n
TmpFS={d}/tmp/%n
SlurmctldPidFile={d}/run/slurmctld.pid
SlurmdPidFile={d}/run/slurmd.%n.pid
SlurmctldLogFile={d}/log/slurmctld.log
SlurmdLogFile={d}/log/slurmd.%n.log
PlugStackConfig={d}/plugstack.conf
MailProg=/bin/true
MpiDefault=pmix
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_min_interval=1000,sched_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
JobRequeue=1
SlurmctldTimeout=30
SlurmdTimeout=10
MessageTimeout=5
KillWait=3
MinJobAge=3600
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 \
GraceTime=20 PreemptMode=REQUEUE
PartitionName=cancelled Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=CANCEL
PartitionName=requeued Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""

NODE = (
    "NodeName=node{n} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} Boards=1 "
    "SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=4000 Gres=gpu:2 "
    "State=UNKNOWN"
)

INSIDE = (
    "hostname {name} && mount --bind {d}/hosts /etc/hosts && "
    "mount --bind {d}/nsswitch.conf /etc/nsswitch.conf && "
    "mount -t tmpfs -o size=512m tmpfs /dev/shm && exec slurmd -D -N {name}"
)


class Cluster:
    """The daemons; `start` and `stop` them.

    Args:
        folder: An empty folder of a short path (sockets have short names), readable by the nodes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.env = {
            name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)
        } | {**_JOBS, "SLURM_CONF": str(folder / "slurm.conf")}
        sbin = os.pathsep.join(("/usr/sbin", "/sbin"))
        self.env["PATH"] = f"{self.env['PATH']}{os.pathsep}{sbin}"

    # -- daemons -----------------------------------------------------------------------------

    def start(self) -> None:
        """Start all daemons and wait until every node is idle."""
        self._write()
        d = self.folder
        self._run("munged", "munged", "-F", f"--key-file={d}/munge/key",
                  f"--socket={d}/munge/socket", f"--pid-file={d}/munge/pid",
                  f"--log-file={d}/munge/log", f"--seed-file={d}/munge/seed",
                  "--num-threads=2")  # fmt: skip
        self.until(lambda: (d / "munge" / "socket").exists(), 10)
        self._run("slurmctld", "slurmctld", "-D", "-i")
        for number in range(1, NODES + 1):
            self.start_node(f"node{number}")
        self.until_idle()

    def start_node(self, name: str) -> None:
        """Switch a node on."""
        as_user = ["--user", "--map-current-user", "--keep-caps"] if os.geteuid() else []
        inside = INSIDE.format(name=name, d=self.folder)
        spaces = "--uts --mount --propagation private --pid --fork --kill-child --mount-proc"
        self._run(name, "unshare", *as_user, *spaces.split(), "sh", "-c", inside)

    def cut_power(self, name: str) -> None:
        """End a node and everything on it, and let the controller know at once."""
        self._daemons.pop(name).kill()
        self.ask("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=power")

    def restore(self, name: str) -> None:
        """Switch it on again."""
        self.start_node(name)
        self.ask("scontrol", "update", f"NodeName={name}", "State=RESUME")
        self.until_idle()

    def configure(self, old: str, new: str) -> None:
        """Change the configuration of the running daemons."""
        path = self.folder / "slurm.conf"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        self.ask("scontrol", "reconfigure")

    def until_idle(self) -> None:
        """Wait until every node is idle."""
        self.until(lambda: self._states() == {"idle": NODES}, 60)

    def _states(self) -> dict[str, int]:
        done = self._client("sinfo", "-h", "-N", "-p", "main", "-o", "%T")
        words = done.stdout.split() if done.returncode == 0 else []
        return {word: words.count(word) for word in words}

    def stop(self) -> None:
        """End everything."""
        for daemon in reversed(self._daemons.values()):
            gently = isinstance(daemon.args, tuple) and daemon.args[0] == "munged"
            daemon.send_signal(signal.SIGTERM if gently else signal.SIGKILL)
            daemon.wait(20)

    def _run(self, name: str, *words: str) -> None:
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                words, env=self.env, stdout=log, stderr=log, start_new_session=True
            )

    # -- clients -----------------------------------------------------------------------------

    def _client(self, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        for daemon in ("munged", "slurmctld"):
            if self._daemons[daemon].poll() is not None:
                raise AssertionError((self.folder / "log" / f"{daemon}.out").read_text())
        return subprocess.run(
            words, env=self.env, capture_output=True, text=True, timeout=60, check=False, **more
        )

    def ask(self, *words: str, **more: Any) -> str:
        """Run a command that has to succeed; its output."""
        done = self._client(*words, **more)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says, of the first of an array."""
        text = self.ask("scontrol", "-o", "show", "job", number).splitlines()[0]
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def state(self, number: str) -> str:
        """RUNNING, PENDING, COMPLETED, ..."""
        return self.job(number)["JobState"]

    def queued(self) -> list[dict[str, Any]]:
        """Jobs that are not over."""
        jobs = json.loads(self.ask("squeue", "--json"))["jobs"]
        return [job for job in jobs if job["job_state"] in ("PENDING", "RUNNING", "COMPLETING")]

    def until_over(self, number: str, seconds: float = 120) -> dict[str, str]:
        """Wait for a job's end."""
        going = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "SIGNALING")
        self.until(lambda: self.state(number) not in going, seconds)
        return self.job(number)

    def until(self, condition: Callable[[], object], seconds: float) -> None:
        """Wait for something, for no longer than that."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"it did not come; logs are in {self.folder}/log"
            time.sleep(0.2)

    # -- files -------------------------------------------------------------------------------

    def _write(self) -> None:
        d, host = self.folder, socket.gethostname().split(".")[0]
        for name in ("munge", "state", "log", "run", "dev"):
            (d / name).mkdir()
        for number in range(1, NODES + 1):
            (d / "spool" / f"node{number}").mkdir(parents=True)
            (d / "tmp" / f"node{number}").mkdir(parents=True)
        for folder in (d, d / "munge"):  # munged wants its socket to be within everybody's reach
            folder.chmod(0o755)
        (d / "munge" / "key").write_bytes(os.urandom(128))
        (d / "munge" / "key").chmod(0o600)
        (d / "plugstack.conf").touch()
        (d / "nsswitch.conf").write_text("hosts: files\npasswd: files\ngroup: files\n")
        names = "".join(f"127.0.0.1 node{number}\n" for number in range(1, NODES + 1))
        (d / "hosts").write_text(f"127.0.0.1 localhost {host}\n{names}")
        (d / "gres.conf").write_text("".join(f"Name=gpu File={path}\n" for path in self._devices()))
        ports = _free_ports(NODES + 1)
        nodes = [
            NODE.format(n=number, host=host, port=ports[number], cpus=CPUS)
            for number in range(1, NODES + 1)
        ]
        user = subprocess.run(
            ["id", "-un"], capture_output=True, text=True, check=True
        ).stdout.strip()
        (d / "slurm.conf").write_text(
            CONFIGURATION.format(host=host, ports=ports, user=user, d=d, nodes="\n".join(nodes))
        )

    def _devices(self) -> list[str]:
        """Two files that Slurm takes for GPUs."""
        if os.geteuid():
            return ["/dev/tty0", "/dev/tty1"]
        made = [str(self.folder / "dev" / f"nvidia{number}") for number in range(2)]
        for path in made:
            subprocess.run(["mknod", path, "c", "1", "3"], check=True)
        return made


def missing() -> list[str]:
    """Programs that a cluster takes and this machine lacks."""
    path = f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin"
    return [program for program in PROGRAMS if shutil.which(program, path=path) is None]


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports
