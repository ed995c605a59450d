"use strict";
// What is chosen and shown, and the player.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const times = data.steps + 1;
for (const land of data.landscapes) {
  land.levels = decode(land.levels, Uint16Array);
  for (const run of land.runs) for (const name of ["points", "heights"]) run[name] = decode(run[name], Float32Array);
}
const state = { landscape: 0, start: 0, step: data.steps, since: null, frame: 0, hidden: new Set() };
const land = () => data.landscapes[state.landscape];
const shown = () => land().runs.filter((run) => !state.hidden.has(run.optimizer));
const number = (v) => (v < 1e-3 || v >= 1e5 ? v.toExponential(1) : String(Number(v.toPrecision(3))));

let ground = null; // the picture of the landscape, kept while it and its size stay
function background(size) {
  const pixels = Math.round(size * Math.min(2, devicePixelRatio || 1));
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const key = [state.landscape, pixels, dark].join();
  if (ground?.key !== key) ground = { key, sheet: contours(land(), pixels) };
  return ground.sheet;
}

function drawPicture(canvas, runs) {
  const [pen, size] = prepared(canvas);
  pen.drawImage(background(size), 0, 0, size, size);
  for (const minimum of land().minima) star(pen, ...onto(land(), size)(minimum), 8);
  drawStarts(pen, land(), state.start, size);
  for (const run of runs) drawPath(pen, land(), run, state.start, times, state.step, size, run.optimizer);
}

// A canvas for all paths, or one for each.
function canvases() {
  const apart = byId("apart").checked;
  const groups = apart ? shown().map((run) => [run]) : [shown()];
  const box = byId("pictures");
  box.classList.toggle("apart", apart);
  box.replaceChildren(
    ...groups.map((runs) => {
      const holder = document.createElement("div");
      const canvas = document.createElement("canvas");
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${land().name} with the paths of ${runs.map((run) => data.optimizers[run.optimizer]).join(", ")}`);
      canvas.addEventListener("click", (event) => pick(canvas, event));
      canvas.runs = runs;
      holder.append(canvas);
      if (apart) holder.append(Object.assign(document.createElement("span"), { textContent: data.optimizers[runs[0].optimizer] }));
      return holder;
    }),
  );
}

// The start nearest to a click becomes the one that is shown.
function pick(canvas, event) {
  const place = onto(land(), canvas.clientWidth);
  const far = land().starts.map((start) => Math.hypot(...place(start).map((v, k) => v - [event.offsetX, event.offsetY][k])));
  const nearest = far.indexOf(Math.min(...far));
  if (far[nearest] < 24) chooseStart(nearest);
}

function status(run) {
  const lost = run.diverged[state.start];
  if (lost >= 0 && state.step >= lost) return `diverged at step ${lost}`;
  const [left, right, bottom, top] = land().frame;
  const [x, y] = run.points.subarray(2 * (state.start * times + state.step));
  return x < left || x > right || y < bottom || y > top ? "outside the picture" : "";
}

function fill() {
  for (const run of land().runs) {
    const row = byId("rows").children[run.optimizer];
    const height = run.heights[state.start * times + state.step];
    const remark = status(run);
    row.children[1].textContent = Number.isFinite(height) ? number(Math.max(0, height)) : "–";
    row.children[2].textContent = [remark, run.setting].filter(Boolean).join("; ");
    row.children[2].className = remark.startsWith("diverged") ? "lost" : "";
  }
  byId("now").textContent = `step ${state.step} of ${data.steps}`;
  byId("step").value = state.step;
}

function draw() {
  for (const canvas of byId("pictures").querySelectorAll("canvas")) drawPicture(canvas, canvas.runs);
  drawCurves(byId("curves"), shown(), state.start, times, state.step);
  byId("curves").setAttribute("aria-label", `heights on ${land().name} up to step ${state.step}`);
  fill();
}

function refresh() {
  canvases();
  draw();
}

function go(step) {
  state.step = Math.max(0, Math.min(data.steps, step));
  draw();
}

function play(on) {
  if (on && state.step === data.steps) state.step = 0;
  state.since = on ? { time: performance.now(), step: state.step } : null;
  byId("play").textContent = on ? "Pause" : "Play";
  byId("now").setAttribute("aria-live", on ? "off" : "polite");
  cancelAnimationFrame(state.frame);
  if (on) state.frame = requestAnimationFrame(tick);
}

function tick(now) {
  if (!state.since) return;
  const step = state.since.step + Math.floor((Math.max(0, now - state.since.time) / 1000) * Number(byId("speed").value));
  if (step !== state.step) go(step);
  if (state.step === data.steps) play(false);
  else state.frame = requestAnimationFrame(tick);
}

const stepBy = (n) => {
  play(false);
  go(state.step + n);
};

function chooseStart(start) {
  state.start = start;
  byId("start").value = start;
  if (state.since) play(true);
  draw();
}

function chooseLandscape(index) {
  state.landscape = index;
  state.start = 0;
  byId("landscape").value = index;
  const option = (text, value) => Object.assign(document.createElement("option"), { textContent: text, value });
  byId("start").replaceChildren(...land().starts.map(([x, y], i) => option(`${i + 1}: (${x}, ${y})`, i)));
  byId("about").textContent = land().about;
  byId("key").textContent = `Dark is low. From one line to the next the height grows by a factor of ${land().factor.toPrecision(2)}. A star is a minimum.`;
  if (state.since) play(true);
  refresh();
}

data.optimizers.forEach((name, o) => {
  const row = byId("rows").insertRow();
  const heading = row.appendChild(document.createElement("th"));
  for (let i = 0; i < 2; i++) row.insertCell();
  const button = heading.appendChild(document.createElement("button"));
  button.className = "key";
  button.setAttribute("aria-pressed", "true");
  const { dash, head } = look(o);
  const corners = head.map(([x, y]) => `${(22 + 5 * x).toFixed(1)},${(7 + 5 * y).toFixed(1)}`).join(" ");
  button.innerHTML = `<svg viewBox="0 0 44 14" aria-hidden="true"><line x1="1" x2="43" y1="7" y2="7" stroke="var(--o${o % 6})" stroke-width="2.5" ` +
    `stroke-dasharray="${dash.join(" ")}"/><polygon points="${corners}" fill="var(--o${o % 6})"/></svg>`;
  button.append(name);
  button.addEventListener("click", () => {
    if (!state.hidden.delete(o)) state.hidden.add(o);
    button.setAttribute("aria-pressed", String(!state.hidden.has(o)));
    refresh();
  });
});
byId("landscape").addEventListener("change", (event) => chooseLandscape(Number(event.target.value)));
byId("start").addEventListener("change", (event) => chooseStart(Number(event.target.value)));
byId("speed").addEventListener("change", () => state.since && play(true));
byId("apart").addEventListener("change", refresh);
byId("play").addEventListener("click", () => play(!state.since));
byId("first").addEventListener("click", () => stepBy(-data.steps));
byId("back").addEventListener("click", () => stepBy(-1));
byId("forward").addEventListener("click", () => stepBy(1));
byId("step").addEventListener("input", (event) => stepBy(Number(event.target.value) - state.step));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest("button, input, select, summary")) return;
  const keys = { " ": () => play(!state.since), ArrowRight: () => stepBy(1), ArrowLeft: () => stepBy(-1) };
  if (!keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
new ResizeObserver(draw).observe(document.querySelector(".stage"));
chooseLandscape(0);
play(false);
