import pytest

from paddlesft.training.events import LogRecord
from paddlesft.training.progress import SpeedMeter, duration, format_line, memory_gb


def test_one_line_says_it_all() -> None:
    record = LogRecord(
        step=20, max_steps=640, percent=3.125, loss=1.83421, learning_rate=2.94e-4, tokens_per_second=1412.4,
        trained_tokens_per_second=183.2, memory_gb=2.614, eta_seconds=3672.0, epoch=0.3125, step_seconds=5.9,
        trained_tokens=9000,
    )  # fmt: skip
    assert format_line(record) == (
        "step  20/640   3.1%  loss 1.8342  lr 2.94e-04  1,412 tok/s (183 trained)  2.61 GB  epoch 0.31  ETA 1:01:12"
    )
    assert record.as_dict()["loss"] == 1.83421


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (-3, "0:00"), (42.4, "0:42"), (62, "1:02"), (3599.6, "1:00:00"), (3723, "1:02:03"),
     (273900, "3d 04:05")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_line_averages_over_tokens_and_the_time_of_steps() -> None:
    meter = SpeedMeter(max_steps=10)
    assert not meter.has_news
    meter.add_step(loss_sum=20.0, trained_tokens=10, tokens=40, seconds=9.0)  # the first step warms up
    meter.add_step(loss_sum=90.0, trained_tokens=30, tokens=60, seconds=1.0)
    line = meter.line(step=2, learning_rate=0.1, epoch=0.5)
    assert (line.loss, line.tokens_per_second, line.trained_tokens_per_second) == (110 / 40, 10.0, 4.0)
    assert (line.percent, line.trained_tokens, line.step_seconds) == (20.0, 40, 5.0)
    assert line.eta_seconds == 8.0  # 8 steps of 1 s: the first is left out
    assert (meter.tokens, meter.seconds) == (100, 10.0)
    assert not meter.has_news and meter.mean_loss == 110 / 40


def test_the_running_sums_survive_a_resume() -> None:
    whole, before = SpeedMeter(4), SpeedMeter(4)
    for meter in (whole, before):
        meter.add_step(1.0, 3, 5, 1.0)
        meter.line(1, 0.1, 0.25)
        meter.add_step(2.0, 4, 6, 1.0)
    after = SpeedMeter(4, before.state())
    for meter in (whole, after):
        meter.add_step(7.0, 2, 9, 1.0)
    assert whole.line(3, 0.1, 0.75).loss == after.line(3, 0.1, 0.75).loss == 9 / 6
    assert after.mean_loss == whole.mean_loss and after.trained_tokens == 9


def test_memory_is_that_of_this_process() -> None:
    assert 0.05 < memory_gb() < 100
