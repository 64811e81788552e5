// -- pictures that hessdist/present/panels.py describes ----------------------------------------

// Okabe and Ito's colours again; the yellow is too light for white paper.
const LIST = [BLUE, RED, GREEN, "#cc79a7", ORANGE, "#56b4e9", GREY];
const beneath = { showlegend: true, legend: { orientation: "h", x: 0, yref: "container", y: 0, yanchor: "bottom", font: { size: 11 } } };

// Along a sequence: from blue by purple to orange, which all can tell apart on both papers.
function tint(t) {
  const stops = [[32, 104, 196], [176, 74, 143], [226, 148, 0]], i = t < 0.5 ? 0 : 1;
  return `rgb(${stops[i].map((from, c) => Math.round(from + (2 * t - i) * (stops[i + 1][c] - from))).join(",")})`;
}

const coloured = (one) => "shade" in one ? tint(one.shade) : one.colour < 0 ? ink() : LIST[one.colour % LIST.length];
const sheer = (colour) => colour.startsWith("#")
  ? `rgba(${[1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16)).join(",")},0.18)`
  : colour.replace("rgb(", "rgba(").replace(")", ",0.18)");

// The range between the extremes, as areas without gaps.
function bands(one, x, colour) {
  const found = [];
  let run = [];
  const close = () => {
    if (run.length > 1) {
      const back = [...run].reverse();
      found.push({ x: [...run, ...back].map((i) => x[i]), y: [...run.map((i) => one.high[i]), ...back.map((i) => one.low[i])],
        mode: "lines", fill: "toself", fillcolor: sheer(colour), line: { width: 0 }, hoverinfo: "skip", showlegend: false });
    }
    run = [];
  };
  one.low.forEach((low, i) => low === null || one.high[i] === null ? close() : run.push(i));
  close();
  return found;
}

function markSize(one) {
  const symbol = one.symbol || "";
  return symbol === "star" ? 13 : one.x.length > 150 ? 4 : /open|triangle/.test(symbol) ? 8 : 6;
}

function drawnLines(shown) {
  const told = new Set(), bend = shown.bent ? (v) => v === null ? null : Math.asinh(v / shown.bent) : (v) => v;
  return shown.lines.flatMap((one) => {
    const colour = coloured(one), x = one.x.map(bend), name = plain(one.name), first = !told.has(name);
    told.add(name);
    return [...(one.low ? bands(one, x, colour).map((band) => ({ ...band, legendgroup: name })) : []), {
      x, y: one.y, name, legendgroup: name, showlegend: first, connectgaps: false,
      mode: one.line === false ? "markers" : one.symbol ? "lines+markers" : "lines",
      line: { color: colour, width: 1.6, dash: one.dash || "solid" },
      marker: { color: colour, symbol: one.symbol || "circle", size: markSize(one) },
      ...(one.errors ? { error_y: { type: "data", array: one.errors, color: colour, thickness: 1, width: 3 } } : {}),
      text: one.x.map(short), hovertemplate: shown.rows ? "%{x:.5g}<extra>%{fullData.name}</extra>" : "%{text}<br>%{y:.5g}<extra>%{fullData.name}</extra>",
    }];
  });
}

// Decades on an axis that is linear up to c and logarithmic beyond.
function bentAxis(values, c) {
  const top = Math.floor(Math.log10(Math.max(...finite(values).map(Math.abs), c)));
  const sizes = [0, 1, 2].map((k) => 10 ** (top - k)).filter((t, k) => k === 0 || t > 0.7 * c);
  const ticks = [0, ...sizes.flatMap((t) => [t, -t])];
  return { tickvals: ticks.map((t) => Math.asinh(t / c)), ticktext: ticks.map(String) };
}

// A logarithmic axis with as many labels as it has room for.
function decades(values) {
  const sizes = finite(values).filter((v) => v > 0);
  const span = sizes.length ? Math.log10(sizes.reduce((a, b) => Math.max(a, b)) / sizes.reduce((a, b) => Math.min(a, b))) : 0;
  return { type: "log", exponentformat: "power", dtick: span > 1.7 ? Math.ceil(span / 8) : "D2" };
}

function panel(name, selected) {
  const own = data[name], all = own.choices || own.shown[rowOf(own.steps, selected)];
  const shown = all[all.length > 1 ? Number(chosen(name, all.map((one) => one.name))) : 0];
  const xaxis = shown.logx ? decades(shown.lines.flatMap((one) => one.x)) : {};
  const yaxis = shown.logy ? decades(shown.lines.flatMap((one) => one.y)) : {};
  if (shown.bent) Object.assign(xaxis, bentAxis(shown.lines.map((one) => one.x), shown.bent));
  if (shown.range) yaxis.range = shown.range;
  if (shown.rows) Object.assign(yaxis, { tickvals: shown.rows.map((_, i) => i), ticktext: shown.rows.map(plain), range: [shown.rows.length - 0.5, -0.5], tickfont: { size: 11 } });
  const more = { ...beneath, xaxis, yaxis };
  if (own.mark) {
    const x = rowOf(own.mark, selected), every = Math.ceil(own.mark.length / 12);
    const kept = own.mark.map((_, i) => i).filter((i) => i % every === 0);
    Object.assign(xaxis, { tickvals: kept, ticktext: kept.map((i) => String(own.mark[i])), range: [-0.5, own.mark.length - 0.5] });
    more.shapes = [{ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: ORANGE, width: 2 }, layer: "below" }];
  }
  return [drawnLines(shown), layout(plain(shown.x), plain(shown.y), more)];
}

// The doctor's note: text, and nothing but text.
function diagnosis(selected) {
  const own = data.diagnosis, note = own.notes[rowOf(own.steps, selected)];
  const text = (tag, words, ...parts) => { const made = document.createElement(tag); made.append(words, ...parts); return made; };
  const list = document.createElement("dl");
  for (const [topic, words, source] of note.findings) {
    const item = document.createElement("div");
    item.append(text("dt", topic), text("dd", `${words} `, text("cite", source)));
    list.append(item);
  }
  const step = data.slider[selected], here = own.steps[rowOf(own.steps, selected)] === step;
  const elsewhere = here ? [] : [text("p", `There is no note of step ${step}; this is the nearest before it, or the first.`)];
  document.getElementById("diagnosis").replaceChildren(...elsewhere, text("h3", note.heading), list);
  return null;
}
