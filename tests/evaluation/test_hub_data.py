"""Benchmarks from the Hub: one commit, written down on first use; then the cache, without a network."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError

from had.errors import UserError
from had.evaluation.benchmarks import BenchmarkOptions, benchmark
from had.evaluation.hub_data import fetch
from had.models import saving
from tests.evaluation.made_up_suites import make_rows, write_csv, write_parquet

FIRST, SECOND = "a" * 40, "b" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache, no network, and a cache folder of our own."""
    monkeypatch.setenv("HAD_CACHE", str(tmp_path / "had-cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put(hub: Path, repository: str, commit: str, write: Callable[[Path], Any], branch: str = "main") -> Path:
    """A snapshot in the layout of the Hub's cache, and the branch that points to it."""
    store = hub / f"datasets--{repository.replace('/', '--')}"
    write(store / "snapshots" / commit)
    (store / "refs").mkdir(exist_ok=True)
    (store / "refs" / branch).write_text(commit)
    return store / "snapshots" / commit


def gue_files(folder: Path, seed: int = 0) -> None:
    for name, n in (("train", 40), ("dev", 12), ("test", 12)):
        write_csv(folder / f"GUE/mouse_3/{name}.csv", make_rows(n, seed + n))


def anything(folder: Path) -> bool:
    return folder.is_dir()


def test_the_commit_of_first_use_is_kept_when_the_branch_moves(hub: Path) -> None:
    first = put(hub, "leannmlindsey/GUE", FIRST, gue_files)
    found = fetch("leannmlindsey/GUE", "main", ["*/mouse_3/*"], "mouse/3", anything)
    assert (found.path, found.commit) == (first, FIRST)
    put(hub, "leannmlindsey/GUE", SECOND, gue_files)
    assert fetch("leannmlindsey/GUE", "main", ["*/mouse_3/*"], "mouse/3", anything).commit == FIRST
    # Another revision is another entry.
    assert fetch("leannmlindsey/GUE", SECOND, ["*/mouse_3/*"], "mouse/3", anything).commit == SECOND
    book = json.loads((Path(os.environ["HAD_CACHE"]) / "benchmarks/commits.json").read_text())
    assert book["leannmlindsey/GUE@main"] == {"commit": FIRST, "fetched": ["mouse/3"]}


def test_what_was_fetched_is_not_asked_for_again(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []
    real = huggingface_hub.snapshot_download

    def spy(repository: str, **options) -> str:
        asked.append((options["revision"], options["local_files_only"]))
        return real(repository, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", spy)
    put(hub, "o/n", FIRST, gue_files)
    fetch("o/n", "main", None, "mouse/3", anything)
    fetch("o/n", "main", None, "mouse/3", anything)
    fetch("o/n", "main", None, "tf/0", anything)
    # The branch, then its commit from the cache, then the commit again for files not fetched yet.
    assert asked == [("main", False), (FIRST, True), (FIRST, False)]


def test_a_repository_that_cannot_be_had_is_one_sentence(hub: Path) -> None:
    with pytest.raises(UserError, match=r"no/where at main is not in this machine's Hub cache .*hf download"):
        fetch("no/where", "main", None, "x", anything)
    with pytest.raises(UserError, match="write hub:owner/name"):
        fetch("nowhere", "main", None, "x", anything)
    assert not (Path(os.environ["HAD_CACHE"]) / "benchmarks").exists()


def test_a_benchmark_runs_from_the_cache_and_says_which_commit(hub: Path, tmp_path: Path) -> None:
    put(hub, "leannmlindsey/GUE", FIRST, gue_files)
    options = BenchmarkOptions("hub", ["mouse/3"], ["kmer"], seeds=1, device="cpu", quiet=True)
    assert benchmark("gue", tmp_path / "run", options)["done"] == 1
    assert f"leannmlindsey/GUE at {FIRST}" in (tmp_path / "run/report.md").read_text()


def test_suites_with_a_repository_a_task(hub: Path, tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        write_parquet(folder / "data/train-00000-of-00001-ab.parquet", make_rows(40, 1), "seq")
        write_parquet(folder / "data/test-00000-of-00001-cd.parquet", make_rows(10, 2), "seq")

    put(hub, "katarinagresova/Genomic_Benchmarks_human_enhancers_cohn", FIRST, write)
    options = BenchmarkOptions("hub", ["human_enhancers_cohn"], ["kmer"], seeds=1, device="cpu", quiet=True)
    assert benchmark("genomic-benchmarks", tmp_path / "run", options)["done"] == 1
    put(hub, "me/copy", SECOND, gue_files)
    options = BenchmarkOptions("hub:me/copy", ["mouse/3"], ["kmer"], seeds=1, device="cpu", quiet=True)
    assert benchmark("gue", tmp_path / "copy", options)["done"] == 1


def test_what_the_cache_lacks_is_not_noted_as_fetched(hub: Path, tmp_path: Path) -> None:
    first = put(hub, "leannmlindsey/GUE", FIRST, gue_files)
    options = BenchmarkOptions("hub", ["tf/0"], ["kmer"], seeds=1, device="cpu", quiet=True)
    with pytest.raises(UserError, match=f"at {FIRST} has no files of tf/0, or there is no network"):
        benchmark("gue", tmp_path / "run", options)
    # As if there were a network now, and the files came.
    for name, n in (("train", 40), ("dev", 12), ("test", 12)):
        write_csv(first / f"GUE/human_tf_0/{name}.csv", make_rows(n, n))
    assert benchmark("gue", tmp_path / "run", options)["done"] == 1
    book = json.loads((Path(os.environ["HAD_CACHE"]) / "benchmarks/commits.json").read_text())
    assert book["leannmlindsey/GUE@main"]["fetched"] == ["tf/0"]


def test_a_download_that_was_cut_off_is_not_taken_for_the_whole(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(folder: Path) -> None:
        write_csv(folder / "GUE/mouse_3/train.csv", make_rows(40, 1))

    first = put(hub, "leannmlindsey/GUE", FIRST, write)
    options = BenchmarkOptions("hub", ["mouse/3"], ["kmer"], seeds=1, device="cpu", quiet=True)
    with pytest.raises(UserError, match="has no files of mouse/3, or there is no network"):
        benchmark("gue", tmp_path / "run", options)
    book = Path(os.environ["HAD_CACHE"]) / "benchmarks/commits.json"
    assert json.loads(book.read_text())["leannmlindsey/GUE@main"]["fetched"] == []
    # Noted so by an earlier version: the Hub is asked again all the same.
    book.write_text(json.dumps({"leannmlindsey/GUE@main": {"commit": FIRST, "fetched": ["mouse/3"]}}))
    real = huggingface_hub.snapshot_download

    def with_a_network(repository: str, **more: Any) -> str:
        if not more["local_files_only"]:
            write_csv(first / "GUE/mouse_3/test.csv", make_rows(12, 2))
        return real(repository, **more)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", with_a_network)
    assert benchmark("gue", tmp_path / "run", options)["done"] == 1


def test_a_proxy_that_refuses_is_one_sentence(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = HfHubHTTPError.__bases__[0]

    class ProxyRefused(client):  # type: ignore[misc, valid-type]
        """As the HTTP client raises it: derived from its base class, and no OSError."""

        def __init__(self) -> None:
            Exception.__init__(self, "403 Forbidden")

    def refuse(*_: Any, **__: Any) -> str:
        raise ProxyRefused

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match=r"could not be downloaded \(403 Forbidden\)"):
        fetch("o/n", "main", None, "x", anything)
    monkeypatch.setattr(saving, "snapshot_download", refuse)
    with pytest.raises(UserError, match=r"the Hub did not give it \(403 Forbidden\)"):
        saving.find_folder("o/n")


def test_other_braces_in_a_repository_are_part_of_its_name(hub: Path, tmp_path: Path) -> None:
    options = BenchmarkOptions("hub:own/{x}_{task}", ["mouse/3"], ["kmer"], seeds=1, device="cpu", quiet=True)
    with pytest.raises(UserError, match=r"own/\{x\}_mouse/3"):
        benchmark("gue", tmp_path / "run", options)
