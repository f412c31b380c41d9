"""The YAML in front of a model card, as Hugging Face's hub defines it; its Markdown follows."""

from typing import Any

import yaml

from service.models.manifest import FP16_SUFFIX, GRADIENT_SUFFIX, INT8_SUFFIX, Manifest, Task
from training.provenance.measured import measured
from training.provenance.metadata import LICENSE

PIPELINE_TAGS: dict[Task, str] = {
    "classification": "image-classification",
    "generation": "unconditional-image-generation",  # no tag of the hub means "of a given class"
    "encoding": "image-feature-extraction",
    "search": "feature-extraction",
    "captioning": "image-to-text",
    "gradient": "image-feature-extraction",  # no tag of the hub means a gradient
    "inference": "other",
}

DATASETS = {"mnist": "ylecun/mnist", "fashion-mnist": "zalando-datasets/fashion_mnist"}
"""The hub's names of the published datasets."""

SUFFIXES = (INT8_SUFFIX, FP16_SUFFIX, GRADIENT_SUFFIX)
"""The ends of the names of models that are made from others; their words are tags."""

METRICS = {"test_accuracy": "accuracy", "test_brier": "brier_score"}
"""The hub's names of metrics, if it has one; ours are kept as `name` in any case."""


def front_matter(manifest: Manifest) -> str:
    """The front matter of a model's card, with the lines of dashes around it and an empty line behind."""
    data = str(manifest.metrics.get("data", "unknown"))
    content = {
        "license": LICENSE.lower(),
        "library_name": "onnx",
        "pipeline_tag": PIPELINE_TAGS[manifest.task],
        **({"datasets": [DATASETS[data]]} if data in DATASETS else {}),
        "tags": _tags(manifest, data),
        "model-index": [{"name": manifest.name, "results": [_result(manifest, data)]}],
    }
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---\n\n"


def _tags(manifest: Manifest, data: str) -> list[str]:
    tags = ["onnx", "inkserve", data]
    if manifest.task == "generation" and manifest.input("label") is not None:
        tags.append("class-conditional")
    tags += [suffix[1:] for suffix in SUFFIXES if manifest.name.endswith(suffix)]
    return tags


def _result(manifest: Manifest, data: str) -> dict[str, Any]:
    return {
        "task": {"type": PIPELINE_TAGS[manifest.task]},
        "dataset": {"name": data, "type": DATASETS.get(data, data), "split": "test"},
        "metrics": [
            {"type": METRICS.get(name, name), "name": name, "value": value}
            for name, value in measured(manifest).items()
        ],
    }
