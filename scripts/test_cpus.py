"""Run the numerical tests as on other processors: with fewer instructions, and with other numbers of threads.

    python scripts/test_cpus.py [arguments of pytest]

Each run is a process of its own, since PyTorch and numba choose their instructions once. Settings that this machine
does not have are left out.
"""

import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("tests/ops", "tests/models", "tests/inference")
LEVELS = {
    "default": {
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": "",
        "NUMBA_CACHE_DIR": str(ROOT / ".pytest_cache" / "numba-generic"),
    },
    "avx2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "avx512": {"MKL_ENABLE_INSTRUCTIONS": "AVX512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
}
"""Variables that keep MKL, oneDNN and numba to what PyTorch calls these capabilities, from the least to the most."""


def settings() -> list[dict[str, str]]:
    """Environment variables of each run."""
    names = list(LEVELS)
    best = torch.backends.cpu.get_cpu_capability().lower()
    found = [
        {"OMP_NUM_THREADS": str(threads), "ATEN_CPU_CAPABILITY": name, **LEVELS[name]}
        for threads, name in enumerate(names[: names.index(best) + 1] if best in names else [], start=1)
    ]
    return [*found, {"OMP_NUM_THREADS": "4"}]


def main() -> int:
    """Run them all; 1 if a run failed."""
    failed = []
    for variables in settings():
        name = " ".join(f"{key}={value}" for key, value in variables.items())
        print(f"\n{name}", flush=True)
        command = [sys.executable, "-m", "pytest", "-q", *TESTS, *sys.argv[1:]]
        if subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}).returncode:
            failed.append(name)
    print("\n".join(["", *(f"failed: {name}" for name in failed)] if failed else ["", "passed with every setting"]))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
