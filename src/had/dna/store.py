"""The genome store: base codes in one memory-mapped file of the user's cache folder, built once per content.

Layout below the cache folder::

    genomes/<key>/codes-<unique>.u8     one uint8 code per base, all contigs one after another
    genomes/<key>/meta.json             names the codes file; replacing it is the commit of a build
    genomes/index/<hash>.json           (path, size, time stamps, quick digest) of the FASTA files → key
    genomes/building/                   unfinished builds

The key is a hash of the FASTA files' bytes: a file that the index does not know is hashed, and built only if no store
has its key. Builders write under unique names and commit with one atomic rename, so any number of them may run at once:
who comes second uses what stands there.
"""

import errno
import functools
import hashlib
import json
import logging
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from had.console import progress as progress_of
from had.console import some_of
from had.dna.fasta import Piece, read_blocks, read_fasta
from had.errors import RunFault, UserError
from had.files import atomic_write_text, expand_user, fsync_file, own_temporary_folder, sha256_of_file

logger = logging.getLogger(__name__)

FORMAT = 1
_ABANDONED_AFTER_S = 2 * 86_400
_CLOCK_TICK_NS = 50_000_000
_PLACES, _PLACE_BYTES = 64, 16_384
"""How many stretches of a file, of how many bytes, the quick digest reads: 1 MiB in all."""
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Contig:
    """One record of a genome: its name, length in bp, and offset of its first base among all codes."""

    name: str
    length: int
    offset: int


@dataclass(frozen=True)
class Layout:
    """What a genome's codes are: contigs, counts and checksums."""

    contigs: tuple[Contig, ...]
    n_acgt: int
    ambiguous: dict[str, dict[str, int]]
    codes_sha256: str

    @property
    def total(self) -> int:
        """Bases of all contigs."""
        return self.contigs[-1].offset + self.contigs[-1].length

    @property
    def digest(self) -> str:
        """sha256 (hex) of the contigs' names, lengths and codes."""
        names = json.dumps([[contig.name, contig.length] for contig in self.contigs])
        return hashlib.sha256(f"{names}\n{self.codes_sha256}".encode()).hexdigest()


def lay_out(pieces: Iterable[Piece], write: Callable[[bytes], object], source: str) -> Layout:
    """Write the codes of all records one after another and describe them.

    Raises
    ------
    had.errors.UserError
        If two records have one name, or no record has a letter.
    """
    lengths: dict[str, int] = {}
    ambiguous: dict[str, dict[str, int]] = {}
    sha256 = hashlib.sha256()
    n_acgt = 0
    for piece in pieces:
        if not piece.codes:
            if piece.name in lengths:
                raise UserError(f"{source}: two records are named {piece.name!r}; give each its own name")
            lengths[piece.name] = 0
            continue
        lengths[piece.name] += len(piece.codes)
        n_acgt += piece.n_acgt
        for letter, count in piece.ambiguous.items():
            counts = ambiguous.setdefault(piece.name, {})
            counts[letter] = counts.get(letter, 0) + count
        sha256.update(piece.codes)
        write(piece.codes)
    contigs, offset = [], 0
    for name, length in lengths.items():
        contigs.append(Contig(name, length, offset))
        offset += length
    if not offset:
        raise UserError(f"{source} has no sequence: its records are empty")
    return Layout(tuple(contigs), n_acgt, ambiguous, sha256.hexdigest())


def cache_folder(cache: str | os.PathLike[str] | None = None) -> Path:
    """Name the cache folder: the given one, else ``$HAD_CACHE``, else the operating system's own.

    It is made where it is absent, so that only this user may write to it. A user without a home folder has one below
    the system's folder for temporary files.

    Raises
    ------
    had.errors.UserError
        There is no such folder, and none can be made.
    """
    if cache is None:
        cache = os.environ.get("HAD_CACHE") or None
    folder = _usual_cache() if cache is None else expand_user(cache)
    with suppress(OSError):  # whoever writes to it says why it cannot be made
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    return folder


