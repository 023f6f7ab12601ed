"use strict";
// What the page is told by Python: `live`, and `models`; without a server also all that they see in one image.
const told = JSON.parse(document.getElementById("told").textContent);
const $ = (selector, from = document) => from.querySelector(selector);
const make = (name, className = "", text = "") => Object.assign(document.createElement(name), { className, textContent: text });
// The ends of a scale by two significant digits, or by so many more that they differ; one that is next to nothing
// beside the other is 0.
const ends_of = (low, high) => {
  const ends = [low, high].map((end) => Math.abs(end) < 0.005 * (high - low) ? 0 : end);
  const by = (digits) => ends.map((end) => Math.abs(end) >= 100 ? end.toFixed(0) : String(Number(end.toPrecision(digits))));
  const words = [2, 3, 4, 2].map(by).find(([least, most], at) => least !== most || at === 3);
  return words.map((word) => word.replace("-", "−"));
};
const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 2 : 1)} %`;
const bytes = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
const floats = (base64) => base64 === null ? null : new Float32Array(bytes(base64).buffer);
const least = (values) => values.reduce((one, other) => Math.min(one, other), Infinity);
// From which value to which they go, in words.
const span_of = (values, words) => {
  const [from, to] = words(least(values), most(values));
  return from === to ? `${from} everywhere` : `${from} to ${to}`;
};
// Attention's scale, as attneck.explain.scale has it: even attention is in its middle at most.
const range_of = (shares, places = shares.length) => [0, Math.max(most(shares), told.even / places)];
const most = (values) => values.reduce((one, other) => Math.max(one, other), -Infinity);

// Matplotlib's viridis, as in the pictures of `attneck look`: it reads in grey, and by the colour-blind.
const STOPS = ["440154", "482878", "3e4a89", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"]
  .map((stop) => [0, 2, 4].map((at) => parseInt(stop.slice(at, at + 2), 16)));
const COLOURS = Array.from({ length: 256 }, (_, at) => {
  const place = at / 255 * (STOPS.length - 1), low = Math.min(Math.floor(place), STOPS.length - 2);
  return STOPS[low].map((value, part) => Math.round(value + (place - low) * (STOPS[low + 1][part] - value)));
});
// Okabe and Ito's.
const OBJECTS = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"];

// ---- where the numbers come from: the server, or this file

async function answer(path, options) {
  let found;
  try {
    found = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer: start attneck serve again.");
  }
  if (found.ok) return found;
  const said = (await found.json().catch(() => ({}))).error || "The server could not do that.";
  throw new Error(`${said[0].toUpperCase()}${said.slice(1)}.`);
}

const live = {
  add: async (file) => {
    if (file.size > told.most_bytes) {
      throw new Error(`The file has ${megabytes(file.size)}, ${megabytes(told.most_bytes)} at most: choose a smaller one.`);
    }
    const image = await (await answer("/image", { method: "POST", body: file })).json();
    return { ...image, name: file.name || "camera", url: `/photo?image=${image.image}` };
  },
  look: async (image, model) => (await answer(`/look?image=${image.image}&model=${model}`)).json(),
  rows: async (image, model, cells) =>
    (await answer(`/rows?image=${image.image}&model=${model}&at=${cells.map((cell) => cell.join()).join(";")}`)).arrayBuffer(),
};

const alone = {
  look: async (image, model) => told.looks[model],
  rows: async (image, model, cells) => {
    const parts = told.looks[model].mhsas.map((mhsa, at) => {
      mhsa.bytes ??= bytes(mhsa.rows);
      const [y, x] = cells[at].map((place) => Math.floor(place / mhsa.step));
      const length = 2 * mhsa.parts.length * mhsa.heads * mhsa.map[0] * mhsa.map[1];
      const start = length * (y * Math.ceil(mhsa.map[1] / mhsa.step) + x);
      return mhsa.bytes.subarray(start, start + length);
    });
    return new Blob(parts).arrayBuffer();
  },
};

const source = told.live ? live : alone;
const megabytes = (size) => `${(size / 1e6).toFixed(1).replace(".0", "")} MB`;

// The rows of all blocks: for each its parts' logarithms [heads * positions], as attneck.serve.looks packs them.
function unpacked(buffer, mhsas) {
  const view = new DataView(buffer);
  let at = 0;
  return mhsas.map((mhsa) => Object.fromEntries(mhsa.parts.map((part) => {
    const values = new Float32Array(mhsa.heads * mhsa.map[0] * mhsa.map[1]);
    for (let key = 0; key < values.length; key++, at += 2) values[key] = -view.getUint16(at, true) / told.steps_a_nat;
    return [part, values];
  })));
}

// softmax(a * content + b * position): the terms' logarithms are their logits but for a constant of each row.
function weights(row, heads) {
  const [a, b] = mixture();
  const { content, position } = row, length = (content ?? position).length, size = length / heads;
  const result = new Float32Array(length);
  for (let head = 0; head < heads; head++) {
    const from = head * size;
    let top = -Infinity, sum = 0;
    for (let key = from; key < from + size; key++) {
      result[key] = content && position ? a * content[key] + b * position[key] : (content ?? position)[key];
      top = Math.max(top, result[key]);
    }
    for (let key = from; key < from + size; key++) sum += result[key] = Math.exp(result[key] - top);
    for (let key = from; key < from + size; key++) result[key] /= sum;
  }
  return result;
}

function mixture() {
  const side = $("#mix").valueAsNumber / 100;
  return [Math.min(1, 1 - side), Math.min(1, 1 + side)];
}

function mean(values, heads) {
  const size = values.length / heads;
  return Float32Array.from({ length: size }, (_, key) => {
    let sum = 0;
    for (let head = 0; head < heads; head++) sum += values[head * size + key];
    return sum / heads;
  });
}

// ---- drawing

// A canvas with a pixel for each cell, in colours from `low` to `high`.
function paint(canvas, values, height, width, low, high) {
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const pixels = new ImageData(width, height), scale = high > low ? 255 / (high - low) : 0;
  for (let at = 0; at < values.length; at++) {
    const colour = COLOURS[Math.max(0, Math.min(255, Math.round(scale * (values[at] - low)) || 0))];
    pixels.data.set([...colour, 255], 4 * at);
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

function place(element, left, top, width, height) {
  Object.assign(element.style, { left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * width}%`, height: `${100 * height}%` });
}

