"use strict";
// Draws the views of a run and ties them to the step slider. Data: hessdist/present/data.py.
const data = JSON.parse(document.getElementById("data").textContent);
const slider = document.getElementById("step");
// Okabe and Ito's colours, which the colour-blind can tell apart.
const BLUE = "#0072b2", GREEN = "#009e73", RED = "#d55e00", ORANGE = "#e69f00", GREY = "#8a8a8a";
const EDGE = 1;  // of "found": the edge of the scan
const config = { responsive: true, displaylogo: false, displayModeBar: "hover", modeBarButtonsToRemove: ["select2d", "lasso2d"] };
const dark = window.matchMedia("(prefers-color-scheme: dark)");

const ink = () => getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
const line = () => getComputedStyle(document.documentElement).getPropertyValue("--line").trim();
const has = (name) => document.getElementById(name) !== null;
const column = (rows, i) => rows.map((row) => row[i]);
const short = (x) => x === null ? "not finite" : Number(x).toPrecision(5);

function layout(x, y, more = {}) {
  const axis = { gridcolor: line(), zerolinecolor: line(), linecolor: line(), automargin: true };
  return {
    margin: { l: 60, r: 16, t: 10, b: 44 }, hovermode: "closest", showlegend: false,
    modebar: { bgcolor: "rgba(0,0,0,0)", color: ink() }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink(), size: 12 },
    ...more,
    xaxis: { ...axis, title: { text: x }, ...more.xaxis },
    yaxis: { ...axis, title: { text: y }, ...more.yaxis },
    ...(more.yaxis2 ? { yaxis2: { ...axis, gridcolor: "rgba(0,0,0,0)", ...more.yaxis2 } } : {}),
  };
}

// One colour of a sequence: from blue to green for the largest, reds for the smallest.
function shade(end, i, count) {
  const t = count > 1 ? i / (count - 1) : 0;
  const [a, b] = end === "largest" ? [[0, 90, 190], [0, 170, 120]] : [[190, 60, 0], [240, 160, 60]];
  return `rgb(${a.map((from, c) => Math.round(from + t * (b[c] - from))).join(",")})`;
}

// -- views that do not depend on the step, but for a mark ------------------------------------

function progression(selected) {
  const traces = [];
  for (const end of ["largest", "smallest"]) {
    const { values, residuals, converged } = data[end];
    const count = values.length ? values[0].length : 0, sign = end === "largest" ? 1 : -1;
    for (let i = 0; i < count; i++) {
      const own = column(values, i), colour = shade(end, i, count);
      traces.push({
        x: data.steps, y: own.map((v) => v === null ? null : Math.abs(v)), mode: "lines+markers",
        name: `${end} ${i + 1}`, line: { color: colour, width: 1 },
        marker: { size: 5, color: colour, symbol: own.map((v, s) =>
          !converged[s][i] ? "x" : v * sign > 0 ? "circle" : "circle-open") },
        text: own.map((v, s) => `step ${data.steps[s]}<br>λ ${short(v)}<br>residual ${short(residuals[s][i])}`),
        hovertemplate: "%{fullData.name}<br>%{text}<extra></extra>",
      });
    }
  }
  traces.push({
    x: data.steps, y: data.loss, yaxis: "y2", mode: "lines", name: "loss",
    line: { color: ink(), dash: "dot", width: 1.5 }, hovertemplate: "step %{x}<br>loss %{y}<extra></extra>",
  });
  return [traces, layout("training step", "|λ|", {
    margin: { l: 60, r: 60, t: 10, b: 44 }, yaxis: { type: "log", exponentformat: "power" },
    yaxis2: { overlaying: "y", side: "right", type: "log", nticks: 6, tickformat: ".2~g", title: { text: "loss" } },
    shapes: mark(selected),
  })];
}

function mark(selected) {
  const x = data.steps[rowOf(data.steps, selected)];
  return [{ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: ORANGE, width: 2 } }];
}

function cost(selected) {
  const row = rowOf(data.steps, selected), colours = data.steps.map((_, s) => s === row ? ORANGE : BLUE);
  const steps = data.steps.map(String);
  return [[
    { x: steps, y: data.products, type: "bar", name: "products", marker: { color: colours },
      text: data.seconds.map((s) => `${short(s)} s`), textposition: "none", hovertemplate: "step %{x}<br>%{y} products<br>%{text}<extra></extra>" },
    { x: steps, y: data.seconds, yaxis: "y2", mode: "lines+markers", name: "seconds", line: { color: GREEN },
      hovertemplate: "step %{x}<br>%{y} s<extra></extra>" },
  ], layout("training step", "products", {
    margin: { l: 60, r: 60, t: 10, b: 44 }, xaxis: { type: "category" },
    yaxis2: { overlaying: "y", side: "right", rangemode: "tozero", title: { text: "seconds" } },
  })];
}

