"""GluonCV's four kinds of detectors, whole, on backbones of a few channels, with weights that separate the scores."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

SIZE, CLASSES = 64, ("bird", "cat", "dog")


def _backbone(*strides: int, channels: int = 8) -> Any:
    """Convolutions with BatchNorms."""
    from mxnet.gluon import nn

    net = nn.HybridSequential()
    for stride in strides:
        net.add(nn.Conv2D(channels, 3, stride, 1, use_bias=False), nn.BatchNorm(), nn.Activation("relu"))
    return net


def ssd() -> Any:
    from gluoncv.model_zoo.ssd.ssd import SSD
    from mxnet.gluon import nn

    class Levels(nn.HybridBlock):
        """Three feature maps."""

        def __init__(self) -> None:
            super().__init__()
            with self.name_scope():
                self.first, self.second, self.third = _backbone(2, 2, 2), _backbone(2), _backbone(2)

        def hybrid_forward(self, F: Any, x: Any) -> Any:
            a = self.first(x)
            b = self.second(a)
            return [a, b, self.third(b)]

    return SSD(None, SIZE, lambda **options: Levels(), [], sizes=[12, 24, 40, 60], ratios=[[1, 2, 0.5]] * 3,
               steps=[8, 16, 32], classes=CLASSES, nms_thresh=0.3, nms_topk=60, post_nms=40, anchor_alloc_size=16)


def yolo3() -> Any:
    from gluoncv.model_zoo.yolo.yolo3 import YOLOV3
    from mxnet.gluon import nn

    return YOLOV3([_backbone(2, 2, 2), _backbone(2), _backbone(2)], [8, 8, 8],
                  [[6, 8, 9, 12, 14, 10], [14, 20, 22, 15, 20, 30], [30, 26, 40, 40, 50, 60]], [8, 16, 32], CLASSES,
                  alloc_size=(16, 16), nms_thresh=0.3, nms_topk=80, post_nms=40, norm_layer=nn.BatchNorm)


def center_net() -> Any:
    from gluoncv.model_zoo.center_net.center_net import CenterNet

    heads = OrderedDict((name, {"num_output": count, "bias": 0.0}) for name, count in
                        (("heatmap", len(CLASSES)), ("wh", 2), ("reg", 2)))
    return CenterNet(_backbone(2, 2), heads, CLASSES, head_conv_channel=8, topk=20)


def faster_rcnn() -> Any:
    from gluoncv.model_zoo.rcnn.faster_rcnn.faster_rcnn import FasterRCNN

    return FasterRCNN(
        _backbone(2, 2, 2, 2), _backbone(1), CLASSES, None, short=SIZE, max_size=SIZE, min_stage=4, max_stage=4,
        train_patterns="", nms_thresh=0.4, nms_topk=15, post_nms=20, roi_mode="align", roi_size=(4, 4), strides=16,
        clip=4.42, rpn_channel=8, base_size=8, scales=(2, 4), ratios=(0.5, 1, 2), alloc_size=(8, 8), rpn_nms_thresh=0.5,
        rpn_train_pre_nms=60, rpn_train_post_nms=20, rpn_test_pre_nms=60, rpn_test_post_nms=20, rpn_min_size=4,
        num_sample=8, pos_iou_thresh=0.5, pos_ratio=0.25, max_num_gt=10)


BATCHES = {ssd: 2, yolo3: 2, center_net: 2, faster_rcnn: 1}  # Faster R-CNN is exported for one image


def images(batch: int, seed: int = 0) -> np.ndarray:
    """Smooth blobs, so that scores differ from place to place."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(batch, 3, 8, 8)).repeat(SIZE // 8, 2).repeat(SIZE // 8, 3)
    return (coarse + 0.3 * rng.normal(size=(batch, 3, SIZE, SIZE))).astype(np.float32)


def export(make: Any, folder: Path) -> str:
    """The network as a checkpoint; its prefix."""
    import mxnet as mx

    rng = np.random.default_rng(5)

    class Scripted(mx.init.Initializer):
        def __call__(self, desc: Any, array: Any) -> None:
            name, shape = str(desc), array.shape
            if name.endswith(("gamma", "var")):
                array[:] = rng.uniform(0.7, 1.4, shape)
            elif name.endswith("weight"):
                array[:] = rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
            elif name.endswith(("bias", "beta", "mean")):
                array[:] = rng.normal(0, 0.2, shape)
            else:
                super().__call__(desc, array)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = make()
    net.initialize(Scripted(), force_reinit=True)
    net.hybridize()
    net(mx.nd.array(images(BATCHES[make])))
    prefix = str(folder / make.__name__)
    net.export(prefix)
    return prefix
