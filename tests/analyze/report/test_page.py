"""A report in headless Chromium: its numbers are those of `find_outliers`, and it is safe, quiet and usable by keys."""

from __future__ import annotations

import json
import math
import shlex
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
import xarray as xr

from analyze import Criteria, find_outliers, write_report
from analyze.answers.find import Outliers
from tests import builders
from tests.browser import chromium, until

pytestmark = pytest.mark.slow

HOSTILE = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'><!--<script>"

# Everything that the page shows of each store: exact values are in the value attributes of its <data> elements.
READ = """
const value = (cell) => { const data = cell.querySelector("data"); return data === null ? null : Number(data.value); };
return {
  stores: [...document.querySelectorAll("#stores .store")].map((card) => Object.fromEntries(
    [...card.querySelectorAll("[data-figure]")].map((cell) => [cell.dataset.figure, value(cell)]))),
  tables: [...document.querySelectorAll("#tables tbody")].map(
    (body) => [...body.rows].map((row) => [...row.cells].map(value))),
  saturated: [...document.querySelectorAll("#stores .store .flag:first-of-type")].map((flag) => !flag.hidden),
};
"""


def stores() -> list[xr.Dataset]:
    """Two stores: ties, NaN and infinities, sequences that end, over 255 (layer, site) pairs hit; one sequence."""
    first = builders.random_activations((3, 4, 2, 70, 9), 3)
    first *= np.float32(10.0) ** np.linspace(-1, 2, 9, dtype=np.float32)
    first[..., 4] = np.round(first[..., 4] * 2) / 2
    first[1, 2, 0, 5, 3] = np.nan
    first[2, 1, 1, 6, 2] = -np.inf
    second = builders.random_activations((1, 90, 3, 5, 6), 4)
    second[:, ::10, 2] = np.nan
    second[..., 1] *= 7
    result = [builders.dataset(first, first / 3, length=np.array([70, 33, 8])), builders.dataset(second, second * 2)]
    result[1].attrs["model_id"] = HOSTILE
    return result


