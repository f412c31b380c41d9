"""What plays the chart in `make image-check`: callers that notice a lost request, pods that share nothing."""

import json
import shutil
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.charts import one, render
from tests.support.live import ROOT, serving


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / ".ci")


def test_a_caller_keeps_its_connection_and_notices_a_lost_request(tmp_path: Path) -> None:
    from keep_alive_callers import CallError, calling, wait_for_more

    shutil.copytree(ROOT / "models" / "mlp", tmp_path / "mlp")
    with serving("--models-dir", str(tmp_path)) as service:
        endpoint = f"127.0.0.1:{service.port}"
        with calling(endpoint) as callers:
            wait_for_more(callers)
        assert {caller.opened for caller in callers} == {1}

        def lose_one() -> None:
            with calling(endpoint) as callers:
                wait_for_more(callers)
                service.stop(signal.SIGKILL)
                wait_for_more(callers)

        with pytest.raises(CallError, match="POST /classify after"):
            lose_one()


def test_a_caller_refuses_another_label(tmp_path: Path) -> None:
    from keep_alive_callers import Caller, CallError

    shutil.copytree(ROOT / "models" / "mlp", tmp_path / "mlp")
    manifest = tmp_path / "mlp" / "1" / "manifest.json"
    changed = json.loads(manifest.read_text())
    changed["labels"] = changed["labels"][::-1]
    manifest.write_text(json.dumps(changed))
    with (
        serving("--models-dir", str(tmp_path)) as service,
        closing(Caller(f"127.0.0.1:{service.port}")) as caller,
        pytest.raises(CallError, match="is 2, expected 7"),
    ):
        caller.classify()


@pytest.mark.parametrize("split", [False, True])
def test_two_revisions_share_no_volume_no_port_and_no_name(split: bool) -> None:
    from played_pod import playable

    deployment = one(render({"split": {"enabled": split}}), "Deployment")
    first, second = (playable(deployment, revision) for revision in (1, 2))

    def names(manifest: dict[str, Any]) -> set[object]:
        pod = manifest["spec"]["template"]["spec"]
        ports = [port["hostPort"] for each in pod["containers"] for port in each.get("ports", [])]
        return {manifest["metadata"]["name"], *ports, *(volume["name"] for volume in pod["volumes"])}

    assert len(names(first)) == (4 if split else 3)
    assert not names(first) & names(second)
    for manifest in (first, second):
        pod = manifest["spec"]["template"]["spec"]
        mounted = {mount["name"] for each in pod["containers"] for mount in each["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
