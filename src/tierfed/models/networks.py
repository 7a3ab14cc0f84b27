"""The networks by name: ordinary modules `(shape, outputs, **options) -> nn.Sequential` with named layers.

`shape` is one sample without the batch axis, `outputs` the number of logits; every network maps [B, *shape] to
[B, outputs] and leaves the softmax to the loss. Only layers that torch.func can map are used, none in place.
The parameter counts named in a summary are at the canonical shape.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

from torch import nn

from tierfed.errors import InputError
from tierfed.settings import Count, Fraction

Shape = tuple[int, ...]
Named = Iterator[tuple[str, nn.Module]]


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """One row of `MODELS`.

    :param build: `(shape, outputs, **options) -> nn.Module`
    :param about: what it is, in one line
    :param source: where it comes from
    :param shape: the canonical shape of one sample, the one the source uses
    :param wants: the shapes it takes, in words
    :param fits: whether it takes this shape
    """

    name: str
    build: Callable[..., nn.Module]
    about: str
    source: str
    shape: Shape
    wants: str
    fits: Callable[[Shape], bool]


def fitting(shape: Shape) -> list[str]:
    """The names of the networks that take samples of this shape."""
    return sorted(name for name, info in MODELS.items() if min(shape, default=1) > 0 and info.fits(shape))


def _require(name: str, shape: Shape) -> None:
    if name not in fitting(shape):
        raise InputError(
            f"model {name!r} does not fit samples of shape {list(shape)}: it wants {MODELS[name].wants}; "
            f"models that fit: {', '.join(fitting(shape)) or 'none'}"
        )


def _chain(*parts: Named) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layer for part in parts for layer in part))


def _dense(features: int, hidden: Collection[int], outputs: int, norm_after: Collection[int] = ()) -> Named:
    """flatten, fc-relu[-bn] for each hidden size, then the linear head; `norm_after` numbers the ones with a bn."""
    yield "flat", nn.Flatten()
    for i, size in enumerate(hidden, 1):
        yield f"fc{i}", nn.Linear(features, size)
        yield f"relu_fc{i}", nn.ReLU()
        if i in norm_after:
            yield f"bn{i}", nn.BatchNorm1d(size)
        features = size
    yield f"fc{1 + len(hidden)}", nn.Linear(features, outputs)


def _conv(i: int, conv: nn.Conv2d, *, pool: tuple[int, int] | None = (2, 2), norm: str = "") -> Named:
    """Convolution i of a network: conv[-bn]-relu[-pool][-bn].

    The ReLU stands behind the pooling: the same outputs and gradients from a quarter of the numbers.

    :param pool: window and stride of the maximum pooling
    :param norm: "before" the ReLU, "after" the pooling, or "" for no batch norm
    """
    yield f"conv{i}", conv
    if norm == "before":
        yield f"bn{i}", nn.BatchNorm2d(conv.out_channels)
    if pool is not None:
        yield f"pool{i}", nn.MaxPool2d(*pool)
    yield f"relu{i}", nn.ReLU()
    if norm == "after":
        yield f"bn{i}", nn.BatchNorm2d(conv.out_channels)


def mclr(shape: Shape, outputs: int) -> nn.Sequential:
    """Multinomial logistic regression: one linear layer on the flattened sample (convex)."""
    _require("mclr", shape)
    return _chain(_dense(math.prod(shape), (), outputs))


def mlp(
    shape: Shape,
    outputs: int,
    *,
    hidden: tuple[Count, ...] = (200, 200),
    batch_norm: bool = False,
    dropout: Fraction = 0.0,
) -> nn.Sequential:
    """A multilayer perceptron on the flattened sample: fc[-bn]-relu[-dropout] for each hidden size, then the head.

    :param hidden: sizes of the hidden layers; none is allowed
    :param batch_norm: a batch norm before each ReLU
    :param dropout: share of each hidden layer that is dropped in training
    """
    _require("mlp", shape)

    def layers() -> Named:
        features = math.prod(shape)
        yield "flat", nn.Flatten()
        for i, size in enumerate(hidden, 1):
            yield f"fc{i}", nn.Linear(features, size)
            if batch_norm:
                yield f"bn{i}", nn.BatchNorm1d(size)
            yield f"relu{i}", nn.ReLU()
            if dropout:
                yield f"drop{i}", nn.Dropout(dropout)
            features = size
        yield f"fc{len(hidden) + 1}", nn.Linear(features, outputs)

    return _chain(layers())


def cnn1d(shape: Shape, outputs: int, *, width: Count = 32, kernel: Count = 5) -> nn.Sequential:
    """A small network for sensor windows [channels, length]: (conv1d-bn-relu-pool2) x 2, global average pool, head.

    :param width: channels of the first convolution; the second has twice as many
    :param kernel: taps of both convolutions; an odd number keeps the length
    """
    _require("cnn1d", shape)

    def layers() -> Named:
        for i, (channels, size) in enumerate([(shape[0], width), (width, 2 * width)], 1):
            yield f"conv{i}", nn.Conv1d(channels, size, kernel, padding=kernel // 2)
            yield f"bn{i}", nn.BatchNorm1d(size)
            yield f"pool{i}", nn.MaxPool1d(2)
            yield f"relu{i}", nn.ReLU()
        yield "mean", nn.AdaptiveAvgPool1d(1)

    return _chain(layers(), _dense(2 * width, (), outputs))


def epflu_mlp(shape: Shape, outputs: int, *, hidden: tuple[Count, ...] = (200, 200)) -> nn.Sequential:
    """fc-relu-bn, fc-relu, head: 199,610 parameters and 400 buffers, 200,010 floats = the 6,400,320 bit of EPFLU."""
    _require("epflu_mlp", shape)
    return _chain(_dense(math.prod(shape), hidden, outputs, norm_after=(1,)))


def mtfl_cnn(shape: Shape, outputs: int) -> nn.Sequential:
    """(conv3x3 valid-relu-pool2-bn) of 32 and 64 channels, fc 2304-512, head: 1,204,874 parameters, 192 buffers."""
    _require("mtfl_cnn", shape)
    return _chain(
        _conv(1, nn.Conv2d(3, 32, 3), norm="after"),
        _conv(2, nn.Conv2d(32, 64, 3), norm="after"),
        _dense(64 * 6 * 6, (512,), outputs),
    )


def epflu_cnn(shape: Shape, outputs: int) -> nn.Sequential:
    """`mtfl_cnn` with same padding, fc 4096-512: 2,122,378 parameters, 192 buffers.

    The 67,758,080 bit that EPFLU counts are this network with its buffers and without its head.
    """
    _require("epflu_cnn", shape)
    return _chain(
        _conv(1, nn.Conv2d(3, 32, 3, padding=1), norm="after"),
        _conv(2, nn.Conv2d(32, 64, 3, padding=1), norm="after"),
        _dense(64 * 8 * 8, (512,), outputs),
    )


def har_3nn(shape: Shape, outputs: int, *, hidden: tuple[Count, ...] = (400, 100)) -> nn.Sequential:
    """PerFit's three-layer network 1200-400-100-10: 521,510 parameters."""
    _require("har_3nn", shape)
    return _chain(_dense(math.prod(shape), hidden, outputs))


