"""Fine-tuning on peaks: rows, files of regions, and what is refused before anything is written."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import had
from had.console import setup_logging
from had.dna.alphabet import decode, encode_bytes
from had.dna.genome import Genome
from had.errors import UserError
from had.inference.predict import bed_records, predict
from had.models.prediction import TrainedOn
from had.models.student import HADConfig
from had.training.finetuning import finetune, read_data
from had.training.finetuning_config import FinetuneConfig
from had.training.finetuning_peaks import PeaksConfig, write_regions
from had.training.finetuning_recipe import FitConfig
from had.training.runs import RunOptions

SMALL = HADConfig(
    hidden_size=16, intermediate_size=24, recurrent_blocks=1, attention_heads=1, key_width=4, value_width=8
)
OPTIONS = RunOptions(device="cpu", threads=1, quiet=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A genome of four contigs, and peaks that all hold one motif."""
    folder = tmp_path_factory.mktemp("peaks")
    rng = np.random.default_rng(0)
    rows, records = [], []
    for c in range(4):
        contig = rng.choice(list("ACGT"), 20_000)
        for i in range(30):
            start = 40 + 600 * i
            contig[start + 20 : start + 32] = list("CCGATATCGGCC")
            rows.append(f"c{c}\t{start}\t{start + 60}\tp{c}_{i}")
        records.append(f">c{c}\n{''.join(contig)}\n")
    (folder / "g.fa").write_text("".join(records))
    (folder / "p.bed").write_text("\n".join(rows) + "\n")
    return folder / "p.bed", folder / "g.fa"


def config(files: tuple[Path, Path], **changes) -> FinetuneConfig:
    given = {"student": SMALL, "training": FitConfig(epochs=1, batch_size=16, lr=1e-2), **changes}
    return FinetuneConfig(**{"data": str(files[0]), "model": "scratch", "genome": [str(files[1])], **given})


def test_contigs_are_held_out_and_labels_are_peak_and_background(files: tuple[Path, Path]) -> None:
    peaks = PeaksConfig(valid_contigs=["c1"], test_contigs=["c3"])
    data, found = read_data(config(files, peaks=peaks))
    assert found is not None
    assert data.task.classes == ("background", "peak")
    assert data.test is not None
    assert [len(data.train), len(data.valid), len(data.test)] == [120, 60, 60]
    assert data.train.targets.sum() == 60
    assert data.split.startswith("by contig: validation c1")


def test_what_was_trained_on_is_what_is_predicted_on_either_strand(files: tuple[Path, Path], tmp_path: Path) -> None:
    bed = tmp_path / "stranded.bed"
    rows = files[0].read_text().splitlines()
    bed.write_text("".join(f"{row}\t0\t{'+-.'[i % 3]}\n" for i, row in enumerate(rows)))
    data, found = read_data(config((bed, files[1]), peaks=PeaksConfig(ratio=2)))
    assert found is not None
    write_regions(found, tmp_path)
    trained = {tuple(codes) for part in (data.train, data.valid, data.test) if part for codes in part.codes}
    genome = Genome.open([str(files[1])], progress=False)
    for name, n in (("stranded", 120), ("peaks", 120), ("background", 240)):
        records = list(bed_records(tmp_path / f"{name}.bed", genome))
        assert len(records) == n
        assert sum(record.strand == "-" for record in records) == n / 3
        assert {tuple(encode_bytes(record.sequence.encode())) for record in records} <= trained
    assert 0.4 < data.facts["auroc_of_gc_content"] < 0.6
    assert "GC content alone" in found.notes[-1]


