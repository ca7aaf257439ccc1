"""Peaks and their background: windows, matched lengths and GC content, splits by contig, what is refused."""

import re
from pathlib import Path

import numpy as np
import pytest

from had.dna.background import gc_shares, matched_background, nearest_of_their_own
from had.dna.genome import Genome
from had.dna.peak_splits import split_contigs, split_positions
from had.dna.peaks import BACKGROUND, PEAK, Region, peaks_with_background, read_peaks
from had.errors import UserError


def letters(n: int, seed: int, gc: float = 0.5) -> str:
    p = [(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2]
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), n, p=p))


@pytest.fixture(scope="module")
def sequences() -> dict[str, str]:
    """Contigs with rich and poor halves, and a gap."""
    return {f"chr{i}": letters(20_000, 2 * i, 0.35) + "N" * 500 + letters(20_000, 2 * i + 1, 0.65) for i in range(1, 6)}


@pytest.fixture(scope="module")
def genome(sequences: dict[str, str]) -> Genome:
    return Genome.from_sequences(sequences)


def write(path: Path, *rows: str) -> Path:
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


@pytest.fixture
def peaks_file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(5)
    rows = []
    for i in range(150):
        start = int(rng.integers(0, 40_000))
        rows.append(f"chr{1 + i % 5}\t{start}\t{start + int(rng.integers(80, 300))}\tp{i}")
    return write(tmp_path / "peaks.bed", *rows)


def gc_of(text: str) -> float:
    known = [letter for letter in text if letter in "ACGT"]
    return sum(letter in "GC" for letter in known) / len(known)


