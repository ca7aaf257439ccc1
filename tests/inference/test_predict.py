"""Prediction: every record has its row, in order, whatever it is."""

import csv
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from had.console import setup_logging
from had.dna.alphabet import decode, encode_bytes, reverse_complement
from had.dna.tokenizers import NucleotideTokenizer
from had.errors import UserError
from had.inference.predict import predict
from had.inference.prediction_files import Row, open_writer
from had.models.heads import HADClassifierConfig, HADForSequenceClassification
from had.models.prediction import TrainedOn
from had.models.student import HADConfig, HADModel
from tests.dying import dying_script

SMALL = HADConfig(
    hidden_size=16, intermediate_size=24, recurrent_blocks=1, attention_heads=1, key_width=4, value_width=8,
    max_length=500,
)  # fmt: skip


def make_model(folder: Path, task: str = "binary", classes: tuple[str, ...] = ("no", "yes"), **config: object) -> Path:
    torch.manual_seed(0)
    model = HADForSequenceClassification(HADClassifierConfig(task, list(classes), student=SMALL, **config))
    torch.nn.init.normal_(model.head.weight)
    for parameter in model.student.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder / task)
    return folder / task


def probability(folder: Path, text: str) -> float:
    model = HADForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        return model(NucleotideTokenizer()([text])["input_ids"]).logits.softmax(1)[0, 1].item()


def table(path: Path) -> list[dict[str, str]]:
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return list(csv.DictReader(text.splitlines(), delimiter="," if ".csv" in path.name else "\t"))


def run(*arguments, **options):
    return predict(*arguments, device="cpu", threads=1, quiet=True, **options)