// -- views of the selected step --------------------------------------------------------------

function pairs(row) {
  return ["largest", "smallest"].flatMap((end) => (data[end].values[row] || []).map((value, i) => ({
    name: `${end} ${i + 1}`, value, residual: data[end].residuals[row][i],
    good: data[end].converged[row][i], colour: shade(end, i, data[end].values[row].length),
  })));
}

// sign(x) log10(1 + |x| / c): linear near zero, logarithmic beyond.
const symlog = (x, c) => Math.sign(x) * Math.log10(1 + Math.abs(x) / c);

function spectrum(selected) {
  const s = rowOf(data.steps, selected), all = pairs(s), sizes = all.map((p) => Math.abs(p.value ?? 0));
  const c = 1e-3 * Math.max(...sizes, 1e-30), top = Math.ceil(Math.log10(Math.max(...sizes, 1e-30)));
  const ticks = [0, ...[0, 1, 2, 3].flatMap((i) => [10 ** (top - i), -(10 ** (top - i))])].sort((a, b) => a - b);
  return [[{
    x: all.map((p) => p.name), y: all.map((p) => p.value === null ? null : symlog(p.value, c)), type: "bar",
    marker: { color: all.map((p) => p.colour), opacity: all.map((p) => p.good ? 1 : 0.4) },
    text: all.map((p) => `λ ${short(p.value)}<br>residual ${short(p.residual)}${p.good ? "" : "<br>not converged"}${best(s, p.name)}`),
    textposition: "none", hovertemplate: `step ${data.steps[s]}<br>%{x}<br>%{text}<extra></extra>`,
  }], layout(`step ${data.steps[s]}`, "λ", {
    margin: { l: 60, r: 16, t: 10, b: 80 }, xaxis: { type: "category", tickangle: -60 },
    yaxis: { tickvals: ticks.map((t) => symlog(t, c)), ticktext: ticks.map((t) => t.toPrecision(1)) },
  })];
}

// α* of a pair, where the study was run at this step.
function best(s, name) {
  if (!data.step_sizes) return "";
  const row = data.step_sizes.steps.indexOf(data.steps[s]), i = data.step_sizes.pairs.indexOf(name);
  return row < 0 || i < 0 ? "" : `<br>α* ${short(data.step_sizes.best_step[row][i])}`;
}

function residuals(selected) {
  const s = rowOf(data.steps, selected), all = pairs(s);
  return [[{
    x: all.map((p) => p.name), y: all.map((p) => p.residual), mode: "markers",
    marker: { size: 8, color: all.map((p) => p.good ? BLUE : RED), symbol: all.map((p) => p.good ? "circle" : "x") },
    hovertemplate: "%{x}<br>residual %{y}<extra></extra>",
  }], layout(`step ${data.steps[s]}`, "‖Hv − λv‖ / |λ|", {
    margin: { l: 70, r: 16, t: 10, b: 80 }, xaxis: { type: "category", tickangle: -60 },
    yaxis: { type: "log", exponentformat: "power" },
    shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: data.tolerance, y1: data.tolerance,
      line: { color: GREY, dash: "dash" } }],
  })];
}

// The row of a study for the selected step: that step's, or the nearest one before it.
function rowOf(steps, s) {
  const before = steps.filter((step) => step <= data.slider[s]);
  return before.length ? before.length - 1 : 0;
}

function lines(s) {
  const own = data.lines, row = rowOf(own.steps, s);
  const pair = Number(chosen("lines", own.pairs)), span = Number(chosen("lines", own.spans.map((x) => `|α| ≤ ${x}`), 1));
  const inside = own.alpha.map((a, i) => Math.abs(a) <= own.spans[span] * (1 + 1e-9) ? i : -1).filter((i) => i >= 0);
  const trace = (name, values, colour, dash) => ({
    x: inside.map((i) => own.alpha[i]), y: inside.map((i) => values[row][pair][i]), name, mode: "lines+markers",
    line: { color: colour, dash }, marker: { size: 4 }, connectgaps: false,
    hovertemplate: "α %{x}<br>%{fullData.name} %{y}<extra></extra>",
  });
  return [[trace("loss", own.loss, RED, "solid"), trace("quadratic model", own.model, BLUE, "dash")],
    layout(`α, step ${own.steps[row]}, λ = ${short(own.values[row][pair])}`, "loss", { showlegend: true, legend: { orientation: "h", y: 1.12 } })];
}