class TestReading:
    def test_intervals_as_written_keep_their_names(self, genome: Genome, tmp_path: Path) -> None:
        path = write(
            tmp_path / "a.bed", "# made by hand", "track name=x", "chr2\t10\t25\tfirst", "chr1\t7\t9", "chr1\t8\t12\t."
        )
        spans, names, _, notes, _ = read_peaks(path, genome)
        offset = genome.contig("chr2").offset
        assert spans.tolist() == [[offset + 10, offset + 25], [7, 9], [8, 12]]
        assert names == ["first", "line_4", "line_5"]
        assert notes == []

    @pytest.mark.parametrize(("width", "want"), [(20, [120, 140]), (21, [120, 141]), (1, [130, 131])])
    def test_a_width_is_laid_around_the_summit(
        self, genome: Genome, tmp_path: Path, width: int, want: list[int]
    ) -> None:
        path = write(tmp_path / "a.narrowPeak", "chr1\t100\t200\tp\t0\t.\t1\t1\t1\t30")
        assert read_peaks(path, genome, width).spans.tolist() == [want]

    @pytest.mark.parametrize("row", ["chr1\t100\t200\tp\t0\t.\t1\t1\t1\t-1", "chr1\t100\t200"])
    def test_without_a_summit_it_is_laid_around_the_middle(self, genome: Genome, tmp_path: Path, row: str) -> None:
        assert read_peaks(write(tmp_path / "a.narrowPeak", row), genome, 10).spans.tolist() == [[145, 155]]

    @pytest.mark.parametrize("width", [1, 2, 9, 10])
    @pytest.mark.parametrize("row", ["chr1\t{}\t{}\tp\t0\t{}", "chr1\t{}\t{}\tp\t0\t{}\t1\t1\t1\t{}"])
    def test_windows_on_both_strands_are_mirror_images(
        self, genome: Genome, tmp_path: Path, width: int, row: str
    ) -> None:
        for start, end in ((100, 150), (100, 151)):
            plus = row.format(start, end, "+", 30)
            # The same peak as the other strand would count it, from the far end of 1,000 letters.
            minus = row.format(1000 - end, 1000 - start, "-", end - start - 1 - 30)
            (a,), (b,) = (
                read_peaks(write(tmp_path / "a.bed", text), genome, width).spans.tolist() for text in (plus, minus)
            )
            assert b == [1000 - a[1], 1000 - a[0]]

    def test_the_blocks_of_bed12_are_no_summit(self, genome: Genome, tmp_path: Path) -> None:
        row = "chr1\t100\t200\tp\t0\t+\t100\t200\t0\t{}\t{}\t{}"
        blocks = [row.format(2, "10,20,", "0,80,"), row.format(1, "100", "0")]
        # A narrowPeak with more columns behind its summit is no BED12.
        rows = [*blocks[:1], blocks[1].replace("p\t", "q\t"), row.format(30, "2.5", "1.5")]
        spans, _, _, notes, _ = read_peaks(write(tmp_path / "a.bed", rows[0], rows[2]), genome, 10)
        assert spans.tolist() == [[145, 155], [125, 135]]
        assert notes == []
        assert read_peaks(write(tmp_path / "b.bed", rows[1]), genome, 10).spans.tolist() == [[145, 155]]

    def test_a_summit_outside_its_peak_gives_way_to_the_middle(self, genome: Genome, tmp_path: Path) -> None:
        path = write(tmp_path / "a.narrowPeak", *(f"chr1\t100\t200\tp\t0\t.\t1\t1\t1\t{s}" for s in (99, 5000)))
        spans, _, _, notes, _ = read_peaks(path, genome, 10)
        assert spans.tolist() == [[194, 204], [145, 155]]
        assert notes == ["1 peaks have a summit outside of them: their middle was taken (line 2)"]

    @pytest.mark.parametrize(("summit", "start"), [("120.0", 215), ("1.2e2", 215), ("1.2E+02", 215), ("-1.0", 245)])
    def test_a_summit_may_be_written_as_a_float(self, genome: Genome, tmp_path: Path, summit: str, start: int) -> None:
        path = write(tmp_path / "a.narrowPeak", f"chr1\t100\t400\tp\t0\t.\t1\t1\t1\t{summit}")
        spans, _, _, notes, anchor = read_peaks(path, genome, 10)
        assert spans.tolist() == [[start, start + 10]]
        assert (notes, anchor) == ([], "middle" if summit == "-1.0" else "summit")

    @pytest.mark.parametrize("summit", ["-4294966", "-2", "120.5", "peak", "nan", "9" * 5000, "1e400", ""])
    def test_an_unreadable_summit_gives_way_to_the_middle_and_is_counted(
        self, genome: Genome, tmp_path: Path, summit: str
    ) -> None:
        row = "chr1\t{}\t{}\tp\t0\t.\t1\t1\t1\t{}"
        path = write(tmp_path / "a.narrowPeak", row.format(100, 200, 30), row.format(500, 600, summit))
        spans, _, _, notes, _ = read_peaks(path, genome, 10)
        assert spans.tolist() == [[125, 135], [545, 555]]
        assert notes == [
            "1 peaks have a tenth column that is neither a whole number of at least 0 nor -1: their middle was taken "
            "(line 2)"
        ]

    def test_blocks_of_bed12_with_thousands_of_digits_are_read(self, genome: Genome, tmp_path: Path) -> None:
        row = f"chr1\t100\t200\tp\t0\t+\t100\t200\t0\t1\t{'1' * 5000}\t0"
        assert read_peaks(write(tmp_path / "a.bed", row), genome, 10).spans.tolist() == [[96, 106]]

    def test_lines_end_at_line_feeds_alone_and_need_not_be_utf8(self, genome: Genome, tmp_path: Path) -> None:
        names = ["pic\u2028\u00e9", "form\x0cfeed", "next\x85line"]
        text = "".join(f"chr1\t{100 * i}\t{100 * i + 50}\t{name}\r\n" for i, name in enumerate(names))
        (tmp_path / "a.bed").write_bytes("\ufeff".encode() + text.encode() + b"chr2\t1\t9\tpic\xe9")
        assert read_peaks(tmp_path / "a.bed", genome).names == [*names, "pic\u00e9"]

    def test_peaks_that_the_genome_lacks_are_left_out_and_counted(self, genome: Genome, tmp_path: Path) -> None:
        rows = ["chr1\t10\t90", *(f"scaffold_{i}\t1\t9" for i in range(600)), "chr1\t5\t5"]
        path = write(tmp_path / "a.bed", *rows)
        spans, _, _, notes, _ = read_peaks(path, genome)
        assert spans.tolist() == [[10, 90]]
        assert notes == [
            f"{path}: 600 of 602 intervals lie on contigs that the genome lacks (scaffold_0, scaffold_1, scaffold_10, "
            "scaffold_100, scaffold_101 and 595 more), first in line 2: left out",
            f"{path}: 1 of 602 intervals are empty (line 602): left out",
        ]

    def test_what_is_left_out_is_said(self, genome: Genome, tmp_path: Path) -> None:
        rows = ["chr1\t0\t10", "chr1\t100\t200", "chr1\t110\t190\tx\t0\t-", "chr1\t20100\t20300"]
        spans, _, _, notes, _ = read_peaks(write(tmp_path / "a.bed", *rows), genome, 80)
        assert spans.tolist() == [[110, 190]]
        assert [note.split(" (")[1] for note in notes] == ["line 1)", "line 3)", "line 4)"]

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            (["chr1\t0\t40600"], "line 1: the end 40,600"),
            (["# x", "1\t5\t9"], "line 2.*did you mean 'chr1'"),
            (["chr1\tx\t10"], "the start 'x'"),
            (["# nothing"], "no usable peak"),
        ],
    )
    def test_unusable_files_are_named(self, genome: Genome, tmp_path: Path, rows: list[str], message: str) -> None:
        with pytest.raises(UserError, match=message):
            read_peaks(write(tmp_path / "a.bed", *rows), genome)


