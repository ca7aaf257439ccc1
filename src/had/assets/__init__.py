"""Data that travels with the package; ``README.md`` beside this file says where it is from and under which licence."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent

DEMO_GENOME = FOLDER / "demo_genome.fa.gz"
"""Four pieces of the human reference genome, 10 Mbp, gzip FASTA; records are named ``<contig>:<start>-<end>``."""
DEMO_SPLIT = FOLDER / "demo_split.bed"
"""Which of the pieces train and which validates."""
DEMO_TASK = FOLDER / "demo_promoters"
"""Labelled set, ``{train,dev,test}.csv.gz``: human core promoters (70 bp) against other sequences."""
PUBLISHED_SCORES = FOLDER / "published_scores.csv"
"""What other models scored on the benchmarks' tasks, with range, seeds and source where these are stated."""
