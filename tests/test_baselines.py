"""Markov chains, tables of 6-mer means and k-mer regression against slow definitions."""

from collections import Counter
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingClassifier

from had.baselines import (
    HiddenGroupBaselines,
    KmerLogisticRegression,
    KmerTable,
    MarkovModel,
    MeanVector,
    PlacesBoosting,
    PlacesLogisticRegression,
)
from had.baselines import markov as markov_module
from had.baselines.evidence import position_evidence, strand_evidence
from had.dna import alphabet
from had.dna.labelled import read_splits
from had.errors import UserError
from had.metrics import mcc

KMERS = ["".join(letters) for letters in product("ACGT", repeat=6)]
CONTEXTS = ["".join(letters) for letters in product("ACGT", repeat=5)]
PAIR = str.maketrans("ACGT", "TGCA")


def random_codes(seed: int, *shape: int) -> np.ndarray:
    """Letters with strong first-order structure, so that a chain has something to learn."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 4, shape).astype(np.uint8)
    repeat = rng.random(shape) < 0.4
    for i in range(1, shape[-1]):
        codes[..., i] = np.where(repeat[..., i], (codes[..., i - 1] + 1) % 4, codes[..., i])
    return codes


def index(word: str | None) -> int | None:
    return None if word is None else int("".join(str("ACGT".index(letter)) for letter in word), 4)


class SlowChain:
    """Order-5 chain as a dictionary, both strands, pseudo-count 1."""

    def __init__(self, texts: list[str]) -> None:
        self.counts: Counter[str] = Counter()
        for text in texts:
            for strand in (text, text.translate(PAIR)[::-1]):
                self.counts.update(strand[i : i + 6] for i in range(len(strand) - 5))

    @cache  # noqa: B019
    def next_letter(self, context: str, letter: str) -> float:
        total = sum(self.counts[context + other] + 1 for other in "ACGT")
        return (self.counts[context + letter] + 1) / total

    def chain(self, text: str) -> float:
        p = 1.0
        for i in range(5, len(text)):
            p *= self.next_letter(text[i - 5 : i], text[i])
        return p

    def context_weight(self, context: str) -> float:
        return sum(self.counts[context + letter] + 1 for letter in "ACGT")

    def two_sided(self, left: str, right: str | None) -> np.ndarray:
        p = np.array([self.chain(left + w + (right or "")) for w in KMERS])
        return p / p.sum()

    def at_left_edge(self, w: str, right: str | None) -> float:
        """p(w, right) with the context before w averaged out by its frequency."""
        weights = [self.context_weight(x) for x in CONTEXTS]
        before = sum(weight * self.chain(x + w) for x, weight in zip(CONTEXTS, weights, strict=True))
        return before / sum(weights) * self.chain(w[1:] + (right or ""))


@pytest.fixture(scope="module")
def training() -> list[np.ndarray]:
    return [random_codes(1, 60_000), random_codes(2, 7), random_codes(3, 4), random_codes(4, 0)]


@pytest.fixture(scope="module")
def slow(training: list[np.ndarray]) -> SlowChain:
    return SlowChain([alphabet.decode(codes) for codes in training])


@pytest.fixture(scope="module")
def predictors(training: list[np.ndarray]) -> HiddenGroupBaselines:
    return HiddenGroupBaselines(MarkovModel().fit(training))


def test_counts_equal_a_dictionary_on_both_strands(training: list[np.ndarray], slow: SlowChain) -> None:
    model = MarkovModel().fit(training)
    assert model.counts.ravel().tolist() == [slow.counts[w] for w in KMERS]
    assert model.probabilities.sum(axis=1) == pytest.approx(np.ones(1024))
    assert model.probabilities[0, 2] == pytest.approx(slow.next_letter("AAAAA", "G"))
    one_strand = MarkovModel(order=1).fit([alphabet.encode_bytes(b"AACA")], both_strands=False)
    assert one_strand.counts.tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [0] * 4, [0] * 4]
    assert MarkovModel(order=0).fit([alphabet.encode_bytes(b"AAC")]).counts.tolist() == [[2, 1, 1, 2]]


def test_counting_in_blocks_and_in_several_calls_changes_nothing(
    training: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = MarkovModel().fit(training).counts
    monkeypatch.setattr(markov_module, "_BLOCK", 37)
    assert np.array_equal(MarkovModel().fit(iter(training)).counts, whole)
    assert np.array_equal(MarkovModel().fit(training[:1]).fit(training[1:]).counts, whole)


def test_a_stretch_of_six_letters_is_one_6_mer_and_a_shorter_one_none() -> None:
    codes = np.array([0, 1, 2, 3, 3, 1], dtype=np.uint8)
    assert MarkovModel(5).fit([codes], both_strands=False).counts.sum() == 1
    assert MarkovModel(5).fit([codes[:5]], both_strands=False).counts.sum() == 0


def test_base_frequencies_are_shares_of_the_letters_counted_with_one_more_of_each() -> None:
    codes = np.array([0, 0, 0, 0, 0, 1, 1, 1, 3], dtype=np.uint8)
    # Four letters follow five others.
    assert MarkovModel(5).fit([codes], both_strands=False).base_frequencies.tolist() == [1 / 8, 4 / 8, 1 / 8, 2 / 8]


def test_stretches_with_n_are_refused() -> None:
    with pytest.raises(ValueError, match="split the sequence"):
        MarkovModel().fit([alphabet.encode_bytes(b"ACGTNACGTACGT")])


def test_two_sided_distribution_equals_enumerating_all_6_mers(
    predictors: HiddenGroupBaselines, slow: SlowChain
) -> None:
    for left, right in [("ACGTA", "TTGCA"), ("AAAAA", "CCCCC"), ("GATTA", None)]:
        p = predictors.group_distribution(index(left), index(right))
        assert p.sum() == pytest.approx(1)
        np.testing.assert_allclose(p, slow.two_sided(left, right), rtol=1e-9)


def test_before_the_first_group_the_context_is_averaged_out(predictors: HiddenGroupBaselines, slow: SlowChain) -> None:
    words = ["ACGTAC", "AAAAAA", "GATTAC", "CATCAT"]
    for right in ("CATCA", None):
        p = predictors.group_distribution(None, index(right))
        assert p.sum() == pytest.approx(1)
        expected = np.array([slow.at_left_edge(w, right) for w in words])
        found = p[[KMERS.index(w) for w in words]]
        np.testing.assert_allclose(found / found[0], expected / expected[0], rtol=1e-9)
    # Without a right context nothing is left to normalise.
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_scores_of_hidden_groups_equal_the_slow_chain_inside_and_at_both_edges(
    predictors: HiddenGroupBaselines, slow: SlowChain
) -> None:
    codes = random_codes(9, 2, 24)
    mask = np.array([[True, True, False, True], [False, False, True, False]])
    result = predictors.score_groups(codes, mask)
    bases = predictors.score_bases(codes, mask)
    total = sum(slow.counts[w] + 1 for w in KMERS)
    base_counts = np.array([sum(slow.counts[w] + 1 / 1024 for w in KMERS if w[5] == b) for b in "ACGT"])
    letters = np.array([list(w) for w in KMERS])
    for h, (row, group) in enumerate(np.argwhere(mask)):
        text = alphabet.decode(codes[row])
        true = text[6 * group : 6 * group + 6]
        w = KMERS.index(true)
        left = text[6 * group - 5 : 6 * group] if group > 0 else None
        right = text[6 * group + 6 : 6 * group + 11] if group < 3 else None
        if left is None:  # checked above
            two_sided, left_only = (predictors.group_distribution(None, index(r)) for r in (right, None))
        else:
            two_sided, left_only = slow.two_sided(left, right), slow.two_sided(left, None)
        assert result["uniform"].nll[h] == pytest.approx(np.log(4096))
        assert result["unigram"].nll[h] == pytest.approx(-np.log((slow.counts[true] + 1) / total))
        assert result["left"].nll[h] == pytest.approx(-np.log(left_only[w]))
        assert result["two_sided"].nll[h] == pytest.approx(-np.log(two_sided[w]))
        assert result["left"].correct[h] == (left_only.argmax() == w)
        assert result["two_sided"].correct[h] == (two_sided.argmax() == w)
        for i, base in enumerate(true):
            marginal = np.array([two_sided[letters[:, i] == b].sum() for b in "ACGT"])
            assert bases["two_sided"].nll[h, i] == pytest.approx(-np.log(marginal["ACGT".index(base)]), rel=1e-5)
            assert bases["two_sided"].correct[h, i] == ("ACGT"[marginal.argmax()] == base)
            expected = base_counts["ACGT".index(base)] / base_counts.sum()
            assert bases["frequency"].nll[h, i] == pytest.approx(-np.log(expected), rel=1e-3)


def test_the_most_probable_6_mer_is_called_right(predictors: HiddenGroupBaselines) -> None:
    context = alphabet.encode_bytes(b"ACGTACGTACGTACGTAC").reshape(1, 18)
    state = index("CGTAC"), index("ACGTA")
    windows = context.copy()
    assert alphabet.decode(windows[0, 1:6]) == "CGTAC"
    assert alphabet.decode(windows[0, 12:17]) == "ACGTA"
    best = predictors.group_distribution(*state).argmax()
    windows[0, 6:12] = ["ACGT".index(letter) for letter in KMERS[best]]
    hidden = np.array([[False, True, False]])
    assert predictors.score_groups(windows, hidden)["two_sided"].correct.tolist() == [1.0]
    windows[0, 8] = (windows[0, 8] + 1) % 4
    assert predictors.score_groups(windows, hidden)["two_sided"].correct.tolist() == [0.0]


def test_base_marginals_sum_to_one_everywhere(predictors: HiddenGroupBaselines) -> None:
    np.testing.assert_allclose(predictors.base_marginals_XY.sum(axis=-1), 1, atol=1e-5)


def test_more_context_predicts_better_on_the_training_process() -> None:
    # One strand: the process has a direction, and mixing both would blur it.
    model = HiddenGroupBaselines(MarkovModel().fit([random_codes(5, 100_000)], both_strands=False))
    codes, mask = random_codes(6, 40, 240), np.random.default_rng(0).random((40, 40)) < 0.15
    groups = {name: score.nll.mean() for name, score in model.score_groups(codes, mask).items()}
    assert groups["two_sided"] < groups["left"] < groups["unigram"] < groups["uniform"]
    bases = model.score_bases(codes, mask)
    assert bases["two_sided"].nll.mean() < bases["frequency"].nll.mean() - 0.05
    assert bases["two_sided"].correct.mean() > bases["frequency"].correct.mean() + 0.05


def test_windows_that_do_not_fit_are_refused(predictors: HiddenGroupBaselines) -> None:
    mask = np.ones((1, 2), dtype=bool)
    with pytest.raises(ValueError, match="do not fit"):
        predictors.score_groups(np.zeros((1, 13), dtype=np.uint8), mask)
    with pytest.raises(ValueError, match="other than A, C, G, T"):
        predictors.score_groups(np.full((1, 12), alphabet.N, dtype=np.uint8), mask)
    with pytest.raises(ValueError, match="order 5"):
        HiddenGroupBaselines(MarkovModel(order=3))
    assert predictors.score_bases(np.zeros((1, 12), dtype=np.uint8), ~mask)["two_sided"].nll.shape == (0, 6)


def teacher_windows(seed: int = 0, n: int = 5, width: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    kmers = rng.integers(0, 40, (n, 7))
    return rng.normal(size=(n, 7, width)).astype(np.float32) + kmers[:, :, None] / 10, kmers


def test_table_means_equal_a_loop_and_unseen_6_mers_get_the_mean_vector() -> None:
    features, kmers = teacher_windows()
    visible = np.random.default_rng(1).random(kmers.shape) < 0.8
    table, mean = KmerTable(3), MeanVector(3)
    for part in (slice(0, 2), slice(2, 5)):
        table.update(features[part], kmers[part], visible[part])
        mean.update(features[part], kmers[part], visible[part])
    everything = features[visible].mean(axis=0)
    np.testing.assert_allclose(mean.mean, everything, rtol=1e-5)
    np.testing.assert_allclose(table.mean, everything, rtol=1e-5)
    np.testing.assert_allclose(MeanVector.of(table).mean, everything, rtol=1e-5)
    for kmer in range(41):
        mine = features[visible & (kmers == kmer)]
        np.testing.assert_allclose(table.means[kmer], mine.mean(axis=0) if len(mine) else everything, rtol=1e-5)
    new_features, new_kmers = teacher_windows(seed=7)
    error = table.squared_error(new_features, new_kmers)
    assert tuple(error.shape) == new_kmers.shape
    np.testing.assert_allclose(error, ((new_features - table.means.numpy()[new_kmers]) ** 2).mean(axis=2), rtol=1e-4)
    np.testing.assert_allclose(
        mean.squared_error(new_features, new_kmers),
        ((new_features - everything) ** 2).mean(axis=2),
        rtol=1e-4,
    )
    np.testing.assert_allclose(
        table.contextual(new_features, new_kmers), new_features - table.means.numpy()[new_kmers], rtol=1e-4
    )
    assert mean.predict(new_kmers).shape == (*new_kmers.shape, 3)


def test_table_takes_tensors_of_lower_precision_and_sees_later_updates() -> None:
    features, kmers = (torch.as_tensor(a) for a in teacher_windows())
    table = KmerTable(3)
    table.update(features[:1].bfloat16(), kmers[:1])
    early = table.predict(kmers[:1]).clone()
    table.update(features[1:], kmers[1:], torch.ones_like(kmers[1:], dtype=torch.bool))
    assert not torch.equal(table.predict(kmers[:1]), early), "means must not go stale"
    assert table.contextual(features.bfloat16(), kmers).dtype == torch.bfloat16
    assert int(table.counts.sum()) == kmers.numel()


def test_table_fits_its_training_windows_better_than_the_mean_vector() -> None:
    features, kmers = teacher_windows(n=300)
    table = KmerTable(3)
    table.update(features, kmers)
    assert table.squared_error(features, kmers).mean() < MeanVector.of(table).squared_error(features).mean() / 1.5


def test_alignment_baselines_survive_saving(tmp_path: Path) -> None:
    features, kmers = teacher_windows()
    table = KmerTable(3)
    table.update(features, kmers)
    table.save(tmp_path / "table.safetensors")
    again = KmerTable.load(tmp_path / "table.safetensors")
    assert torch.equal(again.sums, table.sums)
    assert torch.equal(again.means, table.means)
    mean = MeanVector.of(table)
    mean.save(tmp_path / "mean.safetensors")
    assert torch.equal(MeanVector.load(tmp_path / "mean.safetensors").mean, mean.mean)
    with pytest.raises(UserError, match="no table"):
        KmerTable.load(tmp_path / "mean.safetensors")
    with pytest.raises(UserError, match="no mean vector"):
        MeanVector.load(tmp_path / "table.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"not a tensor")
    for name in ("damaged.safetensors", "absent.safetensors"):
        with pytest.raises(UserError, match=name):
            KmerTable.load(tmp_path / name)


def test_alignment_baselines_refuse_to_guess() -> None:
    with pytest.raises(ValueError, match="no token"):
        KmerTable(3).predict(np.zeros((1, 2), dtype=np.int64))
    with pytest.raises(ValueError, match="no token"):
        MeanVector(3).predict(np.zeros((1, 2), dtype=np.int64))
    with pytest.raises(ValueError, match="do not fit"):
        KmerTable(3).update(np.zeros((1, 2, 4), dtype=np.float32), np.zeros((1, 2), dtype=np.int64))


def planted_sequences(n: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Random sequences; class 1 holds a motif, on either strand."""
    rng = np.random.default_rng(seed)
    codes, labels = rng.integers(0, 4, (n, 80)).astype(np.uint8), rng.integers(0, 2, n)
    motif = alphabet.encode_bytes(b"TGACTCACGT")
    for i in np.flatnonzero(labels):
        at = rng.integers(0, 70)
        codes[i, at : at + 10] = motif if rng.random() < 0.5 else alphabet.reverse_complement(motif)
    return [alphabet.decode(row) for row in codes], labels


