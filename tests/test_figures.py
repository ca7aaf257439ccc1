"""Colours and shapes tell series apart."""

from had.figures import COLOURS, colour, new_figure, png, shape


def test_colour_and_shape_together_differ_for_more_models_than_a_report_has() -> None:
    looks = [(colour(i), shape(i)) for i in range(56)]
    assert len(set(looks)) == 56
    assert len({colour(i) for i in range(len(COLOURS))}) == len(COLOURS)


def test_a_figure_touches_no_open_figures_and_becomes_a_png() -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    assert png(new_figure(1, 1)).startswith(b"\x89PNG")
    assert plt.get_fignums() == before
