"""FASTA as one stream of base codes: plain, gzip or bgzip, read front to back in big blocks."""

import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from had.dna.alphabet import ENCODE, INVALID, N
from had.errors import UserError

RAW_CHUNK = 1 << 18
BLOCK = 1 << 22
_GZIP = b"\x1f\x8b"
_BGZF_EXTRA = b"BC\x02\x00"
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
_OTHER_FORMATS = {
    b"BZh": "bzip2-compressed",
    b"\xfd7zXZ\x00": "xz-compressed",
    b"\x28\xb5\x2f\xfd": "zstd-compressed",
    b"PK\x03\x04": "a zip archive",
    b"\x43\x27\x41\x1a": "a 2bit file",
    b"\x1a\x41\x27\x43": "a 2bit file",
}
_WHITE_SPACE = b" \t\r\n\v\f"
_TABLE = ENCODE.tobytes()
_INVALID_BYTE = bytes([INVALID])
_LINE_END = re.compile(rb"[\r\n]")
_NOT_NUCLEOTIDE = re.compile(b"[^" + re.escape(b"ACGTURYSWKMBDHVNacgturyswkmbdhvn" + _WHITE_SPACE) + b"]")
_LONGEST_HEADER = 1 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of one record: its letters as codes. The first piece of each record is empty and announces it."""

    name: str
    codes: bytes
    n_acgt: int = 0
    ambiguous: dict[str, int] = field(default_factory=dict)
    """Upper-case IUPAC letters other than A, C, G, T, U, N, with their counts."""


def read_blocks(path: str | Path, on_read: Callable[[bytes], object] | None = None) -> Iterator[bytes]:
    """Read a plain, gzip or bgzip file, told apart by its first bytes, as decompressed blocks of some MiB.

    Parameters
    ----------
    path
        File, or anything else that can be read once from front to back (a pipe).
    on_read
        Called with every chunk of bytes as it stands in the file (to hash it, to move a progress bar).

    Raises
    ------
    had.errors.UserError
        If the file is missing, unreadable, of another format, or a truncated or damaged gzip file.
    """
    chunks = _raw_chunks(path, on_read)
    first = next(chunks, b"")
    for magic, kind in _OTHER_FORMATS.items():
        if first.startswith(magic):
            raise UserError(f"{path} is {kind}; decompress it, or compress it with gzip or bgzip")
    if not first.startswith(_GZIP):
        if first:
            yield first
        yield from chunks
        return
    pending: list[bytes] = []
    size = 0
    for data in _inflate(first, chunks, path):
        pending.append(data)
        size += len(data)
        if size >= BLOCK:
            yield b"".join(pending)
            pending, size = [], 0
    if pending:
        yield b"".join(pending)


def _raw_chunks(path: str | Path, on_read: Callable[[bytes], object] | None) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            # A pipe may deliver its first bytes one by one, so short reads are filled up to tell the format.
            while chunk := file.read(RAW_CHUNK):
                if on_read is not None:
                    on_read(chunk)
                yield chunk
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name the file in it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def _inflate(first: bytes, chunks: Iterable[bytes], path: str | Path) -> Iterator[bytes]:
    """Decompress all gzip members one after another; data that break off or are damaged are an error."""
    is_bgzf = _BGZF_EXTRA in first[:32]
    last_bytes = b""
    member = None
    try:
        for chunk in _chain(first, chunks):
            last_bytes = (last_bytes + chunk[-len(_BGZF_END) :])[-len(_BGZF_END) :]
            while chunk:
                if member is None:
                    chunk = chunk.lstrip(b"\0")  # some tools pad after the last member
                    if not chunk:
                        break
                    member = zlib.decompressobj(wbits=31)
                if data := member.decompress(chunk, BLOCK):
                    yield data
                if member.eof:
                    chunk, member = member.unused_data, None
                else:
                    chunk = member.unconsumed_tail
        if member is not None and (data := member.flush()):
            yield data
    except zlib.error as error:
        raise UserError(f"{path} is a damaged gzip file ({error}); fetch it again") from error
    if member is not None and not member.eof:
        raise UserError(f"{path} is a truncated gzip file: it ends in the middle of the data; fetch it again")
    if is_bgzf and last_bytes.rstrip(b"\0") != _BGZF_END.rstrip(b"\0"):
        raise UserError(f"{path} is a truncated bgzip file: its end-of-file block is missing; fetch it again")


def _chain(first: bytes, rest: Iterable[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def read_fasta(blocks: Iterable[bytes], file: str) -> Iterator[Piece]:
    """Read the records of a FASTA stream as pieces of codes.

    The name of a record is the first word of its header. White space and blank lines within a record are
    skipped; lines may end in LF, CRLF or CR and be of any width; lower case is upper case, U is T, other
    IUPAC letters are N and counted. A record without letters is one empty piece.

    Parameters
    ----------
    blocks
        The text, cut anywhere.
    file
        Its name, for messages.

    Raises
    ------
    had.errors.UserError
        If there is no record, text stands before the first '>', a header has no name, or a character is no
        IUPAC nucleotide letter; the message names the record, the position in it (counted from 1) and the
        line.
    """
    name: str | None = None
    header: bytes | None = None
    at_line_start = True
    n_letters, line, is_first = 0, 1, True
    for block in blocks:
        position = 3 if is_first and block.startswith(b"\xef\xbb\xbf") else 0
        is_first = False
        while position < len(block):
            if header is not None:
                end_match = _LINE_END.search(block, position)
                end = end_match.start() if end_match else len(block)
                header += block[position:end]
                if len(header) > _LONGEST_HEADER:
                    raise UserError(f"{file}: line {line:,} is a header of more than 1 MiB; is this FASTA?")
                position = end
                if end_match:
                    name = _record_name(header, file, line)
                    header, n_letters = None, 0
                    yield Piece(name, b"")
                continue
            mark = block.find(b">", position)
            chunk = block[position : mark if mark >= 0 else len(block)]
            if name is None and chunk.strip():
                raise UserError(_before_first_header(chunk.strip(), file))
            if name is not None and chunk:
                piece = _encode(chunk, name, file, n_letters, line)
                n_letters += len(piece.codes)
                if piece.codes:
                    yield piece
            line += chunk.count(b"\n")
            if chunk:
                at_line_start = chunk.endswith((b"\n", b"\r"))
            if mark < 0:
                break
            if not at_line_start:
                raise UserError(
                    f"{file}: record {name!r} has the character '>' in the middle of line {line:,}; "
                    "a header starts at the beginning of its line"
                )
            header, position = b"", mark + 1
    if header is not None:
        yield Piece(_record_name(header, file, line), b"")
    elif name is None:
        raise UserError(f"{file} has no FASTA record: it is empty")


def _record_name(header: bytes, file: str, line: int) -> str:
    words = header.decode("utf-8", errors="replace").split(maxsplit=1)
    if not words:
        raise UserError(f"{file}: the header in line {line:,} has no name; write one after '>'")
    return words[0]


def _before_first_header(text: bytes, file: str) -> str:
    kind = "; it looks like FASTQ" if text.startswith(b"@") else ""
    return f"{file} is no FASTA file: it starts with {text[:20]!r}, not with '>'{kind}"


def _encode(chunk: bytes, name: str, file: str, n_before: int, line: int) -> Piece:
    letters = chunk.translate(None, _WHITE_SPACE)
    codes = letters.translate(_TABLE)
    if _INVALID_BYTE in codes:
        raise UserError(_invalid_character(chunk, letters, codes, name, file, n_before, line))
    n_other = codes.count(N)
    n_unknown = letters.count(b"N") + letters.count(b"n") if n_other else 0
    ambiguous = {}
    if n_other > n_unknown:
        upper = letters.upper()
        counts = {letter: upper.count(letter.encode()) for letter in "RYSWKMBDHV"}
        ambiguous = {letter: count for letter, count in counts.items() if count}
    return Piece(name, codes, len(codes) - n_other, ambiguous)


def _invalid_character(
    chunk: bytes, letters: bytes, codes: bytes, name: str, file: str, n_before: int, line: int
) -> str:
    at = codes.index(_INVALID_BYTE)
    character = chr(letters[at])
    match = _NOT_NUCLEOTIDE.search(chunk)
    line += chunk.count(b"\n", 0, match.start()) if match else 0
    if character.upper() in "EFILPQZJOX*":
        advice = "had reads DNA; this looks like protein"
    elif character in "-.":
        advice = "remove the gaps of the alignment first"
    else:
        advice = "only the IUPAC letters of nucleotides are read"
    return (
        f"{file}: record {name!r} has the character {character!r} at position {n_before + at + 1:,} "
        f"(0-based: {n_before + at}; line {line:,}); {advice}"
    )
