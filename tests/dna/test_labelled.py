"""Reading labelled sequences: what is kept, what is dropped, what is refused."""

import bz2
import gzip
import lzma
import os
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from had.dna.labelled import read_labelled, read_splits, usable_rows
from had.dna.labelled_rows import iterate_records
from had.dna.labelled_tasks import UNSEEN, LabelledRow, Task, decide_task, targets, unseen_labels
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
        ("", "line 1.*found nothing; the file is empty: name another one"),
        ("dna,class\nACGT,1\n", "found dna, class; rename the columns"),
        ("sequence;label\nACGT;1\n", "found sequence;label; separate the columns by commas or tabs"),
        ("ACGTACGTACGT,1\nACGT,0\n", "found acgtacgtacgt, 1; write a first line that names the columns"),
        ("sequence,label\n", "no row with a sequence and a label"),
        ("sequence,label\n,1\nAC,\n", "2 rows were looked at"),
        ("sequence,label\nACGT,1\nAC-T,0\n", r"line 3: '-' at position 3 \(0-based: 2\)"),
        ('sequence,label\nAC,1\n"AC"G,1\n', "line 3: not a readable row"),
    ],
)
def test_wrong_files_are_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_labelled(write(tmp_path / "a.csv", text))
    assert "a.csv" in str(error.value)


def test_a_message_about_columns_is_short_however_wide_the_table(tmp_path: Path) -> None:
    wide = ",".join(f"gene{i}" for i in range(900))
    for header in (wide, "ACGT" * 3000 + ",1"):
        with pytest.raises(UserError, match="the columns must include sequence") as error:
            read_labelled(write(tmp_path / "a.csv", header + "\n"))
        assert len(str(error.value)) < len(str(tmp_path)) + 400


