"""A teacher cache: the features of a run without one, whole or refused, and the same after a kill."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from had.dna.alphabet import decode
from had.models import cached_teacher
from had.models.cached_teacher import CachedTeacher, Manifest
from had.models.feature_shards import decode_features
from had.models.teacher_loading import load_teacher
from had.training import cache_building, cache_plan
from had.training.cache_building import CacheOptions, cache_teacher
from had.training.data import WindowData
from tests.dying import dying_script
from tests.training.cache_cases import (
    FIXED,
    FULL,
    TEACHER,
    WINDOW,
    Run,
    assert_equal_runs,
    cache_words,
    contents,
    losses,
    make,
    pretrain_words,
    recipe,
    records,
)
from tests.training.conftest import Command


@pytest.mark.parametrize("target", ["full", "contextual"])
def test_float32_cache_trains_to_the_bits_of_a_run_without_it(
    run: Run, small_genome: Path, tmp_path: Path, target: str
) -> None:
    objective = (f"objective.align_target={target}", FULL)
    code, text = run(*cache_words(small_genome, tmp_path / "cache", "--dtype", "float32"))
    assert code == 0, text
    assert len(list((tmp_path / "cache").glob("training-*"))) > 2
    cached = pretrain_words(small_genome, tmp_path / "cached", "--teacher-cache", tmp_path / "cache", *objective)
    code, text = run(*cached)
    assert code == 0, text
    assert "same in every epoch" in text
    assert run(*pretrain_words(small_genome, tmp_path / "online", FIXED, *objective))[0] == 0
    assert_equal_runs(tmp_path / "cached", tmp_path / "online")
    splits = {record["split"] for record in records(tmp_path / "cached")}
    assert splits == {"train", "validation", "baseline"}


def test_another_batch_of_the_teacher_changes_losses_by_less_than_1e5_and_is_announced(
    run: Run, small_genome: Path, tmp_path: Path
) -> None:
    assert run(*cache_words(small_genome, tmp_path / "cache", "--dtype", "float32"))[0] == 0
    more = (FULL, "training.micro_batch=4")
    words = pretrain_words(small_genome, tmp_path / "cached", "--teacher-cache", tmp_path / "cache", *more)
    code, text = run(*words)
    assert code == 0
    assert "2 windows at a time, this run would ask about 4" in text
    assert run(*pretrain_words(small_genome, tmp_path / "online", FIXED, *more))[0] == 0
    np.testing.assert_allclose(losses(tmp_path / "cached"), losses(tmp_path / "online"), rtol=1e-5, atol=0)


def test_the_comparison_of_losses_sees_another_view_and_other_starts(
    run: Run, small_genome: Path, tmp_path: Path
) -> None:
    for name, more in (("online", (FIXED, FULL)), ("masked", (FIXED,)), ("moving", (FULL,))):
        assert run(*pretrain_words(small_genome, tmp_path / name, *more))[0] == 0
    online, masked, moving = (losses(tmp_path / name) for name in ("online", "masked", "moving"))
    assert (masked != online).all()
    # 5 steps of 4 windows are within an epoch of 22.
    assert (moving[:5] == online[:5]).all()
    assert (moving[6:] != online[6:]).all()


def test_a_run_of_another_seed_reads_the_windows_of_the_cache(run: Run, small_genome: Path, tmp_path: Path) -> None:
    assert run(*cache_words(small_genome, tmp_path / "cache", "--dtype", "float32"))[0] == 0
    cached = pretrain_words(small_genome, tmp_path / "cached", "--teacher-cache", tmp_path / "cache", FULL)
    code, text = run(*cached, "--seed", "5", "training.log_windows=true")
    assert code == 0, text
    assert "fitted anew" in text
    assert run(*pretrain_words(small_genome, tmp_path / "first", FIXED, FULL, "training.log_windows=true"))[0] == 0
    windows = [
        {tuple(line.split("\t")[1:3]) for line in (tmp_path / name / "windows-rank0.tsv").read_text().splitlines()}
        for name in ("cached", "first")
    ]
    assert windows[0] == windows[1]
    assert len(windows[0]) == 22
    assert (losses(tmp_path / "cached") != losses(tmp_path / "first")).all()
    # The card names the teacher whose features these were, random weights of seed 0.
    facts = json.loads((tmp_path / "cached" / "model" / "training.json").read_text())
    assert facts["teacher_digest"] == load_teacher(TEACHER, facts["teacher_options"], seed=0).digest()
    assert facts["teacher_seed"] == 0
    assert facts["seed"] == 5


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 1e-4), ("int8", 3e-3)])
def test_smaller_numbers_change_the_losses_a_little(
    run: Run, small_genome: Path, tmp_path: Path, dtype: str, bound: float
) -> None:
    assert run(*cache_words(small_genome, tmp_path / "cache", "--dtype", dtype))[0] == 0
    words = pretrain_words(small_genome, tmp_path / "cached", "--teacher-cache", tmp_path / "cache", FULL)
    assert run(*words)[0] == 0
    assert run(*pretrain_words(small_genome, tmp_path / "online", FIXED, FULL))[0] == 0
    difference = np.abs(losses(tmp_path / "cached") / losses(tmp_path / "online") - 1)
    assert 0 < difference.max() < bound
    # Held-out features are exact, and so are the baselines fitted by the teacher itself.
    held_out = [
        [r for r in records(tmp_path / name) if r["split"] == "baseline" or r["step"] == 0]
        for name in ("cached", "online")
    ]
    assert held_out[0] == held_out[1]


def test_both_strands_are_what_the_teacher_says_of_the_letters(small_genome: Path, tmp_path: Path) -> None:
    make(small_genome, tmp_path / "cache")
    cache = CachedTeacher.open(tmp_path / "cache")
    config = recipe(small_genome, fixed_starts=True)
    data = WindowData.open(config.data, 0, progress=False)
    letters = decode(data.genome.codes)
    teacher = load_teacher(TEACHER)
    number = {"A": 0, "C": 1, "G": 2, "T": 3}
    starts = data.sampler.starts_of_slots(data.sampler.slots_of_rows(np.arange(22)))
    for row, start in enumerate(starts):
        forward = letters[start : start + WINDOW]
        backward = forward[::-1].translate(str.maketrans("ACGT", "TGCA"))
        for reverse, text in ((False, forward), (True, backward)):
            codes = torch.tensor([[number[letter] for letter in text]], dtype=torch.uint8)
            raw = teacher.features(codes, None)[0]
            expected = (raw - raw.mean(-1, keepdim=True)) / (raw.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
            stored = cache.training(np.array([row]), np.array([reverse]))
            found = decode_features({key.removeprefix("stored_"): value for key, value in stored.items()})[0]
            assert torch.allclose(found, expected, atol=1e-5)
            other = cache.training(np.array([row]), np.array([not reverse]))["stored_values"][0]
            assert not torch.allclose(expected, other, atol=1e-2)


@pytest.mark.parametrize("open_shards", [256, 1])
def test_rows_are_read_in_the_order_asked_for(
    small_genome: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_shards: int
) -> None:
    monkeypatch.setattr(cached_teacher, "_OPEN_SHARDS", open_shards)
    assert len(make(small_genome, tmp_path / "cache", "int8").training.shards) == 3
    cache = CachedTeacher.open(tmp_path / "cache")
    rows, reverse = np.array([21, 0, 7, 7, 13]), np.array([True, False, True, False, True])
    together = cache.training(rows, reverse)
    for i in range(5):
        alone = cache.training(rows[i : i + 1], reverse[i : i + 1])
        assert all(torch.equal(together[key][i], alone[key][0]) for key in together)
    with pytest.raises(IndexError, match="21"):
        cache.training(np.array([22]), np.array([False]))
    with pytest.raises(RuntimeError, match="rows"):
        cache.features(torch.zeros(1, WINDOW, dtype=torch.uint8), None)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_predicted_size_is_the_size(small_genome: Path, tmp_path: Path, monkeypatch, dtype: str) -> None:
    predicted = {}

    def note(manifest: Manifest) -> dict[str, int]:
        predicted.update(cache_plan.predicted_bytes(manifest))
        return predicted

    monkeypatch.setattr(cache_building, "predicted_bytes", note)
    manifest = make(small_genome, tmp_path / "cache", dtype)
    files = [path for path in (tmp_path / "cache").iterdir() if path.suffix == ".safetensors"]
    assert {path.name: path.stat().st_size for path in files} == predicted
    assert {name: entry["bytes"] for name, entry in manifest.files.items()} == predicted


def test_a_subset_is_spread_over_the_genome(small_genome: Path, tmp_path: Path) -> None:
    options = CacheOptions("float16", share=0.05, device="cpu", threads=1, quiet=True)
    windows = cache_teacher(recipe(small_genome, slots=0), tmp_path / "cache", options).windows
    assert windows["slots"] == -(-windows["all_slots"] // 20)


HALF_OF_IT = "open(arguments[0], 'xb', 0).write(arguments[1][: len(arguments[1]) // 2])"
# What ends the process, and where: before anything, half-way through a file, between a file and its record.
KILLS = {
    "half of a file": ("had.files", "write_durably", 8, HALF_OF_IT),
    "before the record": ("had.training.cache_building", "_Builder._record", 4, "pass"),
    "after a rename": ("had.files", "fsync_folder", 8, "pass"),
}


@pytest.mark.parametrize("kill", KILLS)
def test_a_killed_command_goes_on_to_the_same_bytes(
    had_command: Command, small_genome: Path, tmp_path: Path, kill: str
) -> None:
    module, name, call, last_words = KILLS[kill]
    make(small_genome, tmp_path / "whole", "float16")
    script = tmp_path / "killer.py"
    script.write_text(dying_script(module, name, call, last_words))
    words = cache_words(small_genome, tmp_path / "killed", "--dtype", "float16", "--quiet")
    died = had_command(*words, launcher=(str(script),))
    assert died.returncode == -9, died.stderr
    before = Manifest.load(tmp_path / "killed")
    assert before.files
    assert before.missing
    make(small_genome, tmp_path / "killed", "float16")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert not list((tmp_path / "killed").glob("*.part"))
    assert not list((tmp_path / "killed").glob(".*.part"))
