import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from had.dna import Genome, Interval, acgt_stretches, make_splits, read_bed, tile
from had.dna.spans import intersect, merge, n_bases, subtract
from had.errors import UserError

L = 10


def random_letters(n: int, seed: int = 0) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), n))


@pytest.fixture(scope="module")
def genome() -> Genome:
    return Genome.from_sequences({"chr1": random_letters(2_000), "chr2": random_letters(1_000), "tiny": "ACGT" * 10})


@pytest.fixture
def bed(tmp_path: Path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "x.bed"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def bases(spans: np.ndarray) -> set[int]:
    return {i for start, end in spans.tolist() for i in range(start, end)}


span_lists = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 15)), max_size=8).map(
    lambda pairs: np.array([(start, start + length) for start, length in pairs], dtype=np.int64).reshape(-1, 2)
)


@settings(max_examples=60, deadline=None)
@given(span_lists, span_lists)
def test_span_algebra_is_that_of_sets(a: np.ndarray, b: np.ndarray) -> None:
    merged_a, merged_b = merge(a), merge(b)
    assert bases(merged_a) == bases(a)
    assert n_bases(merged_a) == len(bases(a))
    assert bases(intersect(merged_a, merged_b)) == bases(a) & bases(b)
    assert bases(subtract(merged_a, b)) == bases(a) - bases(b)
    for result in (merged_a, intersect(merged_a, merged_b), subtract(merged_a, b)):
        assert (result[:, 0] < result[:, 1]).all()
        assert (result[1:, 0] >= result[:-1, 1]).all()


def test_spans_that_only_touch_stay_apart() -> None:
    assert merge(np.array([[5, 9], [0, 5], [8, 12]])).tolist() == [[0, 5], [5, 12]]