// ---- one model's part of the page

let image = null;
let at = { x: 0.5, y: 0.5 }; // in the image, 0 to 1
let held = false;

class Panel {
  constructor(number, model) {
    this.number = number;
    this.model = model;
    this.element = $("#panel").content.firstElementChild.cloneNode(true);
    this.find = (selector) => $(selector, this.element);
    this.look = null;
    this.scratch = document.createElement("canvas");
    for (const [value, one] of told.models.entries()) this.find(".model").add(new Option(one.name, value));
    this.find(".model").value = model;
    this.find(".model").addEventListener("change", (event) => {
      this.model = Number(event.target.value);
      busy("The model looks at the image …", this.see());
    });
    this.find(".png").addEventListener("click", () => this.savePicture());
    this.find(".json").addEventListener("click", () => this.saveNumbers());
    this.find(".hold").addEventListener("click", () => hold(!held));
    const picture = this.find(".picture");
    picture.addEventListener("pointermove", (event) => held || this.point(event));
    picture.addEventListener("pointerdown", (event) => {
      const mouse = event.pointerType === "mouse";
      if (!held || mouse) this.point(event); // a finger that scrolls takes no place away that is held
      if (mouse) hold(!held);
    });
    picture.addEventListener("keydown", (event) => this.press(event));
    this.find(".attention").addEventListener("change", (event) => {
      if (event.target.type !== "radio") return;
      this.choice = event.target.value;
      this.draw();
      this.hear();
    });
    paint(this.find(".colours"), COLOURS.map((_, value) => value), 1, 256, 0, 255);
  }