def test_kmer_regression_finds_a_planted_motif_on_either_strand() -> None:
    train, dev, test = (planted_sequences(n, seed) for n, seed in ((600, 0), (200, 1), (200, 2)))
    model = KmerLogisticRegression().fit(*train, *dev)
    assert mcc(test[1], model.predict(test[0])) > 0.8
    assert model.features(test[0]).shape == (200, 136 + 2080)
    best = max(model.fitted.dev_scores, key=model.fitted.dev_scores.__getitem__)
    assert best == model.fitted.C
    assert set(model.fitted.dev_scores) == {0.01, 0.1, 1.0}
    assert model.fitted.converged
    p = model.probabilities([*test[0], "AC"])
    assert p.sum(axis=1) == pytest.approx(np.ones(201))
    assert np.array_equal(p.argmax(axis=1)[:200], model.predict(test[0]))


def test_kmer_regression_needs_two_classes_and_development_rows() -> None:
    sequences, labels = planted_sequences(20, 0)
    with pytest.raises(UserError, match="two classes"):
        KmerLogisticRegression(ks=(2,)).fit(sequences, np.zeros(20), sequences, labels)
    with pytest.raises(UserError, match="development rows"):
        KmerLogisticRegression(ks=(2,)).fit(sequences, labels, [], [])


