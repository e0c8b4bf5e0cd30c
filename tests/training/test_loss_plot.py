from pathlib import Path

import pytest

from paddlesft.training.loss_plot import plot_losses, smoothed


def records(steps: int) -> list[dict]:
    train = [{"kind": "train", "step": s, "loss": 3.0 / s + 0.3 * (s % 3)} for s in range(1, steps + 1)]
    return [*train, {"kind": "eval", "step": steps, "eval_loss": 1.0}]


def test_smoothing_keeps_a_constant_and_starts_at_the_first_value() -> None:
    assert smoothed([2.0, 2.0, 2.0], 0.9) == pytest.approx([2.0, 2.0, 2.0])
    assert smoothed([1.0, 0.0], 0.5) == pytest.approx([1.0, 1 / 3])
    assert smoothed([4.0, 1.0], 0.0) == [4.0, 1.0]


def test_the_picture_is_written_and_has_both_curves(tmp_path: Path) -> None:
    path = plot_losses(records(80), tmp_path / "loss.png", "title")
    assert path == tmp_path / "loss.png" and path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    from matplotlib.image import imread

    pixels = imread(path)[..., :3]
    red = (abs(pixels - [0.894, 0.341, 0.337]).max(-1) < 0.05).sum()
    blue = (abs(pixels - [0.298, 0.471, 0.659]).max(-1) < 0.05).sum()
    assert red > 20 and blue > 200 and pixels.shape[:2] == (540, 960)
    assert [p.name for p in tmp_path.iterdir()] == ["loss.png"]


def test_too_little_to_draw_is_no_picture(tmp_path: Path) -> None:
    assert plot_losses(records(1), tmp_path / "loss.png") is None
    assert plot_losses([], tmp_path / "loss.png") is None and not list(tmp_path.iterdir())
