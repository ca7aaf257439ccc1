import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from had.dna import Contig, Genome, store
from had.dna.alphabet import decode
from had.errors import RunFault, UserError

TEXT = ">one first record\nACGTNNacgtR\n>two\nTTTT\nGG\n"


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "x.fa"
    path.parent.mkdir()
    path.write_text(TEXT)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def open_quietly(path: Path | list[Path], cache: Path) -> Genome:
    return Genome.open(path, cache=cache, progress=False)


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("the FASTA file was read again")

    monkeypatch.setattr(store, "read_blocks", refuse)


def codes_file(cache: Path) -> Path:
    (path,) = (cache / "genomes").glob("*/codes-*.u8")
    return path


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_genome_has_its_records_codes_and_counts(fasta: Path, cache: Path) -> None:
    genome = open_quietly(fasta, cache)
    assert genome.contigs == (Contig("one", 11, 0), Contig("two", 6, 11))
    assert decode(genome.codes) == "ACGTNNACGTNTTTTGG"
    assert genome.codes.dtype == np.uint8
    assert genome.n_acgt == 14
    assert genome.ambiguous == {"one": {"R": 1}}
    assert len(genome) == 17
    assert str(fasta) in genome.source


def test_nothing_is_written_beside_the_users_file(fasta: Path, cache: Path) -> None:
    open_quietly(fasta, cache)
    assert os.listdir(fasta.parent) == ["x.fa"]


