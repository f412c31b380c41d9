"""The real service under schemathesis: every check, every phase, stateful too, from its own description."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings

from tests.support.live import ROOT, serving

HERE = Path(__file__).parent
KEY = "a-key-of-the-tests-0123"


def depth() -> tuple[list[str], float]:
    """Return the options that set how much is tried, and the seconds that it may take."""
    if hypothesis_settings.get_current_profile_name() == "nightly":
        return ["--max-examples", "300"], 7000  # and a seed of the night's own, which schemathesis prints
    return ["--max-examples", "5", "--seed", "1"], 240


@pytest.mark.parametrize(
    "with_keys",
    [pytest.param(False, id="open", marks=pytest.mark.nightly), pytest.param(True, id="with API keys")],
)
def test_no_request_made_from_the_description_fails_a_check(with_keys: bool, tmp_path: Path) -> None:
    flags, sent = [], []
    options, seconds = depth()
    if with_keys:
        (tmp_path / "keys").write_text(KEY)
        flags = ["--api-keys-file", str(tmp_path / "keys")]
        sent = ["--header", f"Authorization: Bearer {KEY}"]
    with serving("--models-dir", str(ROOT / "models"), *flags) as service:
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml")),
            *("run", f"http://127.0.0.1:{service.port}/openapi.json", "--checks", "all", "--no-color"),
            *("--phases", "examples,coverage,fuzzing,stateful", *options, *sent),
        ]
        hooks = {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(HERE)}
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | hooks, capture_output=True, text=True, timeout=seconds
        )
    assert done.returncode == 0, done.stdout + done.stderr
