"""GET /models/{name}/graph: the layers of the version that is served."""

from pathlib import Path

import httpx

from service.http.app import create_app
from service.observability.metrics import Metrics
from service.serving.local import LocalPredictor
from tests.support.http import settings


async def test_the_layers_are_those_of_the_served_version(predictor: LocalPredictor, tmp_path: Path) -> None:
    app = create_app(predictor, settings(tmp_path), Metrics())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        graph = (await client.get("/models/ramp/graph")).json()
        assert (graph["name"], graph["version"]) == ("ramp", 1)
        first = graph["layers"][0]
        assert (first["operator"], first["shape"], first["parameters"]) == ("MatMul", [-1, 784], 6 * 784)
        assert graph["multiply_adds"] == first["multiply_adds"] == 6 * 784
        assert graph["layers"][-1]["shape"] == [-1, 28, 28]
        assert graph["parameters"] == 6 * 784
        assert graph["layers"][2]["inputs"] == [graph["layers"][1]["name"]]
        other = (await client.get("/models/first-pixel/graph")).json()
        assert other["layers"][-1]["operator"] == "OneHot"


async def test_a_file_that_is_no_longer_the_served_one_tells_nothing(
    predictor: LocalPredictor, tmp_path: Path
) -> None:
    path = tmp_path / "another" / "3" / "model.onnx"
    app = create_app(predictor, settings(tmp_path), Metrics())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        path.write_bytes(b"another graph")
        response = await client.get("/models/another/graph")
        assert response.status_code == 404
        assert "model.onnx of this version has changed: its SHA-256 is " in response.json()["error"]
        path.unlink()
        response = await client.get("/models/another/graph")
        assert response.status_code == 404
        assert "model.onnx of this version cannot be read any more" in response.json()["error"]
