"""The page of a report in a real browser: Debian's chromium, without a window, at two widths and in both schemes."""

from __future__ import annotations

import functools
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import CASES, DIGITS
from PIL import Image

import qgraph
from qgraph import FreezeOptions
from qgraph.commands.compare import compare
from qgraph.pages.compare import compare_page
from qgraph.pages.page import anchor

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium: apt-get install chromium chromium-driver"),
]
selenium = pytest.importorskip("selenium", reason="selenium is not installed: it is in the extra [test]")

SIZES = {"desktop": 1280, "phone": 390}
SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=Service(DRIVER)) as driver:
        driver.set_script_timeout(60)
        driver.get("about:blank")
        driver.get_log("performance")  # what the browser itself asks for when it starts
        yield driver


@functools.cache
def of_digits() -> Any:
    return qgraph.freeze(str(DIGITS / "digits-symbol.json"),
                         FreezeOptions(target="onnx", effort="fast", calib="kl", exclude=("conv0",)))


def of_case(folder: str, calib: str, shape: tuple[int, ...]) -> Callable[[], Any]:
    """Frozen on two images of noise: a page of the whole network in little time."""
    def freeze() -> Any:
        model = CASES / folder / f"{Path(folder).name}-symbol.json"
        images = 50 * np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
        return qgraph.freeze(str(model), FreezeOptions(target="onnx", effort="fast", calib=calib), calib_data=images)
    return freeze


PAGES = {
    "digits": of_digits,
    "mobilenet": of_case("mobilenetv1_0.75_192_bn", "kl", (3, 192, 192)),
    "detector": of_case("detectors/retinaface_mnet025_16", "naive", (3, 256, 256)),
}