def test_kmer_floor_on_a_real_task(shared: Path) -> None:
    train, dev, test = read_splits(shared / "data/benchmarks/gue/mouse/2").values()
    model = KmerLogisticRegression().fit(train.sequences, train.labels, dev.sequences, dev.labels)
    score = mcc(test.labels, model.predict(test.sequences))
    assert 0.70 < score < 0.85


def _random_texts(n: int, seed: int = 0) -> list[str]:
    letters = np.frombuffer(b"ACGT", dtype=np.uint8)[np.random.default_rng(seed).integers(0, 4, (n, 80))]
    return [row.tobytes().decode() for row in letters]


def _odd_rows(n: int) -> list[str]:
    """Different rows of 0 to 5 letters, of N alone, in lower case, with IUPAC letters."""
    short = ["".join(letters) for k in range(1, 6) for letters in product("ACGT", repeat=k)]
    different = list({min(text, _complement(text)): text for text in short}.values())
    odd = ["", "RYK", *(text.lower().replace("t", "u") for text in different), *("N" * k for k in range(50, 90))]
    return [odd[i] for i in np.random.default_rng(0).permutation(len(odd))[:n]]


def _complement(text: str) -> str:
    return text[::-1].translate(str.maketrans("ACGT", "TGCA"))


@pytest.mark.parametrize("kind", ["classes", "values", "labels"])
def test_a_motif_of_one_strand_is_told_from_one_of_both(kind: str) -> None:
    rng = np.random.default_rng(1)
    texts, wanted = _random_texts(600), rng.integers(0, 2, 600)
    one = [f"{text[:30]}GGTAAGT{text[30:]}" if w else text for text, w in zip(texts, wanted, strict=True)]
    # Half of the other rows hold the motif on the other strand, so that its strand is all that tells.
    turned = [text if w else f"{text[:30]}ACTTACC{text[30:]}" for text, w in zip(one, wanted, strict=True)]
    either = [_complement(text) if rng.random() < 0.5 else text for text in one]
    targets = {
        "classes": wanted[:, None] == np.arange(2),
        "values": 3.0 * wanted[:, None] + 7,
        "labels": np.stack([wanted, rng.integers(0, 2, 600), np.zeros(600)], axis=1),
    }[kind]
    clear, neutral = strand_evidence(turned, targets), strand_evidence(either, targets)
    assert clear is not None
    assert neutral is not None
    assert clear.matters
    assert clear.gain > 0.1
    assert clear.z > 5
    assert not neutral.matters
    assert neutral.rows == 600


