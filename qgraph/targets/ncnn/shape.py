"""Converters to ncnn of what only moves values: reshapes, slices, joins, copies, padding."""

from __future__ import annotations

from collections.abc import Sequence

from qgraph.semantics.geometry import axis_of, slices, split_sizes
from qgraph.targets.ncnn.convert import Context, converter

_PAD_MODES = {"constant": 0, "edge": 1, "reflect": 2}


# ---- reshapes -------------------------------------------------------------------------------------------------------

@converter("Flatten")
def _flatten(c: Context) -> str:
    return str(c.layer("Flatten", c.blob()))


@converter("Reshape", "expand_dims", "squeeze", "reshape_like")
def _reshape(c: Context) -> str:
    """Reshape to the shape that it has."""
    shape = c.out_shape()
    return c.reshape(c.blob(), shape or (1,))


def permute(c: Context, order: Sequence[int]) -> str:
    """Permute. order: of ncnn's axes, outermost first."""
    if list(order) == sorted(order):
        return c.blob()
    return str(c.layer("Permute", c.blob(), params={0: _ORDERS[len(order)][tuple(order)]}))


def _orders() -> dict[int, dict[tuple[int, ...], int]]:
    """Rank -> axes, outermost first -> order_type, from ncnn's names, which have the innermost axis first."""
    named = {2: "WH HW", 3: "WHC HWC WCH CWH HCW CHW",
             4: "WHDC HWDC WDHC DWHC HDWC DHWC WHCD HWCD WCHD CWHD HCWD CHWD WDCH DWCH WCDH CWDH DCWH CDWH HDCW DHCW "
                "HCDW CHDW DCHW CDHW"}
    letters = {2: "HW", 3: "CHW", 4: "CDHW"}
    return {rank: {tuple(letters[rank].index(letter) for letter in reversed(word)): number
                   for number, word in enumerate(words.split())} for rank, words in named.items()}


_ORDERS = _orders()


@converter("transpose")
def _transpose(c: Context) -> str:
    rank = len(c.shape()) + 1
    axes = [axis_of(c.node, a, rank) for a in c.attr("axes")] or list(range(rank))[::-1]
    if axes[0] != 0:
        raise c.refuse("it moves the batch axis, and ncnn runs one image at a time")
    return permute(c, [a - 1 for a in axes[1:]])


@converter("SwapAxis")
def _swap_axis(c: Context) -> str:
    order = list(range(len(c.shape())))
    a, b = (c.axis(c.attr(key)) for key in ("dim1", "dim2"))
    order[a], order[b] = b, a
    return permute(c, order)


@converter("depth_to_space", "space_to_depth")
def _depth_to_space(c: Context) -> str:
    """PixelShuffle and Reorg, with the block's offsets in front of the channels."""
    kind = "PixelShuffle" if c.node.op == "depth_to_space" else "Reorg"
    return str(c.layer(kind, c.blob(), params={0: c.attr("block_size"), 1: 1}))


# ---- slices ---------------------------------------------------------------------------------------------------------

@converter("slice", "slice_axis", "slice_like", "Crop")
def _slice(c: Context) -> str:
    """Crop between begins and ends; what covers an axis is left out."""
    shape = (1, *c.shape())
    others = [(1, *c.shape(1))] if len(c.ports) > 1 else []
    cuts = [cut.indices(size) for cut, size in zip(slices(c.node, [shape, *others]), shape)]
    if any(step != 1 for _, _, step in cuts):
        raise c.refuse("ncnn's Crop has no steps")
    if cuts[0][:2] != (0, 1):
        raise c.refuse("it cuts the batch axis, and ncnn runs one image at a time")
    wanted = [(axis, begin, end) for axis, ((begin, end, _), size) in enumerate(zip(cuts[1:], shape[1:]))
              if (begin, end) != (0, size)]
    if not wanted:
        return c.blob()
    axes, begins, ends = (list(column) for column in zip(*wanted))
    return str(c.layer("Crop", c.blob(), params={9: begins, 10: ends, 11: axes}))


