"""What a quantization is (`QSpec`), with its numbers (`QParams`), and the one arithmetic of the project.

    r = scale * (q - zero_point)
    q = clip(round(r / scale) + zero_point, qmin, qmax)

Every emitter and runtime is tested against the functions of this file.  `scale` is always the real step, in float32.
How ``round(r / scale)`` is computed belongs to the target, see `ROUNDING`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Callable

import numpy as np

from qgraph.arrays import Array
from qgraph.errors import OptionError

GRANULARITIES = ("tensor", "group", "channel")
ROUNDER = 1.5 * 2 ** 23
"""A float32 that is added to it and subtracted again has lost what is behind the point: nearest, ties to even."""
LEAST_RANGE = float(np.float32(1e-12))
"""Of a batch: one of zero would divide by zero."""
_F32_TINY = float(np.finfo(np.float32).tiny)


def as_granularity(name: str) -> str:
    """`layer`, as users say, is `tensor` here."""
    return "tensor" if name == "layer" else name


def shown_granularity(name: str) -> str:
    """The inverse of `as_granularity`, for messages and reports."""
    return "layer" if name == "tensor" else name


@dataclass(frozen=True)
class QSpec:
    """A decision: how one tensor is quantized, before the numbers are known.

    bits: 2..16 for activations and weights, 32 for a bias.
    signed: None means "auto": unsigned if nothing negative was observed.
    narrow: the lowest code is left out, so that the range is symmetric (-127..127).
    symmetric: zero_point is 0; else it is chosen so that the codes cover just [low, high], zero among them. With signed
        None that is so where something negative was observed; else the codes are unsigned, and zero_point is 0.
    limit: largest magnitude of a code, if less than the bits allow (64: two products with u8 fit int16); 0: no limit.
    granularity: one scale per tensor, per convolution group, or per channel along `axis`.
    whole: the whole observed range is covered, though the calibration method would clip it.
    online: the range is taken from the batch that is being run, see `online_params`; a bias (32 bits) is rounded to the
        steps of the sum that it meets.
    alone: of a weight: its layer is meant to compute in float, so that the codes serve the files' size alone.
    groups: number of convolution groups, read when granularity is "group".
    source: names of the tensors whose observed ranges are united (none is the quantized tensor itself); this is how
        tensors that one integer op reads together share a scale.
    """

    bits: int = 8
    signed: bool | None = None
    narrow: bool = False
    granularity: str = "tensor"
    axis: int = 0
    groups: int = 1
    source: tuple[str, ...] = ()
    limit: int = 0
    whole: bool = False
    symmetric: bool = True
    online: bool = False
    alone: bool = False

    def __post_init__(self) -> None:
        if not (2 <= self.bits <= 16 or self.bits == 32):
            raise OptionError(f"bits: found {self.bits}, want 2 to 16 (32 for a bias)")
        if self.granularity not in GRANULARITIES:
            raise OptionError(f"granularity: found {self.granularity!r}, want one of {', '.join(GRANULARITIES)}")

    @property
    def qmin(self) -> int:
        """The lowest code."""
        if not self.signed:
            return 0
        return -self.limit if self.limit else -(1 << (self.bits - 1)) + int(self.narrow)

    @property
    def qmax(self) -> int:
        """The highest code."""
        return self.limit or ((1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1)

    @property
    def dtype(self) -> str:
        """Short name, as printed: s8, u4, auto8."""
        return {None: "auto", True: "s", False: "u"}[self.signed] + str(self.bits)

    def with_numbers(self, scale: Array, zero_point: Array | int = 0) -> QParams:
        """This decision with its numbers, of the shapes that `QParams` tells."""
        spec = {f.name: getattr(self, f.name) for f in fields(QSpec)}
        return QParams(**spec, scale=scale, zero_point=zero_point)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class QParams(QSpec):
    """A `QSpec` with its numbers.

    scale: float32, shape () for granularity "tensor", else (n,) with n groups or channels; finite and > 0.
    zero_point: int64 array of the same shape.
    """

    scale: Array = np.float32(1.0)  # type: ignore[assignment]
    zero_point: Array = np.int64(0)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        scale = np.array(self.scale, np.float32)
        zero = np.broadcast_to(np.array(self.zero_point, np.int64), scale.shape).copy()
        scale.setflags(write=False)
        zero.setflags(write=False)
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", zero)
        if self.signed is None:
            raise OptionError("QParams: signed must be known")
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise OptionError(f"scale: found {scale.min()}..{scale.max()}, want finite and > 0")
        if scale.ndim != (0 if self.granularity == "tensor" else 1):
            raise OptionError(f"scale: found shape {scale.shape} for granularity {self.granularity}")

    @property
    def spec(self) -> QSpec:
        """The decision without its numbers."""
        return QSpec(**{f.name: getattr(self, f.name) for f in fields(QSpec)})

    @property
    def key(self) -> tuple[QSpec, bytes, bytes]:
        """A value to compare two `QParams` by."""
        return (self.spec, self.scale.tobytes(), self.zero_point.tobytes())


# ---- rounding -------------------------------------------------------------------------------------------------------
# name -> function (x float32, scale float32 broadcastable, signed) -> float32 array of whole numbers, not yet clipped

def _rint(y: Array) -> Array:
    y = np.asarray(y)
    return np.rint(y, out=y)  # in place: fresh pages cost more than the arithmetic


def _half_even(x: Array, scale: Array, signed: bool) -> Array:
    """ONNX QuantizeLinear: round to nearest, ties to even, of a float32 quotient."""
    return _rint(x / scale)


def _half_away(x: Array, scale: Array, signed: bool) -> Array:
    """C round(), as ncnn and Tengine: ties away from zero, of a product with the reciprocal."""
    y = x * (np.float32(1) / scale)
    rounded: Array = np.trunc(y + np.copysign(np.float32(0.5), y))
    return rounded


def mxnet_range(scale: Array | float, signed: bool) -> Array:
    """The calibration range that makes MXNet's oneDNN ops work with the step `scale`: 127.5 steps (s8), 255.5 (u8)."""
    return np.float32(127.5 if signed else 255.5) * np.asarray(scale, np.float32)


