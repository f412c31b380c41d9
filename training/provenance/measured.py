"""Which of a manifest's metrics measure the model."""

from service.models.manifest import Manifest

SIZES = ("test_images", "samples")
"""How much was measured, which says nothing of the model."""


def measured(manifest: Manifest) -> dict[str, float | int]:
    """The numbers that describe the model: no names, no sizes, and nothing that real images got."""
    return {
        name: value
        for name, value in manifest.metrics.items()
        if not isinstance(value, str) and name not in SIZES and not name.startswith("real_")
    }
