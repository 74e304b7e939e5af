"""PREFIX.ncnn.md: how to run the model that lies beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qgraph.data.preprocess import Preprocess


def usage_note(stem: str, inputs: Mapping[str, Sequence[int]], outputs: Sequence[str],
               preprocess: Preprocess | None = None) -> str:
    """Blob names, mean and norm values, and ten lines of Python."""
    lines = [f"# {stem}", "", "| blob | | shape |", "|---|---|---|"]
    lines += [f"| `{name}` | input | {_shape(shape)} |" for name, shape in inputs.items()]
    lines += [f"| `{name}` | output | |" for name in outputs]
    name, shape = next(iter(inputs.items()), ("data", ()))
    lines += ["", *_python(stem, name, shape, outputs[0], preprocess), "",
              "In C++ the calls are the same: `ncnn::Mat::from_pixels`, `substract_mean_normalize`, "
              "`ncnn::Extractor::input` and `extract`."]
    if preprocess is None or preprocess.is_identity:
        lines += ["", "The values above stand for no preprocessing: the network was calibrated on ready arrays. Put in "
                      "the mean and norm values that it was trained with."]
    return "\n".join(lines) + "\n"


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(str(size or "?") for size in shape[1:]) or "?"


def _python(stem: str, name: str, shape: Sequence[int], output: str, preprocess: Preprocess | None) -> list[str]:
    chosen = preprocess or Preprocess()
    mean, norm = (", ".join(f"{v:.9g}" for v in values) for values in chosen.mean_norm)
    grey = len(shape) > 1 and shape[1] == 1
    height, width = (shape[2], shape[3]) if len(shape) == 4 else (224, 224)
    pixels = "PIXEL_GRAY" if grey else "PIXEL_RGB2BGR" if chosen.bgr else "PIXEL_RGB"
    prepare = [f'image = Image.open("image.jpg").convert("{"L" if grey else "RGB"}")']
    if chosen.resize:
        sides = (f"image.{side} * {chosen.resize} // min(image.size)" for side in ("width", "height"))
        prepare.append(f"image = image.resize(({', '.join(sides)}), Image.BILINEAR)")
    if chosen.crop:
        prepare += [f"left, top = (image.width - {chosen.crop}) // 2, (image.height - {chosen.crop}) // 2",
                    f"image = image.crop((left, top, left + {chosen.crop}, top + {chosen.crop}))"]
    elif not chosen.resize:
        prepare.append(f"image = image.resize(({width}, {height}), Image.BILINEAR)")
    return [
        "```python", "import ncnn", "import numpy as np", "from PIL import Image", "",
        "net = ncnn.Net()", f'net.load_param("{stem}.param")', f'net.load_model("{stem}.bin")', *prepare,
        f"mat = ncnn.Mat.from_pixels(np.asarray(image), ncnn.Mat.PixelType.{pixels}, *image.size)",
        f"mat.substract_mean_normalize([{mean}], [{norm}])",
        "extractor = net.create_extractor()",
        f'extractor.input("{name}", mat)',
        f'status, scores = extractor.extract("{output}")',
        "print(np.array(scores).argmax())", "```"]