def test_archives_and_workbooks_are_named_with_what_to_do(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.csv", "sequence,label\nACGT,1\n")
    (tmp_path / "a.csv.bz2").write_bytes(bz2.compress(b"sequence,label\nACGT,1\n"))
    (tmp_path / "a.csv.xz").write_bytes(lzma.compress(b"sequence,label\nACGT,1\n"))
    for name, message in (
        ("a.zip", "is a zip archive or an Excel workbook; unpack it, or save the sheet as CSV"),
        ("a.csv.bz2", "is packed with bzip2; unpack it"),
        ("a.csv.xz", "is packed with xz; unpack it"),
    ):
        with pytest.raises(UserError, match=message):
            read_labelled(tmp_path / name)


def test_a_file_without_labels_says_where_labels_stand(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 1: a missing label\); fill both in .*>name\|label, or label="):
        read_labelled(write(tmp_path / "a.fa", ">s\nACGT\n"))


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_labelled(tmp_path / "absent.csv")
    with pytest.raises(UserError, match="cannot be read"):
        read_labelled(tmp_path)
    whole = gzip.compress(b"sequence,label\n" + b"ACGTTAGC,1\n" * 5000)
    (tmp_path / "cut.csv.gz").write_bytes(whole[:-20])
    with pytest.raises(UserError, match=r"cut.csv.gz.*cannot be read, the gzip file ends too early; copy or pack it"):
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


def test_files_of_splits_are_found_whatever_the_case_of_their_names(tmp_path: Path) -> None:
    write(tmp_path / "Train.csv", "sequence,label\nAC,1\nGT,0\n")
    write(tmp_path / "TEST.fa", ">a|1\nAC\n")
    assert list(read_splits(tmp_path)) == ["train", "test"]
    write(tmp_path / "test.tsv", "sequence\tlabel\nAC\t1\n")
    with pytest.raises(UserError, match="keep one file for test"):
        read_splits(tmp_path)


def test_official_files_have_the_rows_their_manifest_says(shared: Path) -> None:
    splits = read_splits(shared / "data/benchmarks/gue/mouse/2")
    assert {name: len(data) for name, data in splits.items()} == {"train": 2620, "dev": 328, "test": 328}
    assert splits["train"].classes == ("0", "1")
    data = read_labelled(shared / "data/benchmarks/nucleotide_transformer_like/enhancers/test.csv.gz")
    assert len(data) == 400


def test_fasta_labels_follow_the_one_bar_or_label_equals(tmp_path: Path) -> None:
    text = ">chr1:5|b\nAC\nGT\n>two note|label=a other\nGG\n\n>three label=c\nTT\n>four\nAA\n>five|\nAA\n"
    data = read_labelled(write(tmp_path / "a.txt", text))
    assert data.sequences == ("ACGT", "GG", "TT")
    assert [data.classes[i] for i in data.labels] == ["b", "a", "c"]
    assert [(row.line, row.reason) for row in data.dropped] == [(9, "a missing label"), (11, "a missing label")]
    rows, _ = usable_rows(tmp_path / "a.txt")
    assert [row.id for row in rows] == ["chr1:5", "two", "three"]


def test_the_bars_of_ncbi_and_uniprot_headers_make_no_class(tmp_path: Path) -> None:
    headers = ["gi|568815597|ref|NC_000001.11| Homo sapiens", "sp|P1|NAME", "a|1|label=x", "b|0"]
    data = read_labelled(write(tmp_path / "a.fa", "".join(f">{header}\nACGT\n" for header in headers)))
    assert data.classes == ("0", "x")
    assert [(row.line, row.reason) for row in data.dropped] == [
        (1, "a header with several '|' and no label=…"),
        (3, "a header with several '|' and no label=…"),
    ]
    with pytest.raises(UserError, match=r"line 1: a header with several '\|'"):
        read_labelled(write(tmp_path / "b.fa", f">{headers[1]}\nACGT\n"))


MISSING_WORDS = [
    "#N/A",
    "<NA>",
    "-nan",
    "N/A",
    "NA",
    "nan",
    "NULL",
    "None",
    "n/a",
    "#NA",
    "1.#IND",
    "-1.#QNAN",
    "HA;NA",
    "HA; <NA>",
]


def test_the_words_of_excel_and_pandas_for_missing_are_no_classes(tmp_path: Path) -> None:
    rows = "".join(f"ACGT,{word}\n" for word in ["none", "x", "HA;", *MISSING_WORDS])
    data = read_labelled(write(tmp_path / "a.csv", f"sequence,label\n{rows}"))
    assert data.classes == ("HA;", "none", "x")
    assert [row.line for row in data.dropped] == list(range(5, 5 + len(MISSING_WORDS)))
    columns = "".join(f"ACGT,1,{word}\n" for word in ["0", "#N/A", "<NA>", "None"])
    rows, dropped = usable_rows(write(tmp_path / "b.csv", f"sequence,a,b\n{columns}"), ["a", "b"])
    assert (len(rows), len(dropped)) == (1, 3)


@pytest.mark.parametrize("word", [b"ACGTTGCA", b"sequence"])
def test_parquet_with_text_that_is_not_utf8_is_refused(tmp_path: Path, word: bytes) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    table = pa.table({"sequence": ["ACGTTGCA"], "label": [1]})
    parquet.write_table(table, path, compression="none", use_dictionary=False, store_schema=False)
    path.write_bytes(path.read_bytes().replace(word, b"\xff" * 8))
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        read_labelled(path)


def test_a_missing_label_in_a_list_of_parquet_is_missing(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({"sequence": ["AC", "GT"], "label": [["HA", "NP"], ["HA", None]]})
    parquet.write_table(table, tmp_path / "a.parquet")
    rows, dropped = usable_rows(tmp_path / "a.parquet")
    assert [row.label for row in rows] == ["HA;NP"]
    assert [row.line for row in dropped] == [2]


def test_hidden_names_are_neither_classes_nor_splits(tmp_path: Path) -> None:
    for place in ("train/pos", "train/neg", "train/.ipynb_checkpoints", "train/__MACOSX", "test/.ipynb_checkpoints"):
        (tmp_path / place).mkdir(parents=True)
        write(tmp_path / place / "1.txt", "ACGT\n")
    (tmp_path / "train/pos/._1.txt").write_bytes(b"\0\5\26\7")
    splits = read_splits(tmp_path)
    assert list(splits) == ["train"]
    assert splits["train"].classes == ("neg", "pos")
    assert len(splits["train"]) == 2


def test_parquet_is_read_like_csv(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns = {
        "name": ["p", "q", "r", "s"],
        "Sequence": ["AC", "", "GT", None],
        "label": [1, 0, 0, 1],
        "task": ["t"] * 4,
    }
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    data = read_labelled(tmp_path / "a.parquet")
    assert data.sequences == ("AC", "GT")
    assert data.labels.tolist() == [1, 0]
    assert [row.line for row in data.dropped] == [2, 4]
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:60])
    with pytest.raises(UserError, match="Parquet"):
        read_labelled(tmp_path / "cut.parquet")


def rows_of(*labels: str) -> list[LabelledRow]:
    return [LabelledRow(i + 2, i + 1, "ACGT", label) for i, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "wanted", "kind", "classes"),
    [
        (("1", "0", "1"), "auto", "binary", ("0", "1")),
        (("b", "a"), "auto", "binary", ("a", "b")),
        (("10", "2", "1"), "auto", "multiclass", ("1", "2", "10")),
        (("0.5", "1", "2"), "auto", "regression", ("value",)),
        (("1", "2", "3"), "regression", "regression", ("value",)),
        (("a;b", "b", "c"), "auto", "multilabel", ("a", "b", "c")),
        (("0.5", "1.5"), "multiclass", "multiclass", ("0.5", "1.5")),
        (("0", "1"), "multiclass", "multiclass", ("0", "1")),
        # Names of sub-clusters, which Python's float takes for 11 and 12; whole numbers with an exponent; plate wells.
        (("1_1", "1_2", "2_1"), "auto", "multiclass", ("1_1", "1_2", "2_1")),
        (("1e5", "2E+05", "7"), "auto", "multiclass", None),
        (("1E5", "2E5", "A7"), "auto", "multiclass", ("1E5", "2E5", "A7")),
        (("1e-5", "2", "7"), "auto", "regression", ("value",)),
        (("1.5e30", "2", "7"), "auto", "regression", ("value",)),
        (("9" * 30, "2"), "auto", "binary", ("2", "9" * 30)),
        (tuple(f"{i}bp" for i in range(120)), "auto", "multiclass", None),
        (tuple(str(i) for i in range(100)), "auto", "multiclass", None),
    ],
)
def test_the_task_follows_from_the_labels(labels, wanted, kind, classes) -> None:
    task = decide_task(rows_of(*labels), wanted)
    assert task.kind == kind
    assert classes is None or task.classes == classes