function scattered(s, values, hover) {
  const own = data.step_sizes, selected = rowOf(own.steps, s);
  return own.steps.map((step, row) => ({
    x: own.values[row], y: values[row], mode: "markers", name: `step ${step}`,
    marker: {
      size: row === selected ? 11 : 5, color: row === selected ? ORANGE : BLUE, opacity: row === selected ? 1 : 0.55,
      symbol: own.found[row].map((f) => f === EDGE ? "triangle-up-open" : "circle"),
    },
    text: own.pairs.map((pair, i) => `step ${step}, ${pair}<br>λ ${short(own.values[row][i])}<br>α* ${short(own.best_step[row][i])}<br>${hover(own, row, i)}`),
    hovertemplate: "%{text}<extra></extra>",
  })).sort((a, b) => a.marker.size - b.marker.size);
}

function inverse(s) {
  const own = data.step_sizes, all = own.values.flat().filter((v) => v !== null);
  const limit = Math.max(...all.map(Math.abs), 1e-30) * 1.05, ends = [-limit, 0, limit];
  const law = (y, dash, name) => ({ x: ends, y, mode: "lines", line: { color: GREY, dash }, name, hoverinfo: "name" });
  return [[law(ends, "dash", "1/α* = λ"), law(ends.map(Math.abs), "dot", "1/α* = |λ|"),
    ...scattered(s, own.inverse, (o, row, i) => `1/α* ${short(o.inverse[row][i])}`)],
    layout("λ", "1/α*", { xaxis: { range: [-limit, limit] }, yaxis: { range: [-limit, limit] } })];
}

function change(s) {
  return [scattered(s, data.step_sizes.change, (o, row, i) =>
    `L(α*) − L(0) ${short(o.change[row][i])}<br>by 1/λ ${short(o.newton[row][i])}<br>by 1/|λ| ${short(o.saddle_free[row][i])}`),
    layout("λ", "L(α*) − L(0)")];
}

function shares(s) {
  const own = data.shares, row = rowOf(own.steps, s);
  return [[{ type: "heatmap", z: own.shares[row], x: own.layers, y: own.pairs, colorscale: "Viridis", zmin: 0, zmax: 1,
    hovertemplate: "%{y}<br>%{x}: %{z}<extra></extra>" }],
    layout(`layer, step ${own.steps[row]}`, "", { yaxis: { autorange: "reversed" }, margin: { l: 90, r: 16, t: 10, b: 50 } })];
}

// -- whole spectra ---------------------------------------------------------------------------

const legend = { showlegend: true, legend: { orientation: "h", y: 1.16 } };
const under = { l: 60, r: 16, t: 10, b: 64 };  // a title of two lines
// Text that is not ours as Plotly's labels take it.
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
const finite = (values) => values.flat(9).filter((v) => v !== null);
const positive = (values) => values.map((v) => v === null || v === 0 ? null : Math.abs(v));
// Logarithmic where all is positive and spans more than a decade or so.
const typed = (values) => Math.min(...values) > 0 && Math.max(...values) > 30 * Math.min(...values) ? "log" : "linear";
const axis = (values) => typed(values) === "log" ? { type: "log", exponentformat: "power" } : {};

function byRank(ranks, values, colour, name) {
  return {
    x: ranks, y: positive(values), mode: "lines+markers", name, line: { color: colour, width: 1 },
    marker: { size: 5, color: colour, symbol: values.map((v) => v < 0 ? "circle-open" : "circle") },
    text: values.map((v) => `λ ${short(v)}`), hovertemplate: "%{text}<extra></extra>",
  };
}

// The axis of |λ|: what rounding leaves is below it.
function sizes(values) {
  const top = Math.log10(Math.max(...finite(values).map(Math.abs), 1e-300));
  return { type: "log", exponentformat: "power", range: [top - 10.3, top + 0.3] };
}

