"use strict";
// Draws on canvases: the picture of a landscape, paths on it, curves. Sizes are in CSS pixels.

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const decode = (text, Kind) => new Kind(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);

// No two optimizers of 24 have the same colour, dash and head.
const DASHES = [[], [6, 4], [2, 3], [8, 3, 2, 3]];
const HEADS = [
  [..."01234567"].map((i) => [Math.cos((i * Math.PI) / 4), Math.sin((i * Math.PI) / 4)]),
  [[-0.85, -0.85], [0.85, -0.85], [0.85, 0.85], [-0.85, 0.85]],
  [[0, -1.2], [1.2, 0], [0, 1.2], [-1.2, 0]],
  [[0, -1.1], [1.1, 0.8], [-1.1, 0.8]],
  [[0, 1.1], [1.1, -0.8], [-1.1, -0.8]],
];
const look = (o) => ({ color: css(`o${o % 6}`), dash: DASHES[Math.floor(o / 6) % 4], head: HEADS[o % 5] });

function prepared(canvas) {
  const scale = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  pen.lineJoin = "round";
  return [pen, width, height];
}

const channels = (color) => [1, 3, 5].map((i) => parseInt((color.length === 4 ? color.replace(/\w/g, "$&$&") : color).slice(i, i + 2), 16));

// The bands of a landscape and the lines between them, at the resolution of the screen.
function contours(land, size) {
  const { cells, bands, levels } = land;
  const picture = new ImageData(size, size);
  const [low, high, line] = ["low", "high", "contour"].map((name) => channels(css(name)));
  const band = new Uint8Array(size * size);
  for (let row = 0; row < size; row++) {
    const v = (1 - row / (size - 1)) * (cells - 1);
    const j = Math.min(Math.floor(v), cells - 2);
    for (let column = 0; column < size; column++) {
      const u = (column / (size - 1)) * (cells - 1);
      const i = Math.min(Math.floor(u), cells - 2);
      const at = j * cells + i;
      const lower = levels[at] + (u - i) * (levels[at + 1] - levels[at]);
      const upper = levels[at + cells] + (u - i) * (levels[at + cells + 1] - levels[at + cells]);
      band[row * size + column] = Math.min(bands - 1, Math.floor(((lower + (v - j) * (upper - lower)) / 65536) * bands));
    }
  }
  for (let k = 0; k < band.length; k++) {
    const edge = (k + 1 < band.length && band[k] !== band[k + 1] && (k + 1) % size) || (k + size < band.length && band[k] !== band[k + size]);
    for (let c = 0; c < 3; c++) {
      picture.data[4 * k + c] = edge ? line[c] : low[c] + ((high[c] - low[c]) * band[k]) / (bands - 1);
    }
    picture.data[4 * k + 3] = 255;
  }
  const sheet = document.createElement("canvas");
  sheet.width = sheet.height = size;
  sheet.getContext("2d").putImageData(picture, 0, 0);
  return sheet;
}

function polygon(pen, points, x, y, size) {
  pen.beginPath();
  points.forEach(([a, b], i) => pen[i ? "lineTo" : "moveTo"](x + size * a, y + size * b));
  pen.closePath();
}

function cross(pen, x, y, size) {
  pen.setLineDash([]);
  pen.lineWidth = 3;
  pen.beginPath();
  for (const sign of [-1, 1]) {
    pen.moveTo(x - size, y - sign * size);
    pen.lineTo(x + size, y + sign * size);
  }
  pen.stroke();
}

function star(pen, x, y, size) {
  const points = [...Array(10).keys()].map((i) => {
    const [angle, radius] = [(i * Math.PI) / 5 - Math.PI / 2, i % 2 ? 0.45 : 1];
    return [radius * Math.cos(angle), radius * Math.sin(angle)];
  });
  polygon(pen, points, x, y, size);
  pen.fillStyle = "#f0e442";
  pen.strokeStyle = "#000";
  pen.lineWidth = 1;
  pen.fill();
  pen.stroke();
}

// From the coordinates of a landscape to those of a square of this size.
function onto(land, size) {
  const [left, right, bottom, top] = land.frame;
  const bounded = (v) => Math.max(-1e5, Math.min(1e5, v)); // a path that leaves is cut by the edge of the canvas
  return ([x, y]) => [bounded(((x - left) / (right - left)) * size), bounded(((top - y) / (top - bottom)) * size)];
}

