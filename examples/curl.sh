#!/usr/bin/env bash
# Ask a running service with curl: `examples/curl.sh [http://127.0.0.1:8000]`, from the repository's root.
# Writes sevens.png, latents.npy, decoded.png, between.webp, vae.json and probabilities.f32 into $OUT (default: the
# current folder).
set -euo pipefail
url=${1:-http://127.0.0.1:8000}
out=${OUT:-.}

ask() { # --fail-with-body: a 4xx or 5xx ends the script, after printing what was wrong
  curl --silent --show-error --fail-with-body --max-time 10 "$@"
  echo
}

echo '# A PNG, and the three most probable labels'
ask --data-binary @tests/digits/7.png "$url/classify?top_k=3"

echo '# A PNG and a photo in one form: one prediction per file, in their order'
ask -F images=@tests/digits/3.png -F images=@tests/digits/seven.jpg "$url/classify?top_k=1"

echo '# Base64 in JSON'
printf '{"images": "%s"}' "$(base64 -w 0 tests/digits/5.png)" |
  ask -H 'Content-Type: application/json' --data-binary @- "$url/classify?top_k=1"

echo '# Ten raw rows of 28 x 28 bytes, raw float32 probabilities back: the fastest format'
ask -H 'Content-Type: application/octet-stream' -H 'Accept: application/octet-stream' \
  --data-binary @tests/digits/digits.raw --dump-header - --output "$out/probabilities.f32" \
  "$url/classify?model=mlp"

echo '# A deadline: a response within 0.2 s, or an error'
ask -H 'inkserve-timeout: 0.2' --data-binary @tests/digits/7.png "$url/classify?top_k=1"

echo '# Sixteen sevens as one PNG; the seed makes the bytes repeatable'
ask --output "$out/sevens.png" "$url/generate?label=7&count=16&seed=1"

echo '# The latents of ten digits as a .npy file, and the digits that the VAE draws from them'
ask -H 'Content-Type: application/octet-stream' -H 'Accept: application/x-npy' \
  --data-binary @tests/digits/digits.raw --output "$out/latents.npy" "$url/encode?label=0,1,2,3,4,5,6,7,8,9"
ask -H 'Content-Type: application/x-npy' --data-binary @"$out/latents.npy" --output "$out/decoded.png" \
  "$url/decode?label=0,1,2,3,4,5,6,7,8,9"

echo '# From a 3 to an 8, as an animation'
ask -H 'Accept: image/webp' --output "$out/between.webp" "$url/interpolate?model=vae&seed=1&from=3&to=8&steps=17"

echo '# Two images of another model, as JSON'
ask -H 'Accept: application/json' --output "$out/vae.json" "$url/generate?model=vae&count=2&seed=5"

echo '# A mistake: the message says what was seen and what was expected'
curl --silent --write-out ' (status %{http_code})\n' --data-binary 'abc' "$url/classify?model=mlp"

echo '# The models, and whether the service is ready'
ask "$url/models"
ask "$url/v2/health/ready"
