"""The vision transformer's network: its attention against torch's own, and attention rollout."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.families.transformer import (
    DEPTH,
    GRID,
    HEADS,
    KEPT,
    WIDTH,
    Block,
    Encoder,
    SelfAttention,
    body,
    rollout,
)

TOKENS = 1 + GRID * GRID


def assert_same(seen: Tensor, expected: Tensor) -> None:
    """In float64, only the order of the sums differs."""
    torch.testing.assert_close(seen, expected, rtol=1e-10, atol=1e-12)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def random_layers(count: int, rows: int = 3, heads: int = 2) -> list[Tensor]:
    return [torch.randn(rows, heads, TOKENS, TOKENS).double().softmax(dim=3) for _ in range(count)]


@pytest.mark.parametrize("heads", [1, 3, 4])
def test_attention_equals_torchs_multihead_attention(heads: int) -> None:
    attention = SelfAttention(24, heads).double()
    theirs = nn.MultiheadAttention(24, heads, batch_first=True).double()
    with torch.no_grad():
        parts = (attention.queries, attention.keys, attention.values)
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        theirs.out_proj.load_state_dict(attention.join.state_dict())
    tokens = torch.randn(5, 7, 24).double()
    mixed, weights = attention(tokens, asking=7)
    expected, expected_weights = theirs(tokens, tokens, tokens, average_attn_weights=False)
    assert_same(mixed, expected)
    assert_same(weights, expected_weights)


def test_attention_equals_torchs_scaled_dot_product() -> None:
    attention = SelfAttention(8, 2).double()
    tokens = torch.randn(3, 5, 8).double()
    parts = (attention.queries(tokens), attention.keys(tokens), attention.values(tokens))
    queries, keys, values = (part.reshape(3, 5, 2, 4).transpose(1, 2) for part in parts)
    heads = functional.scaled_dot_product_attention(queries, keys, values)
    expected = attention.join(heads.transpose(1, 2).reshape(3, 5, 8))
    assert_same(attention(tokens, asking=5)[0], expected)


def test_attention_spreads_over_the_tokens_and_sums_to_one() -> None:
    _, weights = SelfAttention(8, 2)(torch.randn(3, 5, 8), asking=5)
    assert weights.shape == (3, 2, 5, 5)
    torch.testing.assert_close(weights.sum(dim=3), torch.ones(3, 2, 5))
    assert weights.min() >= 0
    assert weights.std() > 0


def test_the_weights_say_which_token_is_taken_from_which() -> None:
    """Token 2 asks for what only token 0 offers, so row 2 has its weight in column 0."""
    attention = SelfAttention(2, 1)
    with torch.no_grad():
        for layer in (attention.queries, attention.keys):
            layer.weight.zero_()
            layer.bias.zero_()
        attention.queries.weight[0, 1] = 100  # the query is the second number
        attention.keys.weight[0, 0] = 1  # the key is the first
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]])
    _, weights = attention(tokens, asking=3)
    torch.testing.assert_close(weights[0, 0, 2], torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(weights[0, 0, 0], torch.full((3,), 1 / 3))


def test_only_the_asking_tokens_get_a_result_and_it_is_the_same() -> None:
    block = Block(8, 2, 16).double()
    tokens = torch.randn(3, 5, 8).double()
    every, every_weights = block(tokens, asking=5)
    some, some_weights = block(tokens, asking=2)
    assert_same(some, every[:, :2])
    assert_same(some_weights, every_weights[:, :, :2])


@pytest.mark.parametrize(("training", "tokens"), [(False, TOKENS), (True, 1 + KEPT)])
def test_last_block_computes_only_the_class_token(training: bool, tokens: int) -> None:
    _, layers = Encoder().train(training).attend(torch.randn(2, WIDTH, GRID, GRID))
    shapes = [(2, HEADS, tokens, tokens)] * (DEPTH - 1) + [(2, HEADS, 1, tokens)]
    assert [tuple(weights.shape) for weights in layers] == shapes


def test_training_drops_other_pixels_each_time_and_never_the_class_token() -> None:
    encoder = Encoder()
    maps = torch.randn(1, WIDTH, GRID, GRID, requires_grad=True)
    seen = []
    for _ in range(2):
        some = encoder(maps)[:, : WIDTH // 2].sum()  # of all, which are normalised, the sum is constant
        gradient, class_gradient = torch.autograd.grad(some, [maps, encoder.class_token])
        assert class_gradient.abs().sum() > 0
        seen.append(gradient.abs().sum(dim=1).flatten() > 0)
    assert [int(kept.sum()) for kept in seen] == [KEPT] * 2
    assert not torch.equal(seen[0], seen[1])


def test_encoder_sees_where_a_pixel_is() -> None:
    """Without positions, the class token would be the same for every order of the pixels."""
    encoder = Encoder().eval()
    maps = torch.randn(2, WIDTH, GRID, GRID)
    shuffled = maps.flatten(2)[:, :, torch.randperm(GRID * GRID)].reshape(maps.shape)
    assert (encoder(maps) - encoder(shuffled)).abs().max() > 1e-3
    with torch.no_grad():
        encoder.positions.zero_()
    torch.testing.assert_close(encoder(maps), encoder(shuffled))


def test_body_gives_features_of_any_number_of_images() -> None:
    network = body(0.1).eval()
    images = torch.rand(7, 1, 28, 28)
    features = network(images)
    assert features.shape == (7, WIDTH)
    # float32 sums in another order
    torch.testing.assert_close(network(images[3:4]), features[3:4], rtol=1e-4, atol=1e-5)


def test_rollout_of_one_block_is_its_class_tokens_mean_attention() -> None:
    (weights,) = random_layers(1)
    pixels = weights.mean(dim=1)[:, 0, 1:]
    expected = pixels / pixels.sum(dim=1, keepdim=True)
    torch.testing.assert_close(rollout([weights.float()]).flatten(1), expected.float())


def test_rollout_multiplies_the_blocks_from_the_last_to_the_first() -> None:
    """The definition: the product of (A + I) / 2 over the blocks, in full matrices."""
    layers = random_layers(3)
    *blocks, last = (weights.float() for weights in layers)
    seen = rollout([*blocks, last])
    torch.testing.assert_close(rollout([*blocks, last[:, :, :1]]), seen)
    identity = np.eye(TOKENS)
    for row in range(3):
        product = identity
        for weights in layers:
            product = (weights[row].mean(dim=0).numpy() + identity) / 2 @ product
        expected = product[0, 1:] / product[0, 1:].sum()
        np.testing.assert_allclose(seen[row].flatten().numpy(), expected, rtol=1e-4)
    assert seen.shape == (3, GRID, GRID)
    torch.testing.assert_close(seen.sum(dim=(1, 2)), torch.ones(3))


def test_rollout_points_at_the_pixel_that_the_class_token_takes_from() -> None:
    weights = torch.eye(TOKENS).expand(2, 4, -1, -1).clone()
    weights[:, :, 0] = 0
    weights[:, :, 0, 1 + 2 * GRID + 5] = 1  # row 2, column 5
    expected = torch.zeros(2, GRID, GRID)
    expected[:, 2, 5] = 1
    torch.testing.assert_close(rollout([weights, weights]), expected)
    assert math.isclose(float(rollout([weights])[0, 2, 5]), 1.0)
