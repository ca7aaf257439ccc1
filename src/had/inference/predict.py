"""`had predict`: a fine-tuned model over a file of sequences, a piece at a time, one row out for each record in."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from had.console import progress, say
from had.dna.alphabet import N, decode, encode_bytes, reverse_complement
from had.dna.bed import BED_SUFFIXES, is_bed, read_bed_rows, window_of
from had.dna.genome import Genome
from had.dna.labelled import invalid_position
from had.dna.labelled_records import Locus, Record
from had.dna.labelled_rows import iterate_records, refuse_pipe
from had.errors import UserError
from had.files import is_no_plain_file, why_no_folder
from had.inference.prediction_files import Row, check_format, open_writer, track_shown, value_text
from had.models.heads import HADClassifierConfig, HADForSequenceClassification
from had.models.prediction import TrainedOn, bp_range
from had.models.saving import TUNING_FILE, find_folder, read_object
from had.training.devices import choose_device, keep_freed_memory, set_threads
from had.training.finetuning_batches import Part
from had.training.finetuning_data import middle
from had.training.finetuning_scores import predict_logits

_RECORDS = 512
_LETTERS = 1 << 20
"""Letters, and records, that are in memory at once (or one record)."""
_WIDTH = re.compile(r"(?:--width[ =]|peaks\.width=)(\d{1,9})", re.ASCII)
_MOST_IDS = 2_000_000
"""Ids that are remembered to count repeated ones."""


def predict(
    model: str | PathLike[str],
    input_path: str | PathLike[str],
    out: str | PathLike[str],
    *,
    genome: str | PathLike[str] | Sequence[str | PathLike[str]] | None = None,
    conjoin: bool | None = None,
    as_written: bool = False,
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
    as_written
        Read intervals as they are in the file instead of cutting them as peaks were cut in training, and take sequences
        of any length, without a warning, also where the head knows positions.
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
        If the model, the input or an option is wrong, or a sequence has another length than the training rows of a
        model that knows positions; ``out`` is untouched then.
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
    trained = None if as_written else loaded.config.trained_on
    read = _open(input_path, genome_files, quiet, trained)
    records = read()
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
    if trained is not None and trained.width is not None and genome_files:
        say(f"intervals are cut to {trained.width:,} bp around their {trained.around}, as in training")
    elif trained is not None and loaded.config.windows:
        _refuse_other_lengths(read(), trained, input_path)
    if dry_run:
        say(f"would predict {loaded.config.task} for {input_path} and write {out}; nothing was written")
        return {"rows": 0, "without_prediction": {}, "duplicated_ids": 0}
    counts: Counter[str] = Counter()
    lengths: Counter[int] = Counter()
    faults: Counter[str] = Counter()
    first_line: dict[str, int] = {}
    rows = duplicated = located = written = 0
    known: set[int] = set()
    with (
        open_writer(out, loaded.config.task, loaded.config.classes, track_of) as write,
        progress(None, "predicting", "records", quiet=quiet) as advance,
    ):
        for chunk in _chunks(chain([first], records)):
            found = _rows(loaded, chunk, use_both)
            write(found)
            lengths.update(len(record.sequence) for record, row in zip(chunk, found, strict=True) if not row.reason)
            for record in chunk:
                if record.fault:
                    faults[record.fault] += 1
                    first_line.setdefault(record.fault, record.line)
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
    for fault, count in faults.items():
        say(f"{count:,} intervals have {fault}: their middle was taken (first in line {first_line[fault]:,})")
    if not as_written and lengths and (warning := _other_lengths(model, loaded.config, lengths, bool(genome_files))):
        say(f"Warning: {warning}")
    if duplicated:
        say(f"{duplicated:,} rows repeat the id of an earlier one")
    return {"rows": rows, "without_prediction": dict(counts), "duplicated_ids": duplicated}


def _open(path: Path, genome: Sequence[Path], quiet: bool, cut: TrainedOn | None) -> Callable[[], Iterator[Record]]:
    """Reader of the input; the genome is opened, and absent files found, before anything is written."""
    refuse_pipe(path)
    if not path.is_file():
        raise UserError(f"{path} is {'a folder' if path.is_dir() else 'not there'}; name a file of sequences")
    if not is_bed(path):
        if genome:
            raise UserError(f"--genome goes with intervals ({', '.join(BED_SUFFIXES)}); {path} is none of these")
        return partial(iterate_records, path, need_label=False)
    if not genome:
        raise UserError(f"{path} holds intervals: pass their reference FASTA with --genome")
    return partial(bed_records, path, Genome.open(genome, progress=not quiet), cut)


def bed_records(path: Path, genome: Genome, cut: TrainedOn | None = None) -> Iterator[Record]:
    """Intervals of a BED-like file as records with their letters; those that do not fit the genome have none.

    Parameters
    ----------
    path, genome
        The file, read by `had.dna.bed.read_bed_rows` as for `had finetune`, and the genome of its intervals.
    cut
        Cut each interval as peaks were cut in this training; None: as written.

    Raises
    ------
    UserError
        If a line is not an interval; the message has its number.
    """
    for number, row in enumerate(read_bed_rows(path, genome), start=1):
        start, end, problem = row.start, row.end, row.problem
        sequence = fault = ""
        if not problem:
            contig = genome.contig(row.contig)
            if cut is not None and cut.width is not None:
                start, end, _, fault = window_of(row, cut.width, cut.anchor)
            if start < 0 or end > contig.length:
                problem = f"its window of {end - start:,} bp reaches beyond {row.contig} ({contig.length:,} bp)"
            else:
                codes = np.asarray(genome.codes[contig.offset + start : contig.offset + end])
                sequence = decode(reverse_complement(codes) if row.strand == "-" else codes)
                if cut is not None and cut.width is not None:
                    sequence = middle(sequence, cut.longest)
        identity = row.name or f"{row.contig}:{row.start}-{row.end}"
        locus = Locus(row.contig, row.start, row.end)
        yield Record(row.line, number, identity, sequence, None, locus, strand=row.strand, problem=problem, fault=fault)


def _refuse_other_lengths(records: Iterable[Record], trained: TrainedOn, path: Path) -> None:
    """Refuse sequences of another length than the training rows, before hours are spent."""
    for record in records:
        if record.sequence and not trained.fits(len(record.sequence)):
            raise UserError(
                f"{path}, line {record.line:,}: {len(record.sequence):,} bp, but the model knows positions in "
                f"sequences of {trained.bp}; cut them as the training rows were, or pass --as-written"
            )


def _other_lengths(
    name: str | PathLike[str], config: HADClassifierConfig, lengths: Counter[int], intervals: bool
) -> str:
    """Warning about sequences that are not as long as the training rows; empty where there is nothing to warn of."""
    found = f"these have {bp_range(min(lengths), max(lengths))}"
    if (trained := config.trained_on) is not None:
        other = sum(count for length, count in lengths.items() if not trained.fits(length))
        shown = f"{other:,} of {lengths.total():,} sequences are shorter or longer than all training rows"
        return f"{shown}: the model was trained on {trained.bp}; {found}" if other else ""
    # An earlier version saved the model; its command may tell.
    path = find_folder(name) / TUNING_FILE
    command = str(read_object(path).get("command")) if path.exists() else ""
    width = _WIDTH.search(command)
    about = int(width[1]) if width and intervals else config.windows
    if about:
        return f"the model was trained on about {about:,} bp; {found}" if set(lengths) != {about} else ""
    return f"how intervals were cut in training is not stored with the model; {found}" if intervals else ""


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
