"""NumPy's linear algebra computes with what the processor has."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from helpers import ROOT

from qgraph import processor
from qgraph.processor import KERNELS, choose_kernels, units

AVX2 = "avx2 fma"
AVX512 = f"{AVX2} avx512f avx512bw avx512dq avx512vl"


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A process that has not imported NumPy: (vendor, flags, version of NumPy) -> the kernels that are chosen."""
    monkeypatch.delitem(sys.modules, "numpy")
    monkeypatch.setenv(KERNELS, "")  # so that what is set here does not outlive the test
    monkeypatch.delenv(KERNELS)

    def chosen(vendor, flags, numpy="1.23.5", machine="x86_64"):
        (tmp_path / "cpuinfo").write_text(f"vendor_id\t: {vendor}\nflags\t\t: sse2 {flags}\n")
        monkeypatch.setattr(processor, "_CPU", tmp_path / "cpuinfo")
        monkeypatch.setattr(processor, "version", lambda package: numpy)
        monkeypatch.setattr(processor.platform, "machine", lambda: machine)
        choose_kernels()
        return os.environ.get(KERNELS)

    return chosen


@pytest.mark.parametrize(("said", "kernels"), [
    (("GenuineIntel", AVX512), "SkylakeX"), (("GenuineIntel", AVX2), "Haswell"), (("GenuineIntel", "avx"), None),
    (("AuthenticAMD", AVX512), None), (("GenuineIntel", AVX512, "2.1.0"), None),
    (("GenuineIntel", AVX512, "1.23.5", "aarch64"), None)])
def test_kernels_are_those_of_the_processor(fresh, said, kernels):
    assert fresh(*said) == kernels


def test_what_is_set_stays(fresh, monkeypatch):
    monkeypatch.setenv(KERNELS, "Zen")
    assert fresh("GenuineIntel", AVX512) == "Zen"


def test_nothing_is_said_of_a_processor_that_is_not_shown(fresh, monkeypatch, tmp_path):
    monkeypatch.setattr(processor, "_CPU", tmp_path / "nowhere")
    choose_kernels()
    assert not units() and KERNELS not in os.environ


def test_a_numpy_that_is_imported_is_left_alone(monkeypatch):
    monkeypatch.delenv(KERNELS, raising=False)
    choose_kernels()
    assert "numpy" in sys.modules and KERNELS not in os.environ


ARCHITECTURE = """
import qgraph.cli.main
import numpy
from threadpoolctl import threadpool_info
print([found["architecture"] for found in threadpool_info() if found["internal_api"] == "openblas"])
"""


@pytest.mark.skipif(not {"GenuineIntel", "avx2"} <= units(), reason="want one of Intel's processors with AVX2")
def test_the_command_line_computes_with_wide_vectors():
    env = {key: value for key, value in os.environ.items() if key != KERNELS} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", ARCHITECTURE], env=env, capture_output=True, text=True, check=True)
    assert "Prescott" not in done.stdout
