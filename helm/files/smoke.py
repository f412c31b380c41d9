"""Checks a service: classify a drawn seven and generate another. Needs only Python.

`helm test` runs it, and the load Job before its load. Exits with 0, or with 1 and a line that says what was
seen and what was expected.
"""

import argparse
import json
import ssl
import sys
import time
import urllib.request
from pathlib import Path

SIDE = 28
TIMEOUT_SECONDS = 30
PAUSE_SECONDS = 0.5
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def drawn_seven() -> bytes:
    """Draw a seven like MNIST's, 784 bytes: a bar and a slanted stem in the inner 20 x 20, on black."""
    image = bytearray(SIDE * SIDE)
    points = [(column, 6) for column in range(7, 20)]
    points += [(19 - round(step * 8 / 16), 6 + step) for step in range(17)]
    for column, row in points:
        for dx, dy, ink in ((0, 0, 255), (1, 0, 255), (0, 1, 255), (1, 1, 255), (-1, 0, 90), (2, 1, 90)):
            index = (row + dy) * SIDE + column + dx
            image[index] = max(image[index], ink)
    return bytes(image)


def first_key(path: str) -> str:
    """Return the first API key in a file that may use models. Raises OSError, or ValueError without one.

    A line is KEY or NAME:SCOPES:KEY; in place of a key there may be its digest, which nobody can send.
    """
    for line in Path(path).read_text("utf-8").splitlines():
        *named, key = (part.strip() for part in line.split(":"))
        scopes = [scope.strip() for scope in named[1].split(",")] if len(named) == 2 else ["infer"]
        if key and not line.strip().startswith("#") and "infer" in scopes and not key.startswith("sha256="):
            return key
    raise ValueError(f"{path} holds no API key with the scope infer, or only digests")


def ask(url: str, key: str, body: bytes | None = None) -> bytes:
    """Return the body of a 2xx response. key: empty for none. Raises urllib.error.URLError."""
    headers = {"Content-Type": "application/octet-stream"} if body else {}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, body, headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        answer: bytes = response.read()
    return answer


def use_certificates(ca_file: str, client_cert_file: str, client_key_file: str) -> None:
    """Verify the service by these authorities, and send a client certificate. Raises OSError.

    ca_file: empty for the system's authorities. client_cert_file: empty for none.
    """
    context = ssl.create_default_context(cafile=ca_file or None)
    if client_cert_file:
        context.load_cert_chain(client_cert_file, client_key_file)
    urllib.request.install_opener(urllib.request.build_opener(urllib.request.HTTPSHandler(context=context)))


def wait_until_ready(url: str, seconds: float) -> None:
    """Wait for the service. Raises the last urllib.error.URLError if it is not ready in time."""
    give_up = time.monotonic() + seconds
    while True:
        try:
            ask(f"{url}/v2/health/ready", "")
        except OSError:
            if time.monotonic() >= give_up:
                raise
            time.sleep(PAUSE_SECONDS)
        else:
            return


def check_classify(url: str, key: str, expected_label: str) -> str:
    """Classify the seven. Raises ValueError unless the response is for one image, with the expected label."""
    answer = json.loads(ask(f"{url}/classify", key, drawn_seven()))
    if len(answer["predictions"]) != 1:
        raise ValueError(f"{len(answer['predictions'])} predictions came back, expected 1")
    prediction = answer["predictions"][0]
    total = sum(prediction["probabilities"].values())
    if abs(total - 1) > 0.001:  # float32 rounding over ten classes is below 1e-6
        raise ValueError(f"the probabilities add up to {total}, expected 1")
    if expected_label not in ("", prediction["label"]):
        raise ValueError(f"the drawn seven was read as {prediction['label']!r}, expected {expected_label!r}")
    label, probability = prediction["label"], prediction["probability"]
    return f"{answer['model']} read the drawn seven as {label}, p = {probability:.4f}"


def check_generate(url: str, key: str) -> str:
    """Generate a seven. Raises ValueError if the response is not a PNG."""
    image = ask(f"{url}/generate?label=7&seed=1", key)
    if not image.startswith(PNG_SIGNATURE):
        raise ValueError(f"/generate returned {image[:8]!r}, expected a PNG")
    return f"a seven was generated, a PNG of {len(image)} bytes"


def main() -> int:
    """Run the checks against the service at a URL."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url", help="base URL of the service")
    parser.add_argument("--expected-label", default="", help="label of the drawn seven (default: any)")
    parser.add_argument("--no-generate", action="store_true", help="skip /generate")
    parser.add_argument(
        "--api-keys-file", default="", help="file of API keys; the first is sent (default: none)"
    )
    parser.add_argument("--ca-file", default="", help="authorities of the service (default: the system's)")
    parser.add_argument("--client-cert-file", default="", help="certificate to send (default: none)")
    parser.add_argument("--client-key-file", default="", help="its private key")
    parser.add_argument("--wait-seconds", type=float, default=0, help="time to wait until ready (default: 0)")
    options = parser.parse_args()
    try:
        use_certificates(options.ca_file, options.client_cert_file, options.client_key_file)
        wait_until_ready(options.url, options.wait_seconds)
        key = first_key(options.api_keys_file) if options.api_keys_file else ""
        print(check_classify(options.url, key, options.expected_label))
        if not options.no_generate:
            print(check_generate(options.url, key))
    except (OSError, ValueError) as error:  # URLError is an OSError
        print(f"{options.url}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
