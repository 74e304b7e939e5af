"""The 60 networks of zoo_freeze.py that are not plain classifiers: of GluonCV, and some that GluonCV does not have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from zoo_coverage import build, noise, zeroed, zoo_block

Shapes = dict[str, tuple[int, ...]]  # input -> shape of one image
PROPOSALS = 20  # of detectors in two stages
DETECTORS = (
    "ssd_300_mobilenet0.25_voc", "ssd_300_mobilenet1.0_lite_coco", "ssd_512_mobilenet1.0_voc",
    "ssd_512_resnet18_v1_voc", "ssd_300_resnet34_v1b_voc", "ssd_300_vgg16_atrous_voc", "yolo3_mobilenet0.25_voc",
    "yolo3_mobilenet1.0_voc", "yolo3_darknet53_voc", "center_net_mobilenetv3_small_duc_voc",
    "center_net_mobilenetv3_large_duc_voc", "center_net_resnet18_v1b_voc", "center_net_resnet18_v1b_dcnv2_voc",
    "center_net_dla34_voc", "center_net_dla34_dcnv2_voc", "faster_rcnn_resnet50_v1b_voc",
    "faster_rcnn_fpn_resnet50_v1b_coco", "faster_rcnn_fpn_syncbn_resnest50_coco", "doublehead_rcnn_resnet50_v1b_voc",
    "mask_rcnn_resnet18_v1b_coco", "mask_rcnn_fpn_resnet18_v1b_coco", "mask_rcnn_fpn_syncbn_mobilenet1_0_coco",
)
SEGMENTERS = (
    "fastscnn_citys", "hrnet_w18_small_v1_s", "icnet_resnet50_citys", "fcn_resnet50_voc", "psp_resnet50_ade",
    "deeplab_resnet50_ade", "deeplab_resnet50_citys", "deeplab_resnest50_ade", "danet_resnet50_citys",
    "deeplab_v3b_plus_wideresnet_citys",
)
POSES = (
    "simple_pose_resnet18_v1b", "simple_pose_resnet50_v1d", "mobile_pose_resnet18_v1b", "mobile_pose_mobilenet1.0",
    "mobile_pose_mobilenetv2_1.0", "mobile_pose_mobilenetv3_small", "mobile_pose_mobilenetv3_large",
    "alpha_pose_resnet101_v1b_coco", "monodepth2_resnet18_posenet_kitti_mono_640x192",
)
VIDEOS: dict[str, tuple[int, ...]] = {  # shape of one clip
    "c3d_kinetics400": (3, 16, 112, 112), "r2plus1d_resnet18_kinetics400": (3, 8, 64, 64),
    "p3d_resnet50_kinetics400": (3, 16, 64, 64), "i3d_inceptionv1_kinetics400": (3, 8, 64, 64),
    "i3d_resnet50_v1_kinetics400": (3, 8, 64, 64), "i3d_nl5_resnet50_v1_kinetics400": (3, 8, 64, 64),
    "slowfast_4x16_resnet50_kinetics400": (3, 36, 64, 64),
}


@dataclass(frozen=True)
class Network:
    """make: the block and the shapes of its inputs.  batch: of a run; some networks take one image only.

    draw: input -> values for a shape, where they are no images.
    """

    name: str
    family: str
    make: Callable[[], tuple[Any, Shapes]]
    batch: int = 4
    draw: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = field(default_factory=dict)

    def feeds(self, shapes: Shapes, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Images are smooth, and shapes of four sizes or more are of images."""
        return {name: self.draw[name](rng, (count, *shape)).astype(np.float32) if name in self.draw
                else noise(rng, (count, *shape), smooth=len(shape) > 2) for name, shape in shapes.items()}


def _zoo(name: str, family: str) -> Network:
    def make() -> tuple[Any, Shapes]:
        net, shape = build(name)
        if "rcnn" in name:  # the second stage runs on every proposal
            net.rpn._test_pre_nms, net.rpn._test_post_nms = 10 * PROPOSALS, PROPOSALS
            net._rpn_test_post_nms = net._rcnn_max_dets = PROPOSALS
        return net, {"data": shape}

    return Network(name, family, make, batch=1 if "rcnn" in name else 4)


