"""The demo: its bundled data, its probes, its verdict, its folder, and the whole of it on a small scale."""

import csv
import gzip
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from had import assets
from had.cli import main
from had.demo import probing, report, run
from had.demo.folder import check_free, claim, write_summary
from had.demo.probing import LayerScore, best_layer, difference, probe_kmers, probe_model, resampled_mcc
from had.demo.run import DemoOptions, demo, demo_config, untrained_student
from had.demo.verdict import judge
from had.dna.genome import Genome
from had.dna.kmers import find_duplicates
from had.dna.labelled import LabelledSequences, read_splits
from had.errors import RunFault, UserError
from had.evaluation.probes import linear_probe
from had.metrics import mcc

CHR21_HALF = 23_354_991
"""chr21's second half is the test set of everything in this project."""
TINY = (
    "model.hidden_size=16",
    "model.intermediate_size=24",
    "model.recurrent_blocks=1",
    "model.key_width=8",
    "model.value_width=8",
    "model.attention_heads=1",
    "model.decoder_heads=1",
    "teacher.name=random:16x1x2x24",
    "data.window=60",
    "data.validation_windows=8",
    "objective.fit_windows=8",
    "training.global_batch=4",
    "training.micro_batch=4",
)


def random_sequences(n: int) -> list[str]:
    """Thirty letters each, different for different n."""
    return ["".join(row) for row in np.random.default_rng(n).choice(list("ACGT"), (n, 30))]


class TestBundledData:
    def test_the_genome_is_small_enough_to_travel(self) -> None:
        assert assets.DEMO_GENOME.stat().st_size <= 3_000_000
        assert sum(path.stat().st_size for path in assets.DEMO_TASK.iterdir()) <= 300_000

    def test_chr21_alone_validates_and_only_its_first_half(self) -> None:
        with gzip.open(assets.DEMO_GENOME, "rt") as file:
            names = [line[1:].strip() for line in file if line.startswith(">")]
        rows = [line.split("\t") for line in assets.DEMO_SPLIT.read_text().splitlines()]
        assert [row[0] for row in rows] == names
        for name, start, end, split in rows:
            contig, first, last = re.fullmatch(r"(chr\d+):(\d+)-(\d+)", name).groups()  # type: ignore[union-attr]
            assert (int(start), int(end)) == (0, int(last) - int(first))
            assert split == ("validation" if contig == "chr21" else "train")
            assert contig != "chr21" or int(last) <= CHR21_HALF

    def test_the_genome_has_no_unknown_letters_and_the_lengths_of_its_names(self) -> None:
        genome = Genome.open(assets.DEMO_GENOME, progress=False)
        assert genome.n_acgt == len(genome) == 10_000_000
        for contig in genome.contigs:
            first, last = map(int, contig.name.split(":")[1].split("-"))
            assert contig.length == last - first

    def test_the_validation_piece_is_the_reference_genome(self, shared: Path) -> None:
        reference = shared / "data" / "genomes" / "hg38_chr21.fa.gz"
        with gzip.open(reference, "rb") as file:
            letters = b"".join(line.strip() for line in file if not line.startswith(b">"))
        genome = Genome.open(assets.DEMO_GENOME, progress=False)
        contig = genome.contigs[-1]
        first, last = map(int, contig.name.split(":")[1].split("-"))
        codes = genome.fetch(np.array([contig.offset]), contig.length)[0]
        assert np.frombuffer(b"ACGT", np.uint8)[codes].tobytes() == letters[first:last].upper()

    def test_no_promoter_row_stands_in_two_splits(self) -> None:
        splits = read_splits(assets.DEMO_TASK)
        assert list(splits) == ["train", "dev", "test"]
        test, dev = splits["test"].sequences, splits["dev"].sequences
        assert not find_duplicates(splits["train"].sequences, [*test, *dev]).either.any()
        assert not find_duplicates(dev, test).either.any()

    def test_promoter_rows_are_balanced_dna_of_one_length(self) -> None:
        for rows in read_splits(assets.DEMO_TASK).values():
            assert rows.classes == ("0", "1")
            assert 0.48 < rows.labels.mean() < 0.52
            assert {len(sequence) for sequence in rows.sequences} == {70}
            assert set("".join(rows.sequences)) == set("ACGT")

    def test_the_promoter_test_set_is_the_official_one(self, shared: Path) -> None:
        official = read_splits(shared / "data" / "benchmarks" / "gue" / "prom" / "prom_core_tata")
        bundled = read_splits(assets.DEMO_TASK)
        assert bundled["test"].sequences == official["test"].sequences
        assert (bundled["test"].labels == official["test"].labels).all()
        pairs = {(s, int(y)) for s, y in zip(official["train"].sequences, official["train"].labels, strict=True)}
        rows = bundled["train"]
        assert {(s, int(y)) for s, y in zip(rows.sequences, rows.labels, strict=True)} <= pairs

    def test_sources_and_licences_are_named(self) -> None:
        notes = (assets.FOLDER / "README.md").read_text(encoding="utf-8")
        for path in (assets.DEMO_GENOME, assets.DEMO_SPLIT, assets.DEMO_TASK):
            assert path.name in notes
        for words in ("GRCh38", "GenBank", "DNABERT-2", "Apache License, Version 2.0", "Changed here"):
            assert words in notes


