// -- controls, and all of it together --------------------------------------------------------

const choices = {};
const stepShown = document.getElementById("step-shown");  // taken off the page where there are no steps

// The index chosen in a list of a view; the list is made when it is first asked for.
function chosen(view, names, number = 0) {
  const key = `${view}-${number}`;
  if (!choices[key]) {
    const list = document.createElement("select");
    list.setAttribute("aria-label", key);
    names.forEach((name, i) => list.add(new Option(name, String(i))));
    list.addEventListener("change", () => draw([view]));
    document.getElementById(`${view}-controls`).append(list, " ");
    choices[key] = list;
  }
  return choices[key].value;
}

const views = { progression, spectrum, residuals, cost, lines, inverse, change, shares,
  exact, density, architectures, initialisations, spreads, interpolation, diagnosis };
for (const [name, own] of Object.entries(data)) {
  if (own && (own.choices || own.shown) && !views[name]) views[name] = (selected) => panel(name, selected);
}
// Those that do not change with the step; the progression only moves its mark.
const still = ["progression", "architectures", "initialisations", "spreads", "interpolation"];

const follows = (name) => !still.includes(name) && !(data[name] && data[name].choices && !data[name].mark);

function draw(names = Object.keys(views)) {
  const selected = Number(slider.value);
  stepShown.textContent = data.slider[selected] ?? "";
  for (const name of names.filter(has)) {
    const picture = views[name](selected);  // null: it is text
    if (picture) Plotly.react(name, ...picture, config);
  }
}

function select() {
  const moved = Number(slider.value);
  if (has("progression")) Plotly.relayout("progression", { shapes: mark(moved) });
  draw(Object.keys(views).filter(follows));
}

slider.addEventListener("input", select);
dark.addEventListener("change", () => draw());
draw();
if (!data.slider.length) document.getElementById("selector").remove();
if (has("progression")) {
  document.getElementById("progression").on("plotly_click", (event) => {
    slider.value = String(data.slider.indexOf(event.points[0].x));
    select();
  });
}
