"""Federated training without Flower, which has an environment of its own: splits, averages, clients."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.support.idx_files import patterns
from training.datasets.splits import Dataset
from training.errors import DataError
from training.federated.averaging import clipped, private_average
from training.federated.local import Local, accuracy, build, train_locally, weights_of, with_weights
from training.federated.plan import History, Setting, read_history, write_history
from training.federated.report import report
from training.federated.splits import clients_rows

pytestmark = pytest.mark.slow

SETTING = Setting(
    algorithm="fedprox",
    split="iid",
    clients=3,
    rounds=2,
    participation=1.0,
    local_epochs=1,
    batch_size=10,
    learning_rate=0.1,
    proximal=0.5,
    clip_norm=1.0,
    noise_multiplier=1.0,
    seed=0,
    data_dir="data",
)


def bars(count: int, seed: int = 0) -> Dataset:
    images, labels = patterns(count, seed)
    return Dataset(images, labels.astype(np.int64))


def distance(left: object, right: object) -> float:
    pairs = zip(left, right, strict=True)  # type: ignore[call-overload]
    return float(np.sqrt(sum(np.square(a - b).sum() for a, b in pairs)))


@pytest.mark.parametrize("split", ["iid", "by-label"])
def test_clients_share_no_image_and_have_equally_many(split: str) -> None:
    labels = np.arange(603) % 10
    rows = clients_rows(labels, 10, split, seed=1)  # type: ignore[arg-type]
    assert [len(each) for each in rows] == [60] * 10
    assert len(set(np.concatenate(rows).tolist())) == 600


def test_a_split_by_label_gives_clients_two_labels_and_a_random_one_gives_all() -> None:
    labels = np.random.default_rng(0).permutation(np.arange(2000) % 10)
    skewed = [len(set(labels[rows])) for rows in clients_rows(labels, 10, "by-label", seed=0)]
    assert max(skewed) <= 2
    assert [len(set(labels[rows])) for rows in clients_rows(labels, 10, "iid", seed=0)] == [10] * 10


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DataError, match="15 images, expected at least 20 for 10 clients"):
        clients_rows(np.zeros(15, np.int64), 10, "iid", seed=0)


def test_the_average_of_equal_clients_is_a_step_on_all_their_images() -> None:
    """FedAvg with one step on each client's whole data is FedSGD (McMahan et al. 2017, section 2)."""
    data, start = bars(60), weights_of(build(seed=0))
    local = Local(epochs=1, batch_size=60, learning_rate=0.1, proximal=0.0)
    parts = [Dataset(data.images[i::3], data.labels[i::3]) for i in range(3)]
    after = [train_locally(start, part, local, seed=i)[0] for i, part in enumerate(parts)]
    rng = np.random.default_rng(0)
    averaged = private_average(start, after, bound=1e9, noise_multiplier=0.0, expected=3, rng=rng)
    whole, _ = train_locally(start, data, local, seed=0)
    assert distance(start, whole) > 0.01
    for seen, expected in zip(averaged, whole, strict=True):
        np.testing.assert_allclose(seen, expected, rtol=1e-4, atol=1e-6)
    for i, seen in enumerate(averaged):
        np.testing.assert_allclose(seen, np.mean([each[i] for each in after], axis=0), rtol=1e-4, atol=1e-6)


def test_no_client_moves_the_weights_by_more_than_its_share_of_the_bound() -> None:
    before = [np.zeros((2, 3), np.float32), np.zeros(4, np.float32)]
    far, near = [each + 100 for each in before], [each + 0.01 for each in before]
    rng = np.random.default_rng(0)
    moved = private_average(before, [far], bound=2.0, noise_multiplier=0.0, expected=5, rng=rng)
    assert distance(before, moved) == pytest.approx(2.0 / 5)
    kept = clipped(near, 2.0)
    assert [each.tolist() for each in kept] == [each.tolist() for each in near]


def test_a_round_without_clients_still_adds_the_noise() -> None:
    before, rng = [np.zeros(20000, np.float32)], np.random.default_rng(0)
    (after,) = private_average(before, [], bound=2.0, noise_multiplier=1.5, expected=4, rng=rng)
    assert float(after.std()) == pytest.approx(1.5 * 2.0 / 4, rel=0.03)


def test_the_proximal_term_keeps_a_client_near_the_rounds_weights() -> None:
    data, start = bars(40), weights_of(build(seed=0))
    moved = [
        distance(start, train_locally(start, data, Local(5, 10, 0.1, mu), seed=0)[0])
        for mu in (0.0, 1.0, 5.0)
    ]
    assert moved[0] > moved[1] > moved[2]


def test_a_step_with_the_proximal_term_is_that_of_its_gradient() -> None:
    """The second of two steps: mu times the difference from the round's weights is added to the gradient."""
    data, start = bars(10), weights_of(build(seed=0))
    one, _ = train_locally(start, data, Local(1, 10, 0.1, 0.0), seed=0)
    two, _ = train_locally(start, data, Local(2, 10, 0.1, 0.7), seed=0)
    network = with_weights(one)
    inputs = torch.from_numpy(data.images.reshape(10, -1).astype(np.float32) / 255)
    loss = functional.cross_entropy(network(inputs), torch.from_numpy(data.labels))
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    for first, begin, gradient, second in zip(one, start, gradients, two, strict=True):
        expected = first - 0.1 * (gradient.numpy() + 0.7 * (first - begin))
        np.testing.assert_allclose(second, expected, rtol=1e-4, atol=1e-6)


def test_clients_that_learn_alone_learn_together() -> None:
    data, weights = bars(120), weights_of(build(seed=0))
    rows = clients_rows(data.labels, 3, "iid", seed=0)
    parts = [Dataset(data.images[each], data.labels[each]) for each in rows]
    rng = np.random.default_rng(0)
    for number in range(6):
        after = [train_locally(weights, part, Local(2, 10, 0.1, 0.0), seed=number)[0] for part in parts]
        weights = private_average(weights, after, bound=1e9, noise_multiplier=0.0, expected=3, rng=rng)
    assert accuracy(weights, bars(60, seed=7)) > 0.9


def test_a_history_is_kept_for_its_setting_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_history(tmp_path, SETTING) is None
    history = History(SETTING, [0.1, 0.5, 0.7], 0.65, None, None, 3.2)
    write_history(tmp_path, history)
    assert read_history(tmp_path, SETTING) == history
    assert Setting.from_json(SETTING.to_json()) == SETTING
    other = Setting.from_json(SETTING.to_json().replace('"rounds": 2', '"rounds": 3'))
    assert read_history(tmp_path, other) is None
    report(tmp_path, [history])
    assert "| fedprox | iid | 3 | 100% | 2 | 43.33% | 65.00% |  | 3 s |" in capsys.readouterr().out
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