  async see() {
    const model = this.model, of = image;
    this.look = null;
    this.frame();
    const look = await source.look(of, model);
    if (model !== this.model || of !== image) return; // another was chosen meanwhile
    Object.assign(this, { look, rows: null, weights: null, cells: null });
    this.lay();
    await this.ask();
  }

  // The image, before anything is known of it.
  frame() {
    const { name, note } = told.models[this.model], photo = this.find(".photo");
    this.find(".note").textContent = note;
    for (const part of [".facts", ".legend", ".seen", ".mark", ".save"]) this.find(part).hidden = true;
    this.find(".objects").replaceChildren();
    photo.src = image.url;
    photo.width = image.width;
    photo.height = image.height;
    for (const layer of [".overlay", ".masks"]) Object.assign(this.find(layer), { width: image.width, height: image.height });
    // As wide as its column, but no higher than most of the window.
    this.find(".picture").style.width = `min(100%, calc(72vh * ${image.width / image.height}))`;
    this.find(".picture").setAttribute("aria-label",
      `${image.name}, seen by ${name}. Arrow keys move the place that attention is read from; Home and End go to the row's ends; Enter holds it.`);
  }

  // All that does not change as the pointer moves.
  lay() {
    const { look } = this;
    for (const part of [".facts", ".seen"]) this.find(part).hidden = false;
    place(this.find(".seen"), ...look.box);
    this.bams = look.bams.map((bam) => ({
      ...bam, ...Object.fromEntries(["before", "after", "attention", "spatial", "channel"].map((key) => [key, floats(bam[key])])),
    }));
    this.list();
    this.predict();
    const options = [...this.element.querySelectorAll(".attention input[type=radio]")];
    const chosen = options.find((option) => option.value === this.choice) ?? options.find((option) => /mean|attention/.test(option.value)) ?? options[0];
    this.choice = chosen?.value ?? null;
    if (chosen) chosen.checked = true;
  }

  // The blocks: a radio button for each map that the overlay can show.
  list() {
    const list = this.find(".attention");
    list.replaceChildren();
    this.thumbs = new Map();
    const add = (maps, key, label, title) => {
      const map = make("label", "map"), radio = make("input", "unseen"), canvas = make("canvas");
      Object.assign(radio, { type: "radio", name: `shown-${this.number}`, value: key });
      radio.setAttribute("aria-label", title);
      map.append(radio, canvas, ...[].concat(label).map((line) => make("span", "", line)));
      maps.append(map);
      this.thumbs.set(key, canvas);
    };
    const group = (heading, detail) => {
      const field = make("fieldset"), legend = make("legend"), maps = make("div", "maps");
      legend.append(make("b", "", heading), ` ${detail}`);
      field.append(legend, maps);
      list.append(field);
      return [field, maps];
    };
    this.look.mhsas.forEach((mhsa, block) => {
      if (!block) list.append(make("h3", "", "Self-attention from the place (px: how far a head looks on average)"));
      const [height, width] = mhsa.map;
      const terms = mhsa.parts.length > 1 ? "" : `, ${mhsa.parts[0]} alone`;
      const every = mhsa.step > 1 ? `, one place in ${mhsa.step} × ${mhsa.step}` : "";
      const [, maps] = group(mhsa.name, `${height} × ${width}${terms}${every}`);
      add(maps, `mhsa:${block}:mean`, "mean", `${mhsa.name}, mean of the heads`);
      mhsa.distance.forEach((pixels, head) =>
        add(maps, `mhsa:${block}:${head}`, [`head ${head + 1}`, `${pixels.toFixed(0)} px`],
          `${mhsa.name}, head ${head + 1}, looks ${pixels.toFixed(0)} pixels away on average`));
    });
    this.bams.forEach((bam, stage) => {
      if (!stage) {
        list.append(make("h3", "", "BAM, stage by stage"));
        if (this.bams.length > 1) list.append(this.steps());
      }
      const gain = bam.gain ? `, gain ${bam.gain}` : "";
      const [field, maps] = group(bam.name, `${bam.map[0]} × ${bam.map[1]}${gain}`);
      const shown = [["before", "before"], ["spatial", "spatial"], ["attention", "attention"], ["after", "after"]];
      for (const [what, label] of shown) {
        if (!bam[what]) continue;
        add(maps, `bam:${stage}:${what}`, label, `${bam.name}, ${label}`);
        paint(this.thumbs.get(`bam:${stage}:${what}`), bam[what], ...bam.map, ...bam.ranges[what]);
      }
      if (bam.channel) {
        const sorted = Float32Array.from(bam.channel).sort(), strip = make("canvas", "channels");
        paint(strip, sorted, 1, sorted.length, ...bam.ranges.channel);
        strip.setAttribute("role", "img");
        const [low, high] = ends_of(sorted[0], sorted.at(-1));
        strip.setAttribute("aria-label", `${sorted.length} channels, from ${low} to ${high}`);
        field.append(make("p", "quiet", `channels, sorted: ${low} to ${high}`), strip);
      }
    });
    const none = "This model has neither BAM nor BoT's self-attention to show.";
    const notes = this.thumbs.size || this.look.notes.length ? this.look.notes : [none];  // why a layer has no map
    list.append(...notes.map((note) => make("p", "quiet", note)));
    $("#mixing").hidden = !panels.some((panel) => panel.look?.mhsas.some((mhsa) => mhsa.parts.length > 1));
  }

