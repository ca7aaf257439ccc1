"""What a run leaves behind, and what it takes to go on with it."""

import errno
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from had.errors import RunFault, UserError
from had.training import metrics_log
from had.training.checkpoints import save_checkpoint
from had.training.run_folder import RunFolder

CONFIG = {
    "seed": 1,
    "steps": 10,
    "stop_after": None,
    "optimizer": {"lr": 1e-3, "name": "adamw"},
    "threads": 2,
}
DATA = {"genome": "sha256:12", "bed": "sha256:34"}
COMMAND = ["had", "pretrain", "laptop", "--seed", "1"]


def create(path: Path, config: dict[str, Any] = CONFIG, **options: Any) -> RunFolder:
    return RunFolder.create(path, config, COMMAND, DATA, **{"seed": 1, "threads": 2, **options})


def resume(path: Path, config: dict[str, Any] = CONFIG, **options: Any) -> RunFolder:
    return RunFolder.resume(path, config, COMMAND, options.pop("data", DATA), **{"seed": 1, "threads": 2, **options})


def line(step: int) -> dict[str, Any]:
    return {"split": "train", "step": step, "loss": 1 / (step + 1)}


def test_a_new_run_writes_what_was_asked_for_and_the_circumstances(tmp_path: Path) -> None:
    run = create(tmp_path / "a" / "run")
    assert yaml.safe_load((run.path / "config.yaml").read_text()) == CONFIG
    facts = json.loads((run.path / "run.json").read_text())
    assert facts["command"] == COMMAND
    assert facts["data"] == DATA
    assert (facts["seed"], facts["threads"], facts["processes"]) == (1, 2, 1)
    assert facts["torch"].startswith(torch.__version__.split("+")[0])
    assert facts["numpy"] == np.__version__
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"had", "platform", "date"} <= facts.keys()
    assert run.resume_from is None
    assert run.read_metrics() == []


