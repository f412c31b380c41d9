"""How models are opened: the batch sizes of those whose rows always have the same bits."""

from pathlib import Path
from typing import Any

import pytest

from service.models.manifest import Manifest, Task
from service.onnx.session import EngineOptions
from service.serving.tuning import engine_options
from service.settings import Settings
from tests.support.models import IMAGES, LABEL, z_spec


def options(task: Task, **settings: Any) -> EngineOptions:
    manifest = Manifest.model_construct(
        name="m", version=1, sha256="", task=task, inputs=(z_spec(), LABEL), outputs=(IMAGES,)
    )
    return engine_options(Settings(models_dir=Path(), max_batch_size=32, **settings), manifest)


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_a_generator_may_run_in_two_sizes_per_power_of_two_and_the_fixed_one(provider: str) -> None:
    chosen = options("generation", fixed_batch_size=13, provider=provider)
    assert (chosen.buckets, chosen.fixed_size) == ((1, 2, 3, 4, 6, 8, 12, 13, 16, 24, 32), 13)


def test_a_fixed_size_may_exceed_the_largest_batch() -> None:
    assert options("generation", fixed_batch_size=40).buckets == (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40)


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("search", {}),
        ("captioning", {}),
        ("classification", {"determinism": "all"}),
        ("generation", {"provider": "tensorrt"}),
    ],
)
def test_others_run_only_in_the_fixed_size(task: Task, settings: dict[str, Any]) -> None:
    assert options(task, **settings).buckets == (16,)


@pytest.mark.parametrize(("task", "determinism"), [("generation", "off"), ("classification", "generation")])
def test_without_determinism_no_size_is_fixed(task: Task, determinism: str) -> None:
    chosen = options(task, determinism=determinism)
    assert chosen.fixed_size is None
    assert 24 in chosen.buckets
