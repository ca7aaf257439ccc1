"""The card beside a fine-tuned model: from which student, on which data, how well, under which licences."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from had.models.prediction import TrainedOn
from had.models.saving import CARD_FILE, FACTS_FILE, TUNING_FILE, read_object
from had.schema import build

_STATED = re.compile(r"\A---\n(?:.*\n)*?license:\s*(\S.*?)\s*\n(?:.*\n)*?---\n")
_PRETRAINING = ("teacher", "teacher_licence", "teacher_digest", "genome_digest", "steps", "bp", "seed")
_BEFORE = ("data", "digests", "model")


@dataclass
class _Types:
    """What is read of ``training.json`` and ``finetuning.json``, and of what is nested there."""

    teacher: str | None = None
    teacher_licence: str | None = None
    teacher_digest: str | None = None
    genome_digest: str | None = None
    steps: int | None = None
    bp: int | None = None
    seed: int | None = None
    base: dict[str, Any] | None = None
    name: str | None = None
    pretraining: dict[str, Any] | None = None
    finetuned_before: list[dict[str, Any]] = field(default_factory=list)
    data: str | None = None
    digests: dict[str, Any] | None = None
    model: str | None = None


def known_of_base(folder: Path) -> dict[str, Any]:
    """What a student's folder tells of its making: facts of its pre-training, and the licence that its card states.

    A student that was fine-tuned before hands on what was known of the one it came from, and its own data's names.

    Raises
    ------
    had.errors.UserError
        ``training.json`` or ``finetuning.json`` is damaged: what it says of licences would be lost.
    """
    known: dict[str, Any] = {}
    card = _text(folder / CARD_FILE)
    if stated := _STATED.match(card):
        known["licence"] = stated[1]
    if (path := folder / FACTS_FILE).exists():
        known["pretraining"] = _checked(read_object(path), _PRETRAINING, path)
    if (path := folder / TUNING_FILE).exists():
        tuned = _checked(read_object(path), ("base", "data", "digests"), path)
        base = _checked(tuned.get("base") or {}, ("name", "pretraining", "finetuned_before"), path)
        if "pretraining" in base:
            known["pretraining"] = _checked(base["pretraining"] or {}, _PRETRAINING, path)
        earlier = [_checked(before, _BEFORE, path) for before in base.get("finetuned_before", [])]
        last = {"data": tuned.get("data"), "digests": tuned.get("digests"), "model": base.get("name")}
        known["finetuned_before"] = [*earlier, last]
    return known


def _checked(found: Mapping[str, Any], names: Sequence[str], path: Path) -> dict[str, Any]:
    """The values of these names, where they are there; a UserError names the file whose value is of another type."""
    known = {name: found[name] for name in names if name in found}
    build(_Types, known, str(path))
    return known


def finetuned_card(facts: Mapping[str, Any]) -> str:
    """Markdown with the front matter that the Hugging Face Hub reads.

    Parameters
    ----------
    facts
        What ``finetuning.json`` holds, as `had.training.finetuning_report.write_card` makes it.
    """
    base, unseen = facts["base"], facts["test_rows_of_unseen_labels"]
    licence = restricting_licence(base)
    head = ["---", *(["license: other"] if licence else []), "library_name: had", "tags: [dna, genomics]", "---"]
    classes = ", ".join(f"`{name}`" for name in facts["classes"])
    lines = [
        *head,
        f"# A HAD student fine-tuned: {facts['task']}",
        "",
        f"A DNA model of {facts['parameters']:,} parameters, fine-tuned by `had finetune` to "
        + (f"tell {classes}." if facts["task"] != "regression" else "give a value."),
        "",
        f"- Task: {facts['task']}; classes, in the order of the outputs: {classes}.",
        f"- Base model: {_base(base)}"
        + ("; its weights were kept as they are, the head alone was trained." if facts["frozen"] else "."),
        f"- Data: `{facts['data']}` (sha256 "
        + ", ".join(f"{name} `{digest}`" for name, digest in facts["digests"].items())
        + ").",
        f"- Rows: {', '.join(f'{name} {count:,}' for name, count in facts['rows'].items())}. "
        f"Validation: {facts['split']}.",
        f"- Test rows that also stand in train, on either strand: {facts['test_rows_also_in_train']:,}."
        if "test" in facts["scores"]
        else "- There were no test rows.",
        *([f"- Test rows of labels that no training row has: {unseen:,}; they count as errors."] if unseen else []),
        f"- {_cut(TrainedOn(**facts['trained_on']))}.",
        *(f"- {said[0].upper()}{said[1:]}." for said in facts["shown"]),
        *(["- Give it sequences cut around the same anchor as the training rows."] if facts["anchored"] else []),
        f"- Strands averaged in prediction: {'yes' if facts['conjoin'] else 'no'} "
        f"({facts['conjoin_reason']}). Seed {facts['seed']}; epoch {facts['epoch']} of "
        f"{facts['epochs']} was kept.",
        "",
        *_scores(facts),
        "",
        "## How it was made",
        "```",
        facts["command"],
        "```",
        f"{facts['date']}, had {facts['had']}, torch {facts['torch']}, {facts['machine']}. Recipe: "
        + ", ".join(f"{key} {_plain(value)}" for key, value in facts["training"].items())
        + ".",
        "",
        "## Licence",
        _licence(base, licence),
        "",
        "```python",
        "import had",
        'model = had.load("this folder")',
        'model.predict(["ACGTACGT"])  # a row a sequence, a column a class: ' + ", ".join(facts["classes"][:5]),
        'model.embed(["ACGTACGT"])',
        "```",
        "",
    ]
    return "\n".join(lines)


def restricting_licence(base: Mapping[str, Any]) -> str:
    """The licence, of the teacher or of the student itself, that may bind a fine-tuned model; empty where none does.

    Apache-2.0, MIT, BSD and CC0 restrict nothing that a card must warn of.
    """
    teacher = (base.get("pretraining") or {}).get("teacher_licence") or ""
    for stated in (teacher, base.get("licence") or ""):
        if stated and not re.match(r"(apache|mit|bsd|cc0)", stated, re.IGNORECASE):
            return f"{stated} (as the base model's card explains)" if stated == "other" else stated
    return ""


def _cut(trained_on: TrainedOn) -> str:
    """Lengths of the training rows, and what peaks were cut around."""
    text = f"Training rows have {trained_on.bp}"
    if trained_on.width is None:
        return text
    return f"{text}, cut around the {trained_on.around} of peaks; `had predict` cuts intervals alike"


def _base(base: Mapping[str, Any]) -> str:
    if base["name"] == "scratch":
        return "none: the weights were drawn afresh"
    text = f"{base['name']} (sha256 `{base['digest']}`)"
    made = base.get("pretraining")
    if made and made.get("teacher"):
        text += f", distilled from the teacher {made['teacher']} (`{made.get('teacher_digest')}`, licence: "
        text += f"{made.get('teacher_licence') or 'none stated'})"
    elif made:
        text += ", pre-trained without a teacher"
    for before in base.get("finetuned_before", []):
        text += f", fine-tuned before on `{before.get('data')}`"
    return text


def _licence(base: Mapping[str, Any], licence: str) -> str:
    of_data = "The terms of the data above are for you to look up."
    if base["name"] == "scratch":
        return f"Nothing but the data went into the weights. {of_data}"
    if licence:
        return (
            f"**The base model, or the teacher that it was distilled from, is licensed {licence}.** This model comes "
            "from it and may fall under the same terms: settle that before you use it commercially or pass it on. "
            f"{of_data}"
        )
    stated = base.get("licence") or (base.get("pretraining") or {}).get("teacher_licence")
    if stated:
        return f"The base model is licensed {stated}. {of_data}"
    return f"The base model states no licence: ask those it is from. {of_data}"


def _scores(facts: Mapping[str, Any]) -> list[str]:
    scores: Mapping[str, Mapping[str, float | None]] = facts["scores"]
    names = [name for name in next(iter(scores.values())) if name != "loss"]
    titles = {
        "validation": "validation (chose the epoch: too high)",
        "test_not_in_train": "test, without rows that stand in train",
    }
    lines = ["| rows | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 1)]
    for rows, found in scores.items():
        cells = ["–" if (value := found.get(name)) is None else f"{value:.4f}" for name in names]
        lines.append(f"| {titles.get(rows, rows)} | " + " | ".join(cells) + " |")
    return [*lines, "", f"Early stopping went by {facts['metric']}. One seed: the numbers move with it."]


def _plain(value: object) -> str:
    return "default" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
