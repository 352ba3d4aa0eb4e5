"""The grid on a real SLURM: controller and node daemon on this machine, in a folder of their own, ended by their pids.

Needs root and Debian's slurm-wlm and munge (`apt-get install --no-install-recommends slurm-wlm munge`).
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from lib import paths

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "squeue", "scancel", "sinfo")
CPUS = 4  # as many as the node is said to have: two jobs of two, whatever this machine has
CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=node1 Default=YES MaxTime=INFINITE State=UP
"""


# A cluster ------------------------------------------------------------------------------------------------------------
def wait_until(holds: Callable[[], object], seconds: float, what: str) -> None:
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit, f"{what} took longer than {seconds:.0f} s"
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Cluster:
    """One node. `environment`: what a client needs to find it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._daemons = folder, list[subprocess.Popen]()
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        """All three daemons; skips the test when munge does not start, without which all others wait for a minute."""
        folder, socket_file = self.folder, self.folder / "munge.socket"
        for name in ("state", "spool"):
            (folder / name).mkdir()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        text = CONFIGURATION.format(folder=folder, ports=free_ports(2), host=socket.gethostname(), cpus=CPUS)
        (folder / "slurm.conf").write_text(text)
        files = {"socket": socket_file, **{f"{n}-file": folder / f"munge.{n}" for n in ("key", "pid", "log", "seed")}}
        munge = self._daemon("munged", "--foreground", *(f"--{name}={path}" for name, path in files.items()))
        limit = time.monotonic() + 10
        while not socket_file.exists():
            if munge.poll() is not None or time.monotonic() > limit:
                pytest.skip(
                    f"munge does not start here: {(folder / 'munged.out').read_text().strip().splitlines()[-1:]}"
                )
            time.sleep(0.1)
        self._daemon("slurmctld", "-D", "-i")
        self._daemon("slurmd", "-D", "-N", "node1")
        wait_until(lambda: self.ask("sinfo", "-h", "-o", "%T") == "idle", 60, "the node")

    def _daemon(self, program: str, *arguments: str) -> subprocess.Popen:
        with (self.folder / f"{program}.out").open("w") as out:
            process = subprocess.Popen(
                [shutil.which(program), *arguments],
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._daemons.append(process)
        return process

    def ask(self, *command: str) -> str:
        done = subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout.strip()

    def jobs(self) -> dict[str, str]:
        """State of every job that has ended, by its number, as the controller noted it."""
        text = (self.folder / "jobs").read_text()
        return dict(re.findall(r"^JobId=(\d+) .*? JobState=(\w+) ", text, re.MULTILINE))

    def empty(self) -> bool:
        """No job is queued, running or ending, and no process of one is on the node."""
        return self.ask("squeue", "-h", "-a") == "" and not self.on_the_node()

    def on_the_node(self) -> list[psutil.Process]:
        """The processes of jobs, which inherit what SLURM tells a job's first process."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                about = process.environ()
                if about.get("SLURM_CONF") == self.environment["SLURM_CONF"] and "SLURM_PROCID" in about:
                    found.append(process)
        return found

    def stop(self) -> None:
        if len(self._daemons) == 3:
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                self.ask("scancel", "--user=root")
                wait_until(self.empty, 40, "ending the jobs")
        for process in reversed(self._daemons):
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"SLURM is not installed ({', '.join(missing)}): slurm-wlm and munge of Debian have it")
    if os.geteuid() != 0:
        pytest.skip("only root can start the daemons of SLURM")
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # munge wants its socket where everybody can come, which pytest's folders are not
        made = Cluster(folder)
        try:
            made.start()
            yield made
        finally:
            made.stop()


# A checkout -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of this checkout, with a space in its name and nothing in its cache."""
    made = tmp_path_factory.mktemp("checkouts") / "a checkout"
    skipped = shutil.ignore_patterns("__pycache__", "organisms", "*.ipynb")
    for folder in (paths.LIB, paths.DATA, paths.NOTEBOOKS):
        shutil.copytree(folder, made / folder.name, ignore=skipped)
    for name in ("requirements.lock", "pyproject.toml"):
        shutil.copy(paths.ROOT / name, made)
    return made