@settings(max_examples=40, deadline=None)
@given(st.text("ACGTN", min_size=1, max_size=80), span_lists, st.integers(1, 8))
def test_stretches_and_tiles_hold_no_other_letter(letters: str, spans: np.ndarray, length: int) -> None:
    genome = Genome.from_sequences({"a": letters})
    inside = merge(np.minimum(spans, len(letters)))
    inside = inside[inside[:, 0] < inside[:, 1]]
    stretches = acgt_stretches(genome, inside)
    assert bases(stretches) == {i for i in bases(inside) if letters[i] != "N"}
    starts = tile(stretches, length)
    assert starts.size == sum((end - start) // length for start, end in stretches.tolist())
    assert (np.diff(starts) >= length).all()
    assert all("N" not in letters[s : s + length] and len(letters[s : s + length]) == length for s in starts)


def test_bed_rows_are_read_as_written(genome: Genome, bed) -> None:
    text = (
        '# comment\ntrack name="x"\nbrowser position chr1\n\n'
        "chr1\t0\t100\ttrain\r\nchr2\t5\t20\tVALID\textra\t+\nchr1\t200\t300\ttest\n"
    )
    expected = [
        Interval("chr1", 0, 100, "train", 5),
        Interval("chr2", 5, 20, "validation", 6),
        Interval("chr1", 200, 300, "test", 7),
    ]
    assert read_bed(bed(text), genome) == expected
    assert read_bed(bed(gzip.compress(text.encode())), genome) == expected
    assert read_bed(bed("\ufeff" + text.replace("\t", "  ")), genome) == expected


@pytest.mark.parametrize("word", ["valid", "validation", "val", "dev", "Validation"])
def test_words_for_validation_mean_the_same(genome: Genome, bed, word: str) -> None:
    assert read_bed(bed(f"chr1\t0\t9\t{word}\n"), genome)[0].split == "validation"


def test_a_column_of_feature_names_is_no_split(genome: Genome, bed) -> None:
    rows = read_bed(bed("chr1\t0\t900\tgeneA\nchr2\t0\t900\tgeneB\n"), genome)
    assert [row.split for row in rows] == [None, None]
    splits = make_splits(genome, bed("chr1\t0\t900\tgeneA\nchr2\t0\t900\tgeneB\n"), length=L)
    assert splits.train.tolist() == [[0, 900], [2_000, 2_900]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("chr1\t5", "has contig, start and end"),
        ("chr1", "has contig, start and end"),
        ("chr1\tx\t9", "the start 'x' is not a whole number"),
        ("chr1\t0\t9.5", "the end '9.5' is not a whole number"),
        ("chr1\t-3\t9", "the interval begins before chr1; is this file made for another assembly"),
        ("chr1\t1_0\t90", "the start '1_0' is not a whole number"),
        ("chr1\t0\t1e3", "the end '1e3' is not a whole number"),
        ("chrom\tstart\tend", "start a line of column names with '#'"),
        (f"chr1\t0\t{'9' * 5000}", "the end '9{60}' is not a whole number"),
        ("chr1\t0\t2001", r"beyond the end of chr1 \(2,000 bp\)"),
        ("chr1\t200\t300\texon", "the fourth column is 'exon', but other rows have a split"),
        ("chr1\t200\t300", "the fourth column is '', but other rows have a split"),
    ],
)
def test_bad_rows_are_refused_with_file_and_line(genome: Genome, bed, row: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_bed(bed(f"# x\nchr1\t0\t100\ttrain\n{row}\n"), genome)
    assert "x.bed, line 3" in str(caught.value)


def test_what_the_genome_lacks_is_left_out_and_said(genome: Genome, bed) -> None:
    path = bed("chr1\t0\t900\tnoé\u2028\x0c\x85\nchrUn\t0\t9\nchr1\t9\t9\nchrUn\t0\t9\nchr2\t4\t2\n")
    said = [
        "2 of 5 intervals lie on contigs that the genome lacks (chrUn), first in line 2",
        "2 of 5 intervals are empty",
    ]
    with pytest.warns(UserWarning, match="left out") as caught:
        assert read_bed(path, genome) == [Interval("chr1", 0, 900, None, 1)]
    warned = [str(warning.message) for warning in caught]
    assert [text in warning for text, warning in zip(said, warned, strict=True)] == [True, True]
    splits = make_splits(genome, path, length=L)
    assert splits.train.tolist() == [[0, 900]]
    assert splits.warnings[:2] == warned


@pytest.mark.parametrize("row", ["1\t0\t100", "chr1\t9\t9"])
def test_a_bed_of_which_the_genome_has_nothing_is_refused(genome: Genome, bed, row: str) -> None:
    hint = "did you mean 'chr1'" if row.startswith("1") else "1 of 1 intervals are empty \\(line 1\\)"
    with pytest.raises(UserError, match=f"no interval of this genome.*{hint}"):
        make_splits(genome, bed(f"{row}\n"), length=L)


def test_an_empty_bed_is_refused(genome: Genome, bed) -> None:
    with pytest.raises(UserError, match=r"x\.bed has no interval"):
        read_bed(bed("# nothing\n\n"), genome)


def test_bed_splits_decide_and_overlaps_within_one_are_merged(genome: Genome, bed) -> None:
    path = bed("chr1\t50\t150\ttrain\nchr1\t0\t100\ttrain\nchr2\t0\t100\tvalid\nchr2\t100\t200\ttest\n")
    splits = make_splits(genome, path, length=L)
    assert splits.train.tolist() == [[0, 150]]
    assert splits.validation.tolist() == [[2_000, 2_100]]
    assert splits.test.tolist() == [[2_100, 2_200]]
    assert splits.warnings == []
    assert "x.bed" in splits.description
    assert "train 150 bp" in splits.description


@pytest.mark.parametrize("first", ["train", "test"])
def test_overlaps_between_splits_are_refused_with_both_lines(genome: Genome, bed, first: str) -> None:
    rows = f"chr2\t0\t50\ttrain\nchr1\t0\t500\t{first}\nchr1\t10\t20\t{first}\nchr1\t499\t600\tvalid\n"
    with pytest.raises(UserError, match=rf"line 2 \({first}\) and line 4 \(validation\) overlap on chr1"):
        make_splits(genome, bed(rows), length=L)


def test_stretched_rows_are_clipped_and_shared_bases_are_told(genome: Genome, bed) -> None:
    path = bed("chr1\t0\t100\ttrain\nchr1\t400\t500\tvalid\nchr2\t900\t950\ttest\n")
    splits = make_splits(genome, path, length=L, stretch=450)
    assert splits.train.tolist() == [[0, 450]]
    assert splits.validation.tolist() == [[400, 850]]
    assert splits.test.tolist() == [[2_900, 3_000]]
    assert splits.warnings == ["train and validation share 50 stretched bases, 11.1 % of validation"]


@pytest.mark.parametrize("stretch", [0, -5])
def test_a_senseless_stretch_is_refused(genome: Genome, bed, stretch: int) -> None:
    with pytest.raises(UserError, match="1 bp or more"):
        make_splits(genome, bed("chr1\t0\t100\n"), length=L, stretch=stretch)
    with pytest.raises(UserError, match="give --bed"):
        make_splits(genome, length=L, stretch=100)


def test_a_bed_without_training_rows_is_refused(genome: Genome, bed) -> None:
    with pytest.raises(UserError, match="no row of the split train"):
        make_splits(genome, bed("chr1\t0\t100\ttest\n"), length=L)


def test_named_contigs_are_held_out(genome: Genome) -> None:
    splits = make_splits(genome, valid_contigs=["chr2"], test_contigs=["tiny"], length=L)
    assert splits.train.tolist() == [[0, 2_000]]
    assert splits.validation.tolist() == [[2_000, 3_000]]
    assert splits.test.tolist() == [[3_000, 3_040]]
    assert "validation: chr2" in splits.description


def test_named_contigs_hold_out_intervals_of_a_bed_without_splits(genome: Genome, bed) -> None:
    splits = make_splits(genome, bed("chr1\t5\t100\nchr2\t7\t90\n"), valid_contigs=["chr2"], length=L)
    assert splits.train.tolist() == [[5, 100]]
    assert splits.validation.tolist() == [[2_007, 2_090]]


def test_test_contigs_alone_leave_validation_to_the_ends_of_records(genome: Genome) -> None:
    splits = make_splits(genome, test_contigs=["chr2"], length=L)
    assert splits.test.tolist() == [[2_000, 3_000]]
    assert splits.validation.tolist() == [[1_900, 2_000]]
    assert splits.train.tolist() == [[0, 1_890], [3_000, 3_040]]


@pytest.mark.parametrize(
    ("valid", "test", "message"),
    [
        (["chr1"], ["chr1"], "named for validation and for test"),
        (["chr1", "chr2", "tiny"], [], "leaves nothing to train on"),
        (["chr7"], [], "no record 'chr7'"),
    ],
)
def test_impossible_contigs_are_refused(genome: Genome, valid: list[str], test: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_splits(genome, valid_contigs=valid, test_contigs=test, length=L)


def test_contigs_named_beside_a_bed_with_splits_are_not_used(genome: Genome, bed) -> None:
    path = bed("chr1\t0\t100\ttrain\nchr2\t0\t100\tvalid\n")
    splits = make_splits(genome, path, valid_contigs=["chr1"], length=L)
    assert splits.train.tolist() == [[0, 100]]
    assert "are not used" in splits.warnings[0]


def test_a_bed_without_validation_rows_leaves_it_to_the_next_rule(genome: Genome, bed) -> None:
    splits = make_splits(genome, bed("chr1\t0\t2000\ttrain\nchr2\t0\t9\ttest\n"), length=L)
    assert splits.validation.tolist() == [[1_900, 2_000]]
    assert splits.test.tolist() == [[2_000, 2_009]]


def test_the_last_twentieth_of_long_records_is_held_out_behind_a_gap(genome: Genome) -> None:
    splits = make_splits(genome, length=L)
    assert splits.train.tolist() == [[0, 1_890], [2_000, 2_940], [3_000, 3_040]]
    assert splits.validation.tolist() == [[1_900, 2_000], [2_950, 3_000]]
    assert "2 of 3 records" in splits.description
    assert splits.warnings == []


def test_records_of_just_a_hundred_windows_are_split(genome: Genome) -> None:
    splits = make_splits(genome, length=20)
    assert splits.validation.tolist() == [[1_900, 2_000]]
    assert make_splits(genome, length=21).validation.size == 0


def test_a_small_genome_trains_with_a_warning() -> None:
    splits = make_splits(Genome.from_sequences({"a": "ACGT" * 10}), length=L)
    assert splits.train.tolist() == [[0, 40]]
    assert len(splits.validation) == 0
    assert "training runs without validation" in splits.warnings[0]
    assert "validation: none" in splits.description


def test_a_held_out_end_of_n_is_warned_of() -> None:
    splits = make_splits(Genome.from_sequences({"a": random_letters(1_000) + "N" * 100}), length=L)
    assert "no validation window" in splits.warnings[0]


def test_a_genome_without_one_training_window_is_refused() -> None:
    with pytest.raises(UserError, match=r"no training interval holds 10 letters.*shorter"):
        make_splits(Genome.from_sequences({"a": "ACGTACGTA" + "N" * 50}), length=L)


def test_real_chromosome_tiles_into_windows_of_acgt(shared: Path) -> None:
    genome = Genome.open(shared / "data" / "genomes" / "sacCer3.fa.gz", progress=False)
    splits = make_splits(genome)
    starts = tile(acgt_stretches(genome, splits.validation), 1_020)
    assert genome.fetch(starts, 1_020).max() <= 3
    index, _ = genome.locate(starts)
    last, _ = genome.locate(starts + 1_019)
    assert (index == last).all()
    assert "16 of 17 records" in splits.description