def test_every_record_has_its_row_in_order_with_a_reason_where_nothing_can_be_said(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    rng = np.random.default_rng(0)
    long = decode(rng.integers(0, 4, 400).astype(np.uint8))
    texts = ["ACGTTA", "", "NNNN", "AC", "acgtnnryu", "AC-T", long, long + long, "ACGTTA", "É"]
    path = tmp_path / "in.csv"
    path.write_text("name,sequence,note\n" + "".join(f"s{i},{t},x\n" for i, t in enumerate(texts)))
    summary = run(model, path, tmp_path / "out.tsv")
    rows = table(tmp_path / "out.tsv")
    assert list(rows[0]) == ["id", "prediction", "p_no", "p_yes", "reason"]
    assert [row["id"] for row in rows] == [f"s{i}" for i in range(10)]
    for i, text in enumerate(texts):
        if i in (1, 2, 5, 7, 9):
            assert rows[i]["prediction"] == rows[i]["p_yes"] == "NaN"
        else:
            expected = probability(model, text)
            assert float(rows[i]["p_yes"]) == pytest.approx(expected, abs=1e-5)
            assert rows[i]["prediction"] == ("yes" if expected > 0.5 else "no")
            assert not rows[i]["reason"]
    assert rows[1]["reason"] == "an empty sequence"
    assert "no letter" in rows[2]["reason"]
    assert "'-' at position 3 (0-based: 2)" in rows[5]["reason"]
    assert "800 bp" in rows[7]["reason"]
    assert summary["rows"] == 10
    assert sum(summary["without_prediction"].values()) == 5


def test_fasta_csv_and_parquet_in_and_all_formats_out_agree(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    model = make_model(tmp_path)
    texts = ["ACGTTAGG", "TTTTACCA", "GG"]
    (tmp_path / "a.fa").write_text("".join(f">s{i} note|1\n{t[:3]}\n{t[3:]}\n" for i, t in enumerate(texts)))
    (tmp_path / "a.tsv.gz").write_bytes(
        gzip.compress(f"id\tseq\n{''.join(f's{i}{chr(9)}{t}{chr(10)}' for i, t in enumerate(texts))}".encode())
    )
    parquet.write_table(pa.table({"id": ["s0", "s1", "s2"], "sequence": texts}), tmp_path / "a.parquet")
    run(model, tmp_path / "a.fa", tmp_path / "fa.tsv")
    run(model, tmp_path / "a.tsv.gz", tmp_path / "tsv.csv.gz")
    run(model, tmp_path / "a.parquet", tmp_path / "out.parquet")
    assert table(tmp_path / "fa.tsv") == table(tmp_path / "tsv.csv.gz")
    written = parquet.read_table(tmp_path / "out.parquet").to_pydict()
    assert written["id"] == ["s0", "s1", "s2"]
    np.testing.assert_allclose(written["p_yes"], [float(row["p_yes"]) for row in table(tmp_path / "fa.tsv")], atol=1e-5)


def test_a_parquet_file_has_few_large_row_groups_and_every_row_in_order(tmp_path: Path) -> None:
    from pyarrow import parquet

    with open_writer(tmp_path / "x.parquet", "binary", ["no", "yes"]) as write:
        for start in range(0, 40_000, 500):
            write([Row(str(i), "no", [0.75, 0.25], "", "", None) for i in range(start, start + 500)])
    file = parquet.ParquetFile(tmp_path / "x.parquet")
    assert file.num_row_groups == 3
    assert file.read()["id"].to_pylist() == [str(i) for i in range(40_000)]


def test_intervals_of_a_genome_are_read_on_their_strand(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    genome = decode(np.random.default_rng(1).integers(0, 4, 100).astype(np.uint8))
    (tmp_path / "g.fa").write_text(f">chr1\n{genome}\n")
    lines = ["#c", "chr1\t10\t40\tx\t0\t+", "chr1\t10\t40\t.\t0\t-", "chr1\t90\t120\ty", "chr2\t0\t5", "chr1\t7\t7"]
    lines.append("chr1\t-5\t30")
    (tmp_path / "a.bed").write_text("\n".join(lines) + "\n")
    run(model, tmp_path / "a.bed", tmp_path / "out.tsv", genome=tmp_path / "g.fa")
    rows = table(tmp_path / "out.tsv")
    assert [row["id"] for row in rows] == ["x", "chr1:10-40", "y", "chr2:0-5", "chr1:7-7", "chr1:-5-30"]
    other = decode(reverse_complement(encode_bytes(genome[10:40].encode())))
    assert float(rows[0]["p_yes"]) == pytest.approx(probability(model, genome[10:40]), abs=1e-5)
    assert float(rows[1]["p_yes"]) == pytest.approx(probability(model, other), abs=1e-5)
    assert [bool(row["reason"]) for row in rows] == [False, False, True, True, True, True]
    assert rows[5]["reason"] == "the interval begins before chr1"
    run(model, tmp_path / "a.bed", tmp_path / "out.bedgraph", genome=tmp_path / "g.fa")
    assert (tmp_path / "out.bedgraph").read_text().splitlines()[0] == f"chr1\t10\t40\t{rows[0]['p_yes']}"
    run(model, tmp_path / "a.bed", tmp_path / "out.bed", genome=tmp_path / "g.fa")
    bed = [line.split("\t") for line in (tmp_path / "out.bed").read_text().splitlines()]
    assert [(fields[3], fields[5]) for fields in bed] == [("x", "+"), ("chr1:10-40", "-")]
    with pytest.raises(UserError, match="--genome"):
        run(model, tmp_path / "a.bed", tmp_path / "out.tsv")
    (tmp_path / "b.bed").write_text("chr1\t1\t5\nchr1 2\n")
    with pytest.raises(UserError, match=r"b\.bed, line 2"):
        run(model, tmp_path / "b.bed", tmp_path / "no.tsv", genome=tmp_path / "g.fa")
    assert not (tmp_path / "no.tsv").exists()


def test_intervals_may_be_separated_by_spaces_as_for_had_finetune(tmp_path: Path) -> None:
    (tmp_path / "g.fa").write_text(f">chr1\n{'ACGTTGCA' * 10}\n")
    (tmp_path / "a.bed").write_text("chr1 10 40 x\nchr1 20 50\n")
    run(make_model(tmp_path), tmp_path / "a.bed", tmp_path / "out.tsv", genome=tmp_path / "g.fa")
    assert [(row["id"], row["reason"]) for row in table(tmp_path / "out.tsv")] == [("x", ""), ("chr1:20-50", "")]


def test_what_had_finetune_reads_is_read(tmp_path: Path) -> None:
    (tmp_path / "g.fa").write_text(f">chr1\n{'ACGTTGCA' * 10}\n")
    names = [b"pic\xe9", "pic\u2028é".encode(), b"form\x0cfeed", b"a\x1cb"]
    (tmp_path / "a.bed").write_bytes(b"".join(b"chr1\t10\t40\t" + name + b"\r\n" for name in names))
    run(make_model(tmp_path), tmp_path / "a.bed", tmp_path / "out.parquet", genome=tmp_path / "g.fa")
    from pyarrow import parquet

    assert parquet.read_table(tmp_path / "out.parquet")["id"].to_pylist() == [
        "picé",
        "pic\u2028é",
        "form\x0cfeed",
        "a\x1cb",
    ]


def test_a_model_that_knows_positions_refuses_other_lengths_unless_they_are_taken_as_written(tmp_path: Path) -> None:
    model = make_model(tmp_path, windows=4, trained_on=TrainedOn(6, 8))
    (tmp_path / "a.fa").write_text(">a\nACGTAC\n>b\n\n>c\nACGTACGTA\n")
    with pytest.raises(UserError, match=r"a\.fa, line 5: 9 bp, .* positions in sequences of 6 to 8 bp; .*--as-written"):
        run(model, tmp_path / "a.fa", tmp_path / "out.tsv")
    assert not (tmp_path / "out.tsv").exists()
    run(model, tmp_path / "a.fa", tmp_path / "out.tsv", as_written=True)
    assert [bool(row["reason"]) for row in table(tmp_path / "out.tsv")] == [False, True, False]
    loaded = HADForSequenceClassification.from_pretrained(model)
    with pytest.raises(UserError, match=r"sequence 1 has 9 bp, .* of 6 to 8 bp: .* as_written=True"):
        loaded.predict(["ACGTAC", "ACGTACGTA"])
    assert loaded.predict(["ACGTAC", "ACGTACGTA"], as_written=True).shape == (2, 2)
    with pytest.raises(TypeError, match="mapping"):
        loaded.predict({"a": "ACGTAC"})


@pytest.mark.parametrize(
    ("config", "command", "warning"),
    [
        ({"windows": 8}, "", "the model was trained on about 8 bp; these have 12 to 30 bp"),
        ({}, "had finetune p.bed --width 20", "the model was trained on about 20 bp; these have 12 to 30 bp"),
        (
            {},
            "had finetune p.bed",
            "how intervals were cut in training is not stored with the model; these have 12 to 30",
        ),
    ],
)
def test_a_model_of_an_earlier_version_warns_with_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: dict, command: str, warning: str
) -> None:
    model = make_model(tmp_path, **config)
    (model / "finetuning.json").write_text(json.dumps({"command": command}))
    (tmp_path / "g.fa").write_text(f">chr1\n{'ACGTTGCA' * 10}\n")
    (tmp_path / "a.bed").write_text("chr1\t10\t40\nchr1\t20\t32\n")
    setup_logging(quiet=False)
    options = {"genome": tmp_path / "g.fa", "device": "cpu", "threads": 1}
    predict(model, tmp_path / "a.bed", tmp_path / "out.tsv", **options)
    assert f"Warning: {warning}" in capsys.readouterr().err
    predict(model, tmp_path / "a.bed", tmp_path / "out.tsv", as_written=True, **options)
    assert "Warning" not in capsys.readouterr().err


@pytest.mark.parametrize("values", [{}, {"shortest": 9, "longest": 3}, {"shortest": 1, "longest": "long"}, [1], "x"])
def test_a_damaged_account_of_training_is_named(tmp_path: Path, values: object) -> None:
    model = make_model(tmp_path, trained_on=TrainedOn(6, 8))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "trained_on": values}))
    with pytest.raises(UserError, match=r"config\.json: .*trained_on"):
        HADForSequenceClassification.from_pretrained(model)


