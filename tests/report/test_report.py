"""The page of a run, in a real browser: it draws, it follows the slider, it asks nobody."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run
from written import (
    changed,
    density_section,
    exact_section,
    initialisations_section,
    sections,
    spreads_section,
    write_run,
)
from written_training import (
    decomposition_section,
    diagnosis_section,
    eigenspace_section,
    laws_section,
    loss_model_section,
    minimize_section,
    minimizers_section,
    saddle_section,
    training_sections,
    widths_section,
)

import hessdist
from hessdist.landscape.diagnosis import Point, findings
from hessdist.present.histograms import density_at, smoothing_width
from hessdist.present.page import in_script, page_of
from hessdist.results.units import Measurements
from hessdist.studies.shows import steps, views, write_page

selenium = pytest.importorskip("selenium.webdriver")
ActionBuilder = pytest.importorskip(
    "selenium.webdriver.common.actions.action_builder"
).ActionBuilder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, without a window."""
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    if not driver or not chromium:
        pytest.skip("chromium and chromium-driver are not installed")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = selenium.Chrome(options, selenium.ChromeService(driver))
    yield started
    started.quit()


def opened(browser: Any, page: Path) -> Any:
    """The page, drawn; how long that took is in `seconds`."""
    browser.get_log("browser"), browser.get_log("performance")
    start = time.monotonic()
    browser.get(page.as_uri())
    browser.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done));"
    )
    browser.seconds = time.monotonic() - start
    return browser


def complaints(browser: Any) -> list[str]:
    """Errors and warnings on the console."""
    found = browser.get_log("browser")
    return [entry["message"] for entry in found if entry["level"] in {"SEVERE", "WARNING"}]


def requests(browser: Any) -> list[str]:
    """Addresses that the page has asked for, beside itself and data in it."""
    urls = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            urls.append(message["params"]["request"]["url"])
    return [url for url in urls if not url.startswith(("file://", "data:", "blob:"))]


def drawn(browser: Any, view: str) -> list[list[Any]]:
    """The heights of a view's traces, as the browser has them."""
    return browser.execute_script(
        "return document.getElementById(arguments[0]).data.map((t) => Array.from(t.y || t.z));",
        view,
    )


def move_to(browser: Any, position: int) -> None:
    browser.execute_script(
        "const s = document.getElementById('step'); s.value = arguments[0];"
        "s.dispatchEvent(new Event('input'));", position
    )  # fmt: skip


@pytest.fixture
def written(browser: Any, tmp_path: Path) -> Callable[..., Any]:
    """Write a run with these studies, and open its page."""

    def show(studies: dict[str, Measurements], steps: int = 0, title: str = "a run") -> Any:
        run = hessdist.open_run(write_run(tmp_path / "run.h5", steps=steps, studies=studies))
        write_page(run, title, tmp_path / "run.html")
        opened(browser, tmp_path / "run.html")
        return run

    return show


VIEWS = ["progression", "spectrum", "residuals", "cost", "lines", "inverse", "change", "shares"]
NEW = ["exact", "density", "architectures", "initialisations", "spreads", "interpolation"]

TRAINING = ["decomposition", "widths", "minimize", "minimizers", "eigenspace", "saddle"]
TRAINING += ["laws", "two_layer", "critical_points", "loss_model", "descent", "escape", "rates"]
STUDIED = [name for name in TRAINING[:10] if name not in {"minimize", "saddle"}]


MARKS = (
    "return document.querySelectorAll(`#${arguments[0]} .main-svg :is(path.point, "
    "path.js-line, .point path, image, .hm image)`).length;"
)


def test_every_view_is_drawn(browser: Any, studied: Path, tmp_path: Path) -> None:
    run = hessdist.open_run(studied / "results" / "run.h5")
    page = tmp_path / "run.html"
    write_page(run, "a run", page)
    opened(browser, page)
    for view in VIEWS + NEW + STUDIED:
        assert browser.execute_script(MARKS, view) > 0, view
    assert complaints(browser) == []
    assert requests(browser) == []
    loss = drawn(browser, "progression")[-1]
    assert loss == pytest.approx(run.loss, rel=1e-6)
    shares = browser.execute_script("return document.getElementById('shares').data[0].z;")
    first = run[20].layer_shares(run[20].eigenvectors_largest[0])
    assert shares[0] == pytest.approx([first[:2].sum(), first[2:].sum()], abs=2e-3)
    assert shares[-1] == pytest.approx([35 / 53, 18 / 53], abs=2e-3)
    summary = browser.find_element("tag name", "header").text
    assert "mlp (widths = [6, 5, 3], activation = tanh)" in summary


