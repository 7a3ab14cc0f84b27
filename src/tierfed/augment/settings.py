"""The settings of data that devices get beside their own."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from tierfed.settings import Count, Fraction, Natural, NonNegative, Positive, Share


@dataclass(frozen=True, kw_only=True)
class GanSettings:
    """The conditional GAN of kind "gan"; it is trained on the processor, on one thread, in 32 bits.

    :param noise: random numbers that the generator makes a sample of
    :param hidden: width of the two hidden layers of generator and discriminator
    :param steps: steps of both
    :param lr: learning rate of both (Adam)
    :param batch: samples per step
    :param penalty: weight gamma of the discriminator's gradient penalty on real samples
    :param decay: of the exponential mean over steps that the generator is
    """

    noise: Count = 16
    hidden: Count = 128
    steps: Count = 2000
    lr: Positive = 0.001
    batch: Count = 64
    penalty: NonNegative = 1.0
    decay: Fraction = 0.99


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """What devices get to train on beside their own samples, before round 1.

    :param kind: "share": samples of the cloud, the same number of every class; "gan", "kde", "mixup": samples that a
        generator makes of seeds that the devices gave, for the labels that a device has few of; "none": nothing
    :param beta: share of all training samples that the cloud holds (share)
    :param alpha: share of the cloud's samples that each device gets, drawn for each device (share)
    :param warmup_epochs: passes of the first model over the cloud's samples before round 1 (share)
    :param warmup_lr: learning rate of these passes; none: algorithm.lr (share)
    :param tau: a label is a target of a device that has fewer than tau times as many samples of it as of its most
        frequent label; targets are filled up to that number (gan, kde, mixup)
    :param seeds: samples that a device gives of each of its target labels, as far as it has them (gan, kde, mixup)
    :param redundant: other labels that it gives as many samples of, so that the seeds do not tell what it lacks (gan,
        kde, mixup)
    :param bandwidth: of the Gaussian noise around a seed, in standard deviations of the label's seeds; none:
        Silverman's rule (kde)
    """

    kind: Literal["none", "share", "gan", "kde", "mixup"] = "none"
    beta: Annotated[float, Gt(0), Lt(1)] = 0.05
    alpha: Share = 1.0
    warmup_epochs: Natural = 0
    warmup_lr: Positive | None = None
    tau: Annotated[float, Ge(0), Le(1)] = 0.5
    seeds: Count = 5
    redundant: Natural = 0
    bandwidth: NonNegative | None = None
    gan: GanSettings = field(default_factory=GanSettings)
