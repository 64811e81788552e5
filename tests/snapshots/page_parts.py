"""What the page of a report has: its views and tables, and what a browser draws in them."""

from __future__ import annotations

import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from snapshots.summaries import bare

_DRAWN = """
const places = [...document.querySelectorAll("section[aria-label]")];
return Object.fromEntries(places.map((place) => {
  const plot = place.querySelector(".js-plotly-plot");
  const text = (wanted) => [...place.querySelectorAll(wanted)].map((e) => e.textContent);
  const finite = (plot ? plot.data : []).flatMap((t) => [...(t.y || [])])
    .filter((y) => typeof y === "number");
  return [place.getAttribute("aria-label"), {
    choices: [...place.querySelectorAll("select")].map((s) => [...s.options].map((o) => o.text)),
    x: text(".xtitle, .x2title, .x3title"), y: text(".ytitle, .y2title, .y3title"),
    legend: text(".legendtext"), ordinates: finite,
  }];
}));
"""


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.views: list[dict[str, str]] = []
        self.rows: list[str] = []
        self.last: str | None = None
        self.headings: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self._inside = tag
        if tag == "section" and values.get("aria-label"):
            self.views.append({"label": str(values["aria-label"]), "ids": ""})
        elif tag == "div" and values.get("id") and self.views:
            self.views[-1]["ids"] = f"{self.views[-1]['ids']} {values['id']}".strip()
        elif tag == "input" and values.get("id") == "step":
            self.last = values.get("max")

    def handle_data(self, data: str) -> None:
        if self._inside in {"h1", "h2"}:
            self.headings.append(data)
        elif self._inside == "th":
            self.rows.append(data)
        self._inside = ""


def page_parts(html: str) -> dict[str, Any]:
    """Describe the page as it is written, before any script runs.

    Args:
        html: The page.

    Returns:
        Views, headings, the rows of its tables and the last position of the slider.
    """
    page = _Page()
    page.feed(html)
    return {"views": page.views, "headings": page.headings, "rows": page.rows, "slider": page.last}


def browser() -> Any:
    """Debian's Chromium, without a window; None where it or selenium is missing."""
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    try:
        from selenium import webdriver
    except ImportError:
        return None
    if not driver or not chromium:
        return None
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000"):
        options.add_argument(word)
    return webdriver.Chrome(options, webdriver.ChromeService(driver))


def drawn_parts(driver: Any, page: Path) -> dict[str, Any]:
    """Describe what the page's script has drawn: lists, axes, legends and ordinates.

    Args:
        driver: A browser.
        page: The page.

    Returns:
        Descriptions by the label of a view.
    """
    driver.get(page.as_uri())
    driver.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done));"
    )
    found: dict[str, Any] = driver.execute_script(_DRAWN)
    for view in found.values():
        view["ordinates"] = bare(view["ordinates"])
        view["ordinates"].pop("bits", None)
        if "seconds" in view["y"]:
            del view["ordinates"]
    return found
