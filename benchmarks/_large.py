"""Networks that are large to freeze: by what they hold while they run, or by their weights. Weights are random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from _zoo import block, conv_bn, stack
from zoo_coverage import noise, randomize, zeroed, zoo_block
from zoo_freeze import SHIFT, judged

from qgraph import Graph
from qgraph.formats.gluon import from_gluon

WIDTH = 256  # of a feature pyramid


def retinaface_resnet50() -> Any:
    """A ResNet-50, a feature pyramid of three levels, a context of three kernels, nine heads (as RetinaFace-R50)."""
    from mxnet.gluon import nn

    base = zoo_block("resnet50_v1b", pretrained_base=False)

    def lateral() -> Any:
        return conv_bn(WIDTH, 1)

    def context(self: Any, F: Any, x: Any) -> Any:
        second = self.second(x)
        return F.relu(F.concat(self.first(x), self.third(second), self.fourth(second), dim=1))

    def plain(channels: int) -> Any:
        return stack(nn.Conv2D(channels, 3, 1, 1, use_bias=False), nn.BatchNorm())

    def level() -> Any:
        return block(context, first=plain(WIDTH // 2), second=conv_bn(WIDTH // 4), third=plain(WIDTH // 4),
                     fourth=stack(conv_bn(WIDTH // 4), plain(WIDTH // 4)))

    def forward(self: Any, F: Any, x: Any) -> list[Any]:
        c3 = self.c3(x)
        c4 = self.c4(c3)
        p5 = self.lateral5(self.c5(c4))
        up = F.UpSampling(p5, scale=2, sample_type="nearest")
        p4 = self.smooth4(self.lateral4(c4) + up)
        p3 = self.smooth3(self.lateral3(c3) + F.UpSampling(p4, scale=2, sample_type="nearest"))
        found = []
        for number, features in zip((3, 4, 5), (p3, p4, p5)):
            features = getattr(self, f"context{number}")(features)
            found += [getattr(self, f"{head}{number}")(features) for head in ("score", "box", "landmark")]
        return found

    heads = {f"{head}{number}": nn.Conv2D(channels, 1) for number in (3, 4, 5)
             for head, channels in (("score", 4), ("box", 8), ("landmark", 20))}
    return block(forward, c3=stack(base.conv1, base.bn1, base.relu, base.maxpool, base.layer1, base.layer2),
                 c4=base.layer3, c5=base.layer4, **{f"lateral{number}": lateral() for number in (3, 4, 5)},
                 **{f"smooth{number}": conv_bn(WIDTH) for number in (3, 4)},
                 **{f"context{number}": level() for number in (3, 4, 5)}, **heads)


def arcface_resnet100() -> Any:
    """A face network of 250 MB: residual units with PReLU, a dense layer over all that is left (as ArcFace's)."""
    from mxnet.gluon import nn

    def forward(self: Any, F: Any, x: Any) -> Any:
        return self.body(x) + self.across(x)

    def unit(channels: int, stride: int) -> Any:
        across = block(lambda self, F, x: x) if stride == 1 else stack(
            nn.Conv2D(channels, 1, stride, use_bias=False), nn.BatchNorm())
        return block(forward, across=across, body=stack(
            nn.BatchNorm(), nn.Conv2D(channels, 3, 1, 1, use_bias=False), nn.BatchNorm(), nn.PReLU(),
            nn.Conv2D(channels, 3, stride, 1, use_bias=False), nn.BatchNorm()))

    stages = ((64, 3), (128, 13), (256, 30), (512, 3))
    units = [unit(channels, 1 if number else 2) for channels, count in stages for number in range(count)]
    return stack(nn.Conv2D(64, 3, 1, 1, use_bias=False), nn.BatchNorm(), nn.PReLU(), *units, nn.BatchNorm(),
                 nn.Dense(512), nn.BatchNorm())


LARGE: dict[str, tuple[Callable[[], Any], int]] = {  # -> (block, side of an image)
    "retinaface_resnet50": (retinaface_resnet50, 640),
    "arcface_resnet100": (arcface_resnet100, 112),
    "yolo3_darknet53_voc": (lambda: zoo_block("yolo3_darknet53_voc", pretrained_base=False), 416),
}


def large(name: str, count: int) -> tuple[Graph, np.ndarray]:
    """(the network up to its raw heads, images)"""
    make, side = LARGE[name]
    rng = np.random.default_rng(0)
    images = noise(rng, (count, 3, side, side), smooth=True).astype(np.float32)
    g = from_gluon(zeroed(make(), (3, side, side)), {"data": (1, 3, side, side)})
    g.heads = judged(g)
    g.prune()
    randomize(g, {"data": images[:2]}, rng, SHIFT)
    return g, images
