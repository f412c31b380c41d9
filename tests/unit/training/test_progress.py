from training.runs.progress import Progress, summary


def test_summary_names_the_lowest_of_numbered_metrics() -> None:
    metrics = {"epoch": 3, "validation_loss": 0.5, "validation_recall_0": 0.9, "validation_recall_1": 0.8}
    expected = "epoch 3  validation_loss 0.5  validation_recall_1 0.8 (lowest of 2)  seconds 4"
    assert summary(metrics | {"seconds": 4.0}) == expected


class Unread:
    """A loss on a device that must not be waited for."""

    def __float__(self) -> float:
        raise AssertionError("read although no line is due")


def test_progress_is_quiet_until_its_interval_has_passed() -> None:
    progress = Progress(epochs=2, interval_seconds=30, now=100)
    assert progress.step(0, 0, 10, [Unread()], now=129.9) is None
    assert progress.step(0, 1, 10, [0.25], now=130) is not None
    assert progress.step(0, 2, 10, [Unread()], now=159.9) is None
    assert progress.step(0, 3, 10, [], now=160) is not None


def test_progress_gives_the_recent_pace_and_the_time_left_at_the_average_one() -> None:
    progress = Progress(epochs=3, interval_seconds=10, now=0)
    assert progress.step(0, 0, 4, [0.5], now=5) is None
    # two steps in 10 s, 10 of 12 left at 5 s each
    assert progress.step(0, 1, 4, [0.5], now=10) == "epoch 1/3  step 2/4  loss 0.5  0.2 steps/s  0:00:50 left"
    # one step in 20 s, 9 of 12 left at 30 / 3 s each
    expected = "epoch 1/3  step 3/4  loss 0.5 2  0.05 steps/s  0:01:30 left"
    assert progress.step(0, 2, 4, [0.5, 2], now=30) == expected


def test_a_resumed_run_leaves_out_the_epochs_before() -> None:
    progress = Progress(epochs=3, interval_seconds=1, now=0)
    assert progress.step(2, 2, 4, [], now=2) == "epoch 3/3  step 3/4  loss -  0.5 steps/s  0:00:02 left"
