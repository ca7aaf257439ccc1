"""Compiled CPU kernels: whether numba is there, where compiled code is kept, and how a kernel is run."""

import functools
import hashlib
import importlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from had.dna.store import cache_folder
from had.errors import UserError
from had.files import own_temporary_folder, writable_by_others
from had.ops.threads import share

logger = logging.getLogger(__name__)


@functools.cache
def why_unavailable() -> str | None:
    """Say why numba cannot be used, or None where it can."""
    try:
        import numba
    except ImportError as error:
        return f"numba cannot be imported ({error}; pip install numba)"
    if not hasattr(numba, "njit"):
        return "numba is incomplete"
    config: Any = numba.config
    return "NUMBA_DISABLE_JIT is set" if config.DISABLE_JIT else None


@functools.cache
def _folder_of_kernels(cache: Path) -> Path | None:
    """Give a folder for compiled kernels, in the cache or else a temporary one; None where there is none.

    What is loaded from it runs, so nobody else may write to it.
    """
    folder = cache / "numba"
    place = writable_by_others(cache, folder.name)
    if place is None:
        with suppress(OSError):  # numba looks for another place, or says why it has none
            folder.mkdir(mode=0o700, exist_ok=True)
        return folder
    try:
        instead = own_temporary_folder() / "numba"
    except UserError:
        instead = None
    logger.warning(
        "others may write to %s, so no compiled kernels, which are code, are kept or used in %s; they are %s. "
        "Run chmod -R go-w on the folder if it is yours, or set HAD_CACHE to a folder of your own",
        place,
        folder,
        "compiled anew in every process" if instead is None else f"kept in {instead}",
    )
    return instead


def keep_compiled(module: Any, names: tuple[str, ...]) -> None:
    """Keep a module's compiled kernels in the user's cache folder, under a name that changes with their source.

    Where others may write to it, they are kept in a temporary folder or not at all. ``NUMBA_CACHE_DIR`` comes first and
    is not checked.
    """
    import numba

    from had.ops import lanes

    # numba looks at the kernels' own file only, so a change of the lanes alone would go unnoticed.
    sources = b"".join(Path(str(part.__file__)).read_bytes() for part in (lanes, module))
    config: Any = numba.config
    chosen_by_user = config.CACHE_DIR
    folder = Path(chosen_by_user) if chosen_by_user else _folder_of_kernels(cache_folder())
    if folder is None:
        return
    if not chosen_by_user:
        folder = folder / hashlib.sha256(sources).hexdigest()[:16]
        with suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        config.CACHE_DIR = str(folder)
        for name in names:
            getattr(module, name).enable_caching()
    except (RuntimeError, OSError) as error:
        logger.warning("compiled kernels cannot be kept, so every process compiles its own: %s", error)
    finally:
        config.CACHE_DIR = chosen_by_user


_compile_lock = threading.RLock()


@functools.cache
def load_kernels(name: str) -> ModuleType:
    """Import ``had.ops.<name>`` and let its kernels, those named in its ``KERNELS``, be kept on disk."""
    with _compile_lock:
        module = importlib.import_module(f"had.ops.{name}")
        keep_compiled(module, module.KERNELS)
    return module


_seconds: dict[tuple[str, str, tuple[Any, ...]], float] = {}


def compile_kernel(kernel: Any, signature: tuple[Any, ...]) -> float:
    """Compile a kernel for a signature, or load it from the cache; give the seconds that this took, once.

    Parameters
    ----------
    kernel
        A function decorated with ``numba.njit``.
    signature
        Types of its arguments, which may be compared by their equality.
    """
    key = (kernel.py_func.__module__, kernel.py_func.__name__, signature)
    if key in _seconds:
        return _seconds[key]
    with _compile_lock:
        if key not in _seconds:
            began, hits = time.perf_counter(), kernel.stats.cache_hits.total()
            try:
                with _no_interrupt_lost():
                    kernel.compile(signature)
            except OSError as error:
                # The code is compiled by then; only writing it to the cache failed.
                logger.warning("compiled kernels could not be written to the cache: %s", error)
            how = "loaded" if kernel.stats.cache_hits.total() > hits else "compiled"
            _seconds[key] = time.perf_counter() - began
            logger.debug("%s the CPU kernel %s.%s in %.1f s", how, *key[:2], _seconds[key])
    return _seconds[key]


@contextmanager
def _no_interrupt_lost() -> Iterator[None]:
    """Raise a Ctrl-C that met a function called from C, where Python can only print it and go on."""
    lost, before = [], sys.unraisablehook

    def keep(ignored: "sys.UnraisableHookArgs") -> None:
        if ignored.exc_type is KeyboardInterrupt:
            lost.append(ignored.exc_type)
        else:
            before(ignored)

    sys.unraisablehook = keep
    try:
        yield
    except Exception:
        # What the callback did not do is missed later on.
        if not lost:
            raise
    finally:
        sys.unraisablehook = before
    if lost:
        raise KeyboardInterrupt


_ready: set[tuple[str, str]] = set()


def run_kernel(module: str, name: str, units: int, *arguments: Any) -> None:
    """Run a float32 kernel of ``had.ops.<module>`` over its units of work, sharing them among threads.

    Parameters
    ----------
    module, name
        The kernel; it takes the first unit and the one after the last before the arguments.
    units
        Their number; with none nothing runs.
    arguments
        Arrays, numbers and tuples of numbers, of the same types at every call.
    """
    kernel = getattr(load_kernels(module), name)
    if (module, name) not in _ready:
        import numba

        compile_kernel(kernel, (numba.intp, numba.intp, *map(numba.typeof, arguments)))
        _ready.add((module, name))
    share(lambda first, last: kernel(first, last, *arguments), units)