def _video(name: str, shape: tuple[int, ...]) -> Network:
    def make() -> tuple[Any, Shapes]:
        return zeroed(zoo_block(name, pretrained_base=False), shape), {"data": shape}

    return Network(name, "action", make)


def _built(make: Callable[[], Any], family: str = "others", **options: Any) -> Network:
    shapes: Shapes = options.pop("shapes")

    def build_it() -> tuple[Any, Shapes]:
        return zeroed(make(), *shapes.values()), shapes

    return Network(make.__name__, family, build_it, **options)


def resnet18_v1b_frames() -> Any:
    """GluonCV's resnet18_v1b_kinetics400, which downloads its base whatever it is told."""
    from gluoncv.model_zoo.action_recognition.actionrec_resnetv1b import ActionRecResNetV1b

    return ActionRecResNetV1b(18, 400, pretrained_base=False)


def vgg16_frames() -> Any:
    """GluonCV's vgg16_ucf101, which wants parameters that are initialized."""
    from gluoncv.model_zoo.action_recognition.actionrec_vgg16 import ActionRecVGG16

    return ActionRecVGG16(101, pretrained_base=False)


# ---- networks that GluonCV does not have ----------------------------------------------------------------------------

WORDS = 50


def words(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(0, WORDS, shape)


def lengths(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(5, 13, shape)


def block(forward: Callable[..., Any], **children: Any) -> Any:
    """A HybridBlock of these children. forward: (block, F, inputs ..., parameters by name)."""
    import mxnet as mx

    class Block(mx.gluon.HybridBlock):
        def __init__(self) -> None:
            super().__init__()
            for name, child in children.items():
                setattr(self, name, self.params.get(name, shape=child) if isinstance(child, tuple) else child)

        hybrid_forward = forward

    return Block()


def stack(*layers: Any) -> Any:
    from mxnet.gluon import nn

    net = nn.HybridSequential()
    net.add(*layers)
    return net


def conv_bn(channels: int, kernel: int = 3, stride: int = 1) -> Any:
    from mxnet.gluon import nn

    return stack(nn.Conv2D(channels, kernel, stride, kernel // 2, use_bias=False), nn.BatchNorm(),
                 nn.Activation("relu"))


def transformer_layer(width: int, heads: int) -> Any:
    """Attention as GluonNLP wrote it before MXNet had fused ops: heads go into the batch."""
    from mxnet.gluon import nn

    def forward(self: Any, F: Any, x: Any) -> Any:
        def split(y: Any) -> Any:
            y = F.reshape(y, (0, 0, -4, heads, -1))
            return F.reshape(F.transpose(y, (0, 2, 1, 3)), (-3, 0, 0))

        y = self.before(x)
        query, key, value = split(self.query(y)), split(self.key(y)), split(self.value(y))
        weights = F.softmax(F.batch_dot(query, key, transpose_b=True) / (width // heads) ** 0.5)
        y = F.transpose(F.reshape(F.batch_dot(weights, value), (-4, -1, heads, 0, 0)), (0, 2, 1, 3))
        x = x + self.out(F.reshape(y, (0, 0, -3)))
        return x + self.second(F.LeakyReLU(self.first(self.behind(x)), act_type="gelu"))

    def dense(units: int) -> Any:
        return nn.Dense(units, flatten=False)

    return block(forward, before=nn.LayerNorm(), behind=nn.LayerNorm(), query=dense(width), key=dense(width),
                 value=dense(width), out=dense(width), first=dense(4 * width), second=dense(width))


def vit_block() -> Any:
    from mxnet.gluon import nn

    def forward(self: Any, F: Any, x: Any, position: Any) -> Any:
        x = F.transpose(F.reshape(self.patches(x), (0, 0, -1)), (0, 2, 1))
        x = self.layers(F.broadcast_add(x, position))
        return self.head(F.mean(self.norm(x), axis=1))

    return block(forward, patches=nn.Conv2D(64, 8, 8), position=(1, 64, 64), norm=nn.LayerNorm(), head=nn.Dense(10),
                 layers=stack(transformer_layer(64, 4), transformer_layer(64, 4)))


def bert_encoder() -> Any:
    """Interleaved attention with lengths, as GluonNLP's BERT."""
    from mxnet.gluon import nn

    heads = 4

    def forward(self: Any, F: Any, data: Any, valid_length: Any, position: Any) -> Any:
        x = F.transpose(self.norm(F.broadcast_add(self.embed(data), position)), (1, 0, 2))
        steps = F.contrib.arange_like(data, axis=1)
        mask = F.broadcast_lesser(F.reshape(steps, (1, -1)), F.reshape(valid_length, (-1, 1)))
        mask = F.broadcast_axis(F.expand_dims(F.broadcast_mul(F.expand_dims(mask, 1), F.expand_dims(mask, 2)), 1),
                                axis=1, size=heads)
        mask = F.reshape(mask, (-3, 0, 0))
        mixed = self.project(x)
        scores = F.contrib.interleaved_matmul_selfatt_qk(mixed, heads=heads)
        weights = F.softmax(F.where(mask, scores, F.ones_like(scores) * -1e4))
        x = self.behind(x + self.out(F.contrib.interleaved_matmul_selfatt_valatt(mixed, weights, heads=heads)))
        x = self.last(x + self.second(F.LeakyReLU(self.first(x), act_type="gelu")))
        return F.transpose(x, (1, 0, 2)), self.pooled(F.squeeze(F.slice_axis(x, axis=0, begin=0, end=1), axis=0))

    def dense(units: int) -> Any:
        return nn.Dense(units, flatten=False)

    return block(forward, embed=nn.Embedding(WORDS, 64), position=(1, 12, 64), norm=nn.LayerNorm(), project=dense(192),
                 out=dense(64), behind=nn.LayerNorm(), first=dense(128), second=dense(64), last=nn.LayerNorm(),
                 pooled=nn.Dense(32, activation="tanh"))


def crnn() -> Any:
    """Text recognition: convolutions, then two directions of a fused LSTM over the columns."""
    import mxnet as mx
    from mxnet.gluon import nn

    def forward(self: Any, F: Any, x: Any) -> Any:
        x = F.transpose(F.squeeze(self.features(x), axis=2), (2, 0, 1))
        return self.head(self.lstm(x))

    return block(forward, lstm=mx.gluon.rnn.LSTM(32, 2, bidirectional=True, input_size=64),
                 head=nn.Dense(37, flatten=False),
                 features=stack(conv_bn(16), nn.MaxPool2D(), conv_bn(32), nn.MaxPool2D(), conv_bn(64),
                                nn.MaxPool2D((2, 1)), nn.Conv2D(64, (4, 1), activation="relu")))


def unet() -> Any:
    from mxnet.gluon import nn

    def forward(self: Any, F: Any, x: Any) -> Any:
        a = self.a(x)
        b = self.b(self.pool(a))
        c = self.c(self.pool(b))
        b = self.d(F.concat(self.up_c(c), b, dim=1))
        return self.head(self.e(F.concat(self.up_b(b), a, dim=1)))

    def twice(channels: int) -> Any:
        return stack(conv_bn(channels), conv_bn(channels))

    return block(forward, a=twice(16), b=twice(32), c=twice(64), d=twice(32), e=twice(16), pool=nn.MaxPool2D(),
                 up_c=nn.Conv2DTranspose(32, 2, 2), up_b=nn.Conv2DTranspose(16, 2, 2), head=nn.Conv2D(2, 1))


def deep_speech() -> Any:
    """Convolutions over time, a GRU, letters."""
    import mxnet as mx
    from mxnet.gluon import nn

    def forward(self: Any, F: Any, x: Any) -> Any:
        return self.head(self.gru(F.transpose(self.features(x), (2, 0, 1))))

    return block(forward, gru=mx.gluon.rnn.GRU(48, bidirectional=True, input_size=64),
                 head=nn.Dense(29, flatten=False),
                 features=stack(nn.Conv1D(64, 11, 2, 5), nn.BatchNorm(), nn.Activation("relu"), nn.Conv1D(64, 11, 1, 5),
                                nn.BatchNorm(), nn.Activation("relu")))


def deformable() -> Any:
    from mxnet.gluon import contrib, nn

    return stack(conv_bn(16), contrib.cnn.DeformableConvolution(24, kernel_size=(3, 3), padding=(1, 1)), nn.BatchNorm(),
                 nn.Activation("relu"), conv_bn(32, stride=2), nn.GlobalAvgPool2D(), nn.Flatten(), nn.Dense(10))


def style_transfer() -> Any:
    """Reflected borders, InstanceNorm, nearest neighbours doubled."""
    from mxnet.gluon import nn

    def layer(channels: int, stride: int = 1) -> Any:
        return stack(nn.ReflectionPad2D(1), nn.Conv2D(channels, 3, stride), nn.InstanceNorm(), nn.Activation("relu"))

    def double(self: Any, F: Any, x: Any) -> Any:
        return F.UpSampling(x, scale=2, sample_type="nearest")

    return stack(layer(16), layer(32, 2), layer(32), block(double), layer(16), nn.ReflectionPad2D(1), nn.Conv2D(3, 3),
                 nn.Activation("tanh"))


def super_resolution() -> Any:
    from mxnet.gluon import contrib, nn

    return stack(nn.Conv2D(32, 5, 1, 2, activation="relu"), nn.Conv2D(32, 3, 1, 1, activation="relu"),
                 nn.Conv2D(12, 3, 1, 1), contrib.nn.PixelShuffle2D(2))


def text_cnn() -> Any:
    """Words, convolutions of several lengths, the largest over time."""
    from mxnet.gluon import nn

    def forward(self: Any, F: Any, x: Any) -> Any:
        x = F.transpose(self.embed(x), (0, 2, 1))
        return self.head(F.concat(*[F.max(conv(x), axis=2) for conv in (self.short, self.middle, self.long)], dim=1))

    return block(forward, embed=nn.Embedding(WORDS, 32), head=nn.Dense(4),
                 **{name: nn.Conv1D(32, size, activation="relu") for name, size in
                    (("short", 2), ("middle", 3), ("long", 4))})


def volumes() -> Any:
    """A small U-Net over volumes: 3-D convolutions, a transposed one."""
    from mxnet.gluon import nn

    def forward(self: Any, F: Any, x: Any) -> Any:
        a = self.a(x)
        return self.head(F.concat(self.up(self.b(self.pool(a))), a, dim=1))

    def layer(channels: int) -> Any:
        return stack(nn.Conv3D(channels, 3, 1, 1), nn.BatchNorm(), nn.Activation("relu"))

    return block(forward, a=layer(16), b=layer(32), pool=nn.MaxPool3D(), up=nn.Conv3DTranspose(16, 2, 2),
                 head=nn.Conv3D(2, 1))


OTHERS = (
    _built(vit_block, shapes={"data": (3, 64, 64)}),
    _built(bert_encoder, shapes={"data0": (12,), "data1": ()}, draw={"data0": words, "data1": lengths}),
    _built(crnn, shapes={"data": (1, 32, 64)}),
    _built(unet, shapes={"data": (3, 64, 64)}),
    _built(deep_speech, shapes={"data": (40, 60)}),
    _built(deformable, shapes={"data": (3, 32, 32)}),
    _built(style_transfer, shapes={"data": (3, 48, 48)}),
    _built(super_resolution, shapes={"data": (3, 32, 32)}),
    _built(text_cnn, shapes={"data": (20,)}, draw={"data": words}),
    _built(volumes, shapes={"data": (1, 8, 24, 24)}),
)
NETWORKS = {network.name: network for network in (
    *OTHERS, *(_zoo(name, "pose") for name in POSES), *(_zoo(name, "detection") for name in DETECTORS),
    *(_zoo(name, "segmentation") for name in SEGMENTERS), *(_video(name, shape) for name, shape in VIDEOS.items()),
    *(_built(frames, "action", shapes={"data": (3, 64, 64)}) for frames in (resnet18_v1b_frames, vgg16_frames)))}
