"use strict";
// The page's own code: draws with plotly what the page carries as JSON, in the colours of the scheme in force.

const data = JSON.parse(document.getElementById("data").textContent);
const hidden = new Set(data.looks.flatMap((look, i) => (look.shown ? [] : [i])));
const byId = (id) => document.getElementById(id);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const unseen = document.head.appendChild(document.createElement("style")); // of small pictures
const touch = matchMedia("(pointer: coarse)").matches;
// The buttons are named one by one: by default plotly has some that send the data away.
const buttons = [["toImage"], ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]];
const config = { responsive: true, displaylogo: false, modeBarButtons: buttons, plotlyServerURL: "" };

// Plotly reads a little HTML in names; here they are text.
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

const shown = (trace) => trace.always || !hidden.has(trace.o);

// A trace says with `o` whose it is; from that follow colour, dash, shape and whether it is shown.
function styled(trace) {
  const look = data.looks[trace.o];
  const color = css(look.color);
  const own = {
    name: plain(look.name),
    line: { color, dash: look.dash, width: look.learned ? 3 : 1.7, ...trace.line },
    marker: { color, symbol: look.shape, size: look.learned ? 8 : 6, line: { color, width: 1 }, ...trace.marker },
    visible: shown(trace),
    showlegend: false,
  };
  if (trace.error_x) own.error_x = { color, thickness: 1.5, width: 4, ...trace.error_x };
  if (trace.error_y) own.error_y = { color, thickness: 1.5, width: 4, ...trace.error_y };
  if (trace.fill) Object.assign(own, { fillcolor: color, opacity: 0.18, line: { width: 0 } });
  return { ...trace, ...own };
}

function themed(layout) {
  const log = { nticks: 3, tickformat: ".3~g" }; // 0.2 rather than a small 2
  const axis = (given) => ({
    gridcolor: css("grid"),
    zerolinecolor: css("grid"),
    linecolor: css("muted"),
    automargin: true,
    ...(given.type === "log" && log),
    ...given,
    title: { ...given.title, font: { size: 13 } },
  });
  const axes = Object.fromEntries(Object.keys(layout).filter((k) => /^[xy]axis/.test(k)).map((k) => [k, axis(layout[k])]));
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: css("text"), family: "system-ui, sans-serif", size: 13 },
    hoverlabel: { bgcolor: css("page"), font: { color: css("text") }, align: "left", namelength: -1 },
    hovermode: "closest",
    dragmode: touch ? false : "zoom", // a finger scrolls the page
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("muted"), activecolor: css("text") },
    margin: { l: 48, r: 12, t: touch ? 32 : 12, b: 44 },
    ...layout,
    ...axes,
    shapes: layout.shapes?.map((shape) => ({ ...shape, layer: "below", line: { ...shape.line, color: css("muted") } })),
  };
}

const draw = (id, traces, layout) => Plotly.react(byId(id), traces.map(styled), themed(layout), config);

// The curves of the chosen problem.
function curves() {
  const problem = data.problems[byId("problem").value];
  const split = byId("split").value;
  const clock = byId("clock").value === "seconds";
  const traces = [];
  const scale = (curve) => (clock ? (curve.seconds ?? NaN) : 1);
  for (const curve of problem.curves) {
    const [mean, low, high] = curve.bands[split];
    const x = curve.steps.map((step) => step * scale(curve));
    const some = x.map((_, i) => i).filter((i) => low[i] !== null && Number.isFinite(x[i]));
    const band = [...some.map((i) => [x[i], low[i]]), ...some.map((i) => [x[i], high[i]]).reverse()];
    const about = { o: curve.o, legendgroup: String(curve.o) };
    traces.push({ ...about, x: band.map((p) => p[0]), y: band.map((p) => p[1]), fill: "toself", mode: "none", hoverinfo: "skip" });
    traces.push({
      ...about,
      x: x.map((v) => (Number.isFinite(v) ? v : null)),
      y: mean,
      mode: "lines+markers",
      customdata: x.map((_, i) => [low[i], high[i], curve.steps[i]]),
      hovertemplate: `<b>%{fullData.name}</b><br>step %{customdata[2]}${clock ? ", %{x:.3g} s" : ""}<br>` +
        `${split} loss %{y:.4g} (%{customdata[0]:.4g} to %{customdata[1]:.4g})<extra></extra>`,
    });
  }
  const losses = problem.curves.flatMap((curve) => curve.bands[split][1].filter((v) => v !== null));
  const logY = byId("log-y").checked && losses.every((v) => v > 0);
  draw("curves", traces, {
    xaxis: { title: { text: clock ? "seconds of training" : "step" }, type: byId("log-x").checked ? "log" : "linear" },
    yaxis: { title: { text: `${split} loss` }, type: logY ? "log" : "linear", ...range(problem, split, logY) },
    uirevision: [byId("problem").value, split, clock, logY, byId("log-x").checked].join(),
    annotations: losses.length ? [] : [{ text: "not measured", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }],
  });
  const lacks = clock && problem.curves.some((curve) => curve.seconds === null);
  const negative = byId("log-y").checked && !logY && losses.length;
  byId("note").textContent = [
    lacks ? "Optimizers whose steps were not timed are not drawn." : "",
    negative ? "Some losses are not positive, so the axis is linear." : "",
  ].join(" ");
}

// A curve that explodes must not flatten all others: at first the axis ends a little above the highest start.
function range(problem, split, log) {
  const of = (k, i) => problem.curves.flatMap((curve) => i(curve.bands[split][k])).filter((v) => v !== null && v !== undefined);
  const all = of(2, (v) => v);
  const low = Math.min(...of(1, (v) => v));
  const start = Math.max(...of(2, (v) => [v[0]]));
  const top = start + 0.5 * Math.abs(start - low);
  if (!all.length || Math.max(...all) <= top || top <= low) return {};
  const pad = 0.03 * (log ? Math.log10(top / low) : top - low);
  return { range: log ? [Math.log10(low) - pad, Math.log10(top) + pad] : [low - pad, top + pad] };
}

// What the legend leaves out: traces of plots, and lines of the small pictures.
function filter() {
  for (const key of document.querySelectorAll(".key")) key.setAttribute("aria-pressed", !hidden.has(Number(key.dataset.o)));
  unseen.textContent = [...hidden].map((o) => `.small .o${o}`).join() + "{display:none}";
  for (const plot of document.querySelectorAll(".js-plotly-plot")) {
    Plotly.restyle(plot, { visible: plot.data.map(shown) });
  }
}

function choose(shown) {
  hidden.clear();
  data.looks.forEach((_, o) => shown(o) || hidden.add(o));
  filter();
}

function drawAll() {
  curves();
  for (const { id, traces, layout } of data.figures) draw(id, traces, layout);
}

for (const id of ["problem", "split", "clock", "log-x", "log-y"]) byId(id).addEventListener("change", curves);
for (const key of document.querySelectorAll(".key")) {
  const o = Number(key.dataset.o);
  key.addEventListener("click", () => {
    if (!hidden.delete(o)) hidden.add(o);
    filter();
  });
  key.addEventListener("dblclick", () => choose((other) => other === o));
}
byId("all").addEventListener("click", () => choose(() => true));
byId("few")?.addEventListener("click", () => choose((o) => data.looks[o].shown));
for (const picture of document.querySelectorAll(".small a")) {
  picture.addEventListener("click", () => {
    byId("problem").value = picture.dataset.problem;
    curves();
  });
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
drawAll();
filter();