def test_files_follow_each_other_in_the_given_order(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.fa").write_text(">a\nAC\n")
    (tmp_path / "b.fa.gz").write_bytes(gzip.compress(b">b\nGT\n"))
    genome = open_quietly([tmp_path / "b.fa.gz", tmp_path / "a.fa"], cache)
    assert [contig.name for contig in genome.contigs] == ["b", "a"]
    assert decode(genome.codes) == "GTAC"


def test_digest_depends_on_names_and_letters_not_on_the_files_form(tmp_path: Path, cache: Path) -> None:
    forms = {
        "plain": b">a\nACGT\n>b\nGG\n",
        "lower": b">a x\nac\ngt\n>b\ngg",
        "names": b">a\nACGT\n>c\nGG\n",
        "cut": b">a\nACG\n>b\nTGG\n",
        "letters": b">a\nACGA\n>b\nGG\n",
    }
    digests = {}
    for name, text in forms.items():
        (tmp_path / name).write_bytes(text)
        digests[name] = open_quietly(tmp_path / name, cache).digest
    assert digests["plain"] == digests["lower"] == Genome.from_sequences({"a": "ACGT", "b": "GG"}).digest
    assert len(set(digests.values())) == 4


@pytest.mark.parametrize("has_time_of_change", [True, False])
def test_another_genome_of_the_same_size_and_time_stamp_is_read(
    fasta: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, has_time_of_change: bool
) -> None:
    if not has_time_of_change:
        real = Path.stat

        def stat(path: Path, **options: bool) -> os.stat_result:
            status = real(path, **options)
            return os.stat_result(tuple(status), {"st_mtime_ns": status.st_mtime_ns, "st_ctime_ns": 0})

        monkeypatch.setattr(Path, "stat", stat)
    for letter in "ACGT":
        fasta.write_text(f">a\n{letter * 3000}\n")
        os.utime(fasta, (978_307_200, 978_307_200))
        assert decode(open_quietly(fasta, cache).codes) == letter * 3000


def test_one_other_letter_in_the_middle_of_a_large_file_is_read(fasta: Path, cache: Path) -> None:
    for letter in "AC":
        fasta.write_text(f">a\n{'A' * 20_000}{letter}{'A' * 2_000_000}\n")
        os.utime(fasta, (978_307_200, 978_307_200))
        assert decode(open_quietly(fasta, cache).codes[20_000:20_001]) == letter


def test_a_copy_that_was_restored_is_not_built_again(fasta: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_quietly(fasta, cache)
    status, data = fasta.stat(), fasta.read_bytes()
    fasta.unlink()
    fasta.write_bytes(data)
    os.utime(fasta, ns=(status.st_atime_ns, status.st_mtime_ns))
    forbid_reading(monkeypatch)
    assert len(open_quietly(fasta, cache)) == 17


def test_codes_cannot_be_changed_by_accident(fasta: Path, cache: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        open_quietly(fasta, cache).codes[0] = 1


@pytest.mark.parametrize("second", [">one\nGG\n", ">two\nGG\n>one again\nAA\n"])
def test_duplicate_names_across_files_are_refused(fasta: Path, cache: Path, second: str) -> None:
    other = fasta.with_name("y.fa")
    other.write_text(second)
    with pytest.raises(UserError, match=r"y\.fa: two records are named '(one|two)'"):
        open_quietly([fasta, other], cache)
    assert not list(cache.rglob("*.part"))
    assert not list(cache.rglob("*.u8"))


def test_records_without_letters_are_kept_as_empty_contigs(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "x.fa").write_text(">none\n>a\nAC\n>empty\n\n>b\nGT\n>last\n")
    genome = open_quietly(tmp_path / "x.fa", cache)
    assert [contig.length for contig in genome.contigs] == [0, 2, 0, 2, 0]
    index, start = genome.locate(np.arange(4))
    assert [genome.contigs[i].name for i in index] == ["a", "a", "b", "b"]
    assert start.tolist() == [0, 1, 0, 1]
    assert genome.acgt_runs.tolist() == [[0, 2], [2, 4]]


def test_a_file_of_empty_records_is_refused(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "x.fa").write_text(">a\n>b\n\n")
    with pytest.raises(UserError, match=r"x\.fa has no sequence"):
        open_quietly(tmp_path / "x.fa", cache)


def test_no_file_at_all_is_refused(cache: Path) -> None:
    with pytest.raises(UserError, match="at least one FASTA file"):
        open_quietly([], cache)


def test_a_second_open_does_not_read_the_file(fasta: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_quietly(fasta, cache)
    forbid_reading(monkeypatch)
    monkeypatch.setattr(store, "sha256_of_file", store.read_blocks)
    second = open_quietly(fasta, cache)
    assert second.digest == first.digest
    assert (second.codes == first.codes).all()


def test_a_copy_elsewhere_uses_the_same_store(
    fasta: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_quietly(fasta, cache)
    (tmp_path / "copy.fa").write_text(TEXT)
    forbid_reading(monkeypatch)
    assert decode(open_quietly(tmp_path / "copy.fa", cache).codes) == "ACGTNNACGTNTTTTGG"


def test_a_changed_file_of_the_same_size_is_read_again(fasta: Path, cache: Path) -> None:
    for text in (TEXT, TEXT.replace("TTTT", "AAAA"), TEXT.replace("TTTT", "CCCC")):
        fasta.write_text(text)
        assert decode(open_quietly(fasta, cache).codes)[11:15] == text.split("two\n")[1][:4]


def test_a_file_is_read_only_after_the_clock_tick_that_wrote_it(fasta: Path) -> None:
    # Else a second change within the tick would leave size and time stamp as they were when it was read.
    os.utime(fasta)
    _, _, written_ns, *_ = store._look(fasta)
    assert time.time_ns() - written_ns >= 0.9 * store._CLOCK_TICK_NS


def flip_a_byte(cache: Path) -> None:
    data = bytearray(codes_file(cache).read_bytes())
    data[3] ^= 1
    codes_file(cache).write_bytes(data)


def cut_codes(cache: Path) -> None:
    codes_file(cache).write_bytes(codes_file(cache).read_bytes()[:-1])


def lose_codes(cache: Path) -> None:
    codes_file(cache).unlink()


def falsify_meta(cache: Path) -> None:
    (path,) = (cache / "genomes").glob("*/meta.json")
    path.write_text(path.read_text().replace('"one"', '"uno"'))


def cut_meta(cache: Path) -> None:
    (path,) = (cache / "genomes").glob("*/meta.json")
    path.write_text(path.read_text()[:50])


def garble_index(cache: Path) -> None:
    (path,) = (cache / "genomes" / "index").glob("*.json")
    path.write_text("{")


@pytest.mark.parametrize("damage", [flip_a_byte, cut_codes, lose_codes, falsify_meta, cut_meta, garble_index])
def test_a_damaged_store_is_built_again(fasta: Path, cache: Path, damage) -> None:
    digest = open_quietly(fasta, cache).digest
    damage(cache)
    genome = open_quietly(fasta, cache)
    assert genome.digest == digest
    assert decode(genome.codes) == "ACGTNNACGTNTTTTGG"
    assert genome.contigs[0].name == "one"


def test_a_store_with_another_time_stamp_is_checked_and_kept(
    fasta: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_quietly(fasta, cache)
    os.utime(codes_file(cache), ns=(1, 1))
    forbid_reading(monkeypatch)
    open_quietly(fasta, cache)
    assert codes_file(cache).stat().st_mtime_ns != 1


def test_builders_at_the_same_time_agree(tmp_path: Path, cache: Path) -> None:
    letters = np.random.default_rng(0).choice(np.frombuffer(b"ACGT", dtype=np.uint8), 2_000_000).tobytes()
    path = tmp_path / "big.fa"
    path.write_bytes(b">big\n" + letters + b"\n")
    code = (
        "import sys; from had.dna.genome import Genome\n"
        "genome = Genome.open(sys.argv[1], cache=sys.argv[2], progress=False)\n"
        "print(genome.digest, int(genome.codes.sum()))"
    )
    builders = [run_python(code, path, cache) for _ in range(4)]
    outputs = {builder.communicate(timeout=60) for builder in builders}
    genome = open_quietly(path, cache)
    assert outputs == {(f"{genome.digest} {int(genome.codes.sum())}\n", "")}
    assert decode(genome.codes) == letters.decode()
    assert not list(cache.rglob("*.part"))


def test_abandoned_builds_are_removed_after_some_days(fasta: Path, cache: Path) -> None:
    building = cache / "genomes" / "building"
    building.mkdir(parents=True)
    for name, age_days in (("old.part", 3), ("young.part", 1)):
        (building / name).write_bytes(b"")
        os.utime(building / name, (0, time.time() - age_days * 86_400))
    open_quietly(fasta, cache)
    assert os.listdir(building) == ["young.part"]


def test_an_interrupt_before_the_description_leaves_no_codes(
    fasta: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "atomic_write_text", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_quietly(fasta, cache)
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix in (".u8", ".part")]
    open_quietly(fasta, cache)
    assert len(list(cache.rglob("*.u8"))) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
def test_a_full_disk_is_a_fault_that_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "x.fa"
    path.write_text(">a\n" + "ACGT" * 50_000)
    code = (
        "import resource, sys; from had.dna.genome import Genome; from had.errors import RunFault\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    Genome.open(sys.argv[1], cache=sys.argv[2], progress=False)\n"
        "except RunFault as fault:\n    print(fault)"
    )
    output, errors = run_python(code, path, cache).communicate(timeout=60)
    assert errors == ""
    assert f"could not be stored in the cache folder {cache}" in output
    assert "HAD_CACHE" in output
    assert not [file for file in cache.rglob("*") if file.is_file()]
    assert len(open_quietly(path, cache)) == 200_000


def test_a_cache_folder_that_cannot_be_made_is_the_users_matter(fasta: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="set HAD_CACHE to another folder"):
        open_quietly(fasta, tmp_path / "file")


def test_a_disk_that_damages_files_is_a_fault(fasta: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_load", lambda folder: None)
    with pytest.raises(RunFault, match="check the disk"):
        open_quietly(fasta, cache)


def test_the_cache_folder_is_named_by_the_environment(
    fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAD_CACHE", str(tmp_path / "elsewhere"))
    Genome.open(fasta, progress=False)
    meta = json.loads(next((tmp_path / "elsewhere").rglob("meta.json")).read_text())
    assert meta["meta"]["format"] == store.FORMAT


def test_reading_shows_progress_once(fasta: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Genome.open(fasta, cache=cache)
    captured = capsys.readouterr()
    assert "reading x.fa" in captured.err
    assert captured.out == ""
    Genome.open(fasta, cache=cache)
    assert capsys.readouterr().err == ""


def test_fetch_gathers_windows_by_global_position() -> None:
    genome = Genome.from_sequences({"a": "ACGTA", "b": "GGCC"})
    windows = genome.fetch(np.array([0, 2, 5, 2]), 3)
    assert [decode(window) for window in windows] == ["ACG", "GTA", "GGC", "GTA"]
    windows[0, 0] = 3
    assert genome.codes[0] == 0


@pytest.mark.parametrize("position", [-1, 7])
def test_fetch_refuses_windows_outside_the_genome(position: int) -> None:
    with pytest.raises(IndexError, match="outside"):
        Genome.from_sequences({"a": "ACGTACGTA"}).fetch(np.array([0, position]), 3)


def test_fetching_nothing_is_allowed() -> None:
    assert Genome.from_sequences({"a": "ACG"}).fetch(np.zeros(0, dtype=np.int64), 6).shape == (0, 6)


def test_locate_inverts_global_positions() -> None:
    genome = Genome.from_sequences({"a": "ACGTA", "b": "GGCC", "c": "T"})
    index, start = genome.locate(np.array([0, 4, 5, 8, 9]))
    assert index.tolist() == [0, 0, 1, 1, 2]
    assert start.tolist() == [0, 4, 0, 3, 0]


@pytest.mark.parametrize(
    ("names", "asked", "hint"),
    [
        (["chr1", "chr2"], "1", "did you mean 'chr1'"),
        (["1", "2"], "chr2", "did you mean '2'"),
        (["1", "MT"], "chrM", "did you mean 'MT'"),
        (["chr1", "chrM"], "MT", "did you mean 'chrM'"),
        (["Chr1", "Chr2"], "chr1", "did you mean 'Chr1'"),
        (["a"], "zzz", r"it has a\)"),
        ([f"scaffold_{i}" for i in range(20)], "x", "scaffold_7 and 12 more"),
    ],
)
def test_an_unknown_contig_is_answered_with_those_that_exist(names: list[str], asked: str, hint: str) -> None:
    genome = Genome.from_sequences(dict.fromkeys(names, "ACGT"))
    with pytest.raises(UserError, match=f"no record '{asked}'.*{hint}"):
        genome.contig(asked)


def test_acgt_runs_are_maximal_across_scan_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    parts = {f"c{i}": "".join(rng.choice(list("ACGTN"), 40, p=[0.2, 0.2, 0.2, 0.2, 0.2])) for i in range(5)}
    for block in (1, 7, 64, 1000):
        monkeypatch.setattr("had.dna.genome._SCAN_BLOCK", block)
        genome = Genome.from_sequences(parts)
        expected = []
        for contig in genome.contigs:
            letters = parts[contig.name] + "N"
            start = None
            for i, letter in enumerate(letters):
                if letter != "N" and start is None:
                    start = i
                elif letter == "N" and start is not None:
                    expected.append([contig.offset + start, contig.offset + i])
                    start = None
        assert genome.acgt_runs.tolist() == expected


def test_real_chromosome_has_its_published_length_and_checksum(shared: Path, cache: Path) -> None:
    import hashlib

    records = json.loads((shared / "data" / "genomes" / "manifest.json").read_text())
    yeast = {record["record"]: record for record in records if record["file"] == "sacCer3.fa.gz"}
    genome = open_quietly(shared / "data" / "genomes" / "sacCer3.fa.gz", cache)
    assert {contig.name: contig.length for contig in genome.contigs} == {
        name: record["length_bp"] for name, record in yeast.items()
    }
    assert genome.n_acgt == sum(record["acgt_bp"] for record in yeast.values())
    for contig in genome.contigs:
        letters = decode(genome.codes[contig.offset : contig.offset + contig.length])
        assert hashlib.md5(letters.encode()).hexdigest() == yeast[contig.name]["md5_uppercase"]


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A user without a home folder or an entry in the list of users; the folder for temporary files."""
    pwd = pytest.importorskip("pwd")

    def nobody(_: object) -> None:
        raise KeyError

    for name in ("HAD_CACHE", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("getpwuid", "getpwnam"):
        monkeypatch.setattr(pwd, name, nobody)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    store._usual_cache.cache_clear()
    yield temporary
    store._usual_cache.cache_clear()


def test_a_user_without_a_home_has_a_cache_of_their_own_among_temporary_files(
    fasta: Path, no_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert Genome.open(fasta, progress=False).n_acgt == 14
    (folder,) = no_home.iterdir()
    assert folder.name == f"had-{os.getuid()}"
    assert folder.stat().st_mode & 0o077 == 0
    assert codes_file(folder).is_file()
    assert str(folder) in caplog.text
    assert "HAD_CACHE" in caplog.text


@pytest.mark.parametrize("what", ["open to others", "a link", "no place"])
def test_a_user_without_a_home_takes_no_folder_of_somebody_elses(
    fasta: Path, no_home: Path, what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = no_home / f"had-{os.getuid()}"
    if what == "open to others":
        folder.mkdir(mode=0o755)
    elif what == "a link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "theirs")
    else:
        monkeypatch.setattr("tempfile.tempdir", str(fasta))
    with pytest.raises(UserError, match="set HAD_CACHE to a folder"):
        Genome.open(fasta, progress=False)


@pytest.mark.parametrize("path", ["~/x.fa", "~nosuchuser/x.fa"])
def test_a_home_that_is_nowhere_is_named(path: str, cache: Path, no_home: Path) -> None:
    with pytest.raises(UserError, match=f"{path}: ~.* has no home folder"):
        open_quietly(Path(path), cache)
