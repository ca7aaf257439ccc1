"""t-SNE and the picture of several maps."""

from pathlib import Path

import numpy as np
import pytest

from had.evaluation.pictures import Panel, plot_panels, tsne


def test_tsne_separates_what_is_far_apart_and_repeats() -> None:
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 30)
    features = rng.normal(size=(60, 8)) + 30 * label[:, None]
    points = tsne(features)
    assert points.shape == (60, 2)
    assert points.dtype == np.float32
    centres = [points[label == i].mean(0) for i in (0, 1)]
    nearest = np.argmin([np.linalg.norm(points - centre, axis=1) for centre in centres], axis=0)
    assert (nearest == label).all()
    np.testing.assert_array_equal(points, tsne(features))


@pytest.mark.parametrize("shape", [(2, 1), (3, 2), (5, 300)])
def test_few_rows_and_narrow_features_are_laid_out(shape: tuple[int, int]) -> None:
    assert tsne(np.random.default_rng(0).normal(size=shape)).shape == (shape[0], 2)


def test_what_cannot_be_laid_out_is_refused() -> None:
    with pytest.raises(ValueError, match="two rows"):
        tsne(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="finite"):
        tsne(np.full((5, 4), np.nan))


def test_panels_become_one_png(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    plot_panels([Panel("a", "", points)] * 5, np.arange(30) % 3, ["x", "y", "z"], tmp_path / "p.png", "title")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_names_are_drawn_as_they_are_written(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    points = np.zeros((2, 2), dtype=np.float32)
    name = "_$\\frac$\x1b"
    plot_panels([Panel(name, name, points)], np.arange(2), [name, "y"], tmp_path / "p.png", name)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert not [warning for warning in recwarn if "legend" in str(warning.message) or "Glyph" in str(warning.message)]