@functools.cache
def _usual_cache() -> Path:
    from platformdirs import user_cache_dir

    try:
        return expand_user(user_cache_dir("had"))
    except (RuntimeError, UserError):
        try:
            folder = own_temporary_folder()
        except UserError as error:
            raise UserError(f"this user has no home folder, and {error}; set HAD_CACHE to a folder") from error
        logger.warning("this user has no home folder: the cache is %s; set HAD_CACHE to a folder that stays", folder)
        return folder


def open_store(paths: Sequence[Path], cache: Path, progress: bool) -> tuple[Layout, NDArray[np.uint8]]:
    """Layout and memory-mapped codes of FASTA files, from the cache folder or built into it.

    Raises
    ------
    had.errors.UserError
        If a file is no readable nucleotide FASTA, or the cache folder cannot be written to.
    had.errors.RunFault
        If the disk is full.
    """
    root = cache / "genomes"
    looks = [_look(path) for path in paths]
    index = root / "index" / f"{_sha256(json.dumps([FORMAT, looks]))}.json" if all(looks) else None
    if index is not None:
        known = _indexed_key(index)
        key = known or _content_key(paths)
        if (stored := _load(root / key)) is not None:
            if known is None:
                with suppress(OSError, RunFault):  # a cache that may only be read serves all the same
                    _remember(index, key)
            return stored
    with _cache_faults(cache):
        key = _build(paths, root, sum(look[1] for look in looks if look) if all(looks) else None, progress)
        stored = _load(root / key)
        if stored is None:
            raise RunFault(f"the genome store {root / key} is damaged already; check the disk")
        if index is not None and [_look(path) for path in paths] == looks:
            _remember(index, key)
    return stored


