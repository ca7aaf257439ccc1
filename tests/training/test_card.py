"""A student's card tells its teacher's licence."""

import pytest

from had.training.card import student_card

FACTS = {
    "teacher": "500m",
    "teacher_licence": "CC BY-NC-SA 4.0",
    "teacher_digest": "abc",
    "genome_digest": "def",
    "objective": {"w_align": 1.0, "w_rec": 0.5},
    "steps": 1600,
    "bp": 52_224_000,
    "seed": 3,
}


@pytest.mark.parametrize(
    ("changes", "present", "absent"),
    [
        ({}, ["license: other", "CC BY-NC-SA 4.0", "may fall under", "52.2 Mbp", "weight 0.5"], []),
        ({"teacher_licence": "Apache-2.0"}, ["license: apache-2.0", "Apache-2.0"], ["commercially"]),
        ({"teacher": None, "teacher_licence": None}, ["No teacher"], ["commercially"]),
    ],
)
def test_card_states_teacher_and_licence(changes: dict, present: list[str], absent: list[str]) -> None:
    card = student_card({**FACTS, **changes})
    for text in present:
        assert text in card.replace("\n", " ")
    for text in absent:
        assert text not in card