@pytest.mark.parametrize(
    ("labels", "wanted", "message"),
    [
        (tuple(str(i) for i in range(101)), "auto", "101 different whole numbers.*--task"),
        (tuple(f"{i}e0" for i in range(101)), "auto", "101 different whole numbers.*--task"),
        (("1.5", "high"), "auto", "line 3: the label 'high' is no number"),
        (("1", "1"), "auto", "the one class '1'"),
        (("1", "2", "3"), "binary", "3 classes"),
        (("1", "2"), "classification", "--task is auto"),
    ],
)
def test_labels_that_fit_no_task_are_refused(labels, wanted, message) -> None:
    with pytest.raises(UserError, match=message):
        decide_task(rows_of(*labels), wanted, source="a.csv")
    with pytest.raises(UserError, match="line 3: the label 'x' is no finite number"):
        targets(rows_of("1", "x"), Task("regression", ("value",)))
    with pytest.raises(UserError, match="line 2: the value 1e39 is too large"):
        targets(rows_of("1e39", "1"), Task("regression", ("value",)))


def test_labels_become_numbers_by_the_stored_mapping() -> None:
    assert targets(rows_of("b", "z", "a"), Task("binary", ("a", "b"))).tolist() == [1, UNSEEN, 0]
    several = Task("multilabel", ("a", "b"))
    assert targets(rows_of("b;a", "b", ""), several).tolist() == [[1, 1], [0, 1], [0, 0]]
    # A name that no training row has, in a column of its own.
    assert targets(rows_of("b;a", "a; z", ""), several).tolist() == [[1, 1, 0], [1, 0, 1], [0, 0, 0]]
    assert unseen_labels(rows_of("b;a", "a; z"), several) == ["z"]


