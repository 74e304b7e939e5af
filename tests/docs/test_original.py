"""docs/from-the-original.md has every flag and function of Quantization on MXNet, and what it names here is there."""

from __future__ import annotations

import re
from importlib import import_module

import click
import pytest
from helpers import load_example
from page_blocks import PAGES

from qgraph.cli.simulate import command as simulate

PAGE = PAGES["docs/from-the-original.md"]
FLAGS = ("--model", "--print-model", "--list-models", "--use-gpu", "--dataset", "--use-gn", "--batch-norm", "--use-se",
         "--last-gamma", "--fake-bn", "--merge-bn", "--weight-bits-width", "--input-signed", "--input-bits-width",
         "--quant-type", "-j", "--num-data-workers", "--batch-size", "--num-sample", "--quantize-input-offline",
         "--calib-mode", "--calib-epoch", "--disable-cudnn-autotune", "--eval-per-calib", "--exclude-first-conv",
         "--fixed-random-seed")
"""Those that `simulate_quantization.py -h` prints in its README, and --merge-bn, as its script has it."""
FUNCTIONS = ("convert_model", "default_convert_fn", "gen_conv2d_converter", "gen_dense_converter", "gen_act_converter",
             "convert_relu_to_relu6", "convert_to_relu6", "bypass_bn", "qparams_init", "net.update_ema",
             "net.quantize_input", "net.enable_quantize", "net.disable_quantize", "net.collect_quantized_blocks",
             "merge_bn", "collect_feature_maps", "kl_calibrate", "FreezeHelper", "FreezeHelper.list_symbols",
             "FreezeHelper.freeze")
TABLES = ("IN dtype", "IN offline", "WT dtype", "WT qtype", "Merge BN", "w/o 1st conv")


def rows(section: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    part = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()
            if line.startswith("| ")][1:]


def options(command: click.Command) -> set[str]:
    return {name for option in command.params for name in (*option.opts, *option.secondary_opts)}


def test_every_flag_has_a_row() -> None:
    named = [flag for row in rows("Flags of simulate_quantization.py") for flag in re.findall("`(-[^`]+)`", row[0])]
    assert sorted(named) == sorted(FLAGS)


def test_the_flags_of_the_rows_exist() -> None:
    example, own = options(load_example("simulate_quantization").main), options(simulate)
    for row in rows("Flags of simulate_quantization.py"):
        there, here = (re.findall(r"`(--[\w-]+)`", cell) for cell in row[1:])
        assert there and {*there} <= example, row
        assert {*here} <= own, row
    assert {*FLAGS} <= example


def test_every_function_has_a_row() -> None:
    assert sorted(row[0].strip("`") for row in rows("Functions")) == sorted(FUNCTIONS)


@pytest.mark.mxnet
def test_the_functions_of_the_rows_exist() -> None:
    for row in rows("Functions"):
        module, _, name = row[1].strip("`").rpartition(".")
        if module.endswith(".Control"):
            assert callable(getattr(import_module("qgraph.qat.control").Control, name)), row
        else:
            assert getattr(import_module(module), name) is not None, row


def test_its_table_is_printed_and_shown() -> None:
    from _generate import figures

    from qgraph.commands.strategies import HEAD

    shown = figures.read("accuracy-original")
    assert tuple(HEAD) == TABLES and tuple(shown["head"][:6]) == TABLES and len(shown["rows"]) == 19