def har_cnn(shape: Shape, outputs: int) -> nn.Sequential:
    """PerFit's network on a window drawn as an image: conv3x3 same of 32, 16, 8 channels, two poolings, fc 128.

    33,698 parameters for pictures of 3x20x20 and 10 classes; the dense layer follows the size of the picture.
    """
    _require("har_cnn", shape)
    return _chain(
        _conv(1, nn.Conv2d(3, 32, 3, padding=1)),
        _conv(2, nn.Conv2d(32, 16, 3, padding=1)),
        _conv(3, nn.Conv2d(16, 8, 3, padding=1), pool=None),
        _dense(8 * (shape[1] // 4) * (shape[2] // 4), (128,), outputs),
    )


def lenet16(shape: Shape, outputs: int) -> nn.Sequential:
    """LeNet with 16 and 32 channels, fc 800-120-84: 121,182 parameters for 10 classes, 128,832 for 100."""
    _require("lenet16", shape)
    return _lenet(shape[0], 5, outputs)


def lenet16_bn(shape: Shape, outputs: int) -> nn.Sequential:
    """`lenet16` with a batch norm after each convolution: 121,278 parameters for 10 classes, 96 buffers."""
    _require("lenet16_bn", shape)
    return _lenet(shape[0], 5, outputs, norm="before")


def lenet16_28(shape: Shape, outputs: int) -> nn.Sequential:
    """`lenet16` for 28x28 gray images, fc 512-120-84.

    85,822 parameters for 10 classes, 88,967 for 47, 90,242 for 62.
    """
    _require("lenet16_28", shape)
    return _lenet(shape[0], 4, outputs)


def _lenet(channels: int, side: int, outputs: int, norm: str = "") -> nn.Sequential:
    return _chain(
        _conv(1, nn.Conv2d(channels, 16, 5), norm=norm),
        _conv(2, nn.Conv2d(16, 32, 5), norm=norm),
        _dense(32 * side * side, (120, 84), outputs),
    )


def fedbn_cnn(shape: Shape, outputs: int) -> nn.Sequential:
    """conv5x5 same of 64, 64, 128 channels, each with batch norm, fc 2048-512: 18,146,250 parameters, 512 buffers.

    Pooling follows the first two convolutions, so that any image of at least 4x4 pixels fits.
    """
    _require("fedbn_cnn", shape)
    channels, height, width = shape
    return _chain(
        _conv(1, nn.Conv2d(channels, 64, 5, padding=2), norm="before"),
        _conv(2, nn.Conv2d(64, 64, 5, padding=2), norm="before"),
        _conv(3, nn.Conv2d(64, 128, 5, padding=2), pool=None, norm="before"),
        _dense(128 * (height // 4) * (width // 4), (2048, 512), outputs),
    )


def permfl_dnn(shape: Shape, outputs: int, *, hidden: tuple[Count, ...] = (20,)) -> nn.Sequential:
    """PerMFL's network for tables 60-20-10: 1,430 parameters; `hidden = [100]` on 784 features: 79,510."""
    _require("permfl_dnn", shape)
    return _chain(_dense(math.prod(shape), hidden, outputs))


def permfl_cnn_mnist(shape: Shape, outputs: int) -> nn.Sequential:
    """conv2x2 valid of 16 and 32 channels, each pooled 2x2 with stride 1, fc 18432-128: 2,362,874 parameters."""
    _require("permfl_cnn_mnist", shape)
    return _chain(
        _conv(1, nn.Conv2d(1, 16, 2), pool=(2, 1)),
        _conv(2, nn.Conv2d(16, 32, 2), pool=(2, 1)),
        _dense(32 * 24 * 24, (128,), outputs),
    )


def permfl_cnn_fmnist(shape: Shape, outputs: int) -> nn.Sequential:
    """conv3x3 same of 32 and 64 channels, pool2 each, fc 3136-128: 421,642 parameters."""
    _require("permfl_cnn_fmnist", shape)
    return _chain(
        _conv(1, nn.Conv2d(1, 32, 3, padding=1)),
        _conv(2, nn.Conv2d(32, 64, 3, padding=1)),
        _dense(64 * 7 * 7, (128,), outputs),
    )


def permfl_cnn_cifar100(shape: Shape, outputs: int) -> nn.Sequential:
    """conv3x3 same of 64, 128, 256 channels, pool2 each, fc 4096-512: 2,519,780 parameters for 100 classes."""
    _require("permfl_cnn_cifar100", shape)
    return _chain(
        _conv(1, nn.Conv2d(3, 64, 3, padding=1)),
        _conv(2, nn.Conv2d(64, 128, 3, padding=1)),
        _conv(3, nn.Conv2d(128, 256, 3, padding=1)),
        _dense(256 * 4 * 4, (512,), outputs),
    )


def _info(name: str, build: Callable[..., nn.Module], shape: Shape, about: str, source: str) -> ModelInfo:
    """A network with a fixed geometry."""
    return ModelInfo(
        name=name,
        build=build,
        about=about,
        source=source,
        shape=shape,
        wants=f"exactly {list(shape)}",
        fits=lambda got: got == shape,
    )


def _any_shape(row: ModelInfo) -> ModelInfo:
    """The same row for a network that flattens whatever it gets."""
    return replace(row, wants="any shape of at least one axis", fits=lambda got: len(got) > 0)


_PERFIT = "PerFit (Wu, He, Chen 2020)"
_EPFLU = "EPFLU (ICWE 2024), order of layers from MTFL"
_MTFL = "MTFL (Mills 2021)"
_PERMFL = "PerMFL (arXiv 2407.14251)"
_PFEDHN = "pFedHN (Shamsian 2021)"
_PFEDLA = "pFedLA (CVPR 2022)"
_UNOFFICIAL = "an unofficial implementation of pFedLA, not the paper"

_ROWS = (
    _any_shape(_info("mclr", mclr, (1, 28, 28), "multinomial logistic regression", _PERMFL)),
    _any_shape(_info("mlp", mlp, (60,), "multilayer perceptron, optional batch norm and dropout", "general")),
    replace(
        _info("cnn1d", cnn1d, (6, 50), "small convolutional network with batch norm for sensor windows", "general"),
        wants="[channels, length] with length >= 4",
        fits=lambda got: len(got) == 2 and got[1] >= 4,
    ),
    _any_shape(_info("epflu_mlp", epflu_mlp, (1, 28, 28), "perceptron with one batch norm for MNIST", _EPFLU)),
    _info("mtfl_cnn", mtfl_cnn, (3, 32, 32), "convolutional network with batch norm for CIFAR-10", _MTFL),
    _info("epflu_cnn", epflu_cnn, (3, 32, 32), "convolutional network with batch norm for CIFAR-10", _EPFLU),
    _any_shape(_info("har_3nn", har_3nn, (1200,), "three-layer perceptron for activity windows", _PERFIT)),
    replace(
        _info("har_cnn", har_cnn, (3, 20, 20), "convolutional network for activity windows drawn as images", _PERFIT),
        wants="[3, height, width] of at least 4x4 pixels",
        fits=lambda got: len(got) == 3 and got[0] == 3 and min(got[1:]) >= 4,
    ),
    _info("lenet16", lenet16, (3, 32, 32), "LeNet for CIFAR", _PFEDHN),
    _info("lenet16_bn", lenet16_bn, (3, 32, 32), "LeNet with batch norm for CIFAR", _PFEDLA),
    _info("lenet16_28", lenet16_28, (1, 28, 28), "LeNet for EMNIST and Fashion-MNIST", _PFEDLA),
    replace(
        _info("fedbn_cnn", fedbn_cnn, (3, 32, 32), "wide convolutional network with batch norm", _UNOFFICIAL),
        wants="[channels, height, width] of at least 4x4 pixels",
        fits=lambda got: len(got) == 3 and min(got[1:]) >= 4,
    ),
    _any_shape(_info("permfl_dnn", permfl_dnn, (60,), "perceptron for tabular data", _PERMFL)),
    _info("permfl_cnn_mnist", permfl_cnn_mnist, (1, 28, 28), "convolutional network for MNIST", _PERMFL),
    _info("permfl_cnn_fmnist", permfl_cnn_fmnist, (1, 28, 28), "convolutional network for Fashion-MNIST", _PERMFL),
    _info("permfl_cnn_cifar100", permfl_cnn_cifar100, (3, 32, 32), "convolutional network for CIFAR-100", _PERMFL),
)

MODELS: dict[str, ModelInfo] = {row.name: row for row in _ROWS}
"""Every network by name."""