def test_columns_of_zeros_and_ones_are_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "sequence,Liver,brain,x\nAC,1,0,9\nGT,0,0,9\nGG,1.0,1,9\n")
    rows, dropped = usable_rows(path, ["brain", "Liver"])
    task = decide_task(rows, label_columns=["brain", "Liver"])
    assert task == Task("multilabel", ("brain", "Liver"))
    assert targets(rows, task).tolist() == [[0, 1], [0, 0], [1, 1]]
    assert not dropped
    with pytest.raises(UserError, match="names the column 'lung'"):
        usable_rows(path, ["lung"])
    with pytest.raises(UserError, match="line 2: the label column 'x' holds '9'"):
        usable_rows(path, ["x"])
    with pytest.raises(UserError, match="line 1: --labels names the column 'Brain' twice"):
        usable_rows(path, ["brain", "Brain"])


def test_an_empty_cell_of_a_label_column_is_a_missing_label_and_no_zero(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "sequence,a,b\nAC,1,0\nAC,1,\nAC,,NaN\nGT\nGG,0,0\n")
    rows, dropped = usable_rows(path, ["a", "b"])
    assert [(row.line, row.label) for row in rows] == [(2, "a"), (6, "")]
    assert [(row.line, row.reason) for row in dropped] == [(line, "a missing label") for line in (3, 4, 5)]


def test_label_columns_named_by_numbers_are_the_same_whatever_else_a_row_has(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "sequence,01,2\nAC,1,0\nGT,1,1\nGG,0,1\n")
    rows, _ = usable_rows(path, ["01", "2"])
    task = decide_task(rows, label_columns=["01", "2"])
    assert targets(rows, task).tolist() == [[1, 0], [1, 1], [0, 1]]
    assert unseen_labels(rows, task) == []
    with pytest.raises(UserError, match="two labels of one name"):
        decide_task(rows, label_columns=["01", "1"])


def test_a_row_with_more_fields_than_columns_is_refused_not_cut(tmp_path: Path) -> None:
    for text in ("sequence,label\nAC,a\nGT,a,b\n", "sequence\tlabel\nAC\ta\nx\tGT\tb\n"):
        with pytest.raises(UserError, match="line 3: the row has 3 fields, but line 1 names 2"):
            usable_rows(write(tmp_path / "a.csv", text))
    assert len(usable_rows(write(tmp_path / "b.csv", "sequence,label\nAC,a,\nGT,b, \n"))[0]) == 2


def test_a_wrong_letter_in_a_folder_of_classes_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "train/neg").mkdir(parents=True)
    write(tmp_path / "train/neg/3.txt", "AC-T")
    with pytest.raises(UserError, match=r"neg.3\.txt: '-' at position 3 \(0-based: 2\)"):
        read_splits(tmp_path)