def test_the_slider_moves_the_views(browser: Any, studied: Path, tmp_path: Path) -> None:
    run = hessdist.open_run(studied / "results" / "run.h5")
    page = tmp_path / "run.html"
    write_page(run, "a run", page)
    opened(browser, page)
    seen = {}
    for position, step in enumerate((0, 20)):
        move_to(browser, position)
        shown = browser.find_element("id", "step-shown").text
        assert shown == str(step)
        expected = np.concatenate([run[step].residuals_largest, run[step].residuals_smallest])
        assert drawn(browser, "residuals")[0] == pytest.approx(expected, rel=2e-3)
        mark = browser.execute_script(
            "return document.getElementById('progression').layout.shapes[0].x0;"
        )
        assert mark == step
        seen[step] = [drawn(browser, view) for view in ("spectrum", "lines", "change")]
    for one, other in zip(seen[0][:2], seen[20][:2], strict=True):
        assert one != other
    assert complaints(browser) == []


def test_a_point_of_the_progression_selects_its_step(
    browser: Any, written: Callable[..., Any]
) -> None:
    written({}, steps=3)
    for position, step in ((0, 0), (1, 10)):
        x, y = browser.execute_script(
            "const view = document.getElementById('progression');"
            "const box = view.getBoundingClientRect();"
            "const { xaxis, yaxis } = view._fullLayout, trace = view.data[0], i = arguments[0];"
            "return [box.x + xaxis._offset + xaxis.d2p(trace.x[i]),"
            " box.y + yaxis._offset + yaxis.d2p(trace.y[i])];",
            position,
        )
        mouse = ActionBuilder(browser)
        mouse.pointer_action.move_to_location(int(x), int(y)).pause(0.5).click()
        mouse.perform()
        assert browser.find_element("id", "step-shown").text == str(step)
        browser.execute_script("window.scrollTo(0, 0);")
    assert complaints(browser) == []


def test_choosing_a_pair_and_a_span(browser: Any, studied: Path, tmp_path: Path) -> None:
    page = tmp_path / "run.html"
    write_page(hessdist.open_run(studied / "results" / "run.h5"), "a run", page)
    opened(browser, page)
    lists = browser.find_elements("css selector", "#lines-controls select")
    before = drawn(browser, "lines")
    for number in (0, 1):
        options = lists[number].find_elements("tag name", "option")
        options[-1].click()
    assert drawn(browser, "lines") != before
    assert len(drawn(browser, "lines")[0]) == 9  # the wider span has all step sizes


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1400, "light"), (390, "light")])
def test_widths_and_colours(
    browser: Any, written: Callable[..., Any], width: int, scheme: str
) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    written(sections() | training_sections(), steps=2)
    inner, scrolled = browser.execute_script(
        "return [window.innerWidth, document.documentElement.scrollWidth];"
    )
    assert scrolled <= inner
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor;")
    ink = browser.execute_script("return document.getElementById('cost').layout.font.color;")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    assert ink == {"light": "#1a1a1a", "dark": "#ececec"}[scheme]
    words = browser.execute_script(
        "return getComputedStyle(document.querySelector('#diagnosis dd')).color;"
    )
    assert words == {"light": "rgb(26, 26, 26)", "dark": "rgb(236, 236, 236)"}[scheme]
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_it_prints(browser: Any, studied: Path, tmp_path: Path) -> None:
    page = tmp_path / "run.html"
    write_page(hessdist.open_run(studied / "results" / "run.h5"), "a run", page)
    opened(browser, page)
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert len(printed["data"]) > 50_000


@pytest.mark.slow
def test_a_large_run_opens_quickly(browser: Any, tmp_path: Path) -> None:
    """200 checkpoints of 50 eigenvalues: under 3 seconds on the machine of the issue."""
    path = write_run(tmp_path / "run.h5", steps=200, largest=40, smallest=10)
    page = tmp_path / "run.html"
    write_page(hessdist.open_run(path), "a long run", page)
    assert page.stat().st_size < 6 * 2**20
    opened(browser, page)
    print(f"200 x 50 eigenvalues: drawn {browser.seconds:.2f} s after opening")
    assert complaints(browser) == []
    assert len(drawn(browser, "progression")) == 51
    assert browser.seconds < 30  # of a hang alone; the figure is in docs/measured.md


