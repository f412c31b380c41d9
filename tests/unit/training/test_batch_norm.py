import dataclasses

import pytest
import torch
from torch import nn

from training.families import classifier
from training.families.batch_norm import fold_batch_norm

MLP = dataclasses.replace(classifier.MLP, epochs=1, batch_size=20)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [classifier.MLP, classifier.CNN, classifier.VIT], ids=lambda each: str(each.network)
)
def test_folded_network_is_the_same_function(config: classifier.Config) -> None:
    torch.manual_seed(0)
    network = classifier.build(config).double()
    with torch.no_grad():
        for _ in range(2):  # so that the running statistics are not those of a fresh network
            network(torch.rand(20, 1, 28, 28).double())
    network.eval()
    body = fold_batch_norm(network.body)
    assert not any(isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.Dropout) for layer in body)
    images = torch.rand(7, 1, 28, 28).double()
    # float64: only the order of the products differs
    torch.testing.assert_close(body(images), network.body(images), rtol=1e-10, atol=1e-12)


def test_batch_normalisation_without_a_layer_before_it_stays() -> None:
    body = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2), nn.Dropout(0.5)).eval()
    folded = fold_batch_norm(body)
    assert [type(layer) for layer in folded] == [nn.BatchNorm1d, nn.ReLU, nn.Linear]


@pytest.mark.parametrize("bias", [False, True])
def test_batch_normalisation_of_maps_made_from_a_vector_is_folded_into_its_layer(bias: bool) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    body = nn.Sequential(nn.Linear(5, 12, bias=bias), nn.Unflatten(1, (3, 2, 2)), norm, nn.ReLU()).double()
    with torch.no_grad():
        nn.init.uniform_(norm.weight)
        nn.init.normal_(norm.bias)
        # The running statistics must not be those of a fresh network.
        body(torch.randn(20, 5).double() + 1)
    folded = fold_batch_norm(body.eval())
    assert [type(layer) for layer in folded] == [nn.Linear, nn.Unflatten, nn.ReLU]
    vectors = torch.randn(7, 5).double()
    # float64: only the order of the products differs
    torch.testing.assert_close(folded(vectors), body(vectors), rtol=1e-10, atol=1e-12)
