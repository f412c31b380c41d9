"""The modules that protoc writes are those of the .proto files."""

import sys
from importlib.resources import files
from pathlib import Path

import pytest
from grpc_tools import protoc

ROOT = Path(__file__).parents[3]


NAMES = ("open_inference", "health")


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_modules_are_what_protoc_writes(name: str, tmp_path: Path) -> None:
    arguments = [f"-I{ROOT}", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    assert protoc.main([sys.argv[0], *arguments, f"service/grpc/{name}.proto"]) == 0
    for suffix in (".py", ".pyi"):
        place = Path("service", "grpc", f"{name}_pb2{suffix}")
        assert (tmp_path / place).read_text() == (ROOT / place).read_text(), "run `make proto`"


def test_no_other_module_is_generated() -> None:
    folder = files("service.grpc")
    generated = {each.name for each in folder.iterdir() if "_pb2" in each.name}
    assert generated == {f"{name}_pb2{end}" for name in NAMES for end in (".py", ".pyi")}