def wait(driver: Any, condition: str) -> None:
    """Until this is true in the page."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 60, 0.05).until(lambda d: d.execute_script(f"return Boolean({condition})"), condition)


def look(driver: Any, path: Path, size: str, scheme: str) -> Image.Image:
    """Open the page, all of its details too; its picture."""
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": SIZES[size], "height": 900, "deviceScaleFactor": 1, "mobile": size == "phone"})
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {
        "features": [{"name": "prefers-color-scheme", "value": scheme},
                     {"name": "prefers-reduced-motion", "value": "reduce"}]})  # scrolls at once
    driver.get(path.as_uri())
    driver.execute_script("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    wait(driver, "[...document.querySelectorAll('[data-chart]')].every(one => one.querySelector('canvas'))")
    return Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")


def undrawn(driver: Any) -> list[str]:
    """Captions of charts whose canvas is empty, or that have no text for people who cannot see them."""
    found: list[str] = driver.execute_script("""
        return [...document.querySelectorAll('[data-chart]')].filter(figure => {
          const canvas = figure.querySelector('canvas'), plot = figure.querySelector('.plot');
          const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
          const seen = new Set();
          for (let at = 0; at < pixels.length && seen.size < 4; at += 4)
            if (pixels[at + 3] > 200) seen.add([pixels[at], pixels[at + 1], pixels[at + 2]].join());
          return seen.size < 3 || plot.getAttribute('role') !== 'img' || !plot.getAttribute('aria-label');
        }).map(figure => figure.textContent);""")
    return found


def check_quiet(driver: Any) -> None:
    """No error in the console, and nothing asked of a network."""
    assert driver.get_log("browser") == []
    sent = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in sent if event["method"] == "Network.requestWillBeSent"]
    assert urls and all(url.startswith(("file://", "data:")) for url in urls), urls


def numbers(driver: Any, column: int) -> list[str]:
    """The texts of a column of the table of layers, of the rows that are shown."""
    texts: list[str] = driver.execute_script(f"""
        return [...document.querySelectorAll('#table tbody tr')].filter(row => !row.hidden)
          .map(row => row.cells[{column}].textContent.trim());""")
    return texts


@pytest.fixture(scope="module", params=["digits", pytest.param("mobilenet", marks=pytest.mark.docs), "detector"])
def frozen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    if request.param != "digits" and not CASES.exists():
        pytest.skip(f"{CASES} is not there: set QGRAPH_CASES")
    made = PAGES[request.param]()
    prefix = tmp_path_factory.mktemp("page") / request.param
    made.save(prefix)
    return Path(f"{prefix}.report.html"), made.report


def test_a_report_in_the_browser(frozen: tuple[Path, dict[str, Any]], browser: Any) -> None:
    path, report = frozen
    assert path.stat().st_size < 1_000_000
    grounds = set()
    for size in SIZES:
        for scheme in SCHEMES:
            picture = look(browser, path, size, scheme)
            grounds.add(picture.getpixel((2, 2)))
            assert len(picture.getcolors(1 << 24) or []) > 100, "an empty picture"
            assert undrawn(browser) == []
            wide = browser.execute_script("return document.documentElement.scrollWidth")
            assert wide <= SIZES[size], "the page has to be scrolled to the side"
    assert len(grounds) == 2, "light and dark look alike"

    rows = numbers(browser, 1)
    names = {row["name"] for row in report["quantized"] + report["float"]}
    assert names <= set(rows)
    column = "[...document.querySelectorAll('#table thead th')].find(one => one.textContent.includes('SQNR'))"
    at = browser.execute_script(f"return {column}.cellIndex")
    for order in ("ascending", "descending"):
        browser.execute_script(f"{column}.querySelector('button').click()")
        assert browser.execute_script(f"return {column}.getAttribute('aria-sort')") == order
        found = [float(text.replace("equal", "inf")) for text in numbers(browser, at) if text]
        assert len(found) > 5 and found == sorted(found, reverse=order == "descending"), order
    name = report["quantized"][3]["name"]
    for text, shown in ((name, [row for row in rows if name in row]), ("no such layer", []), ("", rows)):
        browser.execute_script("const field = document.getElementById('filter'); field.value = arguments[0];"
                               "field.dispatchEvent(new Event('input'))", text)
        assert sorted(numbers(browser, 1)) == sorted(shown), text
    browser.execute_script("const kind = document.getElementById('kind'); kind.value = 'int8';"
                           "kind.dispatchEvent(new Event('input'))")
    assert set(numbers(browser, 1)) == {row["name"] for row in report["quantized"]}

    target = f"document.getElementById({json.dumps(anchor(name))})"
    for selector in (f"#table a[href='#{anchor(name)}']", f"#drawing a[href='#{anchor(name)}']"):
        browser.execute_script(f"location.hash = ''; {target}.open = false; scrollTo(0, 0)")
        browser.execute_script("document.querySelector(arguments[0]).dispatchEvent("
                               "new MouseEvent('click', {bubbles: true, cancelable: true}))", selector)
        wait(browser, f"{target}.open && Math.abs({target}.getBoundingClientRect().top) < innerHeight")
    check_quiet(browser)


def test_charts_lead_to_their_layers_and_the_drawing_changes_colours(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "digits.report.html"
    of_digits().save(tmp_path / "digits")
    look(browser, path, "desktop", "light")
    browser.execute_script("document.getElementById('noise').scrollIntoView()")
    from selenium.webdriver.common.action_chains import ActionChains

    over = browser.find_element("css selector", "[data-chart=sqnr] .u-over")
    ActionChains(browser).move_to_element(over).move_by_offset(5, 0).perform()
    wait(browser, "document.querySelector('[data-readout]').textContent.includes('digits_')")
    ActionChains(browser).click(over).perform()
    wait(browser, "location.hash.startsWith('#layer:digits_')")
    fills = "[...document.querySelectorAll('#drawing a rect')].map(one => getComputedStyle(one).fill).join()"
    by_noise = browser.execute_script(f"return {fills}")
    browser.execute_script("const colour = document.getElementById('colour'); colour.value = 'kind';"
                           "colour.dispatchEvent(new Event('change'))")
    assert browser.execute_script(f"return {fills}") != by_noise
    check_quiet(browser)


def test_a_comparison_in_the_browser(browser: Any, tmp_path: Path) -> None:
    model = str(DIGITS / "digits-symbol.json")
    with np.load(DIGITS / "digits-test.npz") as test:
        found = compare(model, of_digits(), {"data": test["data"][:16].astype(np.float32)})
    path = tmp_path / "compared.html"
    path.write_text(compare_page(found, "digits", "q"), encoding="utf-8")
    look(browser, path, "phone", "dark")
    assert undrawn(browser) == [] and numbers(browser, 1) == [row["name"] for row in found["layers"]]
    check_quiet(browser)
