""".ci/environment leaves what is not its own as it was."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_an_environment_that_is_a_link_to_another_one_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "bin").mkdir(parents=True)
    (other / ".develop").touch()
    (tmp_path / "link").symlink_to(other)
    made = subprocess.run(
        [ROOT / ".ci" / "environment", tmp_path / "link", ".develop", "nothing: 0 MB, 0 s", "pip"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert made.returncode == 1
    assert f"is a link to {other}" in made.stderr
    assert (other / ".develop").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "other"]
