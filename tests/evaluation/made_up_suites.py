"""Tiny data sets in the layouts of the published suites, and tiny models for them."""

import csv
import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet

from had.models.student import HADConfig, HADModel

SMALL = HADConfig(
    hidden_size=16, intermediate_size=24, recurrent_blocks=1, attention_heads=1, key_width=4, value_width=8
)
TEACHER = "random:32x1x2x32"
Rows = list[tuple[str, str]]


def letters(rng: np.random.Generator, gc: float, length: int) -> str:
    return "".join(rng.choice(list("ACGT"), length, p=[(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2]))


def make_rows(n: int, seed: int, labels: tuple[str, ...] = ("0", "1"), length: int = 60) -> Rows:
    """Sequences whose share of G and C says the class, classes in turn."""
    rng = np.random.default_rng(seed)
    shares = np.linspace(0.15, 0.85, len(labels))
    return [(letters(rng, shares[i % len(labels)], length), labels[i % len(labels)]) for i in range(n)]


def write_csv(path: Path, rows: Rows, header: tuple[str, str] = ("sequence", "label")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def write_fasta(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f">chr{i}|{label}\n{sequence}\n" for i, (sequence, label) in enumerate(rows)))
    return path


def write_class_folders(folder: Path, rows: Rows) -> Path:
    """One text file a sequence, in a folder a class; the folders are made last class first."""
    for label in sorted({label for _, label in rows}, reverse=True):
        (folder / label).mkdir(parents=True)
    for i, (sequence, label) in enumerate(rows):
        (folder / label / f"{i}.txt").write_text(sequence)
    return folder


def write_parquet(path: Path, rows: Rows, name: str = "sequence", **columns: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {name: [row[0] for row in rows], "label": [int(row[1]) for row in rows], **columns}
    parquet.write_table(pa.table(values), path)
    return path


def write_gue(folder: Path, tasks: tuple[str, ...] = ("mouse/3",), n: int = 48) -> Path:
    """Tasks of GUE with train, dev and test files; two test rows stand in train, one of them on the other strand."""
    for i, task in enumerate(tasks):
        train = make_rows(n, seed=10 * i)
        test = make_rows(22, seed=10 * i + 2)
        turned = train[1][0].translate(str.maketrans("ACGT", "TGCA"))[::-1]
        for name, rows in (
            ("train", train),
            ("dev", make_rows(20, seed=10 * i + 1)),
            ("test", [*test, train[0], (turned, train[1][1])]),
        ):
            write_csv(folder / task / f"{name}.csv", rows)
    return folder


def save_student(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    HADModel(SMALL).save_pretrained(folder)
    return folder
