"""examples/simulate_quantization.py: every flag of its command line on networks with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import DIGITS, load_example

from qgraph.commands.strategies import HEAD

pytest.importorskip("gluoncv")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Size -> an .npz of 45 images in 3 classes."""
    folder, rng, found = tmp_path_factory.mktemp("images"), np.random.RandomState(0), {}
    for size in (32, 64):
        found[size] = str(folder / f"{size}.npz")
        np.savez(found[size], data=rng.randint(0, 256, (45, size, size, 3)).astype(np.uint8), label=np.arange(45) % 3)
    return found


def run(*flags: str) -> tuple[int, str]:
    """(exit code, what is printed and what it ends with)"""
    main = load_example("simulate_quantization").main
    done = CliRunner().invoke(main, ["--no-pretrained", "--batch-size", "16", *flags])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    said = done.exception.code if done.exception is not None else 0
    return (said, done.output) if isinstance(said, int) else (1, f"{done.output}{said}\n")


def table(said: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in said.splitlines() if line[:2] == "| "]


CIFAR = ("--model", "cifar_resnet20_v1", "--dataset", "cifar10")
IMAGENET = ("--size", "64")


@pytest.mark.parametrize(("size", "flags", "row"), [
    (32, CIFAR, "uint8 | - | int8 | layer | - | yes"),
    (32, (*CIFAR, "--merge-bn", "--quant-type", "channel", "--input-signed", "true"),
     "int8 | - | int8 | channel | yes | yes"),
    (32, (*CIFAR, "--fake-bn", "--weight-bits-width", "4", "--input-bits-width", "12", "--quant-type", "group",
          "--exclude-first-conv", "false", "-j", "1"), "uint12 | - | int4 | group | yes | -"),
    (32, (*CIFAR, "--wino_quantize", "F63", "--disable-cudnn-autotune", "--fixed-random-seed", "3"),
     "uint8 | - | int8 F63 | layer | - | yes"),
    (32, (*CIFAR, "--quantize-input-offline", "--calib-epoch", "2", "--num-sample", "1"),
     "uint8 | naive (EMA) | int8 | layer | - | yes"),
    (32, (*CIFAR, "--use-gn", "--quantize-input-offline", "--calib-mode", "kl"), "uint8 | KL | int8 | layer | - | yes"),
    pytest.param(64, (*IMAGENET, "--model", "resnet18_v1", "--use-se", "--last-gamma"),
                 "uint8 | - | int8 | layer | - | yes", marks=pytest.mark.docs),
    (64, (*IMAGENET, "--model", "mobilenetv2_0.25"), "uint8 | - | int8 | layer | - | yes"),
])
def test_flags(size: int, flags: tuple[str, ...], row: str, images: dict[int, str]) -> None:
    code, said = run(*flags, "--data-dir", images[size])
    assert code == 0, said
    lines = table(said)
    assert lines[0] == [*HEAD, "Top-1", "Agreement"] and lines[2][0] == "float32" and len(lines) == 4
    assert " | ".join(lines[3][:6]) == row


def test_every_epoch_of_the_calibration_is_judged(images: dict[int, str]) -> None:
    code, said = run(*CIFAR, "--data-dir", images[32], "--quantize-input-offline", "--eval-per-calib")
    assert code == 0, said
    assert [line for line in said.splitlines() if line.startswith("after")] == [
        f"after {n} of 3 epochs of calibration:" for n in (1, 2, 3)]
    assert [row[1] for row in table(said) if row[0] == "uint8"] == ["naive (EMA)"] * 3


def test_your_own_network(tmp_path: Path) -> None:
    code, said = run("--symbol", f"{DIGITS}/digits-symbol.json", "--params", f"{DIGITS}/digits-0000.params",
                     "--preprocess", "none", "--data-dir", f"{DIGITS}/digits-test.npz", "--print-model")
    assert code == 0, said
    assert "%digits_conv0_fwd = Convolution(" in said
    assert all(97 < float(row[6]) < 100 for row in table(said)[2:])


def test_images_of_every_class_in_every_epoch() -> None:
    sampled = load_example("simulate_quantization").sampled
    classes = np.array([0, 0, 0, 0, 1, 1, 1, 2])
    rows = sampled(classes, 2, 3, seed=7)
    assert rows == sampled(classes, 2, 3, seed=7) != sampled(classes, 2, 3, seed=8)
    epochs = np.array(rows).reshape(3, 5)
    assert all(sorted(classes[epoch]) == [0, 0, 1, 1, 2] and len(set(epoch)) == 5 for epoch in epochs)
    assert {tuple(sorted(epoch)) for epoch in epochs.tolist()} != {tuple(sorted(epochs[0].tolist()))}
    assert sampled(classes, 2, 1, seed=7) == rows[:5]  # an epoch more leaves the earlier ones as they were


@pytest.mark.parametrize(("flags", "said"), [
    (("--model", "mobilnet1.0"), "close names: mobilenet1.0"),
    (("--dataset", "mnist"), "'mnist' is not one of 'imagenet', 'cifar10'"),
    (("--quant-type", "kernel"), "'kernel' is not one of 'layer', 'group', 'channel'"),
    (("--calib-mode", "best"), "'best' is not one of 'naive', 'kl'"),
    (("--wino_quantize", "F83"), "'F83' is not one of 'none', 'F23', 'F43', 'F63'"),
    (("--weight-bits-width", "1"), "2<=x<=16"),
    (("--data-dir", "/no/such/place"), "/no/such/place: there is no such file or folder"),
    (("--model", "mobilenet0.25", "--use-se"), "mobilenet0.25: cannot be built with use_se"),
    (("--use-gpu",), "sees no GPU"),
])
def test_mistakes_are_one_line(flags: tuple[str, ...], said: str, images: dict[int, str]) -> None:
    where = () if "--data-dir" in flags else ("--data-dir", images[64])
    code, found = run(*IMAGENET, *flags, *where)
    assert code and said in found and "Traceback" not in found


def test_the_zoo_is_listed() -> None:
    code, said = run("--list-models")
    assert code == 0 and {"mobilenet1.0", "cifar_resnet20_v1"} <= set(said.split())


@pytest.mark.parametrize("names", [("train.rec", "val.rec"), ("cifar10_train.rec", "cifar10_test.rec"),
                                   ("train", "val")])
def test_folders_of_images(names: tuple[str, str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch() if name.endswith(".rec") else (tmp_path / name).mkdir()
    found = load_example("simulate_quantization").find_images(str(tmp_path), "imagenet")
    assert found == (str(tmp_path / names[1]), str(tmp_path / names[0]))
