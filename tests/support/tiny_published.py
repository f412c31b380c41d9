"""A models folder with a tiny classifier that needs no training, published as `export` does it."""

from pathlib import Path

import onnx

from service.models.manifest import MODEL_FILE, Manifest, TensorSpec, sha256_of
from tests.support.tiny_classifiers import hidden_layer_classifier
from training.datasets.splits import CLASSES, Splits
from training.evaluation.classification import classification


def publish_tiny(models: Path, splits: Splits) -> Path:
    """Write mlp/2 into a models folder; returns the version's folder."""
    folder = models / "mlp" / "2"
    folder.mkdir(parents=True)
    path = folder / MODEL_FILE
    onnx.save(hidden_layer_classifier(splits), path)
    manifest = Manifest(
        name="mlp",
        version=2,
        task="classification",
        inputs=(TensorSpec(name="images", datatype="UINT8", shape=(-1, 28, 28)),),
        outputs=(TensorSpec(name="probabilities", datatype="FP32", shape=(-1, CLASSES)),),
        labels=splits.labels,
        preprocess="resize",
        sha256=sha256_of(path),
        metrics={**classification(path, splits.test), "data": splits.name, "data_digest": splits.digest},
        command="python -m training export mlp",
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    (folder / "README.md").write_text("# mlp\n\n## Intended use\n\nTests.\n")
    return folder
