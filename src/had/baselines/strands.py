"""Whether the strand on which sequences are written tells something of their labels.

A promoter's TATA box points towards its gene, and a splice site or a codon is read one way; a transcription factor's
site or a histone mark is the same on both strands. [ours]: what k-mers say of it, in seconds, on training rows alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler

from had.dna.kmers import kmer_counts

_KS = (3, 4, 5)
_FOLDS = 5
_PENALTIES = (0.25, 0.75, 2.5)
"""Penalties per training row of standardised features."""
_FEWEST = 200
"""Rows below which nothing can be told."""
_MOST = 4_000
"""Rows, drawn at random, that are enough."""
_CLEAR = 2.0
"""Standard errors from which a difference counts."""


class StrandEvidence(NamedTuple):
    """How much better k-mers tell the labels where the strands are kept apart."""

    gain: float
    """Share of the squared error that goes away; negative where keeping the strands apart only adds noise."""
    z: float
    """The same difference in standard errors, paired by row."""
    rows: int
    """Rows looked at."""

    @property
    def matters(self) -> bool:
        """Whether the difference is clear."""
        return self.z > _CLEAR


def strand_evidence(sequences: Sequence[str], targets: NDArray, seed: int = 0) -> StrandEvidence | None:
    """Compare ridge regressions on k-mers of one strand, and of both strands as one, in cross-validation.

    Parameters
    ----------
    sequences
        n training sequences.
    targets
        What they are labelled with, (n, K): an indicator for each class, or the value.
    seed
        Of the draw of rows and of the folds.

    Returns
    -------
    The comparison; None where there are too few rows, or where all targets are equal.
    """
    rng = np.random.default_rng([seed, 0x57A])
    chosen = rng.permutation(len(sequences))[:_MOST]
    wanted = np.asarray(targets, dtype=np.float64)[chosen]
    if len(chosen) < _FEWEST or not (spread := wanted.std(axis=0)).any():
        return None
    wanted = (wanted - wanted.mean(axis=0)) / spread.max()
    texts = [sequences[i] for i in chosen]
    both, one = (_errors(_features(texts, canonical), wanted, seed) for canonical in (True, False))
    gained = both - one
    error = gained.std() / len(gained) ** 0.5
    gain = float(gained.mean() / both.mean()) if both.mean() > 0 else 0.0
    return StrandEvidence(gain, float(gained.mean() / error) if error > 0 else 0.0, len(chosen))


def _features(sequences: Sequence[str], canonical: bool) -> NDArray[np.float32]:
    """Roots of the k-mer counts, which tame repeats."""
    counts = [kmer_counts(sequences, k, canonical=canonical).toarray() for k in _KS]
    return np.sqrt(np.concatenate(counts, axis=1)).astype(np.float32)


def _errors(features: NDArray[np.float32], targets: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Squared error (n,) of each row, when it was held out, under the best penalty."""
    found = np.zeros((len(_PENALTIES), len(targets)))
    for train, held in KFold(_FOLDS, shuffle=True, random_state=seed).split(features):
        scaler = StandardScaler().fit(features[train])
        known, asked = scaler.transform(features[train]), scaler.transform(features[held])
        for which, penalty in enumerate(_PENALTIES):
            model = Ridge(penalty * len(train)).fit(known, targets[train])
            predicted = np.asarray(model.predict(asked)).reshape(len(held), -1)
            found[which, held] = ((predicted - targets[held]) ** 2).sum(axis=1)
    best: NDArray[np.float64] = found[found.mean(axis=1).argmin()]
    return best