Task = tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def task() -> Task:
    """Features by split and layer, one of which knows the label; labels by split."""
    rng = np.random.default_rng(0)
    labels = {split: rng.integers(2, size=n) for split, n in (("train", 80), ("dev", 60), ("test", 60))}
    features = {
        split: {
            "noise": rng.normal(size=(len(y), 3)).astype(np.float32),
            "signal": (rng.normal(size=(len(y), 3)) + y[:, None]).astype(np.float32),
        }
        for split, y in labels.items()
    }
    return features, labels


class TestProbing:
    def test_resampled_mcc_is_that_of_the_resampled_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(probing, "RESAMPLES", 20)
        rng = np.random.default_rng(1)
        for n_classes in (2, 3):
            true = rng.integers(n_classes, size=40)
            guesses = [np.where(rng.random(40) < 0.6, true, rng.integers(n_classes, size=40)) for _ in range(2)]
            drawn = np.random.default_rng(5).integers(40, size=(20, 40))
            wanted = [np.mean([mcc(true[rows], guess[rows]) for guess in guesses]) for rows in drawn]
            np.testing.assert_allclose(resampled_mcc(true, guesses, seed=5), wanted, atol=1e-12)

    def test_a_constant_prediction_has_an_mcc_of_0(self) -> None:
        assert (resampled_mcc([0, 1, 1, 0], [[1, 1, 1, 1]]) == 0).all()

    def test_each_layer_is_probed_once_per_seed_as_linear_probe_does(self, task: Task) -> None:
        features, labels = task
        scores = probe_model("m", features, labels, (0, 1))
        assert [score.layer for score in scores] == ["noise", "signal"]
        for score in scores:
            parts = [(features[split][score.layer], labels[split]) for split in ("train", "dev", "test")]
            for i, seed in enumerate((0, 1)):
                wanted = linear_probe(*(x for part in parts for x in part), seed=seed)
                assert (score.dev[i], score.test[i]) == (wanted.dev, wanted.test)
            low, high = score.interval
            assert low <= score.test_mean <= high
            assert abs(score.resampled.mean() - score.test_mean) < 0.02

    def test_the_layer_is_chosen_without_the_test_rows(self, task: Task) -> None:
        features, labels = task
        upside_down = {**labels, "test": 1 - labels["test"]}
        assert best_layer(probe_model("m", features, labels, (0, 1))).layer == "signal"
        assert best_layer(probe_model("m", features, upside_down, (0, 1))).layer == "signal"

    def test_the_difference_is_taken_on_the_same_test_rows(self, task: Task) -> None:
        features, labels = task
        noise, signal = probe_model("m", features, labels, (0,))
        assert difference(signal, signal) == (0, 0, 0)
        gain, low, high = difference(signal, noise)
        assert gain == signal.test_mean - noise.test_mean
        assert 0 < low < gain < high

    def test_kmers_see_the_rows_that_the_probes_draw(self, monkeypatch: pytest.MonkeyPatch, task: Task) -> None:
        features, labels = task
        seen = []
        fit = probing.KmerLogisticRegression.fit

        def spy(self, train, train_labels, dev, dev_labels):
            seen.append((len(train), len(set(train))))
            return fit(self, train, train_labels, dev, dev_labels)

        monkeypatch.setattr(probing.KmerLogisticRegression, "fit", spy)
        rows = {
            split: LabelledSequences(tuple(random_sequences(len(y))), y, ("0", "1"), ("",) * len(y), split)
            for split, y in labels.items()
        }
        score = probe_kmers("k", rows, (0, 1))
        assert len(score.test) == 2
        for (drawn, distinct), seed in zip(seen, (0, 1), strict=True):
            parts = [(features[split]["noise"], labels[split]) for split in ("train", "dev", "test")]
            probe = linear_probe(*(x for part in parts for x in part), seed=seed)
            assert (drawn, distinct) == (probe.n_train, probe.n_distinct)

    def test_the_csv_has_a_line_per_model_layer_and_seed(self, task: Task) -> None:
        scores = probe_model("m", *task, (0, 1))
        rows = list(csv.DictReader(io.StringIO(probing.as_csv(scores, [scores[1]], 60))))
        assert [(row["layer"], row["seed"], row["chosen"]) for row in rows] == [
            ("noise", "0", "0"),
            ("noise", "1", "0"),
            ("signal", "0", "1"),
            ("signal", "1", "1"),
        ]
        assert float(rows[2]["low_95"]) < float(rows[2]["mean_test_mcc"]) < float(rows[2]["high_95"])


