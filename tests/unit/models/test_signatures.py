"""Signatures of versions, with real keys: signed ones are opened, unsigned and changed ones are refused."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.compose import Parts
from service.errors import ManifestError, RepositoryError, SettingsError
from service.models.manifest import MANIFEST_FILE, MODEL_FILE
from service.models.signatures import MAX_SIGNATURE_BYTES, SIGNATURE_FILE, read_trusted_keys, verified
from service.observability.metrics import Metrics
from service.serving.loaded_model import open_engine
from service.serving.local import LocalPredictor
from service.settings import Settings
from tests.support.keys import key_pair
from tests.support.models import IMAGES, PROBABILITIES, first_pixel_classifier, write_model
from training.__main__ import main
from training.errors import SigningError
from training.signing import sign

SEARCH = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A version with a card, and with a file in a subfolder."""
    folder = write_model(
        tmp_path / "models",
        first_pixel_classifier(),
        name="first-pixel",
        task="classification",
        inputs=(IMAGES,),
        outputs=(PROBABILITIES,),
    )
    (folder / "README.md").write_text("# A card\n")
    (folder / "weights").mkdir()
    (folder / "weights" / "0.data").write_bytes(bytes(100))
    return folder


@pytest.fixture
def signed(version: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The version, signed, and the public key."""
    private, public = key_pair(tmp_path)
    sign(version, private)
    return version, public


def refusal(folder: Path, keys: Path) -> str:
    """Return the reason why a version is refused; it never names the private copy."""
    with pytest.raises(RepositoryError) as refused, verified(folder, keys):
        pytest.fail("a version was accepted")
    assert str(folder) in str(refused.value)
    assert "/inkserve-" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda c: c.name)
def test_a_signed_version_is_opened(version: Path, tmp_path: Path, curve: ec.EllipticCurve) -> None:
    private, public = key_pair(tmp_path, curve=curve)
    assert main(["sign", str(version), "--key", str(private)]) == 0
    assert main(["sign", str(version), "--key", str(private)]) == 0  # the old signature is not signed
    chosen = Settings(models_dir=version.parents[1], max_batch_size=2, trusted_keys=public)
    info, _, _ = open_engine(version, chosen)
    assert (info.manifest.name, info.card) == ("first-pixel", "# A card\n")


def test_without_keys_nothing_is_copied(version: Path) -> None:
    with verified(version, None) as to_open:
        assert to_open == version


def test_an_unsigned_version_is_refused(version: Path, tmp_path: Path) -> None:
    assert "is not signed: model.sig is missing" in refusal(version, key_pair(tmp_path)[1])


def test_another_key_is_refused_and_named(signed: tuple[Path, Path], tmp_path: Path) -> None:
    (key_id,) = read_trusted_keys(signed[1])
    other = key_pair(tmp_path, "other")[1]
    (other_id,) = read_trusted_keys(other)
    assert f"signed by key {key_id[:16]!r}, expected one of {other_id[:16]}" in refusal(signed[0], other)


def test_a_folder_of_keys_is_read_like_a_mounted_config_map(
    signed: tuple[Path, Path], tmp_path: Path
) -> None:
    mount = tmp_path / "mount"
    (mount / "..2026").mkdir(parents=True)
    key_pair(mount / "..2026", "other")[0].unlink()
    shutil.copy(signed[1], mount / "..2026" / "release.pem")
    (mount / "..data").symlink_to("..2026")
    for name in ("other.pem", "release.pem"):
        (mount / name).symlink_to(f"..data/{name}")
    assert len(read_trusted_keys(mount)) == 2
    with verified(signed[0], mount):
        pass


def changed(content: bytes, at: int, kind: str) -> bytes:
    place = at % max(1, len(content))
    if kind == "truncate":
        return content[:place]
    if kind == "append":
        return content + b"\n"
    return content[:place] + bytes([content[place] ^ (1 << at % 8)]) + content[place + 1 :]


@pytest.mark.slow
@SEARCH
@given(
    file=st.sampled_from([MODEL_FILE, MANIFEST_FILE, "README.md", "weights/0.data"]),
    kind=st.sampled_from(["flip", "truncate", "append", "delete", "rename", "add"]),
    at=st.integers(0, 10_000),
)
def test_any_change_after_signing_is_refused(
    signed: tuple[Path, Path], file: str, kind: str, at: int
) -> None:
    folder, public = signed
    target = folder / file
    content = target.read_bytes()
    moved, added = target.with_name("moved"), target.with_name(f"added{at}")
    try:
        if kind == "add":
            added.write_bytes(b"")
        elif kind == "rename":
            target.rename(moved)
        elif kind == "delete":
            target.unlink()
        else:
            target.write_bytes(changed(content, at, kind))
        assert "does not match its signature" in refusal(folder, public)
    finally:
        moved.unlink(missing_ok=True)
        added.unlink(missing_ok=True)
        target.write_bytes(content)
    with verified(folder, public):
        pass


@SEARCH
@given(
    st.one_of(
        st.binary(max_size=200), st.tuples(st.integers(0, 10_000), st.sampled_from(["flip", "truncate"]))
    )
)
def test_a_broken_signature_is_refused_with_a_reason(
    signed: tuple[Path, Path], broken: bytes | tuple[int, str]
) -> None:
    folder, public = signed
    good = (folder / SIGNATURE_FILE).read_bytes()
    content = broken if isinstance(broken, bytes) else changed(good, *broken)
    (folder / SIGNATURE_FILE).write_bytes(content)
    try:
        with verified(folder, public):  # a change of the JSON that means the same
            pass
    except RepositoryError as error:
        assert str(folder) in str(error)  # noqa: PT017
    finally:
        (folder / SIGNATURE_FILE).write_bytes(good)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        "[" * 100_000,
        '{"verificationMaterial": {"publicKey": {}}}',
        "x" * (MAX_SIGNATURE_BYTES + 1),
    ],
    ids=["empty", "null", "list", "object", "deep", "no-id", "large"],
)
def test_what_is_no_signature_is_refused(signed: tuple[Path, Path], text: str) -> None:
    (signed[0] / SIGNATURE_FILE).write_text(text)
    refusal(*signed)


@pytest.mark.slow
def test_a_signature_that_leaves_a_file_out_is_refused(version: Path, tmp_path: Path) -> None:
    private, public = key_pair(tmp_path)
    command = [
        sys.executable,
        "-m",
        "model_signing",
        "sign",
        "key",
        str(version),
        "--private_key",
        str(private),
    ]
    command += ["--signature", str(version / SIGNATURE_FILE)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    with verified(version, public):
        pass
    left_out = ["--ignore-paths", str(version / MODEL_FILE)]
    subprocess.run([*command, *left_out], check=True, capture_output=True, timeout=60)
    assert "['model.onnx'], which its signature does not cover" in refusal(version, public)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def circle(path: Path) -> None:
    path.symlink_to("..")


@pytest.mark.parametrize("make", [fifo, endless, circle])
@pytest.mark.parametrize("name", ["extra", "README.md", SIGNATURE_FILE])
def test_what_is_no_file_is_refused_at_once(
    signed: tuple[Path, Path], make: Callable[[Path], None], name: str
) -> None:
    (signed[0] / name).unlink(missing_ok=True)
    make(signed[0] / name)
    refusal(*signed)


def test_what_is_verified_is_what_is_opened(signed: tuple[Path, Path]) -> None:
    folder, public = signed
    graph = (folder / MODEL_FILE).read_bytes()
    with verified(folder, public) as to_open:
        (folder / MODEL_FILE).write_bytes(b"another graph")
        assert (to_open / MODEL_FILE).read_bytes() == graph
        assert (to_open.parent.name, to_open.name) == (folder.parent.name, folder.name)
        assert stat.S_IMODE(to_open.parents[1].stat().st_mode) == 0o700
    assert not to_open.parents[1].exists()


async def test_a_reload_keeps_the_version_that_was_signed(signed: tuple[Path, Path]) -> None:
    folder, public = signed
    chosen = Settings(models_dir=folder.parents[1], max_batch_size=2, trusted_keys=public)
    predictor = LocalPredictor(chosen, Metrics())
    await predictor.start()
    before = predictor.models().find("first-pixel")
    (folder / "README.md").write_text("# Another card\n")
    (problem,) = await predictor.reload()
    assert "['README.md'] are changed" in problem
    assert predictor.models().find("first-pixel") == before
    await predictor.close()


def rsa_key(path: Path) -> None:
    key = rsa.generate_private_key(65537, 2048).public_key()
    path.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def unusual_curve(path: Path) -> None:
    key_pair(path.parent, path.stem, ec.SECP256K1())


def private_key(path: Path) -> None:
    key_pair(path.parent, path.stem)[0].rename(path)


def two_keys(path: Path) -> None:
    path.write_bytes(key_pair(path.parent, "a")[1].read_bytes() + key_pair(path.parent, "b")[1].read_bytes())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "cannot be read"),
        (lambda path: path.mkdir(), "an empty folder, expected public keys"),
        (lambda path: path.write_bytes(b""), "is not a public key, expected one public key in PEM"),
        (lambda path: path.write_bytes(bytes(range(256))), "is not a public key"),
        (lambda path: path.write_bytes(b"x" * (MAX_SIGNATURE_BYTES + 1)), "larger than"),
        (fifo, "not a regular file"),
        (private_key, "is not a public key"),
        (rsa_key, "is .*RSAPublicKey, expected"),
        (unusual_curve, "is secp256k1, expected"),
        (two_keys, "holds several PEM blocks"),
    ],
)
def test_a_bad_key_stops_the_start(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / "trusted.pem")
    chosen = Settings(models_dir=tmp_path, trusted_keys=tmp_path / "trusted.pem")
    with pytest.raises(SettingsError, match=message):
        Parts.open(chosen).predictor()


def test_without_the_extra_the_start_fails_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing.verifying", None)  # as if it were not installed
    with pytest.raises(SettingsError, match="the extra `signing` is missing"):
        read_trusted_keys(key_pair(tmp_path)[1])


def test_only_a_whole_version_is_signed(
    version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = key_pair(tmp_path)
    for wrong in (public, tmp_path / "nosuch"):
        with pytest.raises(SigningError, match="private key"):
            sign(version, wrong)
    (version / MODEL_FILE).write_bytes(b"another graph")
    with pytest.raises(SigningError, match="differs from its manifest's sha256"):
        sign(version, private)
    (version / MANIFEST_FILE).unlink()
    with pytest.raises(ManifestError, match="missing"):
        sign(version, private)
    assert main(["sign", str(version), "--key", str(private)]) == 2
    assert "manifest.json is missing" in capsys.readouterr().err
    assert not (version / SIGNATURE_FILE).exists()