def test_a_folder_that_is_in_use_or_no_folder_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=f"{tmp_path}.*not empty.*--resume auto.*another --out"):
        create(tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]
    with pytest.raises(UserError, match="is a file"):
        create(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="cannot be made a folder"):
        create(tmp_path / "notes.txt" / "run")
    create(tmp_path / "run").append_metrics(line(1))
    with pytest.raises(UserError, match="not empty"):
        create(tmp_path / "run")
    with pytest.raises(UserError, match="no run to resume"):
        resume(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    create(tmp_path / "empty")


def test_the_log_has_one_json_object_a_line_and_null_where_no_number_is(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.append_metrics({"split": "train", "step": 1, "loss": math.nan, "lr": 1e-3, "norm": -math.inf})
    run.append_metrics({"step": 2, "loss": np.float32(0.5), "acc": torch.tensor(0.25), "n": np.int64(3)})
    run.append_metrics({"step": 3, "per_layer": [1.0, math.inf], "more": {"x": math.nan}, "note": None})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    lines = run.metrics_path.read_text().splitlines()
    records = [json.loads(text, parse_constant=refuse) for text in lines]
    assert records == run.read_metrics()
    assert records[0] == {
        "split": "train", "step": 1, "loss": None, "lr": 1e-3, "norm": None,
        "not_finite": {"loss": "nan", "norm": "-inf"},
    }  # fmt: skip
    assert records[1] == {"step": 2, "loss": 0.5, "acc": 0.25, "n": 3}
    assert records[2]["not_finite"] == {"per_layer[1]": "inf", "more.x": "nan"}
    assert records[2]["per_layer"] == [1.0, None]


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create(tmp_path / "run")
    run.append_metrics(line(1))
    save_checkpoint(run.checkpoints, 1, {}, {})
    before = run.metrics_path.read_bytes()

    class NearlyFull:
        """A file that takes seven more bytes."""

        def __init__(self, *args: Any, **kwargs: Any):
            self.file = open(*args, **kwargs)  # noqa: SIM115  (closed by __exit__)
            self.room = 7

        def __enter__(self) -> "NearlyFull":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, data: bytes) -> int:
            if self.room == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            taken: int = self.file.write(data[: self.room])
            self.room -= taken
            return taken

    with monkeypatch.context() as patch:
        patch.setattr(metrics_log, "open", NearlyFull, raising=False)
        with pytest.raises(RunFault, match=r"No space left on device.*step-00000001.*--resume auto"):
            run.append_metrics(line(2))
    assert run.metrics_path.read_bytes() == before
    run.append_metrics(line(2))
    assert len(run.read_metrics()) == 2


def test_resuming_cuts_the_log_and_sets_later_checkpoints_aside(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.append_metrics({"split": "baseline", "step": 0, "name": "mean", "loss": 2.0})
    for step in range(1, 9):
        run.append_metrics(line(step))
        if step % 2 == 0:
            save_checkpoint(run.checkpoints, step, {}, {"step": step}, keep=None)
    with run.metrics_path.open("a") as file:
        file.write('{"split": "train", "st')
    lines = run.metrics_path.read_bytes().splitlines(keepends=True)
    (run.checkpoints / "step-00000008" / "state.json").write_text("{}")

    again = resume(run.path)
    assert again.resume_from == run.checkpoints / "step-00000006"
    assert run.metrics_path.read_bytes() == b"".join(lines[:7])
    notes = "\n".join(again.notes)
    assert "Skipped" in notes
    assert "step-00000008" in notes
    assert "3 later or unreadable lines" in notes
    assert sorted(os.listdir(run.checkpoints))[0] == "abandoned-step-00000008"

    earlier = resume(run.path, checkpoint=run.checkpoints / "step-00000002")
    assert earlier.resume_from == run.checkpoints / "step-00000002"
    assert [record["step"] for record in earlier.read_metrics()] == [0, 1, 2]
    assert resume(run.path).resume_from == run.checkpoints / "step-00000002"
    facts = json.loads((run.path / "run.json").read_text())
    assert [entry["from_step"] for entry in facts["resumed"]] == [6, 2, 2]


def test_a_run_without_a_valid_checkpoint_starts_again(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.append_metrics({"split": "validation", "step": 0, "loss": 2.0})
    run.append_metrics(line(1))
    again = resume(run.path)
    assert again.resume_from is None
    assert again.read_metrics() == []
    assert "step 0" in "\n".join(again.notes)


def test_another_config_is_refused_with_every_difference(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.append_metrics(line(1))
    before = {path: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    other = {**CONFIG, "steps": 20, "optimizer": {"lr": 2e-3, "name": "adamw"}, "new": 1}
    with pytest.raises(UserError) as caught:
        resume(run.path, other, data={"genome": "sha256:99", "bed": "sha256:34"}, seed=2)
    text = str(caught.value)
    for part in (
        "steps is 10 there and 20 here",
        "optimizer.lr is 0.001 there and 0.002 here",
        "new is absent",
    ):
        assert part in text
    for part in ("seed is 1 there and 2 here", "'genome' are not the same", str(run.path)):
        assert part in text
    assert "bed" not in text
    assert {path: path.read_bytes() for path in run.path.iterdir() if path.is_file()} == before


@dataclass
class LaterSection:
    lr: float = 1e-3
    name: str = "adamw"


@dataclass
class LaterConfig:
    """The config of a later version: one key more."""

    steps: int = 10
    optimizer: LaterSection = field(default_factory=LaterSection)
    fixed: bool = False


def test_a_key_that_came_with_a_later_version_does_not_end_an_old_run(tmp_path: Path) -> None:
    before = {"steps": 10, "optimizer": {"lr": 1e-3, "name": "adamw"}}
    create(tmp_path / "run", before)
    assert resume(tmp_path / "run", LaterConfig()).notes
    with pytest.raises(UserError, match="fixed is False there and True here"):
        resume(tmp_path / "run", LaterConfig(fixed=True))
    with pytest.raises(UserError, match="steps is 10 there and 11 here"):
        resume(tmp_path / "run", LaterConfig(steps=11))
    create(tmp_path / "other", {**before, "removed": 1})
    with pytest.raises(UserError, match="removed is 1 there"):
        resume(tmp_path / "other", LaterConfig())


@dataclass
class ChangedSection:
    """A section whose new key does something new by default."""

    BEFORE: ClassVar[dict[str, Any]] = {"averaged": False}

    lr: float = 1e-3
    averaged: bool = True


@dataclass
class ChangedConfig:
    """The config of a later version that does otherwise what it is not told."""

    steps: int = 10
    optimizer: ChangedSection = field(default_factory=ChangedSection)


def test_an_old_run_is_not_one_with_the_defaults_of_keys_that_changed_what_is_done(tmp_path: Path) -> None:
    create(tmp_path / "run", {"steps": 10, "optimizer": {"lr": 1e-3}})
    with pytest.raises(UserError, match=r"optimizer\.averaged is False there and True here"):
        resume(tmp_path / "run", ChangedConfig())
    assert resume(tmp_path / "run", ChangedConfig(optimizer=ChangedSection(averaged=False))).notes


def test_what_changes_no_result_may_differ_and_is_recorded(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    config = {**CONFIG, "stop_after": 5, "threads": 4, "optimizer": {"lr": 1e-3, "name": "adamw"}}
    again = resume(run.path, config, threads=4)
    assert any("threads is now 4, it was 2" in note for note in again.notes)
    facts = json.loads((run.path / "run.json").read_text())
    assert facts["resumed"][0]["changed"] == {"stop_after": [None, 5], "threads": [2, 4]}
    renamed = {**config, "optimizer": {"lr": 1e-3, "name": "other"}}
    with pytest.raises(UserError, match=r"optimizer\.name"):
        resume(run.path, renamed)
    resume(run.path, renamed, may_differ={"optimizer.name"})


def test_open_follows_the_resume_option(tmp_path: Path) -> None:
    def opened(path: Path, resume: Any) -> RunFolder:
        return RunFolder.open(path, CONFIG, COMMAND, DATA, resume=resume, seed=1, threads=2)

    first = opened(tmp_path / "run", "auto")
    assert first.resume_from is None
    checkpoint = save_checkpoint(first.checkpoints, 3, {}, {})
    with pytest.raises(UserError, match="not empty"):
        opened(first.path, None)
    assert opened(first.path, "auto").resume_from == checkpoint
    assert opened(first.path, str(checkpoint)).resume_from == checkpoint
    with pytest.raises(UserError, match="does not exist"):
        opened(first.path, first.checkpoints / "step-00000004")
    with pytest.raises(UserError, match="name one of the checkpoints inside"):
        opened(first.path, first.path)

    branch = opened(tmp_path / "branch", checkpoint)
    assert branch.resume_from == checkpoint
    assert "another run" in branch.notes[0]
    assert opened(tmp_path / "other", None).resume_from is None

    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / "config.yaml").write_bytes((first.path / "config.yaml").read_bytes())
    assert opened(killed, "auto").resume_from is None
    assert (killed / "run.json").exists()


def test_two_processes_never_share_a_folder(tmp_path: Path) -> None:
    if os.name != "posix":
        pytest.skip("no such locks here")
    run = create(tmp_path / "run")
    code = (
        "import sys; from had.errors import UserError; from had.training.locking import FolderLock\n"
        "from pathlib import Path; print(FolderLock(Path(sys.argv[1])).acquire())"
    )

    def acquired_elsewhere() -> str:
        argv = [sys.executable, "-c", code, str(run.path / ".lock")]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()

    assert acquired_elsewhere() == "False"
    run.close()
    assert acquired_elsewhere() == "True"


def test_an_unreadable_line_inside_the_log_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(UserError, match="line 2"):
        metrics_log.read_metrics(path)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.integers(0, 20), max_size=12), cut=st.integers(0, 400), last=st.integers(-1, 20))
def test_a_log_torn_anywhere_is_cut_to_whole_lines(tmp_path: Path, steps: list[int], cut: int, last: int) -> None:
    path = tmp_path / "metrics.jsonl"
    path.unlink(missing_ok=True)
    for step in steps:
        metrics_log.append_record(path, line(step))
    torn = path.read_bytes()[:cut] if steps else b""
    path.write_bytes(torn)
    whole = [json.loads(text) for text in torn.decode().split("\n")[:-1]]
    assert metrics_log.read_metrics(path) == whole
    metrics_log.truncate_metrics(path, last)
    assert metrics_log.read_metrics(path) == [record for record in whole if record["step"] <= last]
    assert path.read_bytes().endswith(b"\n") or not path.read_bytes()