# -- whole spectra and the singular Hessian --------------------------------------------------


def choose(browser: Any, view: str, number: int, option: int) -> None:
    """Choose from one of a view's lists."""
    browser.execute_script(
        "const list = document.querySelectorAll(`#${arguments[0]}-controls select`)[arguments[1]];"
        "list.value = String(arguments[2]); list.dispatchEvent(new Event('change'));",
        view, number, option,
    )  # fmt: skip


def traces(browser: Any, view: str) -> list[dict[str, Any]]:
    """What a view draws."""
    script = "return JSON.parse(JSON.stringify(document.getElementById(arguments[0]).data));"
    return browser.execute_script(script, view)


@pytest.mark.parametrize(
    ("studies", "views", "in_words"),
    [(sections(), NEW, 0), (training_sections(), TRAINING, 1)],
    ids=["spectra", "training"],
)
def test_new_views_are_drawn_with_every_choice_and_no_checkpoint(
    browser: Any,
    written: Callable[..., Any],
    studies: dict[str, Measurements],
    views: list[str],
    in_words: int,
) -> None:
    written(studies)
    for view in views:
        lists = browser.find_elements("css selector", f"#{view}-controls select")
        counts = [len(one.find_elements("tag name", "option")) for one in lists]
        for options in product(*map(range, counts)):
            for number, option in enumerate(options):
                choose(browser, view, number, option)
            assert browser.execute_script(MARKS, view) > 0, (view, options)
    assert len(browser.find_elements("class name", "view")) == len(views) + in_words
    assert complaints(browser) == []
    assert requests(browser) == []


def test_all_eigenvalues_follow_the_slider(browser: Any, written: Callable[..., Any]) -> None:
    run = written(sections())
    for position, step in enumerate((0, 10)):
        move_to(browser, position)
        assert browser.find_element("id", "step-shown").text == str(step)
        for operator in (0, 1):
            values = np.sort(run.studies["exact"]["eigenvalues"][position, operator])[::-1]
            choose(browser, "exact", 0, operator)
            choose(browser, "exact", 1, 0)
            bars, rug = traces(browser, "exact")
            assert sum(count or 0 for count in bars["y"]) == len(values)
            linear = 1e-3 * run.studies["exact"]["eigenvalues"][:, operator].max()
            assert rug["x"] == pytest.approx(np.arcsinh(values[:2] / linear), rel=1e-5)
            choose(browser, "exact", 1, 1)
            (ranks,) = traces(browser, "exact")
            assert ranks["y"] == pytest.approx(np.abs(values), rel=1e-6)
            hollow = [symbol == "circle-open" for symbol in ranks["marker"]["symbol"]]
            assert hollow == list(values < 0)


def test_a_density_has_its_band_and_the_exact_eigenvalues(
    browser: Any, written: Callable[..., Any]
) -> None:
    section = written(sections()).studies["density"]
    exact, below, above, density = traces(browser, "density")
    heights = np.array([height or 0 for height in exact["y"]])
    assert heights.sum() * exact["width"] == pytest.approx(1, rel=1e-2)
    values = np.array(density["y"])
    assert (np.array(below["y"]) <= values).all()
    assert (np.array(above["y"]) >= values).all()
    found = density_at(section, (1, 0, 0))
    grid = density["x0"] + density["dx"] * np.arange(len(values))
    expected, _ = found.smoothed(grid, smoothing_width(found))
    seen = values > values.min()
    assert seen.sum() > 10
    assert values[seen] == pytest.approx(expected[seen], rel=0.01)
    choose(browser, "density", 1, 1)  # a block, which has no exact eigenvalues
    assert len(traces(browser, "density")) == 3