@converter("SliceChannel")
def _slice_channel(c: Context) -> list[str]:
    return _parts(c, [-233] * c.attr("num_outputs"))


@converter("_split_v2")
def _split_v2(c: Context) -> list[str]:
    axis = c.axis(c.attr("axis"))
    return _parts(c, list(split_sizes(c.node, c.shape()[axis])))


def _parts(c: Context, lengths: list[int]) -> list[str]:
    axis, count = c.axis(c.attr("axis")), len(lengths)
    found = c.layer("Slice", c.blob(), params={0: lengths, 1: axis}, n_out=count)
    blobs = [found] if isinstance(found, str) else list(found)
    if c.attr("squeeze_axis"):
        return [c.reshape(blob, c.out_shape(index) or (1,)) for index, blob in enumerate(blobs)]
    return blobs


# ---- joins and copies -----------------------------------------------------------------------------------------------

@converter("Concat")
def _concat(c: Context) -> str:
    return str(c.layer("Concat", *(c.blob(slot) for slot in range(len(c.ports))), params={0: c.axis(c.attr("dim"))}))


@converter("stack")
def _stack(c: Context) -> str:
    """Concat of inputs that get the new axis."""
    axis = axis_of(c.node, c.attr("axis"), len(c.out_shape()) + 1) - 1
    if axis < 0:
        raise c.refuse("it stacks along the batch axis")
    blobs = [c.reshape(c.blob(slot), (*c.shape(slot)[:axis], 1, *c.shape(slot)[axis:]))
             for slot in range(len(c.ports))]
    return str(c.layer("Concat", *blobs, params={0: axis}))


@converter("tile", "broadcast_axis", "broadcast_to", "broadcast_like")
def _tile(c: Context) -> str:
    """Tile, so often as the shapes say."""
    shape, out = c.shape(), c.out_shape()
    x = c.blob()
    if len(shape) < len(out):
        shape = (1,) * (len(out) - len(shape)) + shape
        x = c.reshape(x, shape)
    for axis, (size, wanted) in enumerate(zip(shape, out)):
        if size != wanted:
            x = str(c.layer("Tile", x, params={0: axis, 1: wanted // size}))
    return x


@converter("repeat")
def _repeat(c: Context) -> str:
    """Each element by itself: an axis of copies behind the axis, merged into it."""
    if not c.attr("axis"):
        raise c.refuse("without an axis it mixes the images of a batch")
    shape, axis = c.shape(), c.axis(c.attr("axis")[0])
    if len(shape) == 4:
        raise c.refuse("on four axes besides the batch it needs a fifth")
    x = c.reshape(c.blob(), (*shape[:axis + 1], 1, *shape[axis + 1:]))
    x = str(c.layer("Tile", x, params={0: axis + 1, 1: c.attr("repeats")}))
    return c.reshape(x, c.out_shape())


@converter("Pad")
def _pad(c: Context) -> str:
    """Padding of up to the three innermost axes."""
    mode, width = c.attr("mode"), c.attr("pad_width")
    if mode not in _PAD_MODES:
        raise c.refuse(f"found mode {mode!r}, want one of {', '.join(_PAD_MODES)}")
    pairs = [tuple(width[i:i + 2]) for i in range(0, len(width), 2)]
    if any(pairs[0]):
        raise c.refuse("it pads the batch axis, and ncnn runs one image at a time")
    pairs = [(0, 0)] * (4 - len(pairs)) + pairs[1:]
    if len(pairs) > 3:
        raise c.refuse("it pads more than three axes besides the batch")
    (front, behind), (top, bottom), (left, right) = pairs
    return str(c.layer("Padding", c.blob(), params={
        0: top, 1: bottom, 2: left, 3: right, 4: _PAD_MODES[mode], 5: float(c.attr("constant_value")), 7: front,
        8: behind}))