  steps() {
    const steps = make("div", "steps");
    for (const [by, label] of [[-1, "← Stage before"], [1, "Next stage →"]]) {
      const button = make("button", "", label);
      button.type = "button";
      button.addEventListener("click", () => {
        const [kind, stage, what] = (this.choice ?? "").split(":");
        const count = this.bams.length;
        const next = kind === "bam" ? (Number(stage) + by + count) % count : by > 0 ? 0 : count - 1;
        const wanted = kind === "bam" ? what : "attention";
        this.find(`input[value="bam:${next}:${wanted}"]`)?.click();
      });
      steps.append(button);
    }
    return steps;
  }

  // The predictions that the slider lets through.
  shown() {
    const { predictions, finds_objects } = this.look, enough = finds_objects ? $("#least").valueAsNumber / 100 : 0;
    return predictions.filter((one) => one.score >= enough);
  }

  predict() {
    const list = this.find(".predictions ol"), objects = this.find(".objects"), masks = this.find(".masks");
    const { finds_objects } = this.look, shown = this.shown();
    list.replaceChildren(...shown.map((one, number) => {
      const row = make("li"), track = make("div", "track"), bar = make("div");
      bar.style.width = `${100 * one.score}%`;
      if (finds_objects) bar.style.background = OBJECTS[number % OBJECTS.length];
      track.append(bar);
      const name = make("span", "", one.category);
      name.title = one.category;
      row.append(name, track, make("span", "", percent(one.score)));
      return row;
    }));
    if (!shown.length) list.append(make("p", "quiet", finds_objects ? "No object scores that high." : "It makes no predictions."));
    masks.getContext("2d").clearRect(0, 0, masks.width, masks.height);
    objects.replaceChildren(...shown.filter((one) => one.box).map((one, number) => {
      const box = make("div", one.box[1] < 0.06 ? "low" : ""), label = make("span", "", `${one.category} ${one.score.toFixed(2)}`);
      const colour = OBJECTS[number % OBJECTS.length];
      place(box, ...one.box);
      box.style.borderColor = label.style.background = colour;
      box.append(label);
      if (one.mask) this.fill(masks, one, colour);
      return box;
    }));
    $("#scoring").hidden = !panels.some((panel) => panel.look?.finds_objects);
  }

