"""How many CPUs a process may use, and how its share reaches the processes that a run starts. It imports no tensor
library, because the pipeline does not."""

import os

import psutil

SHARE = "COMPANION_CPUS"  # environment variable: the CPUs that a run leaves to one of its jobs
_PROCESS_BYTES = 1.5e9  # what a process may take that trains or measures a model of those trained here


def available() -> int:
    """How many CPUs this process may use: those it is bound to, less where SLURM or the run that started it gave it
    fewer."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    granted = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE") or bound
    return min(bound, int(granted), int(os.environ.get(SHARE) or bound))


def processes() -> int:
    """How many processes of one thread go side by side: one a CPU, as far as there is memory for them."""
    return max(1, min(available(), int(psutil.virtual_memory().available // _PROCESS_BYTES)))
