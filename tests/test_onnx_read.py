"""What is refused when an .onnx file is read: whatever does not hold what it claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networks
import numpy as np
import onnx
import pytest

import qgraph
from qgraph.errors import FormatError
from qgraph.targets.onnx.model import load
from qgraph.targets.onnx.read import check, read


@pytest.fixture(scope="module")
def frozen() -> Any:
    g, feeds = networks.build("conv_pool_conv")
    return qgraph.freeze(g, qgraph.FreezeOptions(target="onnx", runtime="onnxruntime"), calib_data=feeds).lowered.proto


def test_a_written_model_is_read_again(tmp_path: Path, frozen: Any) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(frozen.SerializeToString())
    assert read(str(path)) == frozen


TYPES = {name: number for name, number in onnx.TensorProto.DataType.items() if name != "UNDEFINED"}


@pytest.mark.parametrize("shape", [(), (3,), (5, 2), (0, 7)])
@pytest.mark.parametrize("name", TYPES)
def test_every_type_is_read_from_its_field_and_from_raw_data(frozen: Any, name: str, shape: tuple[int, ...]) -> None:
    count = int(np.prod(shape))
    values = [{"STRING": "a", "COMPLEX64": 1j, "COMPLEX128": 1j}.get(name, 1)] * count
    typed = onnx.helper.make_tensor("x", TYPES[name], shape, values)
    tensors = [typed] if name == "STRING" else [typed, onnx.numpy_helper.from_array(
        onnx.numpy_helper.to_array(typed), "x")]
    for tensor in tensors:
        proto = onnx.ModelProto()
        proto.CopyFrom(frozen)
        proto.graph.initializer.append(tensor)
        check(proto, "x")
        if count and tensor.HasField("raw_data"):
            proto.graph.initializer[-1].raw_data += b"\0"
            with pytest.raises(FormatError, match="in raw_data, want"):
                check(proto, "x")


def _spoil(how: str, proto: Any) -> None:
    weight, node = proto.graph.initializer[2], proto.graph.node[0]
    if how == "shape":
        weight.dims[0] += 1
    elif how == "dims":
        weight.dims.extend([1] * 33)
    elif how == "negative":
        weight.dims[0] = -1
    elif how == "type":
        weight.data_type = onnx.TensorProto.UNDEFINED
    elif how == "twice":
        weight.float_data.append(0)
    elif how == "value":
        proto.graph.input[0].type.tensor_type.shape.dim.add(dim_value=1 << 40)
    elif how == "attribute":
        node.attribute.add(name="value", type=4, t=onnx.TensorProto(name="inner", data_type=1, dims=[2], raw_data=b"1"))
    elif how == "made twice":
        proto.graph.node.append(node)
    elif how == "scale":
        scale = next(t for t in proto.graph.initializer if t.name == node.input[1])
        scale.CopyFrom(onnx.numpy_helper.from_array(np.array(np.nan, np.float32), scale.name))


@pytest.mark.parametrize("how, message", {
    "shape": "216 in raw_data, want 243", "dims": "dimensions", "negative": "dimensions", "type": "data type 0",
    "twice": "1 in float_data", "value": "1099511627776", "attribute": "tensor inner: found 1 in raw_data, want 8",
    "made twice": "another node makes too", "scale": "want a constant of one finite number"}.items())
def test_tensors_and_values_hold_what_they_claim(tmp_path: Path, frozen: Any, how: str, message: str) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(frozen)
    assert proto.graph.node[0].op_type == "QuantizeLinear"
    _spoil(how, proto)
    path = tmp_path / "x.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(FormatError) as error:
        load(path)
    assert str(path) in str(error.value) and message in str(error.value)


def test_a_name_that_is_no_text_is_refused(tmp_path: Path, frozen: Any) -> None:
    content = frozen.SerializeToString()
    for name in (b"QuantizeLinear", b"data", b"zero_point"):
        (tmp_path / "x.onnx").write_bytes(content.replace(name, b"\xff" + name[1:]))
        with pytest.raises(FormatError, match="UTF-8"):
            load(tmp_path / "x.onnx")
