"""Reading labelled sequences: what is kept, what is dropped, what is refused."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from had.dna.labelled import read_labelled, read_splits
from had.errors import UserError


def write(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "a.tsv.gz"])
def test_sequences_and_labels_are_read_and_other_columns_left(tmp_path: Path, name: str) -> None:
    text = "strand,Label,SEQ,note\n+,b,ACGT,x\n-,a,ggnn,y\n"
    data = read_labelled(write(tmp_path / name, text.replace(",", "\t") if ".tsv" in name else text))
    assert data.sequences == ("ACGT", "ggnn")
    assert data.classes == ("a", "b")
    assert data.labels.tolist() == [1, 0]
    assert data.labels.dtype == np.int64
    assert data.ids == ("1", "2")
    assert not data.dropped
    assert not hasattr(data, "strand")


def test_gzip_is_recognised_by_content_and_a_byte_order_mark_is_no_column_name(tmp_path: Path) -> None:
    path = tmp_path / "wrong_name.csv"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbfsequence,label\r\nACGT,0\r\n"))
    assert read_labelled(path).sequences == ("ACGT",)


def test_numeric_classes_sort_as_numbers_and_1_is_1_point_0(tmp_path: Path) -> None:
    data = read_labelled(write(tmp_path / "a.csv", "sequence,label\nA,10\nC,2\nG,1.0\nT,1\n"))
    assert data.classes == ("1", "2", "10")
    assert data.labels.tolist() == [2, 1, 0, 0]


def test_rows_without_sequence_or_label_are_dropped_counted_and_listed(tmp_path: Path) -> None:
    text = "sequence,label\nAC,0\n,1\nGT,\nGG,nan\nTT\n\nTA,1\n"
    data = read_labelled(write(tmp_path / "a.csv", text))
    assert data.sequences == ("AC", "TA")
    assert data.ids == ("1", "6")
    assert [row.line for row in data.dropped] == [3, 4, 5, 6]
    assert data.dropped[0].reason == "an empty sequence"
    assert {row.reason for row in data.dropped[1:]} == {"a missing label"}
    assert "3 dropped for a missing label (line 4, 5, 6)" in data.summary
    assert "2 rows; 0 1, 1 1" in data.summary


def test_long_and_quoted_sequences_are_read(tmp_path: Path) -> None:
    data = read_labelled(write(tmp_path / "a.csv", f'label,sequence\n0,"{"ACGT" * 60_000}"\n1,A\n'))
    assert len(data.sequences[0]) == 240_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sequence,class\nACGT,1\n", "line 1: the columns must include sequence or seq, and label"),
        ("name,label\nx,1\n", "line 1"),
        ("", "line 1.*found nothing"),
        ("sequence,label\n", "no row with a sequence and a label"),
        ("sequence,label\n,1\nAC,\n", "2 rows were looked at"),
        ("sequence,label\nACGT,1\nAC-T,0\n", "line 3: '-' at position 2"),
        ('sequence,label\nAC,1\n"AC"G,1\n', "line 3: not a readable row"),
    ],
)
def test_wrong_files_are_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_labelled(write(tmp_path / "a.csv", text))
    assert "a.csv" in str(error.value)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_labelled(tmp_path / "absent.csv")
    with pytest.raises(UserError, match="cannot be read"):
        read_labelled(tmp_path)
    whole = gzip.compress(b"sequence,label\n" + b"ACGTTAGC,1\n" * 5000)
    (tmp_path / "cut.csv.gz").write_bytes(whole[:-20])
    with pytest.raises(UserError, match=r"cut.csv.gz.*cannot be read"):
        read_labelled(tmp_path / "cut.csv.gz")
    (tmp_path / "bytes.csv").write_bytes(b"sequence,label\nAC,\xff\xfe\n")
    with pytest.raises(UserError, match="UTF-8"):
        read_labelled(tmp_path / "bytes.csv")


def test_a_stored_mapping_is_used_and_unknown_labels_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "sequence,label\nAC,enhancer\nGT,other\n")
    assert read_labelled(path, classes=["other", "enhancer"]).labels.tolist() == [1, 0]
    with pytest.raises(UserError, match="line 3: the label 'other' is none of the classes enhancer"):
        read_labelled(path, classes=["enhancer"])


def test_a_folder_has_one_mapping_for_all_its_splits(tmp_path: Path) -> None:
    write(tmp_path / "train.csv.gz", "sequence,label\nAC,b\nGT,c\n")
    write(tmp_path / "test.csv", "sequence,label\nAC,a\nGT,b\n")
    splits = read_splits(tmp_path)
    assert list(splits) == ["train", "test"]
    assert splits["train"].classes == splits["test"].classes == ("a", "b", "c")
    assert splits["train"].labels.tolist() == [1, 2]
    write(tmp_path / "train.csv", "sequence,label\nAC,b\n")
    with pytest.raises(UserError, match="keep one file for train"):
        read_splits(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no train, dev or test file"):
        read_splits(tmp_path / "empty")


def test_official_files_have_the_rows_their_manifest_says(shared: Path) -> None:
    splits = read_splits(shared / "data/benchmarks/gue/mouse/2")
    assert {name: len(data) for name, data in splits.items()} == {"train": 2620, "dev": 328, "test": 328}
    assert splits["train"].classes == ("0", "1")
    data = read_labelled(shared / "data/benchmarks/nucleotide_transformer_like/enhancers/test.csv.gz")
    assert len(data) == 400
