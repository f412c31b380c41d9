"""Folds batch normalisation into the layers before it, for export."""

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval


def fold_batch_norm(body: nn.Sequential) -> nn.Sequential:
    """The same function in eval mode, with each batch normalisation merged into the layer before it.

    One without a linear layer or a convolution directly before it stays. Dropout is removed.
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
        elif not isinstance(layer, nn.Dropout):
            layers.append(layer)
    return nn.Sequential(*layers).eval()
