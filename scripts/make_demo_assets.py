"""Cut what `had demo` needs out of public data: a slice of the human genome and a labelled set.

Written into the assets folder:

- ``demo_genome.fa.gz``: four pieces of GRCh38, upper case, named ``<contig>:<start>-<end>`` (0-based, half-open);
- ``demo_split.bed``: which piece trains, which validates;
- ``demo_promoters/{train,dev,test}.csv.gz``: GUE's ``prom_core_tata``, without training and development rows that stand
  in the test set (or, for training rows, in the development set) on either strand, and without rows that have letters
  other than A, C, G, T.

The same inputs and zlib give the same bytes.

Example::

    python scripts/make_demo_assets.py --genome chr16.fa.gz --genome chr19.fa.gz --genome chr21.fa.gz \
        --genome chr22.fa.gz --task GUE/prom/prom_core_tata --out src/had/assets
"""

import argparse
import gzip
import io
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from had.dna.alphabet import N, decode
from had.dna.genome import Genome
from had.dna.kmers import find_duplicates
from had.dna.labelled import LabelledSequences, read_splits

SLICES = (
    ("chr16", 59_000_000, 63_000_000, "train"),
    ("chr19", 30_000_000, 32_000_000, "train"),
    ("chr22", 33_000_000, 36_000_000, "train"),
    ("chr21", 17_000_000, 18_000_000, "validation"),
)
"""Chosen without N and, together, with about the share of G and C of the validation piece and of the whole genome, so
that the student is not compared with base frequencies of another kind of sequence."""
LINE = 100


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--genome", type=Path, action="append", required=True, help="FASTA with some of the contigs")
    parser.add_argument("--task", type=Path, required=True, help="folder of train, dev and test CSV")
    parser.add_argument("--out", type=Path, required=True, help="assets folder")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    write_genome(options.genome, options.out)
    write_task(options.task, options.out / "demo_promoters")


def write_genome(paths: list[Path], out: Path) -> None:
    """Write the slices as FASTA, and their split as BED."""
    pieces: dict[tuple[str, int, int, str], str] = {}
    with tempfile.TemporaryDirectory() as cache:
        for path in paths:
            genome = Genome.open(path, cache=cache)
            names = {contig.name for contig in genome.contigs}
            for piece in (piece for piece in SLICES if piece[0] in names):
                name, start, end, split = piece
                codes = genome.fetch(np.array([genome.contig(name).offset + start]), end - start)[0]
                if (codes == N).any():
                    raise SystemExit(f"{name}:{start}-{end} has letters other than A, C, G, T")
                gc = float(((codes == 1) | (codes == 2)).mean())
                print(f"{name}:{start}-{end}: {end - start:,} bp, GC {gc:.3f}, {split}")
                pieces[piece] = decode(codes)
    if missing := [piece for piece in SLICES if piece not in pieces]:
        raise SystemExit(f"the genomes do not hold {missing}")
    lines, rows = [], []
    for piece in SLICES:
        name, start, end, split = piece
        letters = pieces[piece]
        lines += [f">{name}:{start}-{end}\n", *(letters[i : i + LINE] + "\n" for i in range(0, len(letters), LINE))]
        rows.append(f"{name}:{start}-{end}\t0\t{end - start}\t{split}\n")
    write_gzip(out / "demo_genome.fa.gz", lines)
    (out / "demo_split.bed").write_text("".join(rows), encoding="utf-8")


def write_task(folder: Path, out: Path) -> None:
    """Write the labelled set without rows that would leak."""
    splits = read_splits(folder)
    out.mkdir(parents=True, exist_ok=True)
    test = [s.upper() for s in splits["test"].sequences]
    dev = [s.upper() for s in splits["dev"].sequences]
    facts = {}
    for name, others in (("train", test + dev), ("dev", test), ("test", [])):
        rows: LabelledSequences = splits[name]
        leaks = find_duplicates(rows.sequences, others).either
        clean = np.array([set(s.upper()) <= set("ACGT") for s in rows.sequences])
        keep = np.flatnonzero(~leaks & clean)
        lines = [f"{rows.sequences[i].upper()},{rows.classes[rows.labels[i]]}\n" for i in keep]
        write_gzip(out / f"{name}.csv.gz", ["sequence,label\n", *lines])
        counts = np.bincount(rows.labels[keep]).tolist()
        facts[name] = {"official": len(rows), "kept": len(keep), "leaks": int(leaks.sum()), "per_class": counts}
    print(json.dumps(facts, indent=1))


def write_gzip(path: Path, lines: Iterable[str]) -> None:
    """Compress without a time stamp or name, so that equal content gives equal bytes."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as file:
        for line in lines:
            file.write(line.encode("ascii"))
    path.write_bytes(buffer.getvalue())
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
