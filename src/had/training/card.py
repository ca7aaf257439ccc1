"""The card that lies beside a student's weights: where it comes from, under which licences."""

from collections.abc import Mapping
from typing import Any


def student_card(facts: Mapping[str, Any]) -> str:
    """Markdown with the front matter that the Hugging Face Hub reads.

    Parameters
    ----------
    facts
        What ``training.json`` holds: teacher, its licence and digest, genome digest, objective, steps, bp, training
        window, seed.
    """
    licence = facts.get("teacher_licence") or ""
    restricted = bool(licence) and "apache" not in licence.lower()
    objective = facts["objective"]
    terms = [f"alignment (weight {objective['w_align']:g})"] if objective["w_align"] else []
    terms += [f"reconstruction (weight {objective['w_rec']:g})"] if objective["w_rec"] else []
    lines = [
        "---",
        f"license: {'other' if restricted else 'apache-2.0'}",
        "library_name: had",
        "tags: [dna, genomics, distillation]",
        "---",
        "# A HAD student",
        "",
        "A DNA language model of about 1.1 M parameters that reads single letters, trained by `had pretrain`: "
        "Hybrid Architecture Distillation (arXiv 2505.20836), an independent implementation.",
        "",
        f"- Objective: {' and '.join(terms)}; {facts['steps']:,} steps, {facts['bp'] / 1e6:,.1f} Mbp, "
        f"seed {facts['seed']}.",
        *([f"- Training windows: {facts['training_window']:,} bp."] if "training_window" in facts else []),
        f"- Genome: sha256 `{facts['genome_digest']}` (names, lengths and letters).",
    ]
    if facts.get("teacher"):
        stated = licence or "none stated"
        lines.append(f"- Teacher: {facts['teacher']} (`{facts['teacher_digest']}`), licence: {stated}.")
    else:
        lines.append("- No teacher: reconstruction alone.")
    if restricted:
        lines += [
            "",
            f"**Licence.** The teacher's weights are licensed {licence}. This student was distilled from them and may "
            "fall under the same terms: settle that before you use it commercially or pass it on.",
        ]
    lines += ["", "```python", "import had", 'model = had.load("this folder")', 'model.embed(["ACGT"])', "```", ""]
    return "\n".join(lines)
