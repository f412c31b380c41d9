"""The quality floor: a version that is much worse than the last one is published only by force."""

from collections.abc import Mapping
from pathlib import Path

from service.models.folder import version_folders
from service.models.manifest import MANIFEST_FILE, read_manifest
from training.errors import ExportError

ALLOWED_LOSS = {
    "test_accuracy": 0.003,
    "label_agreement": 0.02,
    "recall": 0.1,
    "test_elbo": 2.0,
    "frechet_distance": -0.5,
    "precision_at_10": 0.03,
    "accepted_outside": -0.05,
    "test_caption_accuracy": 0.03,
}
"""By how much a metric may fall; negative if lower is better, and it may rise."""


def check_floor(
    models_dir: Path, name: str, metrics: Mapping[str, float | int | str], version: int, *, force: bool
) -> None:
    """Raise ExportError if a metric is much worse than that of the latest other version on the same data."""
    if force:
        return
    folders = version_folders(models_dir / name, holding=MANIFEST_FILE)
    folders.pop(version, None)
    if not folders:
        return
    other = max(folders)
    last = read_manifest(folders[other]).metrics
    if last.get("data_digest") != metrics.get("data_digest"):
        return
    for metric, allowed in ALLOWED_LOSS.items():
        before, now = last.get(metric), metrics.get(metric)
        if not isinstance(before, float | int) or not isinstance(now, float | int):
            continue
        loss = before - now if allowed > 0 else now - before
        if loss > abs(allowed):
            raise ExportError(
                f"{name}: {metric} is {now:.6g}, {before:.6g} in version {other}, expected at most "
                f"{abs(allowed):g} worse: publish it all the same with --force"
            )