def test_views_of_experiments_show_what_was_found(
    browser: Any, written: Callable[..., Any]
) -> None:
    studies = written(sections()).studies
    for row, name in enumerate(studies["interpolation"]["comparison"]):
        choose(browser, "interpolation", 0, row)
        (picture,) = traces(browser, "interpolation")
        assert np.array(picture["z"]) == pytest.approx(
            studies["interpolation"]["loss"][row], rel=1e-3
        ), name
    reached, missed = traces(browser, "initialisations")
    assert (sum(reached["y"]), sum(missed["y"])) == (29, 10)
    choose(browser, "initialisations", 0, 1)
    start = traces(browser, "initialisations")[2]
    assert sum(start["y"][1:-1:2]) == 40
    networks, medians = traces(browser, "spreads")
    assert sorted(networks["y"]) == pytest.approx(
        sorted(studies["spreads"]["eigenvalues"][..., 0].ravel())
    )
    assert medians["y"] == pytest.approx(3 * studies["spreads"]["value"])
    choose(browser, "architectures", 0, 2)
    before, after = traces(browser, "architectures")
    assert len(before["y"]) == len(after["y"]) == 6
    assert before["y"].count(None) == 2  # networks that diverged


def test_a_run_of_experiments_alone_has_no_slider(
    browser: Any, written: Callable[..., Any]
) -> None:
    written({"initialisations": initialisations_section()})
    assert browser.find_elements("id", "selector") == []
    assert len(browser.find_elements("class name", "view")) == 1
    assert browser.execute_script(MARKS, "initialisations") > 0
    choose(browser, "initialisations", 0, 1)
    assert complaints(browser) == []


@pytest.mark.parametrize(("studies", "count"), [(sections(), len(NEW)), (training_sections(), 12)])
def test_networks_that_diverged_break_no_view(
    browser: Any, written: Callable[..., Any], studies: dict[str, Measurements], count: int
) -> None:
    ruined = {}
    for name, section in studies.items():
        gone = {
            one: np.full_like(v.values, np.nan)
            for one, v in section.variables.items()
            if v.values.dtype.kind == "f" and len(v.dimensions) > 1
        }
        ruined[name] = changed(section, **gone)
    written(ruined)
    assert len(browser.find_elements("class name", "view")) == count
    move_to(browser, 0)
    assert complaints(browser) == []


def test_a_page_of_long_studies_stays_small(tmp_path: Path) -> None:
    runs = [f"sgd {rate} + eigenspace {own}" for rate in range(10) for own in range(10)]
    studies = {
        "exact": exact_section(steps=range(0, 1000, 10), size=300),
        "density": density_section(steps=range(0, 400, 10), size=120),
        "initialisations": initialisations_section(5000),
        "diagnosis": diagnosis_section(steps=range(0, 4000, 10), points=40),
        "decomposition": decomposition_section(steps=range(0, 5000, 10)),
        "widths": widths_section(networks=100, at=range(40)),
        "minimize": minimize_section(2000),
        "minimizers": minimizers_section(300, seeds=20),
        "eigenspace": eigenspace_section(runs, points=50),
        "saddle": saddle_section(5000),
        "laws": laws_section(range(0, 1000, 10), points=601),
        "loss_model": loss_model_section(points=400, energies=9, ratios=9),
    }
    run = hessdist.open_run(write_run(tmp_path / "run.h5", steps=0, studies=studies))
    found = {view.name: view for view in views(run)}
    assert set(found) == {*studies, "descent", "escape", "rates"}
    assert found["exact"].steps[0] == 0
    assert found["exact"].steps[-1] == 990
    for name, view in found.items():
        assert in_script(view.data()).count(",") < 20_000, name
    assert len(found["diagnosis"].notes) == 100
    assert steps(run) == sorted({*range(0, 4000, 10), *range(0, 5000, 10)})


# -- diagnosis and training ------------------------------------------------------------------


NOTE = (
    "const note = document.querySelector('#diagnosis article:not([hidden])'), text = (of, tag) => "
    "of.querySelector(tag).textContent; return [text(note, 'h3'), [...note.querySelectorAll("
    "'dl > div')].map((row) => ['dt', 'dd', 'cite'].map((tag) => text(row, tag)))];"
)