  // A mask is a bit a pixel of its own box, in whole pixels of the photo.
  fill(canvas, { mask }, colour) {
    const bits = bytes(mask.bits), pixels = new ImageData(mask.width, mask.height);
    const parts = [1, 3, 5].map((from) => parseInt(colour.slice(from, from + 2), 16));
    for (let at = 0; at < mask.width * mask.height; at++) {
      if (bits[at >> 3] >> (7 - (at & 7)) & 1) pixels.data.set([...parts, 120], 4 * at);
    }
    Object.assign(this.scratch, { width: mask.width, height: mask.height });
    this.scratch.getContext("2d").putImageData(pixels, 0, 0);
    const [left, top, width, height] = mask.box;
    canvas.getContext("2d").drawImage(this.scratch, left * canvas.width, top * canvas.height, width * canvas.width, height * canvas.height);
  }

  // The cell (y, x) of a map that the place lies in; the nearest where the model does not see the place.
  cell([height, width], step = 1) {
    const [left, top, wide, high] = this.look.box;
    const along = (share, count) => Math.floor(Math.max(0, Math.min(count - 1, Math.floor(share * count))) / step) * step;
    return [along((at.y - top) / high, height), along((at.x - left) / wide, width)];
  }

  // One question at a time: while it is out the newest place waits.
  async ask() {
    if (!this.look) return;
    if (this.asking) {
      this.again = true;
      return;
    }
    const { look } = this;
    const cells = look.mhsas.map((mhsa) => this.cell(mhsa.map, mhsa.step));
    const key = cells.join(";");
    if (look.mhsas.length && !(this.rows && this.key === key)) {
      this.asking = true;
      try {
        const rows = unpacked(await source.rows(image, this.model, cells), look.mhsas);
        if (look === this.look) Object.assign(this, { rows, key, cells });
      } catch (error) {
        if (!this.again) throw error; // else what was asked since is still to be answered
      } finally {
        this.asking = false;
      }
    }
    this.draw();
    if (this.again) {
      this.again = false;
      await this.ask();
    }
  }

  // All that changes with the place and the sliders.
  draw() {
    if (!this.look) return;
    this.weights = this.rows?.map((row, block) => weights(row, this.look.mhsas[block].heads)) ?? [];
    this.weights.forEach((values, block) => {
      const { heads, map } = this.look.mhsas[block], size = map[0] * map[1], inside = this.inside(map);
      const show = (key, shares) => {
        const seen = shares.map((share, cell) => inside(share, cell) ? share : 0);
        paint(this.thumbs.get(key), seen, ...map, ...range_of(seen));
      };
      show(`mhsa:${block}:mean`, mean(values, heads));
      for (let head = 0; head < heads; head++) show(`mhsa:${block}:${head}`, values.subarray(head * size, (head + 1) * size));
    });
    this.overlay();
    this.find(".save").hidden = !this.rows && this.look.mhsas.length > 0;
  }

  // A map's places that the image has: a detector's input is padded.
  inside([height, width]) {
    const [left, top, wide, high] = this.look.box;
    const has = (from, side, cell, count) => from + (cell + 1) / count * side > 1e-6 && from + cell / count * side < 1 - 1e-6;
    return (_, cell) => has(top, high, Math.floor(cell / width), height) && has(left, wide, cell % width, width);
  }