def test_gc_shares_are_those_of_the_letters(genome: Genome, sequences: dict[str, str]) -> None:
    rng = np.random.default_rng(0)
    text = "".join(sequences.values())
    starts = rng.integers(0, len(text) - 600, 300)
    lengths = rng.integers(1, 600, 300)
    got = gc_shares(genome, starts, lengths)
    for start, length, share in zip(starts, lengths, got, strict=True):
        part = text[start : start + length]
        assert np.isnan(share) if set(part) == {"N"} else share == pytest.approx(gc_of(part))


class TestBackground:
    def test_it_has_the_peaks_lengths_and_gc_and_touches_nothing(
        self, genome: Genome, sequences: dict[str, str], peaks_file: Path, tmp_path: Path
    ) -> None:
        blacklist = write(tmp_path / "black.bed", "chr1\t0\t15000", "chrOther\t1\t2")
        found = peaks_with_background(peaks_file, genome, blacklist=blacklist, ratio=2)
        peaks = [region for region in found.regions if region.label == PEAK]
        background = [region for region in found.regions if region.label == BACKGROUND]
        assert len(background) == 2 * len(peaks)
        lacking = "1 of 2 intervals lie on contigs that the genome lacks (chrOther), first in line 2: left out"
        assert f"{blacklist}: {lacking}" in found.notes
        by_name = {peak.name: peak for peak in peaks}
        taken: dict[str, np.ndarray] = {name: np.zeros(len(text), dtype=int) for name, text in sequences.items()}
        for peak in peaks:
            taken[peak.contig][peak.start : peak.end] = 1
        taken["chr1"][:15_000] = 1
        for region in background:
            peak = by_name[region.name]
            text = sequences[region.contig][region.start : region.end]
            assert len(text) == peak.end - peak.start
            assert set(text) <= set("ACGT")
            assert region.gc == pytest.approx(gc_of(text))
            assert abs(region.gc - peak.gc) <= 0.02 + 1e-9
            assert region.split == peak.split
            assert not taken[region.contig][region.start : region.end].any()
            taken[region.contig][region.start : region.end] = 1

    def test_narrow_windows_leave_whole_peaks_out_of_the_background(self, genome: Genome, tmp_path: Path) -> None:
        # All but 600 letters of the contig are peaks; the last one's window lies beyond its end and is left out.
        rows = [f"chr1\t{start}\t{start + 1000}\tp" for start in range(0, 20_000, 1000)]
        length = genome.contig("chr1").length
        rows += [f"chr1\t20600\t{length - 1}\twide", f"chr1\t{length - 1}\t{length}\tedge"]
        found = peaks_with_background(write(tmp_path / "a.bed", *rows), genome, width=20, fractions=(0.0, 0.0))
        background = [region for region in found.regions if region.label == BACKGROUND]
        assert background
        for region in background:
            assert region.contig != "chr1" or 20_000 <= region.start < region.end <= 20_600

    def test_the_gc_content_of_random_places_would_not_match(self, genome: Genome, peaks_file: Path) -> None:
        """So the test above sees the matching, not the genome's own mean."""
        regions = peaks_with_background(peaks_file, genome, tolerance=1.0).regions
        peaks = [r.gc for r in regions if r.label == PEAK]
        spread = np.abs(np.array(peaks) - np.random.default_rng(0).permutation(peaks))
        assert (spread > 0.02).mean() > 0.5

    def test_equal_seeds_draw_equal_regions(self, genome: Genome, peaks_file: Path) -> None:
        first, second, other = (peaks_with_background(peaks_file, genome, seed=seed).regions for seed in (3, 3, 4))
        assert first == second
        assert first != other

    def test_where_no_place_is_near_enough_the_nearest_is_taken_and_said(self, tmp_path: Path) -> None:
        text = letters(5_000, 1, 0.3)
        genome = Genome.from_sequences({"a": "GC" * 50 + text})
        found = peaks_with_background(write(tmp_path / "p.bed", "a\t0\t100"), genome)
        assert [region.label for region in found.regions] == [PEAK, BACKGROUND]
        assert found.regions[1].gc == max(gc_of(text[i : i + 100]) for i in range(len(text) - 99))
        assert "differ from their peak's GC content" in found.notes[0]

    def test_rare_places_of_like_gc_content_are_found(self, tmp_path: Path) -> None:
        """30 peaks in islands of GC; 30 free islands among 100,000 other letters are just enough."""
        rng = np.random.default_rng(0)
        parts = [letters(1_600, i, 0.35) + letters(200, 100 + i, 0.8) for i in range(60)]
        genome = Genome.from_sequences({"a": "".join(parts)})
        peaks = np.sort(rng.permutation(60)[:30])
        rows = [f"a\t{1_800 * i + 1_600}\t{1_800 * (i + 1)}" for i in peaks]
        found = peaks_with_background(write(tmp_path / "p.bed", *rows), genome, fractions=(0.0, 0.0), tolerance=0.05)
        background = [region for region in found.regions if region.label == BACKGROUND]
        assert len(background) == 30
        # Each island has room for one; the few whose only near one was taken are matched as well as may be.
        far = [region for region in background if region.gc < 0.7]
        assert len(far) <= 3
        assert min(region.gc for region in background) > 0.55

    def test_what_a_sample_misses_is_searched_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As in a whole genome: one place in 200 is rich enough, and few are looked at."""
        monkeypatch.setattr("had.dna.background._FEWEST_PLACES", 20)
        monkeypatch.setattr("had.dna.background._PLACES_EACH", 1)
        genome = Genome.from_sequences({"a": "".join(letters(40_000, i, 0.35) + "GC" * 200 for i in range(20))})
        starts, shares = matched_background(
            genome, np.array([[0, 808_000]]), np.full(10, 200), np.ones(10), tolerance=0.02, seed=0
        )
        assert (starts >= 0).all()
        assert (shares >= 0.98).all()

    def test_what_is_nearest_is_drawn_from_anywhere(self) -> None:
        """Many places have one GC content, and none that of the peaks: no part of the genome may be preferred."""
        genome = Genome.from_sequences({"a": letters(400_000, 3, 0.4)})
        lengths = np.full(400, 20)
        starts, shares = matched_background(
            genome, np.array([[0, 400_000]]), lengths, np.full(400, 0.42), tolerance=0.01, seed=0
        )
        assert (np.abs(shares - 0.42) > 0.01).all()
        assert np.quantile(starts / 400_000, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.1)

    def test_short_peaks_of_mixed_lengths_are_matched_within_the_tolerance(self) -> None:
        genome = Genome.from_sequences({"a": letters(200_000, 4)})
        lengths = np.repeat([20, 21], 200)
        wanted = np.where(lengths == 20, 10 / 20, 10 / 21)
        starts, shares = matched_background(genome, np.array([[0, 200_000]]), lengths, wanted, tolerance=0.02, seed=0)
        assert (starts >= 0).all()
        assert np.abs(shares - wanted).max() <= 0.02

    def test_there_are_places_for_all_however_long_they_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        genome = Genome.from_sequences({"a": letters(400_000, 5)})
        # As 2^29 letters are for regions of thousands of letters in a whole genome.
        monkeypatch.setattr("had.dna.background._MOST_LETTERS", 5_000)
        monkeypatch.setattr("had.dna.background._FEWEST_PLACES", 10)
        starts, _ = matched_background(
            genome, np.array([[0, 400_000]]), np.full(100, 500), np.full(100, 0.5), tolerance=1.0, seed=0
        )
        assert (starts >= 0).all()

    def test_peaks_of_unknown_gc_content_end_too(self, genome: Genome) -> None:
        starts, _ = matched_background(
            genome, np.array([[0, 5_000]]), np.full(3, 50), np.array([0.5, np.nan, 0.5]), tolerance=0.1, seed=0
        )
        assert (starts >= 0).all()

    def test_background_goes_by_its_peaks_strand(self, genome: Genome, tmp_path: Path) -> None:
        rows = [f"chr{1 + i % 5}\t{300 * i}\t{300 * i + 90}\tp{i}\t0\t{'+-.'[i % 3]}" for i in range(60)]
        found = peaks_with_background(write(tmp_path / "p.bed", *rows), genome, ratio=2)
        strand = {region.name: region.strand for region in found.regions if region.label == PEAK}
        assert strand == {f"p{i}": "+-."[i % 3] for i in range(60)}
        assert all(region.strand == strand[region.name] for region in found.regions)
        assert "20 of 60 peaks lie on strand -" in found.notes[0]

    @pytest.mark.parametrize("seed", range(20))
    def test_the_nearest_of_sorted_values_are_given_out_once(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        values = np.sort(rng.integers(0, 30, 60) / 30)
        wanted = np.sort(rng.integers(0, 36, int(rng.integers(1, 61))) / 30)
        at = nearest_of_their_own(values, wanted)
        assert (np.diff(at) > 0).all()
        assert at[0] >= 0
        assert at[-1] < 60
        alone = np.array([nearest_of_their_own(values, one)[0] for one in wanted[:, None]])
        assert np.abs(values[alone] - wanted).tolist() == np.abs(values - wanted[:, None]).min(1).tolist()

    def test_a_genome_too_small_for_all_gives_what_it_has(self, tmp_path: Path) -> None:
        genome = Genome.from_sequences({"a": letters(1_000, 1)})
        rows = [f"a\t{start}\t{start + 100}" for start in range(0, 800, 100)]
        found = peaks_with_background(write(tmp_path / "p.bed", *rows), genome, tolerance=1.0)
        background = [region for region in found.regions if region.label == BACKGROUND]
        assert 1 <= len(background) <= 2
        assert "could not be placed" in found.notes[0]

    def test_more_background_than_the_genome_has_letters_is_refused_at_once(
        self, genome: Genome, peaks_file: Path
    ) -> None:
        with pytest.raises(UserError, match=r"100,000,000 background regions .* smaller --negatives"):
            peaks_with_background(peaks_file, genome, ratio=10**8)

    def test_no_room_at_all_is_an_error(self, tmp_path: Path) -> None:
        genome = Genome.from_sequences({"a": letters(100, 1)})
        with pytest.raises(UserError, match="no room for background"):
            peaks_with_background(write(tmp_path / "p.bed", "a\t0\t90"), genome)

    def test_nothing_allowed_gives_nothing(self, genome: Genome) -> None:
        starts, shares = matched_background(
            genome, np.zeros((0, 2), dtype=np.int64), np.array([10]), np.array([0.5]), 0.02, 0
        )
        assert starts.tolist() == [-1]
        assert np.isnan(shares).all()


COUNTS = {"chr1": 50, "chr2": 40, "chr3": 10, "chr4": 12, "chr5": 9}


class TestSplit:
    def test_drawn_contigs_hold_about_the_wanted_share(self) -> None:
        for seed in range(20):
            split = split_contigs(COUNTS, [], [], (0.1, 0.1), seed)
            for part in ("dev", "test"):
                held = sum(COUNTS[name] for name, own in split.items() if own == part)
                assert 9 <= held <= 24

    def test_named_contigs_decide(self) -> None:
        split = split_contigs(COUNTS, ["chr2"], ["chr1"], (0.1, 0.1), 0)
        assert split == {"chr1": "test", "chr2": "dev", "chr3": "train", "chr4": "train", "chr5": "train"}

    def test_one_contig_always_trains(self) -> None:
        assert split_contigs({"a": 5}, [], [], (0.5, 0.4), 0) == {"a": "train"}
        assert "train" in split_contigs({"a": 5, "b": 5, "c": 5}, [], [], (0.4, 0.4), 0).values()

    def test_all_regions_of_a_contig_are_in_one_split(self, genome: Genome, peaks_file: Path) -> None:
        found = peaks_with_background(peaks_file, genome, valid_contigs=["chr2"], test_contigs=["chr4"])
        assert {(r.contig, r.split) for r in found.regions} == {
            ("chr1", "train"), ("chr2", "dev"), ("chr3", "train"), ("chr4", "test"), ("chr5", "train")
        }  # fmt: skip
        assert re.fullmatch(r"by contig: validation chr2 \(\d\d.\d % of the peaks\); test chr4 \(.*\)", found.split)
        assert isinstance(found.regions[0], Region)

    def test_hundreds_of_contigs_are_not_all_named(self, tmp_path: Path) -> None:
        many = Genome.from_sequences({f"scaffold_{i}": letters(600, i) for i in range(300)})
        path = write(tmp_path / "p.bed", *(f"scaffold_{i}\t100\t150" for i in range(300)))
        assert re.search(
            r"validation (scaffold_\d+, ){4}scaffold_\d+ and \d\d more \(",
            found := peaks_with_background(path, many).split,
        ), found
        assert len(found) < 300

    def test_a_contig_cannot_do_both(self, genome: Genome, peaks_file: Path) -> None:
        with pytest.raises(UserError, match="chr2"):
            peaks_with_background(peaks_file, genome, valid_contigs=["chr2"], test_contigs=["chr2"])

    @pytest.mark.parametrize("option", ["valid_contigs", "test_contigs"])
    def test_a_named_contig_without_peaks_is_refused(self, genome: Genome, tmp_path: Path, option: str) -> None:
        path = write(tmp_path / "p.bed", *(f"chr1\t{s}\t{s + 50}" for s in range(0, 9000, 300)), "chr2\t5\t60")
        with pytest.raises(UserError, match="no usable peak on chr3, chr4, named for"):
            peaks_with_background(path, genome, **{option: ["chr3", "chr4"]})

    def test_borders_by_position_cut_no_peak(self) -> None:
        rng = np.random.default_rng(1)
        for _ in range(100):
            n = int(rng.integers(1, 40))
            start = rng.integers(0, 1_000, n)
            spans = np.stack([start, start + rng.integers(1, 60, n)], axis=1)
            valid, test = split_positions(spans, (0.2, 0.1))
            assert valid <= test
            for border in (valid, test):
                assert not ((spans[:, 0] < border) & (spans[:, 1] > border)).any()
            assert (spans[:, 1] <= valid).any()

    def test_borders_lie_where_the_fractions_are_reached(self) -> None:
        spans = np.array([[10 * i, 10 * i + 5] for i in range(100)])
        assert split_positions(spans, (0.2, 0.1)) == (700, 900)
        assert split_positions(spans, (0.2, 0.0)) == (800, np.iinfo(np.int64).max)

    def test_one_contig_is_cut_by_position(self, genome: Genome, tmp_path: Path) -> None:
        rows = [f"chr3\t{start}\t{start + 50}" for start in range(0, 20_000, 200)]
        found = peaks_with_background(write(tmp_path / "p.bed", *rows), genome)
        assert found.split.startswith("by position")
        by_split = {
            split: [(r.start, r.end) for r in found.regions if r.split == split] for split in ("train", "dev", "test")
        }
        assert [len(by_split[split]) for split in ("train", "dev", "test")] == [160, 20, 20]
        assert max(end for _, end in by_split["train"]) <= min(start for start, _ in by_split["dev"])
        assert max(end for _, end in by_split["dev"]) <= min(start for start, _ in by_split["test"])
