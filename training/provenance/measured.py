"""Which of a manifest's metrics measure the model on the test set."""

from service.models.manifest import Manifest
from training.cost import MULTIPLY_ADDS

SIZES = (*("test_images", "samples", "captions", "outside_prompts", "synonym_captions", "prompted_images"),)
"""How much was measured, which says nothing of the model."""

COSTS = (MULTIPLY_ADDS,)
"""What the model costs, which no data changes."""


def measured(manifest: Manifest) -> dict[str, float | int]:
    """The numbers that rate the model: no names, sizes or costs, and nothing that real images got."""
    return {
        name: value
        for name, value in manifest.metrics.items()
        if not isinstance(value, str) and name not in (*SIZES, *COSTS) and not name.startswith("real_")
    }
