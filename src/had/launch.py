"""Completes what ``accelerate launch --num_processes N`` begins on a machine without several GPUs.

On CPUs accelerate starts one process, whatever N is, unless MPI is installed and a host file is named. Nothing tells
the process of N but its parent's command line. N processes are then started here by torch's own launcher, which
accelerate understands.
"""

import itertools
import os
import sys
from collections.abc import Mapping, Sequence

# Set by torchrun or one of the MPI launchers: the processes have been started.
_STARTED = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def processes_asked_for(environment: Mapping[str, str], parent_command: Sequence[str]) -> int:
    """Processes that accelerate's launcher was asked for but did not start; 1 where nothing is amiss."""
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment
    if not by_accelerate or any(name in environment for name in _STARTED):
        return 1
    words = [part for word in parent_command for part in word.split("=", 1)]
    for name, value in itertools.pairwise(words):
        if name in ("--num_processes", "--num-processes") and value.isdigit():
            return int(value)
    return 1


def complete_accelerate_launch() -> None:
    """Replace this process by torch's launcher with the processes that accelerate left out; else return."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ or "MASTER_ADDR" not in os.environ:
        return
    import psutil  # of accelerate's own requirements

    n = processes_asked_for(os.environ, psutil.Process(os.getppid()).cmdline())
    if n == 1:
        return
    address, port = os.environ.pop("MASTER_ADDR"), os.environ.pop("MASTER_PORT", "29500")
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={n}"]
    launcher += [f"--master_addr={address}", f"--master_port={port}", "-m", "had"]
    os.execv(sys.executable, [sys.executable, *launcher, *sys.argv[1:]])