def test_intervals_are_predicted_as_they_were_cut_in_training(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wide peaks whose summit is off their middle."""
    rows = [row.split("\t") for row in files[0].read_text().splitlines()]
    peaks = tmp_path / "p.narrowPeak"
    peaks.write_text(
        "".join(
            f"{contig}\t{start}\t{int(start) + 100 + i}\t{name}\t0\t{'+-.'[i % 3]}\t1\t1\t1\t26.0\n"
            for i, (contig, start, _, name) in enumerate(rows)
        )
    )
    finetune(config((peaks, files[1]), peaks=PeaksConfig(width=50)), tmp_path / "run", OPTIONS)
    trained_on = {"shortest": 50, "longest": 50, "width": 50, "anchor": "summit"}
    assert json.loads((tmp_path / "run/model/finetuning.json").read_text())["trained_on"] == trained_on
    card = (tmp_path / "run/model/README.md").read_text()
    assert "Training rows have 50 bp, cut around the summits (middles where there is none) of peaks" in card
    setup_logging(quiet=False)
    for name, path, as_written in (("cut", peaks, False), ("raw", peaks, True), ("windows", "run/peaks.bed", True)):
        predict(
            tmp_path / "run", tmp_path / path, tmp_path / f"{name}.tsv",
            genome=files[1], as_written=as_written, device="cpu", threads=1,
        )  # fmt: skip
    said = capsys.readouterr().err
    assert "intervals are cut to 50 bp around their summits (middles where there is none), as in training" in said
    assert "Warning" not in said
    found = {
        name: dict(line.split("\t")[::2][:2] for line in (tmp_path / f"{name}.tsv").read_text().splitlines()[1:])
        for name in ("cut", "raw", "windows")
    }
    assert found["cut"] == found["windows"]
    assert all(found["raw"][name] != p for name, p in found["cut"].items())
    predict(tmp_path / "run", files[0], tmp_path / "bed.tsv", genome=files[1], device="cpu", threads=1)
    (tmp_path / "a.fa").write_text(">a\nACGTACGT\n>b\n" + "ACGTA" * 10 + "\n")
    predict(tmp_path / "run", tmp_path / "a.fa", tmp_path / "fa.tsv", device="cpu", threads=1)
    said = capsys.readouterr().err
    assert said.count("Warning: ") == 1
    assert "1 of 2 sequences are shorter or longer than all training rows" in said
    assert "the model was trained on 50 bp; these have 8 to 50 bp" in said
    with pytest.warns(
        UserWarning, match=r"1 of 2 sequences .* training rows \(50 bp\); the first is sequence 0 with 8"
    ):
        had.load(tmp_path / "run").predict(["ACGTACGT", "ACGTA" * 10])


def test_a_model_trained_on_middles_does_not_take_summits(files: tuple[Path, Path], tmp_path: Path) -> None:
    genome = Genome.open([str(files[1])], progress=False)
    row = "c0\t1000\t1400\tp\t0\t.\t1\t1\t1\t{}\n"
    (tmp_path / "a.narrowPeak").write_text(row.format(20) + row.format("-7") + row.format(-1) + "c0\t0\t4\n")
    cut = {
        anchor: list(bed_records(tmp_path / "a.narrowPeak", genome, TrainedOn(30, 30, 30, anchor)))
        for anchor in ("summit", "middle")
    }
    contig = decode(genome.codes[:2000])
    assert [record.sequence for record in cut["summit"]] == [contig[1005:1035], *[contig[1185:1215]] * 2, ""]
    assert [record.sequence for record in cut["middle"]] == [*[contig[1185:1215]] * 3, ""]
    assert [bool(record.fault) for record in cut["summit"]] == [False, True, False, False]
    assert cut["summit"][3].problem == "its window of 30 bp reaches beyond c0 (20,000 bp)"
    # Training cuts longer rows to their middle max_length.
    short = list(bed_records(tmp_path / "a.narrowPeak", genome, TrainedOn(10, 10, 30)))
    assert short[0].sequence == contig[1195:1205]


def test_a_single_contig_is_split_by_position(files: tuple[Path, Path], tmp_path: Path) -> None:
    bed = tmp_path / "one.bed"
    bed.write_text("".join(line + "\n" for line in files[0].read_text().splitlines() if line.startswith("c0\t")))
    data, _ = read_data(config((bed, files[1])))
    assert "by position" in data.split
    assert data.test is not None
    assert [len(data.train), len(data.valid), len(data.test)] == [48, 6, 6]


def test_a_run_leaves_regions_for_others(files: tuple[Path, Path], tmp_path: Path) -> None:
    finetune(config(files), tmp_path / "run", OPTIONS)
    header, *rows = (tmp_path / "run/background.bed").read_text().splitlines()
    assert header.split("\t") == ["#chrom", "start", "end", "name", "score", "strand", "split", "gc"]
    assert len(rows) == 120
    assert len((tmp_path / "run/peaks.bed").read_text().splitlines()) == 121
    facts = json.loads((tmp_path / "run/metrics.json").read_text())["data"]
    parts = {name: sum(row.split("\t")[6] == name for row in rows) for name in ("train", "dev", "test")}
    assert {name: 2 * n for name, n in parts.items() if n} == {
        name: fact["rows"] for name, fact in facts.items() if isinstance(fact, dict)
    }


def test_the_files_of_regions_say_what_validated_where_no_contig_does(files: tuple[Path, Path], tmp_path: Path) -> None:
    lines = [line for line in files[0].read_text().splitlines() if line.startswith("c0\t")][:5]
    (tmp_path / "few.bed").write_text("\n".join(lines) + "\n")
    data, found = read_data(config((tmp_path / "few.bed", files[1])))
    assert found is not None
    assert "by position" in data.split
    assert "by locus" in data.split
    of_split = {name: sum(region.split == name for region in found.regions) for name in ("train", "dev", "test")}
    assert data.test is not None
    assert of_split == {"train": len(data.train), "dev": len(data.valid), "test": len(data.test)}
    assert of_split["dev"] > 0
    write_regions(found, tmp_path)
    written = "".join((tmp_path / f"{name}.bed").read_text() for name in ("peaks", "background"))
    assert written.count("\tdev\t") == of_split["dev"]


def test_more_background_than_peaks_is_no_repetition(files: tuple[Path, Path]) -> None:
    data, _ = read_data(config(files, peaks=PeaksConfig(ratio=2)))
    assert {name: fact["duplicated_ids"] for name, fact in data.facts.items() if isinstance(fact, dict)} == {
        "train": 0, "dev": 0, "test": 0
    }  # fmt: skip


def test_another_blacklist_is_another_run(files: tuple[Path, Path], tmp_path: Path) -> None:
    black = tmp_path / "black.bed"
    black.write_text("c0\t0\t30\n")
    made = config(files, peaks=PeaksConfig(blacklist=str(black)))
    first, _ = read_data(made)
    black.write_text("c0\t0\t9000\n")
    second, _ = read_data(made)
    assert first.digests["genome"] == second.digests["genome"]
    assert first.digests["blacklist"] != second.digests["blacklist"]


def test_a_run_does_not_go_on_with_other_background(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config(files, training=FitConfig(epochs=2, batch_size=16, lr=1e-2))
    finetune(made, tmp_path / "run", dataclasses.replace(OPTIONS, stop_after=1))
    before = (tmp_path / "run/background.bed").read_bytes()
    # As another version of the drawing would.
    monkeypatch.setattr("had.dna.background._FEWEST_PLACES", 1000)
    with pytest.raises(UserError, match="regions"):
        finetune(made, tmp_path / "run", dataclasses.replace(OPTIONS, resume="auto"))
    assert (tmp_path / "run/background.bed").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "random"}, "--split goes with labelled sequences"),
        ({"labels": ["a"]}, "--labels goes with labelled sequences"),
        ({"genome": []}, "--genome"),
        ({"task": "regression"}, "binary"),
        ({"peaks": PeaksConfig(valid_contigs=["c0", "c1"], test_contigs=["c2", "c3"])}, "none is left to train on"),
        ({"peaks": PeaksConfig(blacklist="absent.bed")}, "absent.bed"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    files: tuple[Path, Path], tmp_path: Path, changes: dict, message: str
) -> None:
    wrong = config(files)
    for name, value in changes.items():
        setattr(wrong, name, value)
    with pytest.raises(UserError, match=message):
        finetune(wrong, tmp_path / "run", OPTIONS)
    assert not (tmp_path / "run").exists()


def test_a_genome_without_peaks_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("sequence,label\nACGT,1\n")
    with pytest.raises(UserError, match="goes with peaks"):
        read_data(config((tmp_path / "rows.csv", files[1])))
    with pytest.raises(UserError, match=r"peaks.width, peaks.valid_contigs .* goes with peaks"):
        read_data(config((tmp_path / "rows.csv", files[1]), genome=[], peaks=PeaksConfig(9, valid_contigs=["c1"])))


@pytest.mark.parametrize("changes", [{"width": 0}, {"ratio": 0}, {"gc_tolerance": -0.1}])
def test_settings_without_meaning_are_refused(changes: dict) -> None:
    with pytest.raises(UserError, match=next(iter(changes))):
        PeaksConfig(**changes)