def test_equal_runs_give_equal_gzip_files_without_name_and_time(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    (tmp_path / "a.fa").write_text(">s\nACGT\n")
    for name in ("one.tsv.gz", "two.tsv.gz"):
        run(model, tmp_path / "a.fa", tmp_path / name)
    data = (tmp_path / "one.tsv.gz").read_bytes()
    assert data == (tmp_path / "two.tsv.gz").read_bytes()
    assert data[:8] == b"\x1f\x8b\x08\0\0\0\0\0"
    assert gzip.decompress(data).startswith(b"id\tprediction\t")


def test_a_track_says_how_many_lines_it_has_and_what_they_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("chrom,start,end,sequence\nchr1,5,9,ACGT\nchr1,9,13,NNNN\n,,,ACGG\n")
    setup_logging(quiet=False)
    predict(make_model(tmp_path), tmp_path / "a.csv", tmp_path / "out.bedgraph", device="cpu", threads=1)
    assert len((tmp_path / "out.bedgraph").read_text().splitlines()) == 1
    said = capsys.readouterr().err
    assert "out.bedgraph: 1 lines, probability of 'yes'" in said
    assert "2 records have no line there" in said


def test_a_format_that_is_not_written_and_a_model_that_was_not_fine_tuned_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_text(">s\nACGT\n")
    for name in ("out.xlsx", "out.JSON", "out.bw", "out.json.gz"):
        with pytest.raises(UserError, match=r"cannot be written; name a \.tsv"):
            run(make_model(tmp_path), tmp_path / "a.fa", tmp_path / name)
        assert not (tmp_path / name).exists()
    HADModel(SMALL).save_pretrained(tmp_path / "student")
    with pytest.raises(UserError, match=r"a pre-trained student.*fine-tune it by had finetune"):
        run(tmp_path / "student", tmp_path / "a.fa", tmp_path / "out.tsv")


@pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")
def test_links_are_written_through_and_pipes_into(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    model = make_model(tmp_path)
    (tmp_path / "a.fa").write_text(">s\nACGT\n")
    run(model, tmp_path / "a.fa", tmp_path / "plain.tsv")
    expected = (tmp_path / "plain.tsv").read_bytes()
    (tmp_path / "target.tsv").touch()
    (tmp_path / "link.tsv").symlink_to("target.tsv")
    run(model, tmp_path / "a.fa", tmp_path / "link.tsv")
    assert (tmp_path / "link.tsv").is_symlink()
    assert (tmp_path / "target.tsv").read_bytes() == expected
    read = {}
    for name in ("pipe.tsv", "pipe.parquet"):
        os.mkfifo(tmp_path / name)
        # Opened without waiting for a writer, so that a test whose pipe is replaced fails and does not hang.
        pipe = os.open(tmp_path / name, os.O_RDONLY | os.O_NONBLOCK)
        run(model, tmp_path / "a.fa", tmp_path / name)
        read[name] = os.read(pipe, 1 << 16)
        os.close(pipe)
        assert (tmp_path / name).is_fifo()
    assert read["pipe.tsv"] == expected
    assert parquet.read_table(pa.BufferReader(read["pipe.parquet"]))["id"].to_pylist() == ["s"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_label_is_not_looked_at_and_names_in_bed_are_one_word(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(
        'id\tsequence\tlabel\tsplit\tchrom\tstart\tend\n"a b\tc"\tACGT\tyes\tbed\tchr1\t3\t1e+01\n'
    )
    run(make_model(tmp_path), tmp_path / "a.tsv", tmp_path / "out.bed")
    fields = (tmp_path / "out.bed").read_text().rstrip("\n").split("\t")
    assert fields[:4] == ["chr1", "3", "10", "a_b_c"]
    with pytest.raises(UserError, match=r"--track goes with a \.bedgraph or \.bed"):
        run(make_model(tmp_path), tmp_path / "a.tsv", tmp_path / "out.tsv", track="yes")


def test_values_far_from_zero_keep_their_digits(tmp_path: Path) -> None:
    model = HADForSequenceClassification.from_pretrained(make_model(tmp_path, "regression", ("value",)))
    model.config.target_mean, model.config.target_scale = 1e9, 3.0
    model.save_pretrained(tmp_path / "far")
    rng = np.random.default_rng(0)
    texts = [decode(rng.integers(0, 4, 30).astype(np.uint8)) for _ in range(8)]
    (tmp_path / "a.fa").write_text("".join(f">s\n{text}\n" for text in texts))
    run(tmp_path / "far", tmp_path / "a.fa", tmp_path / "out.tsv", conjoin=False)
    with torch.no_grad():
        logits = model(NucleotideTokenizer()(texts)["input_ids"]).logits[:, 0].double().numpy()
    written = [float(row["value"]) for row in table(tmp_path / "out.tsv")]
    np.testing.assert_allclose(written, 1e9 + 3 * logits, rtol=0, atol=0.006)
    assert np.ptp(written) > 0.5
    np.testing.assert_allclose(model.predict(texts)[:, 0], 1e9 + 3 * logits, rtol=0, atol=1e-4)


def test_values_and_several_labels_have_their_columns(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_text(">a\nACGTTTA\n>b\n\n")
    run(make_model(tmp_path, "regression", ("value",)), tmp_path / "a.fa", tmp_path / "v.tsv")
    rows = table(tmp_path / "v.tsv")
    assert list(rows[0]) == ["id", "prediction", "value", "reason"]
    assert rows[0]["prediction"] == rows[0]["value"]
    assert rows[1]["value"] == "NaN"
    run(make_model(tmp_path, "multilabel", ("a", "b", "c")), tmp_path / "a.fa", tmp_path / "m.tsv")
    row = table(tmp_path / "m.tsv")[0]
    assert row["prediction"] == ";".join(name for name in "abc" if float(row[f"p_{name}"]) >= 0.5)


def test_many_records_pass_in_pieces_and_repeated_ids_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("had.inference.predict._RECORDS", 3)
    model = make_model(tmp_path)
    texts = ["ACGT" * (1 + i % 4) for i in range(8)]
    (tmp_path / "a.fa").write_text("".join(f">s{i % 6}\n{t}\n" for i, t in enumerate(texts)))
    summary = run(model, tmp_path / "a.fa", tmp_path / "out.tsv")
    assert summary["duplicated_ids"] == 2
    rows = table(tmp_path / "out.tsv")
    assert [row["id"] for row in rows] == [f"s{i % 6}" for i in range(8)]
    assert rows[0]["p_yes"] == rows[4]["p_yes"]
    assert rows[0]["p_yes"] != rows[1]["p_yes"]


def test_what_cannot_be_written_is_told_before_anything_is_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(tmp_path)
    (tmp_path / "a.fa").write_text(">s\nACGT\n")
    (tmp_path / "b.csv").write_text("letters\nACGT\n")
    (tmp_path / "c.csv").write_text("sequence\n")
    monkeypatch.setattr("had.inference.predict.predict_logits", None)
    with pytest.raises(UserError, match="is a folder; name a file"):
        run(model, tmp_path / "a.fa", tmp_path)
    # A dry run looks at the input's head, and at the class to show.
    with pytest.raises(UserError, match="columns must include sequence"):
        run(model, tmp_path / "b.csv", tmp_path / "out.tsv", dry_run=True)
    with pytest.raises(UserError, match="no record"):
        run(model, tmp_path / "c.csv", tmp_path / "out.tsv", dry_run=True)
    with pytest.raises(UserError, match="--track 'maybe' is none of the classes no, yes"):
        run(model, tmp_path / "a.fa", tmp_path / "out.bedgraph", track="maybe", dry_run=True)


def test_a_folder_that_may_not_be_written_is_told_before_anything_is_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(tmp_path)
    (tmp_path / "a.fa").write_text(">s\nACGT\n")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    for dry_run in (False, True):
        with pytest.raises(UserError, match=r"out\.tsv cannot be written \(no permission to write into"):
            run(model, tmp_path / "a.fa", tmp_path / "out.tsv", dry_run=dry_run)


def test_intervals_of_records_without_coordinates_are_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    (tmp_path / "a.fa").write_text(">s\nACGT\n>t\nACGG\n")
    (tmp_path / "a.csv").write_text("sequence,chrom,start,end\nACGT,,,\n")
    for name in ("out.bedgraph", "out.bed.gz"):
        for source in ("a.fa", "a.csv"):
            with pytest.raises(UserError, match=rf"{source} has no coordinates .*, which {name} needs"):
                run(model, tmp_path / source, tmp_path / name)
            assert not (tmp_path / name).exists()
    # Without columns of coordinates that is known before anything is predicted; with them a later row may have some.
    with pytest.raises(UserError, match="no coordinates"):
        run(model, tmp_path / "a.fa", tmp_path / "out.bed", dry_run=True)
    run(model, tmp_path / "a.csv", tmp_path / "out.bed", dry_run=True)
    (tmp_path / "a.csv").write_text("sequence,chrom,start,end\nACGT,,,\nACGT,chr1,5,9\n")
    run(model, tmp_path / "a.csv", tmp_path / "out.bedgraph")
    assert (tmp_path / "out.bedgraph").read_text().startswith("chr1\t5\t9\t")


def test_a_row_with_more_fields_than_columns_is_not_predicted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("name,sequence\ngeneA,A,ACGTACGTACGT\ngeneB,ACGT\ngeneC,ACGG,\n")
    summary = run(make_model(tmp_path), tmp_path / "a.csv", tmp_path / "out.tsv")
    rows = table(tmp_path / "out.tsv")
    assert [row["reason"] for row in rows] == ["more fields than the file has columns", "", ""]
    assert rows[0]["p_yes"] == "NaN"
    assert summary["without_prediction"] == {"more fields than the file has columns": 1}


def test_intervals_may_be_of_several_files(tmp_path: Path) -> None:
    for name in ("chr1", "chr2"):
        (tmp_path / f"{name}.fa").write_text(f">{name}\n{'ACGTTGCA' * 10}\n")
    (tmp_path / "a.bed").write_text("chr2\t10\t40\nchr1\t20\t50\n")
    files = [tmp_path / "chr1.fa", tmp_path / "chr2.fa"]
    run(make_model(tmp_path), tmp_path / "a.bed", tmp_path / "out.tsv", genome=files)
    assert [row["reason"] for row in table(tmp_path / "out.tsv")] == ["", ""]
    for place, message in ((files[1], "genome itself"), (tmp_path / "out.fasta", "cannot be written")):
        with pytest.raises(UserError, match=message):
            run(make_model(tmp_path), tmp_path / "a.bed", place, genome=files)


def test_input_that_can_be_read_only_once_and_output_without_a_name_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="can be read only once"):
        run(make_model(tmp_path), tmp_path / "pipe", tmp_path / "out.tsv")
    (tmp_path / "a.fa").write_text(">s\nACGT\n")
    with pytest.raises(UserError, match="/dev/stdout"):
        run(make_model(tmp_path), tmp_path / "a.fa", Path("-"))


def test_wrong_input_is_refused_and_an_older_table_stays(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    out = tmp_path / "out.tsv"
    out.write_text("old")
    (tmp_path / "a.csv").write_text("letters\nACGT\n")
    with pytest.raises(UserError, match="line 1: the columns must include sequence or seq; found letters"):
        run(model, tmp_path / "a.csv", out)
    with pytest.raises(UserError, match="not there"):
        run(model, tmp_path / "absent.csv", out)
    (tmp_path / "b.csv").write_text("sequence\nACGT\n")
    with pytest.raises(UserError, match="no folder"):
        run(model, tmp_path / "b.csv", tmp_path / "none/out.tsv")
    with pytest.raises(UserError, match="itself"):
        run(model, tmp_path / "b.csv", tmp_path / "b.csv")
    (tmp_path / "c.csv").write_text("sequence\n")
    with pytest.raises(UserError, match="no record"):
        run(model, tmp_path / "c.csv", out)
    assert out.read_text() == "old"
    assert not list(tmp_path.glob(".*.part"))


def test_a_scheduler_that_ends_prediction_leaves_no_part_of_a_table(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    (tmp_path / "a.fa").write_text("".join(f">s{i}\n{'ACGTTGCA' * 5}\n" for i in range(5_000)))
    (tmp_path / "out").mkdir()
    says = "print(*os.listdir(os.path.dirname(sys.argv[-1])))"
    script = dying_script("had.inference.predict", "predict_logits", 2, says, "SIGTERM")
    (tmp_path / "ended.py").write_text(script)
    command = [sys.executable, str(tmp_path / "ended.py"), "predict", str(model), str(tmp_path / "a.fa")]
    options = ["--threads", "1", "--device", "cpu", "--out", str(tmp_path / "out/p.tsv")]
    result = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert result.returncode == 143, result.stderr
    assert "had: interrupted" in result.stderr
    assert "part" in result.stdout
    assert not list((tmp_path / "out").iterdir())
