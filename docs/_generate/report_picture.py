"""Takes the picture of a report that README shows: `python -m _generate.report_picture` in docs/.

Needs chromium and its driver (Debian: chromium, chromium-driver), selenium and MXNet.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image

import qgraph
from _generate.root import ROOT

PICTURE = ROOT / "docs" / "assets" / "report.png"
WIDTH, HEIGHT, COLORS = 1100, 1210, 64  # of the window, in pixels; of the palette, which keeps the file small


def main() -> None:
    digits = ROOT / "examples" / "digits" / "digits-symbol.json"
    frozen = qgraph.freeze(str(digits), qgraph.FreezeOptions(exclude=("conv0",), calib="kl"))
    with tempfile.TemporaryDirectory() as folder:
        frozen.save(Path(folder) / "model")
        picture = Image.open(io.BytesIO(_shot(Path(folder) / "model.report.html")))
        picture.convert("RGB").quantize(COLORS).save(PICTURE, optimize=True)


def _shot(page: Path) -> bytes:
    """The first screen of a page, as PNG."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
                 f"--window-size={WIDTH},{HEIGHT}", f"--user-data-dir={page.parent / 'browser'}"):
        options.add_argument(flag)
    with webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver"))) as driver:
        driver.get(page.as_uri())
        return bytes(driver.get_screenshot_as_png())


if __name__ == "__main__":
    main()
