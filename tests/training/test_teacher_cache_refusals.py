"""What is no cache for a run, or damaged, or too large, is refused in one sentence that names it."""

import shutil
from pathlib import Path

import pytest
import torch

from had.errors import RunFault, UserError
from had.models.cached_teacher import MANIFEST_FILE, CachedTeacher
from had.models.nucleotide_transformer import NucleotideTransformer, NucleotideTransformerConfig
from had.training import cache_building, cache_plan
from had.training.cache_building import CacheOptions, cache_teacher
from had.training.cache_plan import check_room, say_bytes, say_seconds
from tests.training.cache_cases import FULL, Run, cache_words, contents, make, pretrain_words, recipe, write_genome


@pytest.fixture(scope="module")
def finished(small_genome: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cache, to be copied by those who damage it."""
    folder = tmp_path_factory.mktemp("cache") / "finished"
    make(small_genome, folder, "float16")
    return folder


@pytest.fixture
def cache(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "cache"))


def refused(result: tuple[int, str], out: Path, *mentioned: str) -> None:
    code, text = result
    assert code == 2, text
    assert "Traceback" not in text
    message = text.splitlines()[-1]
    assert message.startswith("had: ")
    for word in mentioned:
        assert word in message, message
    assert not out.exists()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["training-00001.safetensors", "held-out-00000.safetensors", "table.safetensors"])
def test_a_flipped_byte_is_found_and_named_and_can_be_healed(
    run: Run, small_genome: Path, cache: Path, finished: Path, tmp_path: Path, name: str
) -> None:
    flip(cache / name)
    words = pretrain_words(small_genome, tmp_path / "run", "--teacher-cache", cache, FULL)
    refused(run(*words), tmp_path / "run", name, "sha256", "delete")
    with pytest.raises(UserError, match=name):
        make(small_genome, cache, "float16")
    (cache / name).unlink()
    refused(run(*words), tmp_path / "run", name)
    make(small_genome, cache, "float16")
    assert contents(cache) == contents(finished)


def test_a_file_of_another_size_is_named_even_where_checksums_are_not_asked_for(
    run: Run, small_genome: Path, cache: Path, tmp_path: Path
) -> None:
    path = cache / "training-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    words = pretrain_words(small_genome, tmp_path / "run", "--teacher-cache", cache, FULL, "teacher.verify_cache=false")
    refused(run(*words), tmp_path / "run", path.name, "bytes")


@pytest.mark.parametrize("damage", ["flip", "empty", "no JSON", "another format"])
def test_a_damaged_manifest_is_named(run: Run, small_genome: Path, cache: Path, tmp_path: Path, damage: str) -> None:
    path = cache / MANIFEST_FILE
    text = path.read_text()
    format_line = '"format": 1'
    assert format_line in text
    changed = {
        "flip": text.replace('"rows_per_shard": ', '"rows_per_shard": 1'),
        "empty": "",
        "no JSON": text[:-20],
        "another format": text.replace(format_line, '"format": 99'),
    }
    path.write_text(changed[damage])
    words = pretrain_words(small_genome, tmp_path / "run", "--teacher-cache", cache, FULL)
    refused(run(*words), tmp_path / "run", MANIFEST_FILE)
    with pytest.raises(UserError, match=MANIFEST_FILE):
        make(small_genome, cache, "float16")


def test_a_cache_that_is_not_finished_is_refused(
    run: Run, small_genome: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, count = cache_building.atomic_write_bytes, [0]

    def full_disk(path: Path, data: bytes) -> None:
        count[0] += 1
        if count[0] == 4:
            raise RunFault(f"{path}: could not be written (No space left on device); nothing was left there.")
        whole(path, data)

    monkeypatch.setattr(cache_building, "atomic_write_bytes", full_disk)
    with pytest.raises(RunFault, match=r"No space left.* 4 of 7 files .*the same command goes on"):
        make(small_genome, tmp_path / "cache", "float16")
    monkeypatch.undo()
    words = pretrain_words(small_genome, tmp_path / "run", "--teacher-cache", tmp_path / "cache", FULL)
    refused(run(*words), tmp_path / "run", "not finished")


def test_an_interrupted_command_says_how_to_go_on(
    small_genome: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cache_building._Builder, "_training", interrupted)
    with pytest.raises(RunFault, match=r"interrupted.* 3 of 7 .* the same command goes on"):
        make(small_genome, tmp_path / "cache", "float16")


@pytest.mark.parametrize(
    ("more", "mentioned"),
    [
        ((), ["teacher_view=full", "masked"]),
        ((FULL, "objective.w_align=0"), ["w_align"]),
        ((FULL, "data.window=66"), ["data.window", "60", "66"]),
        ((FULL, "data.slots=23"), ["data.slots", "22", "23"]),
        ((FULL, "data.validation_windows=5"), ["validation_windows", "40", "5"]),
        ((FULL, "data.valid_contigs=[two]"), ["training windows"]),
        ((FULL, "--teacher", "random:16x1x2x24"), ["random:16x2x2x24", "random:16x1x2x24"]),
        ((FULL, "--teacher", "bundled"), ["random:16x2x2x24", "bundled"]),
        ((FULL, "teacher.options.precision=bf16"), ["precision", "float32", "bf16"]),
    ],
    ids=["masked view", "no alignment", "window", "slots", "held out", "split", "teacher", "weights", "options"],
)
def test_a_cache_of_something_else_is_refused(
    run: Run, small_genome: Path, finished: Path, tmp_path: Path, more: tuple[str, ...], mentioned: list[str]
) -> None:
    words = pretrain_words(small_genome, tmp_path / "run", "--teacher-cache", finished, *more)
    refused(run(*words), tmp_path / "run", *mentioned)


def test_a_cache_of_another_genome_is_refused(run: Run, finished: Path, tmp_path: Path) -> None:
    other = write_genome(tmp_path / "other.fa", seed=4)
    words = pretrain_words(other, tmp_path / "run", "--teacher-cache", finished, FULL)
    refused(run(*words), tmp_path / "run", "genome")


def test_a_folder_that_is_no_cache_is_refused(run: Run, small_genome: Path, tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    words = pretrain_words(small_genome, tmp_path / "run", "--teacher-cache", folder, FULL)
    refused(run(*words), tmp_path / "run", "thesis", "had teacher cache")


def test_a_teachers_weights_are_not_needed_and_changed_ones_are_refused(
    run: Run, small_genome: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "teacher"
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}

    def save(seed: int) -> None:
        torch.manual_seed(seed)
        NucleotideTransformer(NucleotideTransformerConfig(**sizes)).save_pretrained(folder)

    save(0)
    assert run(*cache_words(small_genome, tmp_path / "cache", "--teacher", folder))[0] == 0
    words = pretrain_words(small_genome, tmp_path / "run", "--teacher-cache", tmp_path / "cache", FULL)
    save(1)
    refused(run(*words, "--teacher", folder), tmp_path / "run", "weights", "teacher")
    shutil.rmtree(folder)
    code, text = run(*words, "--teacher", folder)
    assert code == 0, text


def test_a_run_goes_on_after_its_cache_has_moved_and_not_with_another(
    run: Run, small_genome: Path, cache: Path, tmp_path: Path
) -> None:
    words = pretrain_words(small_genome, tmp_path / "run", FULL)
    assert run(*words, "--teacher-cache", cache, "--stop-after", "4")[0] == 0
    moved = cache.rename(tmp_path / "moved")
    make(small_genome, tmp_path / "other", "int8")
    code, text = run(*words, "--teacher-cache", tmp_path / "other", "--resume", "auto")
    assert code == 2
    assert "teacher cache" in text.splitlines()[-1]
    code, text = run(*words, "--teacher-cache", moved, "--resume", "auto")
    assert code == 0, text
    assert (tmp_path / "run" / "model").is_dir()


@pytest.mark.parametrize(
    ("change", "mentioned"),
    [
        ({"validation_windows": 8}, "held-out"),
        ({"window": 66}, "data.window"),
        ({"slots": 21}, "slots"),
        ({"dtype": "int8"}, "--dtype"),
        ({"valid_contigs": ["two"]}, "training windows"),
        ({"rc_probability": 0.1}, "rc_probability"),
    ],
)
def test_another_cache_in_the_folder_is_left_alone(
    small_genome: Path, cache: Path, change: dict, mentioned: str
) -> None:
    before = contents(cache)
    with pytest.raises(UserError, match="another cache.*" + mentioned):
        make(small_genome, cache, **{"dtype": "float16", **change})
    assert contents(cache) == before


def test_folders_of_others_are_left_alone(small_genome: Path, tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("precious")
    with pytest.raises(UserError, match=r"thesis is not empty"):
        make(small_genome, folder)
    with pytest.raises(UserError, match=r"chapter.txt is a file"):
        make(small_genome, folder / "chapter.txt")
    assert [path.name for path in folder.iterdir()] == ["chapter.txt"]


def test_two_commands_do_not_write_one_cache(had_command, small_genome: Path, cache: Path) -> None:
    held = cache_building.FolderLock(cache / ".lock")
    assert held.acquire()
    other = had_command(*cache_words(small_genome, cache), "--quiet")
    held.release()
    assert other.returncode == 2, other.stderr
    assert "another process" in other.stderr


def test_a_large_cache_needs_yes_and_a_dry_run_writes_nothing(
    run: Run, small_genome: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "cache"
    code, text = run(*cache_words(small_genome, out, "--dry-run"))
    assert code == 0, text
    assert "KB per bp and strand" in text
    assert "about" in text
    assert not out.exists()
    monkeypatch.setattr(cache_plan, "ASK_ABOVE_BYTES", 100_000)
    refused(run(*cache_words(small_genome, out)), out, "--yes", "--share", "--slots")
    refused(run(*cache_words(small_genome, out, "--dry-run")), out, "--yes")
    code, text = run(*cache_words(small_genome, out, "--yes"))
    assert code == 0, text
    assert CachedTeacher.open(out).manifest.missing == []
    # Nothing is left to write, so nothing is asked.
    assert run(*cache_words(small_genome, out))[0] == 0


def test_room_is_asked_for_above_20_gb_or_half_of_the_disk() -> None:
    out = Path("cache")
    check_room(20_000_000_000, 10**12, out, yes=False)
    check_room(5 * 10**8, 10**9, out, yes=False)
    for needed, free in ((20_000_000_001, 10**12), (5 * 10**8 + 1, 10**9)):
        with pytest.raises(UserError, match="--yes"):
            check_room(needed, free, out, yes=False)
        check_room(needed, free, out, yes=True)
    with pytest.raises(UserError, match="needs 2 GB and 1 GB are free"):
        check_room(2 * 10**9, 10**9, out, yes=True)


@pytest.mark.parametrize(
    ("option", "mentioned"),
    [
        ({"dtype": "float64"}, "float16"),
        ({"slots": 0}, "--slots"),
        ({"share": 0.0}, "--share"),
        ({"share": 1.5}, "--share"),
        ({"slots": 3, "share": 0.5}, "not both"),
        ({"shard_bytes": 0}, "--shard-mb"),
    ],
)
def test_options_out_of_range(option: dict, mentioned: str) -> None:
    with pytest.raises(UserError, match=mentioned):
        CacheOptions(**option)


def test_more_slots_than_there_are(small_genome: Path, tmp_path: Path) -> None:
    options = CacheOptions(slots=10**6, device="cpu", threads=1, quiet=True)
    with pytest.raises(UserError, match="1,000,000 slots"):
        cache_teacher(recipe(small_genome), tmp_path / "cache", options)
    assert not (tmp_path / "cache").exists()


def test_sizes_of_the_largest_teacher_are_those_stated() -> None:
    """NTv2-500M in float16: 0.34 KB per bp and strand; 75 GB per strand for 220 Mb, about 1 TB for hg38."""
    from had.models.feature_shards import ShardLayout

    def one_strand(bp: float) -> int:
        return ShardLayout("x", int(bp // 1020), 1, 170, 1024, "float16", 770).n_bytes

    assert one_strand(220e6) / 220e6 == pytest.approx(341.3, rel=1e-3)
    assert one_strand(220e6) == pytest.approx(75e9, rel=2e-3)
    assert one_strand(3.1e9) == pytest.approx(1.06e12, rel=2e-3)
    assert [say_bytes(n) for n in (999, 75.1e9, 1.058e12, 2e15)] == ["999 B", "75.1 GB", "1.06 TB", "2e+03 TB"]
    assert [say_seconds(s) for s in (3, 600, 9000, 400_000)] == ["3 s", "10 min", "2.5 h", "4.6 days"]
