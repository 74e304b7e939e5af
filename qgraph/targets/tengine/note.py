"""PREFIX.tengine.md: how to run the model that lies beside it, in C."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qgraph.data.preprocess import Preprocess


def usage_note(stem: str, inputs: Mapping[str, Sequence[int]], outputs: Mapping[str, Sequence[int]],
               steps: Mapping[str, float], preprocess: Preprocess | None = None, export: str = "",
               why: str = "") -> str:
    """Names, shapes and steps of inputs and outputs, the lines of C, the recipe with Tengine's own tools.

    steps: of int8 inputs and outputs, empty in float.  export: prefix of the float checkpoint, "" with `why` there is
    none.
    """
    lines = [f"# {stem}", "", "| tensor | | shape | step |", "|---|---|---|---|"]
    lines += [f"| `{name}` | {what} | {' x '.join(str(d or 1) for d in shape) or '?'} | {_step(steps.get(name))} |"
              for what, rows in (("input", inputs), ("output", outputs))
              for name, shape in rows.items()]
    name, shape = next(iter(inputs.items()), ("data", ()))
    lines += ["", *_c(stem, shape, steps.get(name), steps.get(next(iter(outputs))), preprocess)]
    if preprocess is None or preprocess.is_identity:
        lines += ["", "The mean and norm above stand for no preprocessing: put in those that it was trained with."]
    if export:
        recipe = [f"convert_tool -f mxnet -m {export}-symbol.json -p {export}-0000.params -o f.tmfile"]
        if steps:
            recipe.append(f"quant_tool_int8 -m f.tmfile -f {stem}.scale -i some_images/ -o int8.tmfile")
        lines += ["", "With Tengine's own tools, from the float checkpoint:", "", "```", *recipe, "```"]
    elif why:
        lines += ["", f"There is no float checkpoint for Tengine's own tools: {why}."]
    return "\n".join(lines) + "\n"


def _step(step: float | None) -> str:
    return "float" if step is None else f"{step:.9g}"


def _c(stem: str, shape: Sequence[int], step: float | None, out_step: float | None,
       preprocess: Preprocess | None) -> list[str]:
    mean, norm = (", ".join(f"{v:.9g}" for v in values) for values in (preprocess or Preprocess()).mean_norm)
    order = "blue, green, red" if preprocess is not None and preprocess.bgr else "red, green, blue"
    dims = ", ".join(str(d or 1) for d in shape) or "1, 3, 224, 224"
    kind, bits = ("float", "FP32") if step is None else ("int8_t", "INT8")
    value = "(pixel - mean[c]) * norm[c]"
    fill = (f"    input[i] = {value};" if step is None else
            f"    input[i] = clip(round({value} / {step:.9g}f), -127, 127);")
    read = "scores[i]" if out_step is None else f"scores[i] * {out_step:.9g}f"
    return [
        "```c", f"float mean[] = {{{mean}}}, norm[] = {{{norm}}};  /* of {order}, pixels 0..255 */", "init_tengine();",
        f'graph_t graph = create_graph(NULL, "tengine", "{stem}.tmfile");', f"int dims[] = {{{dims}}};",
        "tensor_t data = get_graph_input_tensor(graph, 0, 0);",
        f"set_tensor_shape(data, dims, {len(shape) or 4});",
        f"{kind}* input = malloc(count * sizeof({kind}));  /* count: the product of dims */",
        "for (int i = 0; i < count; i++)  /* channel by channel */", fill,
        f"set_tensor_buffer(data, input, count * sizeof({kind}));",
        "struct options opt = {.num_thread = 1, .cluster = TENGINE_CLUSTER_ALL, "
        f".precision = TENGINE_MODE_{bits}, .affinity = 0}};",
        "prerun_graph_multithread(graph, opt);", "run_graph(graph, 1);",
        f"{kind}* scores = get_tensor_buffer(get_graph_output_tensor(graph, 0, 0));  /* real: {read} */", "```"]