  // The map that is chosen: its values [H * W], (H, W), their range, and what it is in words.
  chosen() {
    const [kind, number, what] = (this.choice ?? "").split(":");
    if (kind === "bam") {
      const bam = this.bams[number];
      return { values: bam[what], map: bam.map, range: bam.ranges[what], words: `${bam.name}, ${{ before: "before BAM", after: "after BAM", spatial: "BAM's spatial branch", attention: "BAM's attention" }[what]}`, share: false };
    }
    const values = this.weights?.[number];
    if (kind !== "mhsa" || !values) return null;
    const { heads, map, name } = this.look.mhsas[number], size = map[0] * map[1];
    const shares = what === "mean" ? mean(values, heads) : values.subarray(what * size, (Number(what) + 1) * size);
    return { values: shares, map, range: range_of(shares.filter(this.inside(map)), size), words: `${name}, ${what === "mean" ? `mean of ${heads} heads` : `head ${Number(what) + 1}`}`, share: true, cell: this.cells[number] };
  }

  overlay() {
    const canvas = this.find(".overlay"), context = canvas.getContext("2d"), chosen = this.chosen();
    context.clearRect(0, 0, canvas.width, canvas.height);
    canvas.style.opacity = $("#strength").valueAsNumber / 100;
    // The photo goes grey beneath it, so that the hues are the map's.
    this.find(".photo").style.filter = `grayscale(${chosen ? canvas.style.opacity : 0})`;
    this.find(".mark").hidden = !chosen?.share;
    this.find(".legend").hidden = !chosen;
    if (!chosen) return;
    const { values, map: [height, width], range: [low, high], share, cell } = chosen;
    const [left, top, wide, tall] = this.look.box;
    paint(this.scratch, values, height, width, low, high);
    context.imageSmoothingEnabled = false;
    context.drawImage(this.scratch, left * canvas.width, top * canvas.height, wide * canvas.width, tall * canvas.height);
    if (share) place(this.find(".mark"), left + cell[1] / width * wide, top + cell[0] / height * tall, wide / width, tall / height);
    const span = span_of(values.filter(this.inside(chosen.map)), share ? (...ends) => ends.map(percent) : ends_of);
    const even = share ? `; even would be ${percent(1 / values.length)} a cell` : "";
    this.find(".shown").textContent = `${chosen.words}: ${span}${even}`;
    const [from, to] = share ? ["0", percent(high)] : ends_of(low, high);
    this.find(".low").textContent = from;
    this.find(".high").textContent = to;
  }

  // For a screen reader, when a key was the cause.
  hear() {
    const chosen = this.chosen();
    if (!chosen) return;
    const [height, width] = chosen.map, inside = this.inside(chosen.map);
    const seen = chosen.values.map((value, cell) => inside(value, cell) ? value : -Infinity), top = most(seen), best = seen.indexOf(top);
    const where = (y, x) => `row ${y + 1}, column ${x + 1}`;
    const from = chosen.share ? `from ${where(...chosen.cell)} of ${height} by ${width}: ` : "";
    const value = chosen.share ? percent(top) : ends_of(chosen.range[0], top)[1];
    $("#heard").textContent = `${chosen.words}, ${from}most at ${where(Math.floor(best / width), best % width)}, ${value}.`;
  }

  point(event) {
    const bounds = this.find(".picture").getBoundingClientRect();
    move((event.clientX - bounds.left) / bounds.width, (event.clientY - bounds.top) / bounds.height);
  }

