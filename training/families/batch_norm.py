"""Folds batch normalisation into the layers before it, for export."""

from collections.abc import Sequence

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval


def fold_batch_norm(body: nn.Sequential) -> nn.Sequential:
    """The same function in eval mode, with each batch normalisation merged into the layer before it.

    One without a linear layer or a convolution directly before it stays, unless only an `Unflatten` lies
    between it and a linear layer. Dropout is removed.
    """
    layers: list[nn.Module] = []
    for layer in body:
        before = layers[-1] if layers else None
        if isinstance(layer, nn.BatchNorm1d) and isinstance(before, nn.Linear):
            layers[-1] = fuse_linear_bn_eval(before, layer)
        elif isinstance(layer, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
            layers[-1] = fuse_conv_bn_eval(before, layer)
        elif isinstance(layer, nn.BatchNorm2d) and isinstance(before, nn.ConvTranspose2d):
            layers[-1] = fuse_conv_bn_eval(before, layer, transpose=True)
        elif isinstance(layer, nn.BatchNorm2d) and (linear := _linear_before_maps(layers)):
            layers[-2] = fuse_linear_bn_eval(linear, _of_vectors(layer, linear.out_features))
        elif not isinstance(layer, nn.Dropout):
            layers.append(layer)
    return nn.Sequential(*layers).eval()


def _linear_before_maps(layers: Sequence[nn.Module]) -> nn.Linear | None:
    """The last layer but one, if it is linear and the last one makes maps of its vector."""
    if len(layers) > 1 and isinstance(layers[-1], nn.Unflatten) and isinstance(layers[-2], nn.Linear):
        return layers[-2]
    return None


def _of_vectors(layer: nn.BatchNorm2d, size: int) -> nn.BatchNorm1d:
    """The same normalisation before the vector becomes maps: the values of a channel lie together there."""
    flat = nn.BatchNorm1d(size, eps=layer.eps, affine=layer.affine).to(next(layer.buffers())).eval()
    places = size // layer.num_features
    flat.load_state_dict(
        {
            name: each.repeat_interleave(places) if each.ndim else each
            for name, each in layer.state_dict().items()
        }
    )
    return flat