def test_a_motif_at_one_place_is_told_from_one_anywhere() -> None:
    rng = np.random.default_rng(2)
    wanted = rng.integers(0, 2, 600)
    # Every row holds the motif: at letter 30, or at a random place.
    fixed, anywhere = [], []
    for text, w in zip(_random_texts(600), wanted, strict=True):
        at = 30 if w else int(rng.integers(0, 80))
        fixed.append(f"{text[:at]}TATAAA{text[at:]}")
        at = int(rng.integers(0, 80))
        anywhere.append(f"{text[:at]}TATAAA{text[at:]}" if w else text)
    targets = wanted[:, None] == np.arange(2)
    clear, none = position_evidence(fixed, targets, 20), position_evidence(anywhere, targets, 20)
    assert clear is not None
    assert none is not None
    assert clear.matters
    assert clear.z > 5
    assert not none.matters
    # Rows shorter than the windows, and without letters, are no fault.
    short = position_evidence(_odd_rows(600), targets, 20)
    assert short is not None
    assert short.rows == 600


def test_nothing_is_said_of_few_rows_or_of_equal_targets() -> None:
    texts = _random_texts(250)
    wanted = np.arange(250)[:, None] % 2
    assert strand_evidence(texts[:199], wanted[:199]) is None
    assert strand_evidence(texts, np.ones((250, 1))) is None
    # Too short for a k-mer, or of N alone: no features, no evidence, and no fault.
    found = strand_evidence(_odd_rows(250), wanted)
    assert found is not None
    assert not found.matters
    assert strand_evidence(texts, wanted) == strand_evidence(texts, wanted)
    # Equal values whose deviation is not 0 in floating point.
    assert strand_evidence(texts[:217], np.full((217, 1), 0.7)) is None
    # One column is what a flat array of values is.
    values = np.random.default_rng(5).normal(size=250)
    assert strand_evidence(texts, values) == strand_evidence(texts, values[:, None])