def test_a_diagnosis_follows_the_slider(browser: Any, written: Callable[..., Any]) -> None:
    """The sweep has the steps 0 and 10; where a step has no note, or no sweep, that is said."""
    run = written({"diagnosis": diagnosis_section((0, 5, 20))}, steps=2)
    section, kinds = run.studies["diagnosis"], []
    for position, (step, row) in enumerate([(0, 0), (5, 1), (10, 1), (20, 2)]):
        move_to(browser, position)
        assert browser.find_element("id", "step-shown").text == str(step)
        heading, seen = browser.execute_script(NOTE)
        assert heading.startswith(f"step {section['step'][row]}: loss ")
        kinds.append(heading.split(", ")[1])
        expected = findings(Point.of(section, row))
        assert len(expected) > 8
        assert seen == [[one.topic, f"{one.text} {one.source}", one.source] for one in expected]
        remarks = [one.text for one in browser.find_elements("css selector", "#diagnosis p")]
        remarks = [one for one in remarks if one]
        assert [f"no note of step {step};" in one for one in remarks] == [True] * (step == 10)
        of_sweep = int(step >= 10)
        residuals = [getattr(run, f"residuals_{end}")[of_sweep] for end in ("largest", "smallest")]
        assert drawn(browser, "residuals")[0] == pytest.approx(np.concatenate(residuals), rel=6e-3)
    assert kinds == ["no critical point"] * 3 + ["strict saddle"]
    lines_and_rates(browser, section)
    assert complaints(browser) == []


def lines_and_rates(browser: Any, section: Measurements) -> None:
    move_to(browser, 0)  # gᵀg = 1 and gᵀHg = 4 there
    loss, model, *marks = traces(browser, "descent")
    rate = section["rate"][0]
    assert loss["x"] == pytest.approx(rate)
    assert loss["y"] == pytest.approx(-rate + 2 * rate**2, rel=1e-5)
    assert model["y"] == loss["y"]
    assert [mark["x"] for mark in marks] == [[0.1, 0.1], [0.25, 0.25], [0.5, 0.5]]
    loss, model, lowest = traces(browser, "escape")
    t = section["distance"]
    assert loss["x"] == pytest.approx(np.arcsinh(t / 0.1))
    assert model["y"] == pytest.approx(-0.25 * t**2, rel=1e-6)
    assert lowest["y"] == pytest.approx([-(0.25**2) / 0.04])
    job, best, stable, none = traces(browser, "rates")
    assert (job["y"], best["y"], stable["y"]) == ([0.1] * 3, [0.25, None, 0.25], [0.5] * 3)
    assert [height is not None for height in none["y"]] == [False, True, False]
    move_to(browser, 1)  # uphill curvature: no best rate
    assert len(traces(browser, "descent")) == 4
    where = browser.execute_script("return document.getElementById('rates').layout.shapes[0].x0;")
    assert where == 1


def test_views_of_training_show_what_was_found(browser: Any, written: Callable[..., Any]) -> None:
    written(training_sections())
    largest = {one["name"]: one["y"] for one in traces(browser, "decomposition")}
    assert largest == {"H": [4, 8, 12], "G": [3, 6, 9], "S": [2, 4, 6], "F": [1, 2, 3]}
    choose(browser, "decomposition", 0, 2)
    parts = {one["name"]: one for one in traces(browser, "decomposition")}
    assert parts["tr G + tr S"]["y"] == [5, 10, 15]
    assert parts["H"]["error_y"]["array"] == pytest.approx([0.4, 0.8, 1.2])
    choose(browser, "decomposition", 0, 4)
    parts = {one["name"]: one["y"] for one in traces(browser, "decomposition")}
    assert parts["‖S‖₂"] == [3, 4, 6]
    assert parts["|λ_d| of H, where negative"] == [1, 1, 1]

    networks, medians, *_ = traces(browser, "widths")  # of |tr S|
    assert networks["y"] == pytest.approx([0.1, 0.2, 0.3, 0.01, 0.02, 0.03])
    assert medians["y"] == pytest.approx([0.2, 0.02])
    choose(browser, "widths", 0, 9)
    hessian, *_ = traces(browser, "widths")
    assert hessian["y"] == [6] * 3 + [96] * 3

    loss, met = traces(browser, "minimize")
    assert loss["x"] == [1 + 3 * i for i in range(12)]
    assert loss["y"] == pytest.approx(0.5 ** np.arange(12), rel=1e-6)
    assert (met["x"], met["y"]) == ([4], [0.5])
    lines = [one for one in traces(browser, "minimizers") if one["mode"] == "lines"]
    assert [len(one["y"]) for one in lines] == [9, 9, 8, 8, 7, 7]
    assert [one["name"] for one in lines[::2]] == ["gradient descent", "L-BFGS", "Newton-CG"]

    choose(browser, "eigenspace", 0, 1)  # the test set's, where the third seed diverges
    *_, band, middle, average = traces(browser, "eigenspace")
    assert middle["y"] == pytest.approx([2, 1, 0.75, 0.6])
    assert average["y"] == pytest.approx([1, 0.5, 0.375, 0.3])
    assert (max(band["y"]), min(band["y"])) == (3, pytest.approx(0.4))
    first, second = traces(browser, "loss_model")  # densities
    assert second["y"] == pytest.approx(2 * np.array(first["y"]), rel=1e-6)
    choose(browser, "loss_model", 0, 2)
    index, law, *_ = traces(browser, "loss_model")
    assert index["x"] == pytest.approx(index["y"], rel=1e-5)
    assert law["y"][:3] == pytest.approx(2 * np.array(index["y"][:3]), rel=1e-6)
    assert law["y"][-1] is None  # above one
    stays, left = [one for one in traces(browser, "saddle") if "fill" not in one]
    assert (stays["name"], stays["line"]["dash"]) == ("SGD (stays)", "dash")
    assert left["y"][-1] == pytest.approx(1)