class Driven:
    """A page in a browser."""

    def __init__(self, driver: Any, path: Path) -> None:
        self.driver, self.path = driver, path

    def open(self, **settings: Any) -> None:
        self.driver.get("about:blank")
        self.driver.get(self.path.as_uri() + ("#" + urlencode(settings) if settings else ""))
        self.settle(-1)

    def turn(self) -> int:
        return int(self.script("return document.body.dataset.settled || 0"))

    def settle(self, before: int) -> None:
        try:
            until(lambda: self.turn() > max(before, 0))
        except AssertionError as error:
            told = [entry["message"] for entry in self.driver.get_log("browser")]
            raise AssertionError(f"turn {self.turn()} after {before} at {self.driver.current_url}: {told}") from error

    def set(self, **settings: Any) -> None:
        """Another address, as a reader would paste it."""
        before = self.turn()
        self.script("location.hash = arguments[0]", urlencode(settings))
        self.settle(before)

    def script(self, text: str, *arguments: Any) -> Any:
        return self.driver.execute_script(text, *arguments)

    def element(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        before = self.turn()
        ActionChains(self.driver).send_keys(*keys).perform()
        until(lambda: self.turn() > before)

    def focus(self) -> str:
        return str(self.script("return document.activeElement.id || document.activeElement.dataset.row || ''"))

    def settings(self) -> dict[str, str]:
        time.sleep(0.3)  # the page writes its address once things are still
        return dict(self.script("return [...new URLSearchParams(location.hash.slice(1))]"))

    def resize(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    folder = tmp_path_factory.mktemp("report")
    with chromium(folder / "profile") as driver:
        write_report(stores(), folder / "report.html")
        yield Driven(driver, folder / "report.html")


def check(shown: dict[str, Any], found: list[Outliers], magnitudes: list[float]) -> None:
    """Every number that is shown, against `find_outliers`."""
    for s, expected in enumerate(found):
        figures = shown["stores"][s]
        assert (figures["count"], figures["distinct"]) == (expected.count, expected.distinct_features)
        for name, value in (("layers", expected.mean_layer_fraction), ("positions", expected.mean_position_fraction)):
            # JSON has null for NaN; means over sequences of different lengths are rounded sums
            assert figures[name] == (None if math.isnan(value) else pytest.approx(value, rel=1e-13))
        assert shown["saturated"][s] == expected.saturated
        rows = {}
        for cells in shown["tables"][s]:
            sequence = None if expected.criteria.counting == "pooled" else cells[0]
            rows[sequence, cells[-5]] = cells[-4:]
        assert len(rows) == len(shown["tables"][s]) == expected.count
        for row in expected.features:
            layers, positions, largest, critical = rows[row.sequence, row.feature]
            assert (layers, positions) == (row.layer_fraction, row.position_fraction)
            assert largest == (row.max_magnitude if math.isfinite(row.max_magnitude) else None)
            above = magnitudes[critical + 1] if critical + 1 < len(magnitudes) else math.inf
            assert np.float32(magnitudes[critical]) <= row.critical_magnitude
            assert row.critical_magnitude < np.float32(above) or above == math.inf
        order = [cells[-1] for cells in shown["tables"][s]]
        assert order == sorted(order, reverse=True)


@pytest.mark.parametrize("settings", [12, pytest.param(150, marks=pytest.mark.exhaustive)])
def test_every_number_is_that_of_find(page: Driven, settings: int) -> None:
    opened = stores()
    page.open()
    magnitudes = page.script("return Answers.magnitudes")
    rng = np.random.default_rng(settings)
    met = set()
    for turn in range(settings):
        magnitude = magnitudes[int(rng.integers(len(magnitudes)))]
        layers = float(rng.choice([0, 1 / 8, 0.25, 1 / 3, 0.29, 1, rng.random()]))
        positions = float(rng.choice([0, 1 / 70, 0.06, 0.07, 1, rng.random() ** 2]))
        signal, counting = str(rng.choice(["input", "output"])), str(rng.choice(["per-sequence", "pooled"]))
        unit = str(rng.choice(["site", "layer"]))
        words = {"m": magnitude, "layers": layers, "positions": positions, "signal": signal, "counting": counting}
        page.set(**words, unit=unit, rows=100, turn=turn)  # a word of no meaning: the same address is no change
        found = [
            find_outliers(
                store,
                Criteria(
                    magnitude=magnitude,
                    layers=layers,
                    positions=positions,
                    signal=signal,  # type: ignore[arg-type]
                    counting=counting,  # type: ignore[arg-type]
                    layer_unit=unit,  # type: ignore[arg-type]
                ),
            )
            for store in opened
        ]
        check(page.script(READ), found, magnitudes)
        met |= {each.count for each in found}
    assert len(met) > settings / 10  # the settings were not all trivial


def test_the_curves_are_the_same_numbers(page: Driven) -> None:
    page.open(layers=0.3, positions=0.1, signal="output")
    curves = page.script(
        """return Promise.all([0, 1].map(async (s) => {
          const cube = Answers.cube(await Answers.load(s, "output"), "per-sequence", "site");
          return Answers.curves(cube, { layers: 0.3, positions: 0.1 });
        }))"""
    )
    for store, curve in zip(stores(), curves, strict=True):
        for g, magnitude in enumerate(page.script("return Answers.magnitudes")):
            if g % 9 == 0:
                criteria = Criteria(magnitude=magnitude, layers=0.3, positions=0.1, signal="output")
                found = find_outliers(store, criteria)
                assert (curve["count"][g], curve["distinct"][g]) == (found.count, found.distinct_features)
                mean = None if found.count == 0 else found.mean_position_fraction
                assert curve["meanPositions"][g] == (None if mean is None else pytest.approx(mean, rel=1e-13))


def test_a_strangers_texts_are_shown_and_do_nothing(page: Driven) -> None:
    page.open()
    shown = page.script("return [...document.querySelectorAll('#stores h3')].map((e) => e.textContent)")
    assert shown == ["test/model", HOSTILE]
    assert page.script("return typeof window.pwned") == "undefined"
    assert page.script("return document.querySelectorAll('#stores img, #stores script').length") == 0


def test_the_policy_stops_scripts_and_requests(page: Driven) -> None:
    page.open()
    page.script(
        "const s = document.createElement('script'); s.textContent = 'window.pwned = 1'; document.body.append(s);"
    )
    assert page.script("return typeof window.pwned") == "undefined"
    asked = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        page.script("return fetch(arguments[0] + 'fetch', { mode: 'no-cors' }).catch(() => null)", address)
        page.driver.execute_async_script(
            """const done = arguments[1], image = new Image();
            image.onload = image.onerror = () => done();
            image.src = arguments[0] + "image";""",
            address,
        )
        server.shutdown()
    assert asked == []
    page.driver.get_log("browser")  # the refusals just provoked


def test_nothing_is_asked_of_the_network_and_nothing_is_complained_of(page: Driven) -> None:
    for kind in ("browser", "performance"):
        page.driver.get_log(kind)
    page.open(m=6, store=0, feature=2)
    page.element("#portrait-close").click()
    page.set(signal="output", counting="pooled", unit="layer")
    page.element("#theme").click()
    assert page.driver.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    asked = {
        m["params"]["request"]["url"].split("#")[0] for m in messages if m["method"] == "Network.requestWillBeSent"
    }
    assert asked <= {"about:blank", page.path.as_uri()}


def test_keys_move_everything(page: Driven) -> None:
    from selenium.webdriver.common.keys import Keys

    page.resize(1280, 900)
    page.open(m=6, layers=0.25, positions=0.06)
    magnitudes = page.script("return Answers.magnitudes")
    order, words = [], []
    page.script("document.body.tabIndex = -1; document.body.focus()")
    from selenium.webdriver.common.action_chains import ActionChains

    for _ in range(14):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        order.append(page.focus())
        words.append(page.script("return document.activeElement.name || ''"))
    wanted = ["theme", "magnitude-number", "magnitude", "layers-number", "layers", "positions-number", "positions"]
    assert [name for name in order if name in wanted] == wanted
    assert [name for name in words if name] == ["signal", "counting", "unit"]

    start = magnitudes.index(6)
    page.script("document.getElementById('magnitude').focus()")
    page.press(Keys.ARROW_RIGHT)
    assert float(page.settings()["m"]) == magnitudes[start + 1]
    page.script("document.getElementById('magnitude-number').focus()")
    page.press(Keys.ARROW_DOWN)
    assert float(page.settings()["m"]) == 6
    page.script("document.getElementById('layers').focus()")
    page.press(Keys.ARROW_RIGHT)
    assert page.settings()["layers"] == "0.26"
    page.script("document.querySelector('input[name=signal]').focus()")
    page.press(Keys.ARROW_RIGHT)
    assert page.settings()["signal"] == "output"
    page.press(Keys.ARROW_LEFT)

    page.script("document.querySelector('#tables td button').focus()")
    row = page.focus()
    page.press(Keys.ENTER)
    assert page.script("return document.getElementById('portrait').open")
    assert page.script("return document.querySelectorAll('#portrait canvas').length") == 3
    assert "feature" in page.settings()
    ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
    until(lambda: not page.script("return document.getElementById('portrait').open"))
    assert page.focus() == row
    assert "feature" not in page.settings()


def test_a_number_that_is_not_embedded_moves_to_the_nearest_and_says_so(page: Driven) -> None:
    from selenium.webdriver.common.keys import Keys

    page.open()
    before = page.turn()
    page.element("#magnitude-number").send_keys(Keys.CONTROL, "a", Keys.NULL, "6.04", Keys.ENTER)
    until(lambda: page.turn() > before)
    assert float(page.settings()["m"]) == 6
    assert page.element("#magnitude-hint").text == "6.04 is not in this page; 6 is the nearest that is"
    kept = page.settings()
    for name, typed in (("magnitude", "-1"), ("layers", "1.5"), ("positions", "")):
        page.element(f"#{name}-number").send_keys(Keys.CONTROL, "a", Keys.NULL, typed or Keys.DELETE, Keys.ENTER)
        assert page.element(f"#{name}-hint").text.startswith("expected")
    assert page.settings() == kept


def test_a_damaged_file_shows_no_numbers_of_other_settings(page: Driven) -> None:
    page.open(signal="input")
    page.script(
        """const at = Answers.facts.stores[0].signals.output.blocks.position[0];
        const block = document.getElementById(`block-${at}`);
        block.textContent = block.textContent.slice(0, 8) + "AAAA" + block.textContent.slice(12);"""
    )
    page.script("location.hash = 'signal=output'")
    until(lambda: page.element("#trouble").is_displayed())
    assert page.element("#trouble").text == (
        "This page cannot show its data: it was damaged on its way; get the file again."
    )
    assert not page.element("#results").is_displayed()
    page.set(signal="input")
    assert page.element("#results").is_displayed()
    assert not page.element("#trouble").is_displayed()
    page.driver.get_log("browser")  # the complaint just provoked


def test_the_switch_shows_its_choice(page: Driven) -> None:
    page.open(signal="output")
    fill = "return [...document.querySelectorAll('#signal span')].map((e) => getComputedStyle(e).backgroundColor)"
    chosen = page.script(fill)
    page.set(signal="input")
    assert page.script(fill) == chosen[::-1] != chosen


def test_the_command_line_of_a_stranger_can_be_copied(page: Driven, tmp_path: Path) -> None:
    sites = ("it's", "$(touch pwned)")
    store = stores()[0].assign_coords(site=list(sites))
    store.encoding["source"] = "/home/`touch pwned`"
    write_report(store.assign_attrs(rounded={"mantissa_bits": 7}), tmp_path / "r.html", Criteria(sites=sites[:1]))
    other = Driven(page.driver, tmp_path / "r.html")
    other.open(m=6)
    words = shlex.split(str(other.script("return document.querySelector('#stores code').textContent")))
    assert words[:3] == ["outliers", "find", "`touch pwned`"]
    assert words[-2:] == ["--sites", "it's"]
    flags = other.script("return [...document.querySelectorAll('#stores .flag')].map((e) => e.textContent)")
    assert any(text.startswith("Rounded: activations have 7 mantissa bits") for text in flags)


def test_addresses_that_mean_nothing_are_harmless(page: Driven) -> None:
    page.open(m="Infinity", layers=7, positions="", signal="<b>", counting="pooled", store=9, feature=-1, rows=3)
    settings = page.settings()
    assert (settings["layers"], settings["signal"], settings["counting"]) == ("0.25", "input", "pooled")
    assert settings["m"] == "6"
    assert not page.script("return document.getElementById('portrait').open")


@pytest.mark.parametrize(("width", "height"), [(360, 740), (768, 1024), (1280, 900)])
def test_no_window_is_too_narrow(page: Driven, width: int, height: int) -> None:
    page.resize(width, height)
    page.open(m=1, rows=25)
    assert page.script("return document.documentElement.scrollWidth") <= width
    page.script("window.scrollTo(0, document.body.scrollHeight)")  # the slider stays where its effect is seen
    assert page.script("const r = document.getElementById('magnitude').getBoundingClientRect(); return r.top >= 0")
    page.set(m=1, store=0, feature=2)
    assert page.script("const d = document.getElementById('portrait'); return d.scrollWidth <= d.clientWidth")
    page.resize(1280, 900)


def test_dark_and_light(page: Driven) -> None:
    def back() -> str:
        return str(page.script("return getComputedStyle(document.body).backgroundColor"))

    def prefer(scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    prefer("light")
    page.open()
    light = back()
    page.element("#theme").click()
    dark = back()
    assert light != dark
    prefer("dark")
    page.open()
    assert back() == dark
    page.element("#theme").click()
    assert back() == light
    prefer("light")


def test_rows_are_turned_sorted_looked_up_and_saved(page: Driven, tmp_path: Path) -> None:
    page.open(m=0.5, layers=0, positions=0)
    table = "#tables [data-store='0']"

    def cells(column: int) -> list[float]:
        rows = f'[...document.querySelectorAll("{table} tbody tr")]'
        return [
            float(x) for x in page.script(f"return {rows}.map((r) => r.cells[{column}].querySelector('data').value)")
        ]

    assert page.element(f"{table} .bar p").text == "1 to 25 of 27"
    page.element(f"{table} .turn button:last-child").click()
    assert page.element(f"{table} .bar p").text == "26 to 27 of 27"
    before = page.turn()
    page.element(f"{table} th:nth-child(5) button").click()
    until(lambda: page.turn() > before)
    largest = cells(4)
    assert largest == sorted(largest, reverse=True)
    page.element(f"{table} input[type=search]").send_keys("4")
    assert cells(1) == [4, 4, 4]
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.element(f"{table} .bar > button").click()
    saved = tmp_path / "outliers.csv"
    until(lambda: saved.exists() and saved.stat().st_size > 0)
    lines = saved.read_text().splitlines()
    assert lines[0].split(",")[:3] == ["sequence", "feature", "layer_fraction"]
    assert len(lines) == 28
