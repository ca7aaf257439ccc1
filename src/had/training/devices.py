"""Where a run computes: device, processes, precision, threads, allocator."""

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from had.errors import RunFault, UserError

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


MAX_THREADS = 1024
"""More of them are a slip of the finger; OpenMP ends the process where it cannot start so many."""

# What PyTorch says where an allocation fails, or the size is more than 64 bits.
_NO_MEMORY = ("out of memory", "defaultcpuallocator", "storage size calculation overflowed")


def native_bf16(device: torch.device) -> bool:
    """Whether this device multiplies bfloat16 matrices natively (emulated ones are slower than float32)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
    return False


def choose_precision(precision: str, device: torch.device) -> Literal["float32", "bf16"]:
    """The precision that a recipe's ``auto``, ``float32`` or ``bf16`` means on this device."""
    return "bf16" if precision == "bf16" or (precision == "auto" and native_bf16(device)) else "float32"


def choose_device(device: str) -> torch.device:
    """The device that ``--device`` names: auto takes CUDA, then Apple's GPU, then the CPU.

    Raises
    ------
    UserError
        If there is no such device here.
    """
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if here[name]))
    if device not in here:
        raise UserError(f"--device is auto, cpu, cuda or mps; got {device!r}")
    if not here[device]:
        raise UserError(f"--device {device} was asked for, but torch sees none here; use --device auto or cpu")
    return torch.device(device)


def make_accelerator(precision: str, device: str, trackers: list[str], folder: Path | None) -> Any:
    """The accelerate handle: processes, precision and trackers; the device is that of `choose_device`."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import ProjectConfiguration

    # Accelerate keeps device and precision for the whole process: a second run of a notebook could not choose its own.
    # A process group stays as it is.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    wanted = choose_device(device)
    if os.environ.get("WORLD_SIZE", "1") != "1" and (
        lacking := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    ):
        raise UserError(
            f"WORLD_SIZE is set, but {', '.join(lacking)} is not: start several processes with torchrun or accelerate "
            "launch, or unset WORLD_SIZE"
        )
    project = (
        None if folder is None else ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "logs"))
    )
    return Accelerator(
        cpu=wanted.type == "cpu",
        mixed_precision="bf16" if choose_precision(precision, wanted) == "bf16" else "no",
        log_with=trackers or None,
        project_config=project,
    )


@contextmanager
def memory_faults(advice: str, kind: type[Exception] = RunFault) -> Iterator[None]:
    """Turn running out of memory, on a GPU or here, into an error of this kind that ends with advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # Of the allocators only CUDA's has a class for it, and that not always.
        text = str(error)
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and not any(words in text.lower() for words in _NO_MEMORY):
            raise
        reason = (text.strip() or type(error).__name__).splitlines()[0]
        raise kind(f"memory did not suffice ({reason}); {advice}") from error


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Move a batch of CPU tensors to the training device, without waiting for a GPU that is still computing."""
    if device.type != "cuda":
        return {name: x.to(device) for name, x in batch.items()}
    # From memory that is not pinned the copy would go through a small buffer of the driver.
    return {name: x.pin_memory().to(device, non_blocking=True) for name, x in batch.items()}


def keep_freed_memory() -> None:
    """Make glibc keep freed memory instead of giving it back to the system after every large tensor.

    The pages of a fresh 16 MB tensor cost more than the arithmetic on it on some machines; training frees and takes
    the same sizes at every step. Elsewhere than on Linux with glibc this does nothing.
    """
    if not sys.platform.startswith("linux") or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def set_threads(threads: int | None) -> None:
    """Use this many CPU threads in every operation; None leaves the caller's setting."""
    if threads is None:
        return
    if not 1 <= threads <= MAX_THREADS:
        raise UserError(f"--threads is from 1 to {MAX_THREADS}; got {threads}")
    torch.set_num_threads(threads)