function drawPath(pen, land, run, start, times, step, size, o) {
  const { color, dash, head } = look(o);
  const place = onto(land, size);
  const point = (t) => place([0, 1].map((k) => run.points[2 * (start * times + t) + k]));
  const lost = run.diverged[start];
  const last = lost < 0 ? step : Math.min(step, lost - 1);
  pen.strokeStyle = color;
  pen.fillStyle = color;
  pen.lineWidth = 2;
  pen.setLineDash(dash);
  pen.beginPath();
  for (let t = 0; t <= last; t++) pen[t ? "lineTo" : "moveTo"](...point(t));
  pen.stroke();
  pen.setLineDash([]);
  const [x, y] = point(Math.max(last, 0)).map((v) => Math.max(7, Math.min(size - 7, v)));
  if (lost >= 0 && step >= lost) return cross(pen, x, y, 6);
  polygon(pen, head, x, y, 6);
  pen.fill();
  pen.strokeStyle = css("page");
  pen.lineWidth = 1.2;
  pen.stroke();
}

function drawStarts(pen, land, chosen, size) {
  pen.font = "12px system-ui, sans-serif";
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  land.starts.forEach((start, i) => {
    const [x, y] = onto(land, size)(start).map((v) => Math.max(10, Math.min(size - 10, v)));
    pen.beginPath();
    pen.arc(x, y, size < 260 ? 5 : i === chosen ? 9 : 8, 0, 2 * Math.PI);
    pen.fillStyle = css("page");
    pen.fill();
    pen.strokeStyle = css(i === chosen ? "text" : "muted");
    pen.lineWidth = i === chosen ? 2.2 : 1;
    pen.stroke();
    pen.fillStyle = css(i === chosen ? "text" : "muted");
    if (size >= 260) pen.fillText(String(i + 1), x, y + 0.5);
  });
}

// Curves of heights on a logarithmic scale, faint beyond the step.
function drawCurves(canvas, runs, start, times, step) {
  const [pen, width, height] = prepared(canvas);
  const [left, right, top, bottom] = [58, 10, 12, 40];
  const of = (run, t) => run.heights[start * times + t];
  const all = runs.flatMap((run) => [...run.heights.subarray(start * times, (start + 1) * times)]).filter((v) => v > 0 && Number.isFinite(v));
  const first = runs.length && of(runs[0], 0) > 0 ? of(runs[0], 0) : Math.max(...all) > 0 ? Math.max(...all) : 1; // a start may be a minimum
  const high = Math.log10(Math.min(Math.max(first, ...all), 30 * first));
  const low = Math.min(high - 1, Math.log10(Math.max(Math.min(...all, first), first * 1e-8)));
  const x = (t) => left + ((width - left - right) * t) / Math.max(1, times - 1);
  const y = (v) => top + ((height - top - bottom) * (high - Math.log10(Math.max(v, 1e-30)))) / (high - low);
  pen.font = "12px system-ui, sans-serif";
  pen.fillStyle = css("muted");
  pen.strokeStyle = css("grid");
  pen.lineWidth = 1;
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  const stride = Math.ceil((high - low) / 7);
  for (let d = Math.ceil(low); d <= high; d += stride) {
    pen.beginPath();
    pen.moveTo(left, y(10 ** d));
    pen.lineTo(width - right, y(10 ** d));
    pen.stroke();
    pen.fillText(d >= -2 && d <= 4 ? String(Number((10 ** d).toPrecision(1))) : `1e${d}`, left - 6, y(10 ** d));
  }
  pen.textAlign = "center";
  for (let i = 0; i <= 4; i++) {
    const t = Math.round(((times - 1) * i) / 4);
    pen.fillText(String(t), Math.min(x(t), width - 14), height - bottom + 14);
  }
  pen.fillText("step", (left + width) / 2, height - 8);
  pen.save();
  pen.translate(10, (top + height - bottom) / 2);
  pen.rotate(-Math.PI / 2);
  pen.fillText("height", 0, 0);
  pen.restore();
  pen.save();
  pen.beginPath();
  pen.rect(left, 0, width - left, height - bottom + 1);
  pen.clip();
  for (const run of runs) {
    const { color, dash } = look(run.optimizer);
    const lost = run.diverged[start];
    const end = lost < 0 ? times - 1 : lost - 1;
    pen.strokeStyle = color;
    for (const [alpha, to] of [[0.25, end], [1, Math.min(end, step)]]) {
      pen.globalAlpha = alpha;
      pen.lineWidth = 2;
      pen.setLineDash(dash);
      pen.beginPath();
      for (let t = 0; t <= to; t++) pen[t ? "lineTo" : "moveTo"](x(t), Math.max(-1e5, y(of(run, t))));
      pen.stroke();
    }
    if (lost >= 0 && step >= lost) cross(pen, x(end), Math.max(top, y(of(run, Math.max(end, 0)))), 5);
  }
  pen.restore();
  pen.setLineDash([]);
  pen.strokeStyle = css("text");
  pen.lineWidth = 1;
  pen.beginPath();
  pen.moveTo(x(step), top);
  pen.lineTo(x(step), height - bottom);
  pen.stroke();
}
