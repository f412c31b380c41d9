from training.runs.progress import summary


def test_summary_names_the_lowest_of_numbered_metrics() -> None:
    metrics = {"epoch": 3, "validation_loss": 0.5, "validation_recall_0": 0.9, "validation_recall_1": 0.8}
    expected = "epoch 3  validation_loss 0.5  validation_recall_1 0.8 (lowest of 2)  seconds 4"
    assert summary(metrics | {"seconds": 4.0}) == expected
