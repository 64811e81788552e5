"use strict";
// Draws the figures of hessdist/present/panels.py and ties them to the step slider.
const page = JSON.parse(document.getElementById("data").textContent);
const slider = document.getElementById("step");
const shown = document.getElementById("step-shown"); // taken off the page where there are no steps
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const config = { responsive: true, displaylogo: false, displayModeBar: "hover", modeBarButtonsToRemove: ["select2d", "lasso2d"] };
let drawn = 0; // tells plotly that its data is new
const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

// A part of a figure with changes; arrays of numbers and texts are replaced as a whole.
function merged(base, change) {
  if (change === undefined) return base;
  if (Array.isArray(change) && change.some(isObject)) return change.map((one, i) => merged(base?.[i], one));
  if (!isObject(change)) return change;
  const both = Array.isArray(base) ? [...base] : { ...base };
  for (const [key, value] of Object.entries(change)) both[key] = merged(both[key], value);
  return both;
}

// A copy with the colours of the page, which depend on dark mode; arrays of numbers are not copied.
function coloured(value, colours) {
  if (Array.isArray(value)) return value.some(isObject) ? value.map((one) => coloured(one, colours)) : value;
  if (isObject(value)) return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, coloured(one, colours)]));
  return colours.get(value) ?? value;
}

function colours() {
  const style = getComputedStyle(document.documentElement);
  return new Map(["--ink", "--line"].map((name) => [`var(${name})`, style.getPropertyValue(name).trim()]));
}

// The place of the selected step among the steps of a view, or of the nearest step before it.
function rowOf(steps) {
  const selected = page.steps[Number(slider.value)];
  return Math.max(0, steps.filter((step) => step <= selected).length - 1);
}

function figureOf(name) {
  const view = page.views[name];
  const lists = [...document.querySelectorAll(`[id="${name}-controls"] select`)];
  const own = view.figures[lists.reduce((place, list) => place * list.length + Number(list.value), 0)];
  const frame = own.frames[rowOf(view.steps)] ?? {};
  const still = !frame.data && Object.keys(frame.layout ?? {}).join() === "shapes";  // but for a mark
  const layout = merged(merged(page.layout, own.layout), frame.layout);
  return coloured({ data: merged(own.data, frame.data), layout: { ...layout, datarevision: ++drawn }, still }, colours());
}

// Draws a view; where only the slider has moved, as little of it as has changed.
function draw(name, moved = false) {
  const view = page.views[name];
  if (!view.figures.length) return note(name);
  if (moved && !view.steps.length) return;
  const { data, layout, still } = figureOf(name);
  if (moved && still) Plotly.relayout(name, { shapes: layout.shapes });
  else Plotly.react(name, data, layout, config);
}

// Shows the note of the selected step, and says where it is of another step.
function note(name) {
  const { steps } = page.views[name], row = rowOf(steps), step = page.steps[Number(slider.value)];
  [...document.getElementById(name).children].forEach((article, i) => { article.hidden = i !== row; });
  document.getElementById(name).children[row].firstElementChild.textContent =
    steps[row] === step ? "" : `There is no note of step ${step}; this is the nearest before it, or the first.`;
}

function select(moved) {
  shown.textContent = page.steps[Number(slider.value)] ?? "";
  Object.keys(page.views).forEach((name) => draw(name, moved));
}

function choices(name, names, number) {
  const list = document.createElement("select");
  list.setAttribute("aria-label", `${name}-${number}`);
  names.forEach((text, i) => list.add(new Option(text, String(i))));
  list.addEventListener("change", () => draw(name));
  document.getElementById(`${name}-controls`).append(list, " ");
}

for (const [name, view] of Object.entries(page.views)) view.lists.forEach((names, number) => choices(name, names, number));
slider.addEventListener("input", () => select(true));
dark.addEventListener("change", () => select(false));
select(false);
for (const place of document.querySelectorAll(".plot")) {
  place.on("plotly_click", (event) => {
    slider.value = String(page.steps.indexOf(event.points[0].x));
    select(true);
  });
}
if (!page.steps.length) document.getElementById("selector").remove();