class Scripts(HTMLParser):
    """The scripts of a page as a browser would find them, and what it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.loads: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in {"src", "href"}]
        if tag == "script":
            self._inside = True
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "script"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[-1] += data


EVIL = """</script><script>document.title='x'</script><img src=y onerror="document.title='y'">"""


def test_text_from_a_job_is_text(browser: Any, tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.h5", steps=2, name=EVIL)
    run = hessdist.open_run(path)
    text = page_of(run, EVIL, views(run), steps(run))
    found = Scripts(text)
    assert len(found.scripts) == 3  # plotly's, the data, ours
    assert found.loads == []
    page = tmp_path / "evil.html"
    write_page(run, EVIL, page)
    opened(browser, page)
    assert browser.title == EVIL
    assert browser.find_element("tag name", "h1").text == EVIL
    assert run.job.strip() == browser.find_element("tag name", "pre").text.strip()


def test_text_from_studies_is_text(browser: Any, written: Callable[..., Any]) -> None:
    block = f"fc1 + {EVIL}"
    studies = {
        "density": density_section(blocks=("all", block)),
        "spreads": spreads_section(argument=EVIL),
        "diagnosis": diagnosis_section(layers=("fc1", EVIL)),
        "eigenspace": eigenspace_section((EVIL, f"sgd 0.1 + {EVIL}")),
    }
    written(studies, title="evil")
    assert browser.title == "evil"
    assert browser.find_elements("css selector", "img, #spreads a") == []
    assert EVIL in browser.find_element("id", "diagnosis").text
    options = browser.find_elements("css selector", "#density-controls option")
    assert options[-1].get_attribute("textContent").startswith("fc1 + </script>")
    shown = browser.find_element("css selector", "#spreads .xtitle").get_attribute("textContent")
    assert shown.startswith("</script><script>")
    assert complaints(browser) == []


def test_numbers_that_are_not_finite(browser: Any, tmp_path: Path) -> None:
    def spoil(tables: dict[str, np.ndarray]) -> None:
        tables["eigenvalues_largest"][1] = np.nan
        tables["residuals_largest"][1] = np.inf
        tables["converged_largest"][1] = False
        tables["loss"][0] = np.nan

    path = write_run(tmp_path / "run.h5", steps=3, change=spoil)
    page = tmp_path / "run.html"
    write_page(hessdist.open_run(path), "gaps", page)
    opened(browser, page)
    for position in range(3):
        move_to(browser, position)
    assert complaints(browser) == []
    assert drawn(browser, "progression")[0][1] is None


def test_the_page_needs_neither_torch_nor_matplotlib(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.h5", steps=2, studies=training_sections())
    code = (
        "import pathlib, sys, hessdist; from hessdist.studies.shows import write_page; "
        "write_page(hessdist.open_run(sys.argv[1]), 'a run', pathlib.Path(sys.argv[2])); "
        "print({'torch', 'mpi4py', 'petsc4py', 'scipy', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "run.html")],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "set()\n"), done.stderr


def test_data_cannot_end_its_script() -> None:
    text = in_script({"a": "</script><!--", "b": "&"})
    assert "<" not in text
    assert json.loads(text) == {"a": "</script><!--", "b": "&"}


def test_the_command(studied: Path, tmp_path: Path, run: Run) -> None:
    done = run("report", str(studied / "results" / "run.h5"), "-o", "pages/run.html")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pages" / "run.html").stat().st_size < 6 * 2**20
    refused = run("report", "none.h5")
    assert refused.returncode == 2
    assert "does not exist" in refused.stderr