@pytest.mark.parametrize("copies", [2, 10])
def test_copies_of_a_row_are_no_evidence(copies: int) -> None:
    # Labels are drawn at random: what tells a copy by its neighbour's label has learnt nothing.
    rng = np.random.default_rng(3)
    texts, wanted = _random_texts(220, seed=4), rng.integers(0, 2, 220)
    turned = [_complement(text) if i % 2 else text.lower() for i, text in enumerate(texts)]
    rows = [row for copy in range(copies) for row in (turned if copy % 2 else texts)]
    targets = np.tile(wanted, copies)[:, None] == np.arange(2)
    order = rng.permutation(len(rows))
    rows, targets = [rows[i] for i in order], targets[order]
    for found in (position_evidence(rows, targets, 80), strand_evidence(rows, targets, 80)):
        assert found is not None
        assert found.rows == 220 * copies
        assert not found.matters
        assert not found.hurts
    # Copies do not make few sequences many.
    few = [row for row in texts[:150] for _ in range(copies)]
    assert position_evidence(few, np.repeat(wanted[:150], copies)[:, None] == np.arange(2), 80) is None


def test_copies_of_every_row_do_not_sharpen_what_is_there() -> None:
    rng = np.random.default_rng(6)
    wanted = rng.integers(0, 2, 300)
    texts = []
    for text, w in zip(_random_texts(300, seed=7), wanted, strict=True):
        at = 30 if w and rng.random() < 0.4 else int(rng.integers(0, 70))
        texts.append(f"{text[:at]}TATAAAAG{text[at:]}")
    targets = wanted[:, None] == np.arange(2)
    once = position_evidence(texts, targets, 88)
    often = position_evidence(texts * 4, np.tile(targets, (4, 1)), 88)
    assert once is not None
    assert often is not None
    # As many standard errors, about; four times the rows would give twice as many.
    assert often.z < 1.5 * once.z