  press(event) {
    if (event.key === "Enter" || event.key === " ") {
      hold(!held);
      event.preventDefault();
      return;
    }
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -Infinity], End: [0, Infinity] }[event.key];
    if (!step || !this.look || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const [kind, number] = (this.choice ?? "").split(":");
    const { map, step: every = 1 } = kind === "mhsa" ? this.look.mhsas[number] : this.look.mhsas[0] ?? { map: [14, 14] };
    const [left, top, wide, high] = this.look.box;
    const along = (cell, by, count) => Math.max(0, Math.min(count - 1, cell + every * by));
    const [y, x] = this.cell(map, every).map((cell, axis) => along(cell, step[axis], map[axis]));
    move(left + (x + 0.5) / map[1] * wide, top + (y + 0.5) / map[0] * high, () => this.hear());
  }

  named(ending) {
    const words = [image.name.replace(/\.\w+$/, ""), told.models[this.model].name, this.choice ?? ""];
    return `${words.join("-").replace(/[^\p{L}\p{N}._-]+/gu, "-")}.${ending}`;
  }

  savePicture() {
    const canvas = document.createElement("canvas"), context = canvas.getContext("2d");
    Object.assign(canvas, { width: image.width, height: image.height });
    context.filter = this.find(".photo").style.filter;
    context.drawImage(this.find(".photo"), 0, 0, canvas.width, canvas.height);
    context.filter = "none";
    context.drawImage(this.find(".masks"), 0, 0);
    context.globalAlpha = $("#strength").valueAsNumber / 100;
    context.drawImage(this.find(".overlay"), 0, 0);
    context.globalAlpha = 1;
    const chosen = this.chosen(), thin = Math.max(1, canvas.width / 800);
    for (const [number, { box, category, score }] of this.shown().entries()) {
      if (!box) continue;
      const [left, top, wide, high] = box.map((share, side) => share * (side % 2 ? canvas.height : canvas.width));
      const colour = OBJECTS[number % OBJECTS.length], words = `${category} ${score.toFixed(2)}`, line = 16 * thin;
      Object.assign(context, { strokeStyle: colour, fillStyle: colour, lineWidth: 2 * thin, font: `${12 * thin}px sans-serif`, textBaseline: "middle" });
      context.strokeRect(left, top, wide, high);
      const above = Math.max(0, top - line);
      context.fillRect(left, above, context.measureText(words).width + 6 * thin, line);
      context.fillStyle = "#000";
      context.fillText(words, left + 3 * thin, above + line / 2);
    }
    if (chosen?.share) {
      const [left, top, wide, high] = this.look.box, [height, width] = chosen.map;
      const frame = [(left + chosen.cell[1] / width * wide) * canvas.width, (top + chosen.cell[0] / height * high) * canvas.height, wide / width * canvas.width, high / height * canvas.height];
      for (const [colour, thick] of [["#000", 6], ["#fff", 2]]) {
        Object.assign(context, { strokeStyle: colour, lineWidth: thick * thin });
        context.strokeRect(...frame);
      }
    }
    canvas.toBlob((blob) => save(blob, this.named("png")), "image/png");
  }

  saveNumbers() {
    const { look } = this, [content, position] = mixture();
    const rounded = (values) => values && Array.from(values, (value) => Number(value.toPrecision(5)));
    const document = {
      image: image.name, pixels: [image.height, image.width], model: told.models[this.model].name,
      place: [at.y, at.x], seen: look.box, weights: { content, position }, predictions: look.predictions.map(({ mask, ...rest }) => rest),
      attention: look.mhsas.map((mhsa, block) => ({
        name: mhsa.name, map: mhsa.map, heads: mhsa.heads, terms: mhsa.parts, distance: mhsa.distance, cell: this.cells[block],
        rows: rounded(this.weights[block]),
      })),
      bam: this.bams.map((bam) => Object.fromEntries(Object.entries(bam).map(([key, value]) => [key, value instanceof Float32Array ? rounded(value) : value]))),
    };
    save(new Blob([JSON.stringify(document)], { type: "application/json" }), this.named("json"));
  }
}

