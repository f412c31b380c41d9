"""Which models answer requests that name none."""

import itertools

import pytest

from service.errors import ModelNotFound
from service.models.catalogue import Catalogue, ModelInfo
from service.models.manifest import UNKNOWN_SHA256, Manifest, Task
from tests.support.models import IMAGES, PROBABILITIES


def info(name: str, version: int = 1, *, default: bool = False, task: Task = "classification") -> ModelInfo:
    outputs = (PROBABILITIES,) if task == "classification" else (IMAGES,)
    manifest = Manifest(
        name=name,
        version=version,
        task="classification",
        inputs=(IMAGES,),
        outputs=(PROBABILITIES,),
        labels=tuple("0123456789"),
        sha256=UNKNOWN_SHA256,
        default=default,
    )
    return ModelInfo(manifest.model_copy(update={"task": task, "outputs": outputs}), "")


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ([info("a"), info("b"), info("c")], "a"),
        ([info("a"), info("b", default=True), info("c")], "b"),
        ([info("a"), info("b", default=True), info("c", default=True)], "b"),
        ([info("a"), info("b", default=True), info("b", 2)], "a"),
        ([info("a"), info("b"), info("b", 2, default=True)], "b"),
        ([info("a"), info("b", default=True, task="generation")], "a"),
    ],
    ids=["the first", "the one", "the first of two", "not any more", "since version 2", "of another task"],
)
def test_the_default_is_the_first_by_name_or_the_first_that_says_so(
    models: list[ModelInfo], expected: str
) -> None:
    for order in itertools.permutations(models):
        assert Catalogue(order).default("classification").manifest.name == expected


def test_a_task_without_a_model_has_no_default() -> None:
    with pytest.raises(ModelNotFound, match="no model for encoding is loaded"):
        Catalogue([info("a")]).default("encoding")


def test_only_a_default_is_written() -> None:
    written = [Manifest.model_dump_json(info("a", default=flag).manifest) for flag in (True, False)]
    assert ['"default":true' in text for text in written] == ["default" in text for text in written]
    assert [Manifest.model_validate_json(text).default for text in written] == [True, False]