def places_rows(n: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Sequences of 18 to 24 letters whose label the sixth letter says, in one row of eight falsely."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 4, (n, 24))
    rows = ["".join("ACGT"[c] for c in row[: rng.integers(18, 25)]) for row in codes]
    strong = (codes[:, 5] == 1) | (codes[:, 5] == 2)
    return rows, np.where(rng.random(n) < 1 / 8, ~strong, strong).astype(np.int64)


def test_places_find_a_letter_that_k_mers_cannot() -> None:
    train, dev, test = (places_rows(n, i) for i, n in enumerate((600, 300, 1000)))
    for model in (PlacesLogisticRegression(), PlacesBoosting(most_trees=40)):
        model.fit(*train, *dev)
        # The best possible is 1 - 2/8; three standard deviations of a correlation of 1,000 rows are .095.
        assert mcc(test[1], model.probabilities(test[0]).argmax(1)) > 0.65
    kmers = KmerLogisticRegression().fit(*train, *dev)
    assert mcc(test[1], kmers.predict(test[0])) < 0.4


def test_places_are_cut_or_missing_beyond_the_width_of_the_training_rows() -> None:
    rows, labels = places_rows(200, 0)
    for model in (PlacesLogisticRegression(), PlacesBoosting(most_trees=20)):
        model.fit(rows, labels, rows, labels)
        assert model.width == 24
        whole = model.probabilities(rows)
        assert np.array_equal(model.probabilities([row.lower().ljust(24, "N") + "ACGT" for row in rows]), whole)
        assert np.isfinite(model.probabilities(["", "A"])).all()
        with pytest.raises(UserError, match="sequence 2 holds a character that is not a nucleotide letter"):
            model.probabilities(["ACGT", "AC!T"])
        with pytest.raises(UserError, match="two classes"):
            type(model)().fit(rows, np.zeros(200, dtype=int), rows, labels)
        with pytest.raises(UserError, match="development rows"):
            type(model)().fit(rows, labels, [], [])


def test_the_trees_are_chosen_on_development_rows() -> None:
    train, dev = (
        (rows, np.array([sum(letter in "CG" for letter in row[:10]) > 5 for row in rows], dtype=np.int64))
        for rows, _ in (places_rows(150, 0), places_rows(150, 1))
    )
    model = PlacesBoosting(leaves=(3, 6), most_trees=6).fit(*train, *dev)
    codes, dev_codes = (
        np.array([["ACGT".find(letter) for letter in row.ljust(24, "N")] for row in rows]) for rows, _ in (train, dev)
    )
    scores = {}
    for leaves in (3, 6):
        for trees in range(1, 7):
            plain = HistGradientBoostingClassifier(
                max_iter=trees, max_leaf_nodes=leaves, early_stopping=False, categorical_features=range(24)
            )
            # scikit-learn takes a negative category for a missing value.
            plain.fit(codes, train[1])
            scores[leaves, trees] = mcc(dev[1], plain.predict(dev_codes))
    assert len(set(scores.values())) > 3
    assert (model.chosen_leaves, model.chosen_trees) == max(scores, key=lambda key: (scores[key], -key[0], -key[1]))
    assert model.dev_score == max(scores.values()) == mcc(dev[1], model.probabilities(dev[0]).argmax(1))
