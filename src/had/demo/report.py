"""What the demo says at its end: tables for the terminal and the summary in words."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from had.demo.probing import LayerScore, difference
from had.demo.verdict import Check

WIDTH = 100
"""Columns of tables and text where the output is no terminal, such as a file."""


def console() -> Console:
    """Standard output; results go there, remarks and progress to the error stream."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=WIDTH)


def layer_table(scores: Sequence[LayerScore], chosen: Sequence[LayerScore]) -> Table:
    """Every layer's probes; the layer that the development rows chose is marked."""
    table = _table(scores, "Every layer's probe, Matthews correlation (* best on the development rows)")
    previous = ""
    for score in scores:
        if previous and score.model != previous:
            table.add_section()
        mark = " *" if any(score is other for other in chosen) else ""
        table.add_row(escape(score.model) if score.model != previous else "", score.layer + mark, *_numbers(score))
        previous = score.model
    return table


def closing_table(chosen: Sequence[LayerScore]) -> Table:
    """Each model at the layer that the development rows chose."""
    table = _table(chosen, "Promoter or not? Each model's best layer, Matthews correlation")
    for score in chosen:
        table.add_row(escape(score.model), score.layer, *_numbers(score))
    return table


def _table(scores: Sequence[LayerScore], title: str) -> Table:
    n_seeds = len(scores[0].seeds) if scores else 0
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption=f"Range: smallest to largest of {n_seeds} probe seeds. Interval: 95 %, over test rows.",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("model")
    table.add_column("layer")
    table.add_column("dev", justify="right")
    table.add_column(escape("test: mean [range]"), justify="right")
    table.add_column("interval", justify="right")
    return table


def _numbers(score: LayerScore) -> tuple[str, str, str]:
    low, high = score.interval
    return (
        f"{score.dev_mean:.3f}",
        escape(f"{score.test_mean:.3f} [{min(score.test):.3f}–{max(score.test):.3f}]"),
        escape(f"[{low:.3f}, {high:.3f}]"),
    )


def summary_text(
    checks: Sequence[Check],
    distilled: LayerScore,
    untrained: LayerScore,
    megabases: float,
    n_test: int,
    out: Path,
    seconds: float,
) -> str:
    """What was shown, in words a biologist can use, and where the files are."""
    passed = all(check.passed for check in checks)
    gain, low, high = difference(distilled, untrained)
    told_apart = (
        "so the pre-training helped here"
        if low > 0
        else "so the pre-training hurt here"
        if high < 0
        else "an interval that includes 0: on these test rows the two cannot be told apart"
    )
    verdict = (
        "IT LEARNT: on a piece of chromosome 21 that it never read, the student beats both trivial predictors."
        if passed
        else "LEARNING WAS NOT SHOWN: an interval below reaches 0 or lies above it, so this run proves nothing."
    )
    paragraphs = [
        f"A small network (the student) read {megabases:.2f} million letters of human chromosomes 16, 19 and 22, drawn "
        "in windows of 1,020, and learnt two things: to give the features that a larger network (the teacher) gives "
        "for the letters it sees, and to fill in letters that were hidden from it.",
        verdict,
        *(f"- {check.sentence()}." for check in checks),
        f"Then all networks were frozen, and a linear classifier on their features had to tell apart {n_test} human "
        "promoters and other sequences that it had not been fitted on. Distilled student minus untrained student: "
        f"{gain:+.3f} [{low:+.3f}, {high:+.3f}], {told_apart}. A few minutes of pre-training need not beat an "
        "untrained network, whose random features are already a rich summary of the letters; what pre-training is "
        "worth is measured with longer runs and their controls (`had pretrain laptop`, `had probe`).",
        f"Files in {out}: losses.png (the losses while it learnt), tsne.png (the test sequences as each model sees "
        "them), probes.csv (every layer, every seed), summary.json (all numbers), pretrain/ (the whole run; "
        f"pretrain/model is the student: `had.load({str(out / 'pretrain' / 'model')!r})`). "
        f"{seconds / 60:.1f} minutes.",
    ]
    return "\n".join(_filled(paragraph) for paragraph in paragraphs).strip()


def _filled(paragraph: str) -> str:
    is_item = paragraph.startswith("- ")
    lines = textwrap.wrap(
        paragraph, WIDTH, subsequent_indent="  " if is_item else "", break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines if is_item else [*lines, ""])