def validation(align: tuple[float, float, float], rec: tuple[float, float, float]) -> dict:
    """A run's ``validation.json`` with these differences."""
    entry = {"model": [0.5, 0.4, 0.6], "windows": 128}
    return {
        "loss_align": {**entry, "baselines": {"mean_vector": [0.6] * 3}, "difference": {"mean_vector": list(align)}},
        "loss_rec": {**entry, "baselines": {"frequency": [1.37] * 3}, "difference": {"frequency": list(rec)}},
    }


GOOD = (-0.1, -0.2, -0.01)


class TestVerdict:
    def test_learning_is_shown_where_both_intervals_lie_below_0(self) -> None:
        checks = judge(validation(GOOD, GOOD))
        assert [check.metric for check in checks] == ["loss_align", "loss_rec"]
        assert all(check.passed for check in checks)
        assert all("learnt" in check.sentence() and "NOT SHOWN" not in check.sentence() for check in checks)

    @pytest.mark.parametrize(
        "bad", [(-0.1, -0.2, 0.0), (-0.1, -0.3, 0.1), (0.1, 0.05, 0.2), (np.nan,) * 3, (-0.1, np.nan, np.nan)]
    )
    def test_learning_is_not_shown_where_one_interval_reaches_0(self, bad: tuple[float, float, float]) -> None:
        assert [check.passed for check in judge(validation(bad, GOOD))] == [False, True]
        checks = judge(validation(GOOD, bad))
        assert [check.passed for check in checks] == [True, False]
        assert "NOT SHOWN" in checks[1].sentence()

    @pytest.mark.parametrize("missing", ["loss_align", "loss_rec"])
    def test_a_loss_that_was_not_measured_is_a_fault(self, missing: str) -> None:
        found = validation(GOOD, GOOD)
        del found[missing]
        with pytest.raises(RunFault, match=missing):
            judge(found)


def score(model: str, layer: str, test: tuple[float, ...], spread: float = 0.05) -> LayerScore:
    resampled = np.mean(test) + spread * np.linspace(-1, 1, 41)
    return LayerScore(model, layer, tuple(range(len(test))), (0.3,) * len(test), test, resampled)


def rendered(table: object) -> str:
    from rich.console import Console

    screen = Console(file=io.StringIO(), width=report.WIDTH)
    screen.print(table)
    return screen.file.getvalue()  # type: ignore[attr-defined]


class TestReport:
    def test_tables_show_mean_range_over_seeds_and_interval(self) -> None:
        one, other = score("teacher", "layer 1", (0.40, 0.42, 0.44)), score("teacher", "layer 2", (0.1, 0.2, 0.3))
        text = rendered(report.layer_table([one, other], [one]))
        assert "test: mean [range]" in text
        assert "of 3 probe seeds" in text
        assert "0.420 [0.400–0.440]" in text
        low, high = one.interval
        assert f"[{low:.3f}, {high:.3f}]" in text
        assert "layer 1 *" in text
        assert "layer 2 *" not in text
        assert "layer 2" not in rendered(report.closing_table([one]))
        assert max(map(len, text.splitlines())) <= report.WIDTH

    def text(self, gain: float, spread: float, ends: tuple[float, float, float] = GOOD) -> str:
        distilled = LayerScore("d", "b", (0,), (0.3,), (0.4 + gain,), 0.4 + gain + spread * np.linspace(-1, 1, 41))
        untrained = LayerScore("u", "b", (0,), (0.3,), (0.4,), np.full(41, 0.4))
        text = report.summary_text(judge(validation(GOOD, ends)), distilled, untrained, 2.0, 613, Path("runs/x"), 300)
        return " ".join(text.split())

    def test_the_summary_says_whether_it_learnt(self) -> None:
        assert "IT LEARNT" in self.text(0.0, 0.1)
        failed = self.text(0.0, 0.1, (-0.1, -0.2, 0.1))
        assert "IT LEARNT" not in failed
        assert "LEARNING WAS NOT SHOWN" in failed

    @pytest.mark.parametrize(
        ("gain", "words"), [(0.2, "helped here"), (-0.2, "hurt here"), (0.02, "cannot be told apart")]
    )
    def test_the_summary_does_not_hide_what_the_probes_say(self, gain: float, words: str) -> None:
        text = self.text(gain, 0.1)
        assert words in text
        assert "need not beat an untrained network" in text


