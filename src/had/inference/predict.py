"""`had predict`: a fine-tuned model over a file of sequences, a piece at a time, one row out for each record in."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from had.console import progress, say
from had.dna.alphabet import N, decode, encode_bytes, reverse_complement
from had.dna.genome import Genome
from had.dna.intervals import BED_SUFFIXES, has_interval, is_bed
from had.dna.labelled import invalid_position
from had.dna.labelled_records import Locus, Record
from had.dna.labelled_rows import iterate_records, refuse_pipe, text_lines
from had.errors import UserError
from had.files import is_no_plain_file, why_no_folder
from had.inference.prediction_files import Row, check_format, open_writer, track_shown, value_text
from had.models.heads import HADForSequenceClassification
from had.training.devices import choose_device, keep_freed_memory, set_threads
from had.training.finetuning_batches import Part
from had.training.finetuning_scores import predict_logits

_RECORDS = 512
_LETTERS = 1 << 20
"""Letters, and records, that are in memory at once (or one record)."""
_WHOLE = re.compile(r"-?\d{1,15}", re.ASCII)
_MOST_IDS = 2_000_000
"""Ids that are remembered to count repeated ones."""


def predict(
    model: str | PathLike[str],
    input_path: str | PathLike[str],
    out: str | PathLike[str],
    *,
    genome: str | PathLike[str] | Sequence[str | PathLike[str]] | None = None,
    conjoin: bool | None = None,
    track: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    dry_run: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Predict for every record of a file.

    Parameters
    ----------
    model
        A fine-tuned model: its folder, the run folder of `had finetune`, or a Hub repository.
    input_path
        FASTA, CSV, TSV (plain or gzip), Parquet; or BED, narrowPeak, broadPeak with ``genome``. A label, where there
        is one, is not looked at.
    out
        The table to write: ``.parquet``, ``.csv``, else tab-separated (``.tsv``, ``.txt``), ``.gz`` for gzip: ``id``,
        ``prediction``, ``p_<class>`` for each class (``value`` for regression) and ``reason``, one row per record in
        order.
        ``.bedgraph`` and ``.bed`` instead write the intervals of records that have coordinates.
    genome
        FASTA file or files of the intervals in a BED file. Intervals with strand ``-`` are read on that strand.
    conjoin
        Average over both strands; None: as fine-tuning decided.
    track
        Class whose probability a ``.bedgraph`` or ``.bed`` shows; default: the second of two.
    device, threads, dry_run, quiet
        As on the command line.

    Returns
    -------
    dict
        ``rows``, ``without_prediction`` (reason → rows) and ``duplicated_ids``.

    Raises
    ------
    UserError
        If the model, the input or an option is wrong; ``out`` is untouched then.
    RunFault
        If the disk refused.
    """
    keep_freed_memory()
    set_threads(threads)
    input_path, out = Path(input_path), Path(out)
    target = choose_device(device)
    loaded = HADForSequenceClassification.from_pretrained(model).to(target)
    use_both = loaded.config.conjoin if conjoin is None else conjoin
    genome_files = [Path(genome)] if isinstance(genome, str | PathLike) else [Path(path) for path in genome or ()]
    records = _open(input_path, genome_files, quiet)
    for path in (input_path, *genome_files):
        if out.exists() and path.resolve() == out.resolve():
            raise UserError(f"{out} is the {'input' if path == input_path else 'genome'} itself; name another --out")
    if str(out) == "-":
        raise UserError("--out - is no file; name one (or /dev/stdout, where that is a pipe)")
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out.absolute().parent} is no folder; make it, or name another --out")
    if not is_no_plain_file(out) and (reason := why_no_folder(out.absolute().parent)):
        raise UserError(f"{out} cannot be written ({reason}); name another --out")
    if out.is_dir():
        raise UserError(f"{out} is a folder; name a file by --out")
    check_format(out)
    track_of = track_shown(out, loaded.config.task, loaded.config.classes, track)
    first = next(records, None)
    if first is None:
        raise UserError(f"{input_path} has no record; there is nothing to predict")
    no_coordinates = (
        f"{input_path} has no coordinates (columns chrom, start and end, or a BED file), which {out.name} needs; name "
        "a table, such as .tsv, by --out"
    )
    if track_of is not None and first.locus is None and not first.locatable:
        raise UserError(no_coordinates)
    if dry_run:
        say(f"would predict {loaded.config.task} for {input_path} and write {out}; nothing was written")
        return {"rows": 0, "without_prediction": {}, "duplicated_ids": 0}
    counts: Counter[str] = Counter()
    rows = duplicated = located = written = 0
    known: set[int] = set()
    with (
        open_writer(out, loaded.config.task, loaded.config.classes, track_of) as write,
        progress(None, "predicting", "records", quiet=quiet) as advance,
    ):
        for chunk in _chunks(chain([first], records)):
            found = _rows(loaded, chunk, use_both)
            write(found)
            for row in found:
                located += row.locus is not None
                written += row.locus is not None and not row.reason
                if row.reason:
                    counts[row.kind] += 1
                key = hash(row.id)
                if key in known:
                    duplicated += 1
                elif len(known) < _MOST_IDS:
                    known.add(key)
            rows += len(found)
            advance(len(found))
        if track_of is not None and not located:
            raise UserError(no_coordinates)
    if track_of is None:
        say(f"{out}: {rows:,} rows")
    else:
        shown = "value" if loaded.config.task == "regression" else f"probability of {loaded.config.classes[track_of]!r}"
        say(f"{out}: {written:,} lines, {shown}")
        if written < rows:
            say(f"{rows - written:,} records have no line there: they lack coordinates, or a prediction")
    for reason, count in counts.most_common():
        say(f"{count:,} rows without a prediction: {reason}")
    if duplicated:
        say(f"{duplicated:,} rows repeat the id of an earlier one")
    return {"rows": rows, "without_prediction": dict(counts), "duplicated_ids": duplicated}