def _look(path: Path) -> tuple[str, int, int, int, str] | None:
    """Absolute path, size, time stamps and quick digest of a regular file; None for a pipe or an unreadable file."""
    try:
        status = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    # A file written within the last tick of the file system's clock could change again under this time stamp.
    age = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns)
    if 0 <= age < _CLOCK_TICK_NS:
        time.sleep((_CLOCK_TICK_NS - age) / 1e9)
    try:
        digest = _quick_digest(path, status.st_size)
    except OSError:
        return None
    return str(path.absolute()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, digest


def _quick_digest(path: Path, size: int) -> str:
    """sha256 (hex) of the first and last bytes of a file and of places evenly spaced between; of all of a small one.

    It finds another genome behind an old time stamp on systems that have no time of the last change of a file.
    """
    digest = hashlib.sha256()
    last = max(0, size - _PLACE_BYTES)
    with open(path, "rb") as file:
        for i in range(_PLACES):
            file.seek(i * last // (_PLACES - 1))
            digest.update(file.read(_PLACE_BYTES))
    return digest.hexdigest()


def _indexed_key(index: Path) -> str | None:
    try:
        key = json.loads(index.read_text())["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return key if isinstance(key, str) and key.isalnum() else None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _key(file_hashes: Sequence[str]) -> str:
    return _sha256(json.dumps([FORMAT, *file_hashes]))[:32]


def _content_key(paths: Sequence[Path]) -> str:
    hashes = []
    for path in paths:
        try:
            hashes.append(sha256_of_file(path))
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    return _key(hashes)


def _remember(index: Path, key: str) -> None:
    index.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(index, json.dumps({"key": key}))


def _load(folder: Path) -> tuple[Layout, NDArray[np.uint8]] | None:
    """Open a store; None if it is absent or damaged.

    The codes' checksum is computed only where their size and time stamp are not those of the build: hashing a
    whole human genome takes seconds, and a changed file has a new time stamp.
    """
    try:
        signed = json.loads((folder / "meta.json").read_text())
        meta = signed["meta"]
        if signed["sha256"] != _sha256(json.dumps(meta, sort_keys=True)) or meta["format"] != FORMAT:
            return None
        contigs = tuple(Contig(*contig) for contig in meta["contigs"])
        layout = Layout(contigs, meta["n_acgt"], meta["ambiguous"], meta["codes_sha256"])
        path = folder / meta["codes"]
        status = path.stat()
        if status.st_size != layout.total:
            return None
        codes = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if status.st_mtime_ns != meta["codes_mtime_ns"]:
        if hashlib.sha256(codes.data).hexdigest() != layout.codes_sha256:
            return None
        with suppress(OSError):
            os.utime(path, ns=(status.st_atime_ns, meta["codes_mtime_ns"]))
    return layout, codes


def _build(paths: Sequence[Path], root: Path, n_bytes: int | None, progress: bool) -> str:
    """Read the FASTA files once and commit their store; the store's key."""
    building = root / "building"
    building.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(building)
    unique = uuid.uuid4().hex
    part = building / f"{unique}.part"
    hashes = [hashlib.sha256() for _ in paths]
    what = paths[0].name if len(paths) == 1 else f"{len(paths)} FASTA files"
    try:
        with progress_of(n_bytes, f"reading {what}", "B", quiet=not progress) as advance:
            with open(part, "wb", buffering=0) as codes:
                pieces = _pieces(paths, hashes, advance)
                layout = lay_out(pieces, lambda data: _write_all(codes, data), some_of(paths))
            fsync_file(part)
        key = _key([sha256.hexdigest() for sha256 in hashes])
        folder = root / key
        if _load(folder) is not None:
            return key
        damaged = _codes_file(folder)
        folder.mkdir(exist_ok=True)
        path = folder / f"codes-{unique}.u8"
        try:
            os.replace(part, path)
            meta = {
                "format": FORMAT,
                "contigs": [list(asdict(contig).values()) for contig in layout.contigs],
                "n_acgt": layout.n_acgt,
                "ambiguous": layout.ambiguous,
                "codes": path.name,
                "codes_sha256": layout.codes_sha256,
                "codes_mtime_ns": path.stat().st_mtime_ns,
            }
            signed = {"meta": meta, "sha256": _sha256(json.dumps(meta, sort_keys=True))}
            atomic_write_text(folder / "meta.json", json.dumps(signed, indent=1))
        except BaseException:
            # Without its description nothing would ever find, or remove, the file.
            path.unlink(missing_ok=True)
            raise
        if damaged is not None:
            with suppress(OSError):
                damaged.unlink()
        return key
    finally:
        part.unlink(missing_ok=True)


def _pieces(paths: Sequence[Path], hashes: Sequence[Any], advance: Callable[[int], object]) -> Iterator[Piece]:
    for path, sha256 in zip(paths, hashes, strict=True):

        def on_read(chunk: bytes, sha256: Any = sha256) -> None:
            sha256.update(chunk)
            advance(len(chunk))

        yield from read_fasta(read_blocks(path, on_read), str(path))


def _write_all(file: Any, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _codes_file(folder: Path) -> Path | None:
    """Codes file that the (damaged) meta.json of a store names, if it can still be read."""
    try:
        name = json.loads((folder / "meta.json").read_text())["meta"]["codes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return folder / name if isinstance(name, str) and Path(name).name == name else None


def _remove_abandoned(building: Path) -> None:
    """Remove what builders killed days ago left behind."""
    for part in building.glob("*.part"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > _ABANDONED_AFTER_S:
                part.unlink()


@contextmanager
def _cache_faults(cache: Path) -> Iterator[None]:
    """Turn the operating system's complaints about the cache folder into ours."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _NOT_ALLOWED:
            raise UserError(
                f"the cache folder {cache} cannot be written to ({reason}); set HAD_CACHE to another folder"
            ) from error
        advice = "free some space or set HAD_CACHE to another disk"
        if error.errno not in _FULL:
            advice = "check the disk"
        raise RunFault(
            f"the genome could not be stored in the cache folder {cache} ({reason}); nothing was kept: "
            f"{advice} and start again"
        ) from error