function exact(s) {
  const own = data.exact, row = rowOf(own.steps, s);
  const i = Number(chosen("exact", own.operators)), how = Number(chosen("exact", ["histogram", "by rank"], 1));
  const shown = own.shown[row][i], where = `step ${own.steps[row]}<br>${shown.told}`;
  if (how === 1) {
    return [[byRank(own.ranks, shown.values, BLUE, "λ")], layout(`rank / d, ${where}`, "|λ|", { margin: under, yaxis: sizes(own.shown.map((all) => all[i].values)) })];
  }
  const c = own.linear[i], edges = own.edges[i], bent = edges.map((x) => Math.asinh(x / c));
  const top = Math.floor(Math.log10(1000 * c)), ticks = [0, ...[0, 1].flatMap((k) => [10 ** (top - k), -(10 ** (top - k))])];
  return [[
    { x: bent.slice(1).map((b, k) => (b + bent[k]) / 2), width: bent.slice(1).map((b, k) => b - bent[k]), type: "bar",
      y: shown.counts.map((n) => n || null), marker: { color: BLUE },
      text: shown.counts.map((n, k) => `λ from ${short(edges[k])} to ${short(edges[k + 1])}<br>${n}`), textposition: "none",
      hovertemplate: "%{text}<extra></extra>" },
    { x: shown.outliers.map((x) => Math.asinh(x / c)), y: shown.outliers.map(() => 0.93), yaxis: "y2", mode: "markers",
      marker: { symbol: "line-ns-open", size: 12, color: RED }, text: shown.outliers.map((x) => `outlier, λ ${short(x)}`),
      hovertemplate: "%{text}<extra></extra>" },
  ], layout(`λ, ${where}`, "eigenvalues", {
    margin: under, xaxis: { range: [bent[0], bent[bent.length - 1]], tickvals: ticks.map((t) => Math.asinh(t / c)), ticktext: ticks.map((t) => t ? t.toPrecision(1) : "0") },
    yaxis: { type: "log", range: [Math.log10(0.5), Math.log10(5 * Math.max(1, ...own.shown.flatMap((all) => all[i].counts)))] },
    yaxis2: { overlaying: "y", range: [0, 1], visible: false },
  })];
}

function density(s) {
  const own = data.density, row = rowOf(own.steps, s);
  const i = Number(chosen("density", own.operators)), j = Number(chosen("density", own.blocks, 1));
  const shown = own.shown[row][i][j], where = `λ, step ${own.steps[row]}`;
  if (shown === null) return [[], layout(`${where}: nothing is finite`, "density")];
  const count = shown.values.length, [low, high] = shown.ends, at = (k, n) => low + (high - low) * k / n;
  const x = shown.values.map((_, k) => at(k, count - 1)), cut = (v) => Math.max(v, shown.floor);
  const band = (sign, more) => ({ x, y: shown.values.map((v, k) => cut(v + sign * shown.errors[k])), mode: "lines", line: { width: 0, color: BLUE }, hoverinfo: "skip", showlegend: false, ...more });
  const bars = shown.bars || [], edge = own.interval ? own.interval[row] : null;
  const bounds = edge && edge.map((b, k) => Math.min(high, Math.max(low, b ?? [low, high][k])));
  return [[
    ...(bars.length ? [{ x: bars.map((_, k) => at(k + 0.5, bars.length)), y: bars.map((b) => b || null), type: "bar", width: (high - low) / bars.length,
      name: "exact", marker: { color: GREY, opacity: 0.6 }, hovertemplate: "λ %{x:.4g}<br>exact %{y:.4g}<extra></extra>" }] : []),
    ...(shown.errors.includes(null) ? [] : [band(-1, {}), band(1, { fill: "tonexty", fillcolor: "rgba(0,114,178,0.3)", name: "standard error", showlegend: true })]),
    { x, y: shown.values.map(cut), mode: "lines", name: "density", line: { color: BLUE, width: 1.5 }, hovertemplate: "λ %{x:.4g}<br>%{y:.4g}<extra></extra>" },
  ], layout(`${where}<br>${shown.told}`, "density", {
    ...legend, margin: under, xaxis: { range: [low, high] },
    yaxis: { type: "log", exponentformat: "power", range: [Math.log10(2 * shown.floor), Math.log10(3 * Math.max(...shown.values, ...bars))] },
    shapes: bounds && bounds[1] > bounds[0] ? [{ type: "rect", x0: bounds[0], x1: bounds[1], yref: "paper", y0: 0, y1: 1, fillcolor: ORANGE, opacity: 0.15, line: { width: 0 } }] : [],
  })];
}

// -- the singular Hessian --------------------------------------------------------------------