def test_parquet_columns_of_bytes_are_text(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({"sequence": pa.array([b"AC", b"GT"], pa.binary()), "label": pa.array([b"a", b"b"], pa.binary())})
    parquet.write_table(table, tmp_path / "a.parquet")
    data = read_labelled(tmp_path / "a.parquet")
    assert (data.sequences, data.classes) == (("AC", "GT"), ("a", "b"))


def test_coordinates_are_kept_beside_the_letters(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "sequence,label,region,start,end\nAC,1,chr1,5,7\nGT,0,,,\n")
    rows, _ = usable_rows(path)
    assert rows[0].locus == ("chr1", 5, 7)
    assert rows[1].locus is None


@pytest.mark.parametrize("names", ["chrom,chromStart,chromEnd", "Chromosome,Start,End"])
def test_coordinates_as_ucsc_and_pandas_write_them_are_read(tmp_path: Path, names: str) -> None:
    path = write(
        tmp_path / "a.csv",
        f"sequence,label,{names}\nAC,1,chr1,5.0,7.0\nGT,0,,,\nGG,0,chr1,7,5\nGG,0,chr1,5.5,7\nGG,0,chr1,99999,1e+05\n"
        f"GG,0,chr1,3,5.123e+01\nGG,0,chr1,3,{'9' * 400}\n",
    )
    assert [row.locus for row in usable_rows(path)[0]] == [
        ("chr1", 5, 7),
        *[None] * 3,
        ("chr1", 99_999, 100_000),
        None,
        None,
    ]


def test_a_folder_per_class_is_read_whatever_the_order_of_the_listing(tmp_path: Path) -> None:
    for split, names in (("train", ["pos", "neg"]), ("test", ["neg", "pos"])):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            for i in (10, 2):
                write(tmp_path / split / name / f"{i}.txt", "ACGT\n" if name == "pos" else "GG\nTT")
    splits = read_splits(tmp_path)
    assert list(splits) == ["train", "test"]
    for data in splits.values():
        assert data.classes == ("neg", "pos")
        assert data.sequences == ("GGTT", "GGTT", "ACGT", "ACGT")
        assert data.labels.tolist() == [0, 0, 1, 1]
    assert [row.id for row in usable_rows(tmp_path / "train")[0]] == ["neg/2", "neg/10", "pos/2", "pos/10"]


def test_columns_of_one_name_are_refused_where_they_are_read(tmp_path: Path) -> None:
    rows = "ACGT,0,1\nACGG,1,2\n"
    for header in ("sequence,label,label", "sequence,label,Sequence", "sequence,LABEL,label"):
        with pytest.raises(UserError, match=r"line 1: 2 columns are named '(label|sequence)'; keep or rename"):
            usable_rows(write(tmp_path / "a.csv", f"{header}\n{rows}"))
    with pytest.raises(UserError, match="2 columns are named 'a'"):
        usable_rows(write(tmp_path / "a.csv", "sequence,a,A\nACGT,0,1\n"), ["a"])
    table = pa.Table.from_arrays([pa.array(["ACGT"]), pa.array([0]), pa.array([1])], names=["seq", "label", "label"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="2 columns are named 'label'"):
        usable_rows(tmp_path / "a.parquet")
    # What nobody reads may be there as often as it likes, labels of sequences to be predicted among them.
    assert len(usable_rows(write(tmp_path / "a.csv", "sequence,label,x,x\nACGT,0,1,1\n"))[0]) == 1
    for header in ("sequence,label,label", "sequence,start,Start"):
        unlabelled = iterate_records(write(tmp_path / "a.csv", f"{header}\n{rows}"), need_label=False)
        assert [record.sequence for record in unlabelled] == ["ACGT", "ACGG"]
    assert len(usable_rows(write(tmp_path / "a.csv", "sequence,label,label,a\nACGT,0,1,1\n"), ["a"])[0]) == 1


def test_parquet_columns_of_records_are_no_labels(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"sequence": ["ACGT"], "label": [{"x": 1}]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="the column 'label' holds struct"):
        usable_rows(tmp_path / "a.parquet")


def test_a_pipe_is_refused_since_it_can_be_read_only_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(UserError, match="can be read only once; write it to a file"):
            usable_rows(path)


def test_a_label_in_a_fasta_header_ends_at_the_next_word(tmp_path: Path) -> None:
    headers = ("s1;label=c0;size=4", "s2 label=a;b", "s3|Label=c1", "s4|label=c;d|x=1", "s5;size=4;label=c0;")
    rows, _ = usable_rows(write(tmp_path / "a.fa", "".join(f">{header}\nACGT\n" for header in headers)))
    assert [row.label for row in rows] == ["c0", "a;b", "c1", "c;d", "c0"]
    assert [row.id for row in rows] == ["s1", "s2", "s3", "s4", "s5;size=4"]


def test_words_for_a_missing_label_are_classes_where_folders_are(tmp_path: Path) -> None:
    for name in ("NA", "EU"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        (tmp_path / "classes" / name / "1.txt").write_text("ACGT")
    rows, dropped = usable_rows(tmp_path / "classes")
    assert [row.label for row in rows] == ["EU", "NA"]
    assert not dropped


def test_many_whole_numbers_ask_for_the_task_though_a_cell_holds_none() -> None:
    rows = [LabelledRow(i + 2, i + 1, "ACGT", label) for i, label in enumerate([*map(str, range(150)), "."])]
    with pytest.raises(UserError, match=r"150 different whole numbers .*\(and '\.' in line 152, which is none\)"):
        decide_task(rows)
    assert decide_task(rows, "multiclass").kind == "multiclass"


def test_numbers_of_thousands_of_digits_are_names(tmp_path: Path) -> None:
    long = "1" * 5000
    assert decide_task([LabelledRow(2, 1, "A", long), LabelledRow(3, 2, "C", "0")]).classes == ("0", long)