def _mxnet(x: Array, scale: Array, signed: bool) -> Array:
    """`_contrib_quantize_v2` on CPU (oneDNN reorder): float32 product with R / range, ties to even."""
    return _rint(x * (np.float32(127.5 if signed else 255.5) / mxnet_range(scale, signed)))


ROUNDING: dict[str, Callable[[Array, Array, bool], Array]] = {
    "half-even": _half_even,
    "half-away": _half_away,
    "mxnet": _mxnet,
}

# ---- arithmetic -----------------------------------------------------------------------------------------------------

def per_axis(values: Array, spec: QSpec, shape: tuple[int, ...]) -> Array:
    """Scales or zero points, () or (n,), shaped so that they broadcast against a tensor of `shape`.

    A group's value is repeated for the shape[axis] // n channels that belong to it.
    """
    if spec.granularity == "tensor":
        return values
    channels = shape[spec.axis]
    if channels % len(values):
        raise OptionError(f"{len(values)} scales do not divide the {channels} channels of axis {spec.axis}")
    full = np.repeat(values, channels // len(values))
    return full.reshape([-1 if d == spec.axis else 1 for d in range(len(shape))])


def quantize(x: Array, qp: QParams, rounding: str = "half-even") -> Array:
    """Real values -> integer codes (int32, same shape). NaN becomes the code of zero.

    More than 16 bits are for biases, whose codes no engine computes: they are rounded in float64, ties to even.
    """
    x = np.asarray(x, np.float32)
    scale, zero = per_axis(qp.scale, qp, x.shape), per_axis(qp.zero_point, qp, x.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = (_rint(x / scale.astype(np.float64)) if qp.bits > 16
                   else ROUNDING[rounding](x, scale, bool(qp.signed)))
    if np.isnan(rounded.min(initial=0.0)):
        rounded = np.nan_to_num(rounded, nan=0.0, posinf=np.inf, neginf=-np.inf)
    bounds = [np.asarray(bound - zero, rounded.dtype) for bound in (qp.qmin, qp.qmax)]
    codes = np.minimum(np.maximum(rounded, bounds[0]), bounds[1]).astype(np.int32)
    return codes + zero.astype(np.int32) if zero.any() else codes


def dequantize(q: Array, qp: QParams) -> Array:
    """Integer codes -> real values (float32, same shape)."""
    scale, zero = per_axis(qp.scale, qp, q.shape), per_axis(qp.zero_point, qp, q.shape)
    real = np.asarray(q - zero if zero.any() else q).astype(np.float32)
    return np.multiply(real, scale, out=real)


def fake_quantize(x: Array, qp: QParams, rounding: str = "half-even") -> Array:
    """Real values -> the nearest real values that have a code (float32, same shape)."""
    return dequantize(quantize(x, qp, rounding), qp)


def with_range(spec: QSpec, low: Array | float, high: Array | float) -> QParams:
    """`spec` with the smallest step whose codes cover [low, high].

    symmetric:  scale = max(low / qmin, high / qmax), zero_point = 0; also with signedness "auto" and no `low` < 0
    else:       scale = (high - low) / (qmax - qmin), zero_point = qmin + round(-low / scale), with zero in [low, high]

    low, high: real values, shape () or (n,). Signedness "auto" becomes unsigned if no `low` is negative. A range of
    zero width gets step 1 (all codes are zero then, and a finite scale is what the engines want).
    """
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if spec.signed is None and not (low < 0).any():
        spec = replace(spec, symmetric=True)
    if not spec.symmetric:
        return _affine(spec, np.minimum(low, 0), np.maximum(high, 0))
    spec = replace(spec, signed=bool((low < 0).any())) if spec.signed is None else spec
    below = low / spec.qmin if spec.qmin else np.zeros_like(low)
    scale = np.maximum(np.maximum(below, high / spec.qmax), 0)
    scale = np.where(scale < _F32_TINY, 1.0, scale).astype(np.float32)
    return spec.with_numbers(_kept_by_mxnet(scale, bool(spec.signed)))


def online_params(spec: QSpec, batch: Array) -> QParams:
    """The numbers that an online `spec` takes from a batch (N, ...).

    Its range ends at the mean, over the images, of their largest magnitudes (signed) or largest values (unsigned).
    """
    rows = np.asarray(batch, np.float32).reshape(len(batch), -1)
    largest = (np.abs(rows) if spec.signed else rows).max(axis=1, initial=0.0)
    high = max(float(np.float32(largest.mean(dtype=np.float64))), LEAST_RANGE)
    return with_range(replace(spec, online=False), -high if spec.signed else 0.0, high)


def _affine(spec: QSpec, low: Array, high: Array) -> QParams:
    spec = replace(spec, signed=bool(spec.signed))
    scale = (high - low) / (spec.qmax - spec.qmin)
    scale = np.where(scale < _F32_TINY, 1.0, scale).astype(np.float32)
    zero = np.clip(spec.qmin + np.rint(-low / scale), spec.qmin, spec.qmax).astype(np.int64)
    return spec.with_numbers(scale, zero)


def _kept_by_mxnet(scale: Array, signed: bool) -> Array:
    """The step at most one ulp away that MXNet's dequantize gets back from the range that stands for it."""
    with np.errstate(over="ignore"):
        kept = mxnet_range(scale, signed) / np.float32(127.5 if signed else 255.5)
    return np.where(np.isfinite(kept), kept, scale)