function architectures() {
  const own = data.architectures;
  const how = Number(chosen("architectures", ["by rank, after training", "by rank, before training", "share near zero", "outliers"]));
  if (how < 2) {
    const stage = 1 - how, count = own.sizes.length;
    return [own.sizes.map((size, i) => byRank(own.ranks[i], own.values[i][stage], shade("largest", i, count), `d = ${size}`)),
      layout("rank / d, from the largest eigenvalue", "|λ|", { ...legend, yaxis: sizes(own.values) })];
  }
  const values = how === 2 ? own.near_zero : own.outliers;
  const trace = (stage, name, colour, symbol) => ({
    x: values.flatMap((rows, i) => rows[stage].map(() => own.sizes[i])), y: values.flatMap((rows) => rows[stage]), mode: "markers", name,
    marker: { size: 8, color: colour, symbol: values.flatMap((rows, i) => rows[stage].map((_, k) => stage === 0 || own.reached[i][k] ? symbol : `${symbol}-open`)) },
    text: values.flatMap((rows, i) => rows[stage].map(() => plain(own.names[i]))),
    hovertemplate: "hidden %{text}, d = %{x}<br>%{y}<extra>%{fullData.name}</extra>",
  });
  return [[trace(0, "before training", RED, "square"), trace(1, "after training", BLUE, "circle")],
    layout("parameters d", how === 2 ? "share with |λ| ≤ 0.001 max |λ|" : "outliers, above the widest gap",
      { ...legend, xaxis: { type: "log", tickvals: own.sizes, ticktext: own.sizes.map(String) }, yaxis: { rangemode: "tozero" } })];
}

function initialisations() {
  const own = data.initialisations[["end", "both"][Number(chosen("initialisations", ["after training", "and before training"]))]];
  const edges = own.edges, x = edges.slice(1).map((e, k) => (e + edges[k]) / 2), width = edges.slice(1).map((e, k) => e - edges[k]);
  const bars = (name, y, colour) => ({ x, width, y, type: "bar", name, marker: { color: colour, line: { color: BLUE, width: 1 } },
    hovertemplate: "λ₁ about %{x:.4g}<br>%{y}<extra>%{fullData.name}</extra>" });
  const before = { x: edges.flatMap((e) => [e, e]), y: [0, ...own.start.flatMap((n) => [n, n]), 0], mode: "lines", name: "before training", line: { color: RED }, hoverinfo: "skip" };
  const both = own === data.initialisations.both;
  return [[bars("reached the gradient norm", own.reached, BLUE), bars("did not", own.missed, "rgba(138,138,138,0.5)"), ...(both ? [before] : [])],
    layout(`λ₁ of ${data.initialisations.networks} networks`, "networks", { ...legend, barmode: "stack", xaxis: both ? axis(edges) : {} })];
}

function spreads() {
  const own = data.spreads, top = Number(chosen("spreads", own.quartiles.map((_, i) => `eigenvalue ${i + 1}`)));
  const [low, middle, high] = own.quartiles[top], found = own.found[top];
  const less = (a, b) => a.map((v, i) => v === null ? null : v - b[i]);
  return [[
    { x: own.values.flatMap((v, i) => found[i].map(() => v)), y: found.flat(), mode: "markers", name: "a network",
      marker: { size: 6, color: BLUE, opacity: 0.7, symbol: own.reached.flat().map((r) => r ? "circle" : "circle-open") }, hovertemplate: "λ %{y:.4g}<extra></extra>" },
    { x: own.values, y: middle, mode: "lines+markers", name: "median and quartiles", line: { color: RED }, marker: { size: 8, symbol: "diamond" },
      error_y: { type: "data", symmetric: false, array: less(high, middle), arrayminus: less(middle, low), color: RED }, hovertemplate: "%{x}<br>median %{y:.4g}<extra></extra>" },
  ], layout(plain(own.argument), `λ<sub>${top + 1}</sub> after training`, { ...legend, yaxis: axis(finite(found)) })];
}

function interpolation() {
  const own = data.interpolation, row = Number(chosen("interpolation", own.comparisons));
  const loss = own.loss[row], all = finite(loss), wide = all.length > 0 && typed(all) === "log";
  const ticks = wide ? [...new Set(all.map((v) => Math.floor(Math.log10(v))))] : [];
  return [[{ type: "heatmap", x: own.fraction, y: own.steps, z: loss.map((line) => line.map((v) => v === null ? null : wide ? Math.log10(v) : v)), colorscale: "Viridis",
    colorbar: { title: { text: "loss" }, ...(wide ? { tickvals: ticks, ticktext: ticks.map((t) => `10<sup>${t}</sup>`) } : {}) },
    text: loss.map((line, k) => line.map((v) => `step ${own.steps[k]}, distance ${short(own.distance[row][k])}<br>loss ${short(v)}`)),
    hovertemplate: "%{text}<br>way %{x}<extra></extra>" }],
    layout("way from the first to the second network", "training step")];
}