function save(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// ---- the page

let panels = [];

// True once it is done; else the page says why not.
async function tell(work) {
  try {
    await work;
    return true;
  } catch (error) {
    $("#said").textContent = error.message;
    return false;
  }
}

let busily = 0;

async function busy(words, work) {
  busily += 1;
  $("#doing").textContent = words;
  $("#said").textContent = "";
  const done = await tell(work);
  if (!--busily) $("#doing").textContent = "";
  return done;
}

let lost = ""; // what was said of the last move

function move(x, y, then) {
  const within = (share) => Math.max(0, Math.min(1 - 1e-6, share)); // at 1 the padding begins
  at = { x: within(x), y: within(y) };
  tell(Promise.all(panels.map((panel) => panel.ask()))).then((done) => {
    const said = $("#said");
    if (done && lost && said.textContent === lost) said.textContent = "";
    lost = done ? "" : said.textContent;
    if (done) then?.();
  });
}

function hold(on) {
  held = on;
  for (const button of document.querySelectorAll(".hold")) {
    button.setAttribute("aria-pressed", held);
    button.textContent = held ? "Let the place go" : "Hold the place";
  }
}

let shows = 0, latest = 0;

async function show(file) {
  const mine = ++shows;
  const done = await busy("The model looks at the image …", (async () => {
    const added = await source.add(file);
    if (mine < latest) return; // one that was given later is there already
    latest = mine;
    image = added;
    at = { x: 0.5, y: 0.5 };
    hold(false);
    await arrange();
  })());
  if (!done) $("#said").textContent = `${file.name}: ${$("#said").textContent}`;
}

async function arrange() {
  const count = $("#beside").checked ? 2 : 1;
  while (panels.length > count) panels.pop().element.remove();
  for (let number = panels.length; number < count; number++) {
    const model = told.models.findIndex((_, index) => panels.every((panel) => panel.model !== index));
    panels.push(new Panel(number, model));
    $("#panels").append(panels[number].element);
  }
  $("#panels").classList.toggle("two", count > 1);
  $("#empty").hidden = true;
  $("#tune").hidden = false;
  await Promise.all(panels.map((panel) => panel.see()));
}

function mixed() {
  const [content, position] = mixture();
  const words = content === position ? "as the model: both" : content === 0 ? "position alone" : position === 0 ? "content alone" : `content × ${content.toFixed(2)}, position × ${position.toFixed(2)}`;
  $("#mixed").textContent = words;
  $("#mix").setAttribute("aria-valuetext", words);
}

function tuned() {
  mixed();
  $("#strong").textContent = `${$("#strength").value} %`;
  $("#surely").textContent = `${$("#least").value} % sure`;
  for (const panel of panels) panel.draw();
}

$("#mix").addEventListener("input", tuned);
$("#strength").addEventListener("input", tuned);
$("#least").addEventListener("input", () => {
  tuned();
  for (const panel of panels) if (panel.look) panel.predict();
});
$("#beside").addEventListener("change", () => image && busy("The model looks at the image …", arrange()));
$("#two").hidden = told.models.length < 2;
$("#beside").checked = told.models.length > 1;
tuned();

if (told.live) {
  $("#bound").textContent = megabytes(told.most_bytes);
  $("#file").addEventListener("change", (event) => {
    if (event.target.files.length) show(event.target.files[0]);
    event.target.value = "";
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) show(event.clipboardData.files[0]);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dropping"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    if (event.dataTransfer.files.length) show(event.dataTransfer.files[0]);
  });
  camera();
  $("#empty").hidden = false;
} else {
  $("#choose").hidden = true;
  image = told.image;
  tell(arrange());
}

function camera() {
  const dialog = $("#shooting"), video = $("#video");
  $("#camera").hidden = !navigator.mediaDevices;
  $("#camera").addEventListener("click", () => tell((async () => {
    $("#said").textContent = "";
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch (error) {
      throw new Error(error.name === "NotFoundError" ? "No camera was found: choose an image." : "The camera may not be used: allow it in the browser, or choose an image.");
    }
    dialog.showModal();
  })()));
  dialog.addEventListener("close", () => {
    for (const track of video.srcObject.getTracks()) track.stop();
    video.srcObject = null;
  });
  $("#leave").addEventListener("click", () => dialog.close());
  $("#shoot").addEventListener("click", () => {
    if (!video.videoWidth) return;
    const canvas = Object.assign(document.createElement("canvas"), { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    dialog.close();
    canvas.toBlob((blob) => show(new File([blob], "camera.jpg", { type: "image/jpeg" })), "image/jpeg", 0.92);
  });
}
