import gzip
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from had.dna.alphabet import LETTERS
from had.dna.fasta import read_blocks, read_fasta
from had.errors import UserError

EMPTY_BGZF_BLOCK = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


def read(blocks: list[bytes]) -> dict[str, str]:
    records: dict[str, str] = {}
    for piece in read_fasta(blocks, "x.fa"):
        letters = "".join(LETTERS[code] for code in piece.codes)
        records[piece.name] = records.get(piece.name, "") + letters
    return records


def slow_letters(sequence: str) -> str:
    upper = sequence.upper().replace("U", "T")
    return "".join(letter if letter in "ACGT" else "N" for letter in upper)


def bgzf(data: bytes, block: int) -> bytes:
    """Gzip members as bgzip writes them: each with its size in an extra field, the last one empty."""
    members = b""
    for start in range(0, len(data), block):
        plain = gzip.compress(data[start : start + block], mtime=0)
        size = len(plain) + 8
        extra = b"\x06\x00BC\x02\x00" + (size - 1).to_bytes(2, "little")
        members += plain[:3] + b"\x04" + plain[4:10] + extra + plain[10:]
    return members + EMPTY_BGZF_BLOCK


names = st.lists(st.text("chrXY123_.|", min_size=1, max_size=8), min_size=1, max_size=4, unique=True)
letters = st.text("ACGTUNRYKMacgtunry", max_size=90)


@st.composite
def fasta_files(draw: st.DrawFn) -> tuple[dict[str, str], bytes]:
    """Records, and a file of them in some odd but legal form."""
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    records = {name: draw(letters) for name in draw(names)}
    text = draw(st.sampled_from(["", end, "\ufeff"]))
    for name, sequence in records.items():
        indent, about = draw(st.sampled_from(["", " "])), draw(st.sampled_from(["", " about > it", "\tx"]))
        text += f">{indent}{name}{about}{end}"
        while sequence:
            width = draw(st.integers(1, 40))
            text += sequence[:width] + draw(st.sampled_from(["", " "])) + end * draw(st.integers(1, 2))
            sequence = sequence[width:]
    return records, text.encode()


@settings(max_examples=60, deadline=None)
@given(fasta_files(), st.integers(1, 50))
def test_records_come_back_whatever_the_line_form_and_the_blocks(
    file: tuple[dict[str, str], bytes], block: int
) -> None:
    records, data = file
    blocks = [data[i : i + block] for i in range(0, len(data), block)]
    if data.startswith(b"\xef\xbb\xbf") and block < 3:
        blocks = [data]
    expected = {name: slow_letters(sequence) for name, sequence in records.items()}
    assert read(blocks) == expected


@settings(max_examples=30, deadline=None)
@given(fasta_files(), st.sampled_from(["plain", "gzip", "members", "bgzip", "padded"]), st.integers(1, 50))
def test_every_kind_of_compression_gives_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, file: tuple[dict[str, str], bytes], kind: str, block: int
) -> None:
    _, data = file
    parts = [data[i : i + block] for i in range(0, len(data), block)]
    packed = {
        "plain": data,
        "gzip": gzip.compress(data),
        "members": b"".join(map(gzip.compress, parts)),
        "bgzip": bgzf(data, block),
        "padded": gzip.compress(data) + bytes(512),
    }[kind]
    path = tmp_path_factory.mktemp("fasta") / "x.any-suffix"
    path.write_bytes(packed)
    seen: list[bytes] = []
    assert b"".join(read_blocks(path, seen.append)) == data
    assert b"".join(seen) == packed


def test_ambiguous_letters_are_counted_by_letter() -> None:
    pieces = list(read_fasta([b">a\nACRrNny\nAM\n"], "x.fa"))
    assert pieces[1].ambiguous == {"R": 2, "Y": 1, "M": 1}
    assert pieces[1].n_acgt == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "x.fa has no FASTA record: it is empty"),
        (b" \n\n", "it is empty"),
        (b"ACGT\n", "starts with b'ACGT', not with '>'"),
        (b"@read\nACGT\n", "it looks like FASTQ"),
        (b">\nACGT\n", "line 1 has no name"),
        (b">a\nAC\n>  \nACGT\n", "line 3 has no name"),
        (b">a\nAC>b\nACGT\n", "'>' in the middle of line 2"),
        (
            b">a\nACGT\nACETG\n",
            r"record 'a' has the character 'E' at position 7 \(0-based: 6; line 3\).*protein",
        ),
        (b">a\nACGT\n>b\nAC-G\n", r"record 'b' has the character '-' at position 3 .*gaps"),
        (b">a\r\nAC\r\nAC1G\r\n", r"'1' at position 5 \(0-based: 4; line 3\)"),
        (b">a\nAC\n\xff\n", "position 3"),
        (b">a\nACG*\n", r"'\*' at position 4"),
    ],
)
def test_bad_text_is_refused_with_its_place(text: bytes, message: str) -> None:
    for block in (len(text) or 1, 1):
        with pytest.raises(UserError, match=message) as caught:
            read([text[i : i + block] for i in range(0, len(text), block)])
        assert str(caught.value).startswith("x.fa")
        if block == 1 or text.startswith(b"ACGT"):
            break


@pytest.mark.parametrize("letter", "EFILPQZJOX*")
def test_protein_letters_are_refused(letter: str) -> None:
    with pytest.raises(UserError, match="looks like protein"):
        read([f">p\nMKV{letter.lower()}".encode()])


def test_a_header_at_the_very_end_is_an_empty_record() -> None:
    assert read([b">a\nAC\n>b"]) == {"a": "AC", "b": ""}


DATA = b">chr1\n" + b"ACGTTGCATT\n" * 500


@pytest.mark.parametrize("kept", [12, 30, -1, -9])
def test_truncated_gzip_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut.fa.gz"
    path.write_bytes(gzip.compress(DATA, mtime=0)[:kept])
    with pytest.raises(UserError, match=r"cut\.fa\.gz is a truncated gzip file"):
        list(read_blocks(path))


def test_bgzip_cut_between_two_blocks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.fa.gz"
    path.write_bytes(bgzf(DATA, 1000)[: -len(EMPTY_BGZF_BLOCK)])
    with pytest.raises(UserError, match="truncated bgzip file"):
        list(read_blocks(path))


@pytest.mark.parametrize("at", [40, -6])
def test_damaged_gzip_is_refused(tmp_path: Path, at: int) -> None:
    packed = bytearray(gzip.compress(DATA, mtime=0))
    packed[at] ^= 0xFF
    path = tmp_path / "bad.fa.gz"
    path.write_bytes(packed)
    with pytest.raises(UserError, match=r"bad\.fa\.gz is a (damaged|truncated) gzip file"):
        list(read_blocks(path))


@pytest.mark.parametrize(
    ("magic", "kind"),
    [(b"BZh9", "bzip2"), (b"\xfd7zXZ\x00", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"PK\x03\x04", "zip")],
)
def test_other_compressions_are_named(tmp_path: Path, magic: bytes, kind: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(magic + b"rest")
    with pytest.raises(UserError, match=kind):
        list(read_blocks(path))


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.fa does not exist"):
        list(read_blocks(tmp_path / "none.fa"))
    with pytest.raises(UserError, match="folder"):
        list(read_blocks(tmp_path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_read_as_one_stream(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(gzip.compress(DATA),))
    writer.start()
    assert b"".join(read_blocks(pipe)) == DATA
    writer.join()
