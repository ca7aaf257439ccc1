"""What the strand and the position of k-mers tell of labels: whether a model should be shown them.

A promoter's TATA box stands 30 letters before the start of transcription and points towards it; an enhancer's sites may
stand anywhere, on either strand. [ours]: asked of ridge regressions on k-mers, in seconds, on training rows alone.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler

from had.console import Progress, progress
from had.dna.alphabet import N, encode_bytes, reverse_complement
from had.dna.kmers import kmer_counts

_KS = (3, 4, 5)
_FOLDS = 5
_PENALTIES = (0.25, 0.75, 2.5)
"""Penalties per training row of standardised features."""
_FEWEST = 200
"""Different sequences below which nothing can be told."""
_MOST = 4_000
"""Rows, drawn at random, that are enough."""
_CLEAR = 3.0
"""Standard errors from which a difference counts."""

Features = NDArray[np.float32]
_Pair = Callable[[list[str]], tuple[Features, Features]]


class Evidence(NamedTuple):
    """How much better k-mers tell the labels where something more is known of them."""

    gain: float
    """Share of the squared error that goes away; negative where knowing more only adds noise."""
    z: float
    """The same difference in standard errors, paired by row; equal sequences are one observation."""
    rows: int
    """Rows looked at."""

    @property
    def matters(self) -> bool:
        """Whether knowing more is clearly better."""
        return self.z > _CLEAR

    @property
    def hurts(self) -> bool:
        """Whether knowing more is clearly worse: it only adds noise."""
        return self.z < -_CLEAR


def strand_evidence(
    sequences: Sequence[str], targets: NDArray, windows: int = 0, seed: int = 0, quiet: bool = True
) -> Evidence | None:
    """Compare k-mers of one strand with those of both strands as one.

    Parameters
    ----------
    sequences
        n training sequences.
    targets
        What they are labelled with, (n, K): an indicator for each class, or the value; (n,) is one value each.
    windows
        Above 0: the letters in so many equal shares of each sequence stand beside the k-mers, as one strand has them,
        or as the mean of both.
    seed
        Of the draw of rows and of the folds.
    quiet
        Show no progress.

    Returns
    -------
    The comparison, in cross-validation; None where there are too few different sequences, or where all targets are
    equal.
    """

    def features(texts: list[str]) -> tuple[Features, Features]:
        both, one = _kmers(texts, True), _kmers(texts, False)
        if windows:
            placed = _letters_by_window(texts, windows)
            # Codes are in the order A, C, G, T: the other strand has both axes turned.
            turned = placed.reshape(-1, windows, 4)[:, ::-1, ::-1].reshape(placed.shape)
            both, one = np.concatenate([both, (placed + turned) / 2], axis=1), np.concatenate([one, placed], axis=1)
        return both, one

    return _compare(sequences, targets, seed, features, "" if quiet else "asking k-mers about strands")


def position_evidence(
    sequences: Sequence[str], targets: NDArray, windows: int, seed: int = 0, quiet: bool = True
) -> Evidence | None:
    """Compare letters at their places with the same letters turned about, in both cases beside the k-mers.

    Each row of the control is rotated by a random number of letters: its composition stays, its places go.
    Parameters and result as `strand_evidence`; ``windows`` are equal shares of each sequence, from its first letter on.
    """
    rng = np.random.default_rng([seed, 0x905])

    def features(texts: list[str]) -> tuple[Features, Features]:
        anywhere = _kmers(texts, False)
        cuts = [int(rng.integers(0, len(text) + 1)) for text in texts]
        rotated = [text[cut:] + text[:cut] for text, cut in zip(texts, cuts, strict=True)]
        turned, placed = (
            np.concatenate([anywhere, _letters_by_window(rows, windows)], axis=1) for rows in (rotated, texts)
        )
        return turned, placed

    return _compare(sequences, targets, seed, features, "" if quiet else "asking k-mers about positions")


def _compare(sequences: Sequence[str], targets: NDArray, seed: int, features: _Pair, shown: str) -> Evidence | None:
    rng = np.random.default_rng([seed, 0x57A])
    chosen = rng.permutation(len(sequences))[:_MOST]
    texts = [sequences[i] for i in chosen]
    first, group = _equal_rows(texts)
    # Only what was drawn becomes numbers of 8 bytes: there may be many rows and classes.
    wanted = np.asarray(targets)[chosen].reshape(len(chosen), -1).astype(np.float64)
    if len(np.unique(group)) < _FEWEST or (wanted == wanted[:1]).all():
        return None
    wanted = (wanted - wanted.mean(axis=0)) / wanted.std(axis=0).max()
    with progress(2 * _FOLDS * len(_PENALTIES), shown, "fits", quiet=not shown) as advance:
        less, more = (_errors(found, wanted, first, seed, advance) for found in features(texts))
    gained = less - more
    mean = gained.mean()
    # Copies of a sequence are no new evidence, so that their differences go into one sum.
    error = float((np.bincount(group, gained - mean) ** 2).sum() ** 0.5 / len(gained))
    gain = float(mean / less.mean()) if less.mean() > 0 else 0.0
    return Evidence(gain, float(mean / error) if error > 0 else 0.0, len(chosen))


def _equal_rows(sequences: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the first copy of each row stands (n,), on either strand; and the same as a number from 0 on."""
    seen: dict[bytes, int] = {}
    first = np.zeros(len(sequences), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        # What is no nucleotide letter is refused, with its place, where k-mers are counted.
        codes = np.minimum(encode_bytes(sequence.encode("ascii", "replace")), N)
        first[row] = seen.setdefault(min(codes.tobytes(), reverse_complement(codes).tobytes()), row)
    return first, np.unique(first, return_inverse=True)[1]


def _kmers(sequences: Sequence[str], canonical: bool) -> Features:
    """Roots of the k-mer counts, which tame repeats."""
    counts = [kmer_counts(sequences, k, canonical=canonical).toarray() for k in _KS]
    return np.sqrt(np.concatenate(counts, axis=1)).astype(np.float32)


def _letters_by_window(sequences: Sequence[str], windows: int) -> Features:
    """Roots of the counts (n, windows * 4) of letters, by the window that they stand in."""
    counts = np.zeros((len(sequences), windows * 4), dtype=np.float32)
    for row, sequence in enumerate(sequences):
        codes = encode_bytes(sequence.encode("ascii")).astype(np.int64)
        window = np.arange(len(codes)) * windows // max(1, len(codes))
        counts[row] = np.bincount((window * 4 + codes)[codes < 4], minlength=windows * 4)
    return np.sqrt(counts)


def _errors(
    features: Features, targets: NDArray[np.float64], first: NDArray[np.int64], seed: int, advance: Progress
) -> NDArray[np.float64]:
    """Squared error (n,) of each row, when it was held out with its copies, under the best penalty."""
    fold = np.zeros(len(targets), dtype=np.int64)
    for number, (_, held) in enumerate(KFold(_FOLDS, shuffle=True, random_state=seed).split(features)):
        fold[held] = number
    # A copy goes where the first one is: a row that was fitted is no test of what is known of the others.
    fold = fold[first]
    found = np.zeros((len(_PENALTIES), len(targets)))
    for number in np.unique(fold):
        train, held = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        scaler = StandardScaler().fit(features[train])
        known, asked = scaler.transform(features[train]), scaler.transform(features[held])
        for which, penalty in enumerate(_PENALTIES):
            model = Ridge(penalty * len(train)).fit(known, targets[train])
            predicted = np.asarray(model.predict(asked)).reshape(len(held), -1)
            found[which, held] = ((predicted - targets[held]) ** 2).sum(axis=1)
            advance()
    best: NDArray[np.float64] = found[found.mean(axis=1).argmin()]
    return best