class TestFolder:
    def test_somebody_elses_folder_is_refused_untouched(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("years of work")
        with pytest.raises(UserError, match="not empty"):
            demo(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

    def test_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match="is a file"):
            check_free(tmp_path / "file")

    def test_an_earlier_demo_is_replaced_and_other_files_stay(self, tmp_path: Path) -> None:
        write_summary(tmp_path, {"finished": False})
        (tmp_path / "pretrain").mkdir()
        (tmp_path / "pretrain" / "config.yaml").touch()
        (tmp_path / "tsne.png").touch()
        (tmp_path / "mine.txt").touch()
        assert check_free(tmp_path)
        claim(tmp_path).release()
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "mine.txt", "summary.json"]

    def test_a_new_folder_is_marked_as_a_demos_at_once(self, tmp_path: Path) -> None:
        claim(tmp_path / "a" / "b").release()
        assert check_free(tmp_path / "a" / "b")


class TestOptions:
    def test_recipe_and_bundled_data_make_the_run(self) -> None:
        config = demo_config(DemoOptions(steps=7, seed=5))
        assert (config.training.steps, config.seed, config.teacher.name) == (7, 5, "bundled")
        assert config.data.genome == [str(assets.DEMO_GENOME)]
        assert config.data.bed == str(assets.DEMO_SPLIT)

    @pytest.mark.parametrize(
        "options",
        [
            DemoOptions(steps=0),
            DemoOptions(threads=0),
            DemoOptions(device="tpu"),
            DemoOptions(overrides=["objective.w_rec=0"]),
            DemoOptions(overrides=["training.stepz=3"]),
        ],
    )
    def test_wrong_options_are_refused_before_anything_is_written(self, options: DemoOptions, tmp_path: Path) -> None:
        with pytest.raises(UserError):
            demo(tmp_path / "out", options)
        assert not (tmp_path / "out").exists()

    def test_a_dry_run_writes_nothing(self, tmp_path: Path) -> None:
        assert demo(tmp_path / "out", DemoOptions(dry_run=True, quiet=True)) is None
        assert not (tmp_path / "out").exists()

    def test_the_untrained_student_is_the_one_the_run_begins_with(self) -> None:
        from had.training.data import WindowData
        from had.training.pretraining import make_objective

        config = demo_config(DemoOptions(seed=3, overrides=TINY))
        data = WindowData.open(config.data, config.seed, progress=False)
        student = make_objective(config, data, torch.device("cpu")).module.student
        mine = untrained_student(config).state_dict()
        assert all(torch.equal(tensor, mine[name]) for name, tensor in student.state_dict().items())


class TestCommand:
    @pytest.fixture
    def exit_code(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
        def call(*words: str | Path) -> int:
            monkeypatch.setattr("sys.argv", ["had", "demo", *map(str, words)])
            with pytest.raises(SystemExit) as stop:
                main()
            return int(stop.value.code or 0)

        return call

    def test_a_wrong_folder_exits_2(self, exit_code: Callable[..., int], tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").touch()
        assert exit_code("--out", tmp_path) == 2

    def test_learning_that_was_not_shown_exits_1(
        self, exit_code: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        asked = []

        def fail(out: Path, options: DemoOptions) -> None:
            asked.append((out, options.steps, options.seed, options.quiet, options.overrides))
            raise RunFault("the demo did not show learning")

        monkeypatch.setattr("had.demo.demo", fail)
        assert exit_code("--out", "x", "--steps", "3", "--seed", "4", "--quiet", "data.window=60") == 1
        assert asked == [(Path("x"), 3, 4, True, ["data.window=60"])]
        assert "did not show learning" in capsys.readouterr().err


@pytest.mark.slow
def test_the_demo_runs_twice_into_one_folder_and_says_what_it_found(tmp_path: Path, capsys) -> None:
    options = DemoOptions(steps=6, quiet=True, threads=1, overrides=TINY, probe_rows=80)
    for _ in range(2):
        # Six steps of a tiny student prove nothing, and the demo must say so.
        with pytest.raises(RunFault, match="did not show learning"):
            demo(tmp_path / "out", options)
    out = tmp_path / "out"
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert names == {"pretrain", "losses.png", "tsne.png", "probes.csv", "summary.json", "README.txt"}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["finished"]
    assert not summary["passed"]
    assert set(summary["probes"]) == {run.UNTRAINED, run.DISTILLED, run.TEACHER, run.KMERS}
    models = [row["model"] for row in csv.DictReader((out / "probes.csv").open())]
    # Embedding, one recurrent block, attention; embedding and one layer; counts: three seeds of each.
    assert [models.count(name) for name in summary["probes"]] == [9, 9, 6, 3]
    printed = capsys.readouterr().out
    assert "LEARNING WAS NOT SHOWN" in printed
    assert "Every layer's probe" in printed
    assert (out / "README.txt").read_text().strip() in printed
    for picture in ("losses.png", "tsne.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
