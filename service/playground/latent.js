// Latents, the numbers that a generator turns into an image: the same for a seed as the service draws them
// (service/content/latents.py): Philox4x64-10, then the method of Box and Muller.

const MASK = (1n << 64n) - 1n;
const MULTIPLIERS = [0xd2e7470ee14c6c93n, 0xca5a826395121157n];
const WEYL = [0x9e3779b97f4a7c15n, 0xbb67ae8584caa73bn];
const ROUNDS = 10;

// Four words of 64 bits, from a counter and a key (Salmon et al. 2011).
function philox(counter, seed) {
  let [a, b, c, d] = [BigInt(counter), 0n, 0n, 0n];
  let [key0, key1] = [BigInt(seed), 0n];
  for (let round = 0; round < ROUNDS; round++) {
    const [first, second] = [MULTIPLIERS[0] * a, MULTIPLIERS[1] * c];
    [a, b, c, d] = [(second >> 64n) ^ b ^ key0, second & MASK, (first >> 64n) ^ d ^ key1, first & MASK];
    key0 = (key0 + WEYL[0]) & MASK;
    key1 = (key1 + WEYL[1]) & MASK;
  }
  return [a, b, c, d];
}

// Return the latents of a seed's first image, `size` of them.
export function drawLatents(seed, size) {
  const pairs = Math.ceil(size / 2);
  const uniform = [];
  for (let block = 1; uniform.length < 2 * pairs; block++) {
    for (const word of philox(block, seed)) uniform.push((Number(word >> 11n) + 1) * 2 ** -53);
  }
  const radius = uniform.slice(0, pairs).map((u) => Math.sqrt(-2 * Math.log(u)));
  const angle = uniform.slice(pairs, 2 * pairs).map((u) => 2 * Math.PI * u);
  const normals = [...radius.map((r, i) => r * Math.cos(angle[i])), ...radius.map((r, i) => r * Math.sin(angle[i]))];
  return Float32Array.from(normals.slice(0, size));
}
