"use strict";

// Charts: one band at a time takes the focus, and the arrow keys move on.
for (const bands of document.querySelectorAll(".bands")) {
  bands.addEventListener("keydown", (event) => {
    const all = [...bands.children];
    const at = all.indexOf(document.activeElement);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined || !all[to]) return;
    event.preventDefault();
    all[at].tabIndex = -1;
    all[to].tabIndex = 0;
    all[to].focus();
  });
}

// Copy buttons. Where the clipboard is refused, the text is selected instead.
for (const button of document.querySelectorAll("button.copy")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}

addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});

// The gallery.

const BEYOND = {
  zeros: () => -1,
  edge: (at, size) => Math.min(Math.max(at, 0), size - 1),
  reflect: (at, size) => {
    const period = Math.max(2 * (size - 1), 1);
    const inside = ((at % period) + period) % period;
    return inside < size ? inside : period - inside;
  },
};

/** The value of a channel at a whole position; black outside where the boundary says so. */
function pixel(image, row, column, channel, boundary) {
  const { width, height, data } = image;
  if (row < 0 || row >= height) row = BEYOND[boundary](row, height);
  if (column < 0 || column >= width) column = BEYOND[boundary](column, width);
  return row < 0 || column < 0 ? 0 : data[4 * (row * width + column) + channel];
}

/** out[p] = image(p + share * flow[p]), bilinear: the library's backward warp, in values from 0 to 255. */
function warp(image, flow, share, boundary) {
  const { width, height } = image;
  const out = new Float32Array(4 * width * height).fill(255);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const at = row * width + column;
      const y = row + share * flow[2 * at];
      const x = column + share * flow[2 * at + 1];
      const top = Math.floor(y);
      const left = Math.floor(x);
      const down = y - top;
      const right = x - left;
      for (let channel = 0; channel < 3; channel++) {
        const value = (dy, dx) => pixel(image, top + dy, left + dx, channel, boundary);
        out[4 * at + channel] =
          (1 - down) * ((1 - right) * value(0, 0) + right * value(0, 1)) +
          down * ((1 - right) * value(1, 0) + right * value(1, 1));
      }
    }
  }
  return out;
}

/** Colours of a flow: the hue is the direction, the saturation the length. */
function colours(flow, share, largest) {
  const out = new Float32Array(2 * flow.length).fill(255);
  for (let at = 0; at < flow.length / 2; at++) {
    const dy = flow[2 * at];
    const dx = flow[2 * at + 1];
    const hue = (6 * Math.atan2(dy, dx)) / (2 * Math.PI);
    const saturation = largest > 0 ? Math.min((share * Math.hypot(dy, dx)) / largest, 1) : 0;
    for (const [channel, offset] of [[0, 5], [1, 3], [2, 1]]) {
      const sector = (((offset + hue) % 6) + 6) % 6;
      out[4 * at + channel] = 255 * (1 - saturation * Math.max(0, Math.min(sector, 4 - sector, 1)));
    }
  }
  return out;
}

function show(canvas, values) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  for (let at = 0; at < values.length; at++) image.data[at] = Math.round(values[at]);
  context.putImageData(image, 0, 0);
}

async function pixelsOf(img) {
  await img.decode();
  const canvas = document.createElement("canvas");
  canvas.width = img.naturalWidth;
  canvas.height = img.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(img, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

/** The flow of a row: int16, deflated, in base64. */
async function flowOf(row) {
  const packed = Uint8Array.from(atob(row.dataset.flow), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const view = new DataView(await new Response(stream).arrayBuffer());
  const scale = Number(row.dataset.scale) / 32767;
  return Float32Array.from({ length: view.byteLength / 2 }, (_, at) => scale * view.getInt16(2 * at, true));
}

const percent = (share) => `${(100 * share).toFixed(share > 0.995 && share < 1 ? 1 : 0)} %`;

function answer(row, step) {
  const [predicted, confidence, ofLabel, right] = JSON.parse(row.dataset.answers)[step];
  const text = row.querySelector(".answer");
  text.textContent = right
    ? `✓ ${predicted}, ${percent(confidence)}`
    : `✗ ${predicted}, ${percent(confidence)}; ${row.dataset.label}, ${percent(ofLabel)}`;
  text.className = `answer ${right ? "right" : "wrong"}`;
  const [good, bad] = row.querySelectorAll(".bar i");
  good.style.width = `${100 * ofLabel}%`;
  bad.style.width = `${right ? 0 : 100 * confidence}%`;
  return right;
}

async function start(gallery) {
  const slider = gallery.querySelector("input");
  const largest = Number(gallery.dataset.largest);
  const gain = Number(gallery.dataset.gain);
  const rows = [];
  for (const card of gallery.querySelectorAll(".card")) {
    const image = await pixelsOf(card.querySelector("img"));
    for (const row of card.querySelectorAll(".frames")) rows.push({ row, image, flow: await flowOf(row) });
  }
  const draw = () => {
    const step = Number(slider.value);
    const share = step / Number(slider.max);
    const right = new Map();
    for (const { row, image, flow } of rows) {
      const moved = warp(image, flow, share, row.dataset.boundary);
      show(row.querySelector(".moved"), moved);
      show(row.querySelector(".flow"), colours(flow, share, largest));
      show(row.querySelector(".difference"), moved.map((value, at) => (at % 4 === 3 ? 255 : 127.5 + gain * (value - image.data[at]))));
      const name = row.dataset.name;
      right.set(name, (right.get(name) ?? 0) + answer(row, step));
    }
    const shown = rows.length / right.size;
    const counts = [...right].map(([name, count]) => `${name} right on ${count} of ${shown}`).join("; ");
    const budget = `${(100 * share).toFixed(0)} %, at most ${(share * largest).toFixed(2)} px`;
    gallery.querySelector("output").textContent = `${budget}; ${counts}`;
    slider.setAttribute("aria-valuetext", `${budget}; ${counts}`);
  };
  slider.addEventListener("input", draw);
  draw();
  gallery.dataset.ready = "true";
}

for (const gallery of document.querySelectorAll(".gallery[data-largest]")) start(gallery);