def start(tree: Path, environment: dict[str, str], *arguments: str) -> subprocess.Popen:
    """`./run_all.sh ARGUMENTS` in that checkout, with this environment's Python."""
    return subprocess.Popen(
        [sys.executable, "-m", "lib.pipeline", "--profile", "tiny", *arguments],
        cwd=tree.parent,
        env=os.environ | {"PYTHONPATH": str(tree)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(tree: Path, environment: dict[str, str], *arguments: str, rc: int = 0) -> tuple[str, str]:
    process = start(tree, environment, *arguments)
    out, err = process.communicate(timeout=1200)
    assert process.returncode == rc, out + err
    return out, err


def outputs(tree: Path) -> dict[str, bytes]:
    """Notebooks, results, figures and stamps of both seeds, the ledger, and the models' weights."""
    build = tree / "build/tiny"
    kept = [p for part in ("notebooks", "results", "figures", "stamps") for p in build.glob(f"seed-*/{part}/**/*")]
    kept += [build / "ledger.json", *(tree / ".cache/models").rglob("*.safetensors")]
    return {path.relative_to(tree).as_posix(): path.read_bytes() for path in kept if path.is_file()}


GRID = ("--seeds", "0,1", "--only", "1,7", "--jobs", "2")
SRUN = "srun -n1 -c2"


# The tests ------------------------------------------------------------------------------------------------------------
def test_the_grid_runs_as_jobs_and_gives_the_same_bytes(cluster, tree):
    out, err = run(tree, cluster.environment | {"RUNNER": SRUN}, *GRID)
    assert err == ""
    assert "7 done, 0 notebooks up to date, 0 failed" in out  # two of models, four notebooks, the ledger
    numbers = set()
    for seed in (0, 1):
        manifest = json.loads((tree / f"build/tiny/seed-{seed}/manifest.json").read_text())
        for entry in (manifest["models"], *manifest["notebooks"].values()):
            assert entry["cpus"] == min(2, len(os.sched_getaffinity(0)))
            assert entry["peak_mb"] > 100  # of the worker and its kernel, not of srun
            numbers.add(entry["slurm_job"].removesuffix(".0"))
    assert len(numbers) == 6
    wait_until(cluster.empty, 30, "ending the jobs")
    assert {cluster.jobs()[number] for number in numbers} == {"COMPLETED"}

    through_slurm = outputs(tree)
    assert sum(name.endswith(".ipynb") for name in through_slurm) == 4
    assert sum(name.endswith(".safetensors") for name in through_slurm) > 4
    shutil.rmtree(tree / "build")
    shutil.rmtree(tree / ".cache")
    run(tree, {}, *GRID)
    here = outputs(tree)
    differing = [name for name in through_slurm.keys() | here.keys() if through_slurm.get(name) != here.get(name)]
    assert sorted(differing) == []


def kernel(cluster: Cluster, run: subprocess.Popen) -> psutil.Process:
    """The first notebook kernel that comes up on the node."""
    found: list[psutil.Process] = []

    def up() -> bool:
        assert run.poll() is None, run.communicate()
        found[:] = [p for p in cluster.on_the_node() if "ipykernel_launcher" in " ".join(p.cmdline())]
        return bool(found)

    wait_until(up, 300, "starting a kernel")
    return found[0]


@pytest.mark.parametrize(("how", "rc"), [(signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_an_interrupted_run_leaves_nothing_on_the_node(cluster, tree, how, rc):
    """One notebook runs and one waits in the queue, because a job takes all the node."""
    shutil.rmtree(tree / "build/tiny/seed-0", ignore_errors=True)
    before = set(cluster.jobs())
    environment = cluster.environment | {"RUNNER": f"srun -n1 -c{CPUS}"}
    process = start(tree, environment, "--only", "1,7", "--jobs", "2")
    first = kernel(cluster, process)
    wait_until(lambda: "PD" in cluster.ask("squeue", "-h", "-o", "%t"), 30, "queueing the other notebook")
    family = [first, *first.parents()[:2]]  # the kernel, its worker, and slurmstepd
    assert family[-1].name() == "slurmstepd"
    process.send_signal(how)
    out, err = process.communicate(timeout=60)
    assert process.returncode == rc, out + err
    wait_until(cluster.empty, 60, "ending the jobs")
    assert [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    assert "COMPLETED" not in [cluster.jobs()[number] for number in sorted(set(cluster.jobs()) - before, key=int)[1:]]
    assert not list((tree / "build/tiny/seed-0/results").glob("*.json"))
    if how == signal.SIGTERM:
        assert not list((tree / "build").rglob("*.running.ipynb"))


def test_what_slurm_refuses_or_cancels_is_said_in_its_words(cluster, tree):
    shutil.rmtree(tree / "build/tiny/seed-0", ignore_errors=True)
    refused = cluster.environment | {"RUNNER": f"{SRUN} --gres=gpu:1"}
    out, err = run(tree, refused, "--only", "1", rc=1)
    said = "srun: error: Invalid generic resource (gres) specification"
    assert f"error: models: srun ended (1) before the job had reported: {said}; see build" in err
    assert "01_organism  tiny seed 0  not run: its models failed" in out
    copies = run(tree, cluster.environment | {"RUNNER": "srun -n2 -c1"}, "--only", "1", rc=1)[1]
    assert "error: models: srun started 2 copies of this; add -n1 to it in RUNNER\n" in copies
    process = start(tree, cluster.environment | {"RUNNER": SRUN}, "--only", "1")
    kernel(cluster, process)
    cluster.ask("scancel", "--user=root")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert re.search(r"error: 01_organism: srun ended \(\d+\) before the job had reported: .*CANCELLED AT.*; see", err)
    wait_until(cluster.empty, 60, "ending the job")


def test_a_job_with_too_few_cpus_says_so(cluster, tree):
    profile = tree / "data/profiles/tiny.yaml"
    profile.write_text(profile.read_text().replace("threads: 1", "threads: 2"))
    err = run(tree, cluster.environment | {"RUNNER": "srun -n1"}, "--only", "1")[1]
    assert "warning: RUNNER gives a job 1 CPU(s), profile tiny always computes on 2 thread(s)" in err
    assert err.count("warning") == 1