def _open(path: Path, genome: Sequence[Path], quiet: bool) -> Iterator[Record]:
    """Records of the input; the genome is opened, and absent files found, before anything is written."""
    intervals = is_bed(path)
    refuse_pipe(path)
    if not path.is_file():
        raise UserError(f"{path} is {'a folder' if path.is_dir() else 'not there'}; name a file of sequences")
    if intervals and not genome:
        raise UserError(f"{path} holds intervals: name the FASTA they are of by --genome")
    if not genome:
        return iterate_records(path, need_label=False)
    if not intervals:
        raise UserError(f"--genome goes with intervals ({', '.join(BED_SUFFIXES)}); {path} is none of these")
    return bed_records(path, Genome.open(genome, progress=not quiet))


def bed_records(path: Path, genome: Genome) -> Iterator[Record]:
    """Intervals of a BED-like file as records with their letters; those that do not fit the genome have none.

    Raises
    ------
    UserError
        If a line is no interval; the message has its number.
    """
    number = 0
    for line, text in enumerate(text_lines(path), start=1):
        if not has_interval(text):
            continue
        text = text.rstrip("\r\n")
        # As had finetune reads peaks: what a model was made from can be predicted.
        fields = text.split("\t") if "\t" in text else text.split()
        if len(fields) < 3 or not all(_WHOLE.fullmatch(field.strip()) for field in fields[1:3]):
            raise UserError(
                f"{path}, line {line}: an interval is contig, start and end (whole numbers) separated by tabs; "
                f"got {text.strip()[:60]!r}"
            )
        number += 1
        locus = Locus(fields[0].strip(), int(fields[1]), int(fields[2]))
        name = fields[3].strip() if len(fields) > 3 else ""
        identity = name if name not in ("", ".") else f"{locus.contig}:{locus.start}-{locus.end}"
        strand = fields[5].strip() if len(fields) > 5 and fields[5].strip() in ("+", "-") else "."
        sequence = problem = ""
        try:
            contig = genome.contig(locus.contig)
        except UserError:
            problem = f"the genome has no record {locus.contig!r}"
        else:
            if locus.start >= locus.end:
                problem = "an empty interval"
            elif locus.start < 0:
                problem = f"the interval begins before {locus.contig}"
            elif locus.end > contig.length:
                problem = f"the interval ends behind {locus.contig} ({contig.length:,} bp)"
            else:
                codes = np.asarray(genome.codes[contig.offset + locus.start : contig.offset + locus.end])
                sequence = decode(reverse_complement(codes) if strand == "-" else codes)
        yield Record(line, number, identity, sequence, None, locus, strand=strand, problem=problem)


def _chunks(records: Iterator[Record]) -> Iterator[list[Record]]:
    chunk: list[Record] = []
    letters = 0
    for record in records:
        if chunk and (len(chunk) == _RECORDS or letters + len(record.sequence) > _LETTERS):
            yield chunk
            chunk, letters = [], 0
        chunk.append(record)
        letters += len(record.sequence)
    if chunk:
        yield chunk


def _why_not(record: Record, longest: int) -> tuple[str, str]:
    """Reason for no prediction, and its kind (to be counted); both empty where there is one."""
    if record.problem:
        return record.problem, record.problem if record.locus is None else "the interval does not fit the genome"
    if not record.sequence:
        return "an empty sequence", "an empty sequence"
    if len(record.sequence) > longest:
        kind = f"longer than {longest:,} bp, the longest the model takes"
        return f"{len(record.sequence):,} bp: {kind}", kind
    if (position := invalid_position(record.sequence)) is not None:
        kind = "a character that is no nucleotide letter"
        return f"{kind}: {record.sequence[position]!r} at position {position + 1} (0-based: {position})", kind
    if (encode_bytes(record.sequence.encode("ascii")) == N).all():
        return "no letter A, C, G or T", "no letter A, C, G or T"
    return "", ""


def _rows(model: HADForSequenceClassification, chunk: Sequence[Record], conjoin: bool) -> list[Row]:
    config = model.config
    reasons = [_why_not(record, config.student.max_length) for record in chunk]
    usable = [i for i, (reason, _) in enumerate(reasons) if not reason]
    outputs = np.full((len(chunk), len(config.classes)), np.nan)
    if usable:
        codes = [encode_bytes(chunk[i].sequence.encode("ascii")) for i in usable]
        logits = predict_logits(model, Part(codes, np.zeros(len(codes))), conjoin)
        outputs[usable] = model.probabilities(torch.from_numpy(logits)).double().numpy()
    return [
        Row(
            record.id or str(record.number),
            _prediction(config.task, config.classes, output),
            output.tolist(),
            reason,
            kind,
            record.locus,
            record.strand,
        )
        for record, output, (reason, kind) in zip(chunk, outputs, reasons, strict=True)
    ]


def _prediction(task: str, classes: Sequence[str], output: NDArray[np.float64]) -> str:
    """The class of the largest probability, all labels of at least one half, or the value as text."""
    if np.isnan(output).any():
        return "NaN"
    if task == "regression":
        return value_text(output[0])
    if task == "multilabel":
        return ";".join(c for c, p in zip(classes, output, strict=True) if p >= 0.5)
    return classes[int(output.argmax())]
