// The page. What a text says goes into the document as text alone.
"use strict";

const COLOURS = [
  [230, 57, 70], [29, 132, 226], [42, 157, 92], [244, 162, 39], [142, 68, 200], [0, 180, 190],
];
const SHOWN_SIDE = 1280; // pixels; larger pictures are shown smaller
const KEPT = 50; // texts in the history
const HISTORY = "ris-history";

const $ = (id) => document.getElementById(id);
const box = $("ris-image"), picker = box.querySelector("input"), thumb = box.querySelector("img");
const text = $("ris-expressions");

let model = null; // what /v1/model says
let image = null; // {file, name, id, bitmap, expressions}
let answers = null; // what /v1/segment said, with `shown` for each answer
let running = null; // the AbortController of the question at work
let place = -1; // in the history; -1: what is being written
let draft = "";

// Elements

function make(tag, properties = {}, ...children) {
  const { scope, ...own } = properties;
  const element = Object.assign(document.createElement(tag), own);
  if (scope) element.setAttribute("scope", scope);
  element.append(...children);
  return element;
}

function table(id, columns, rows) {
  const head = make("tr", {}, ...columns.map((name) => make("th", { scope: "col" }, name)));
  const body = rows.map(([first, ...rest]) =>
    make("tr", {}, make("th", { scope: "row" }, ...[first].flat()),
      ...rest.map((cell) => make("td", {}, ...[cell].flat()))));
  return make("table", { id, className: "ris-table" },
    make("thead", {}, head), make("tbody", {}, ...body));
}

function refuse(message) {
  const said = make("div", { id: "ris-refusal", className: "ris-error" }, message);
  said.setAttribute("role", "alert");
  $("ris-result").replaceChildren(said);
  $("ris-picture").hidden = $("ris-downloads").hidden = true;
  $("ris-times-box").replaceChildren();
  answers = null;
}

// The server

async function call(path, options = {}) {
  const token = $("ris-token").value;
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response.json();
  if (response.status === 401) $("ris-token-label").hidden = false;
  let said = `status ${response.status}`;
  try { said = (await response.json()).error.message; } catch { /* no JSON: the status says it */ }
  const wait = response.headers.get("Retry-After");
  throw Object.assign(new Error(wait ? `${said}; try again in ${wait} s` : said),
    { status: response.status });
}

async function learn() {
  try { model = await call("v1/model"); } catch (error) { refuse(error.message); return; }
  $("ris-untrained").hidden = model.trained;
  $("ris-threshold-label").hidden = !model.no_target;
  $("ris-category-label").hidden = !model.categories.length;
  $("ris-category").replaceChildren(
    ...["auto", ...model.categories].map((name) => make("option", { value: name }, name)));
  $("ris-form-label").hidden = !model.forms.length;
  $("ris-form").replaceChildren(
    ...model.forms.map((name) => make("option", { value: name }, name)));
  $("ris-form").value = model.form;
  const { image_bytes: bytes, pixels, expressions } = model.limits;
  $("ris-limits").textContent =
    `at most ${bytes / 1e6} MB, ${pixels / 1e6} megapixels, ${expressions} expressions`;
  const rows = Object.entries(model.graphs).map(([stage, run]) =>
    [stage, run.precision, run.computes_in ?? "not told", run.engine, run.device]);
  $("ris-running-box").replaceChildren(
    table("ris-running", ["graph", "precision", "computes in", "engine", "device"], rows));
}

function form(withFile) {
  const data = new FormData();
  if (withFile) data.append("image", image.file, image.name);
  else data.append("image_id", image.id);
  for (const line of image.expressions) data.append("expression", line);
  if (model.categories.length) data.append("category", $("ris-category").value);
  if (model.forms.length) data.append("form", $("ris-form").value);
  if (model.no_target) data.append("no_target_threshold", $("ris-threshold").value);
  for (const kind of ["rle", "polygons", "coco"]) data.append("answer", kind);
  return data;
}

async function ask() {
  if (running) return;
  if (!model) await learn();
  if (!model) return;
  if (!image) return refuse("there is no image yet; drop one, or pick an example");
  image.expressions = text.value.split("\n").map((line) => line.trim()).filter(Boolean);
  if (!image.expressions.length) return refuse("nothing to look for; write an expression");
  remember(image.expressions.join("\n"));

  running = new AbortController();
  const asked = image;
  busy(true);
  try {
    const send = (withFile) => call("v1/segment",
      { method: "POST", body: form(withFile), signal: running.signal });
    let found;
    try {
      found = await send(!asked.id); // the second question needs no upload
    } catch (error) {
      if (error.status !== 404 || !asked.id) throw error;
      found = await send(true);
    }
    asked.id = found.image_id;
    answers = { ...found, name: asked.name, bitmap: asked.bitmap };
    answers.answers.forEach((answer) => { answer.shown = true; });
    show();
  } catch (error) {
    refuse(error.name === "AbortError" ? "cancelled" : error.message);
  } finally {
    running = null;
    busy(false);
  }
}

function busy(is) {
  $("ris-ask").disabled = is;
  $("ris-cancel").hidden = !is;
  $("ris-status").textContent = is ? "asking …" : "";
}

// The answer

const colour = (number) => COLOURS[number % COLOURS.length];

function show() {
  paint();
  const rows = answers.answers.map((answer, number) => {
    const swatch = make("button", {
      className: "ris-swatch", title: "shows or hides this mask", onclick: () => toggle(number),
    });
    swatch.style.background = `rgb(${colour(number)})`;
    swatch.setAttribute("aria-pressed", String(answer.shown));
    swatch.setAttribute("aria-label", `mask ${number + 1}`);
    const name = [swatch, answer.expression];
    if (answer.form) name.push(make("div", { className: "ris-note" }, `asked as a ${answer.form}`));
    if (answer.error) {
      return [name, make("span", { className: "ris-error" }, answer.error.message), "", ""];
    }
    const share = (100 * answer.area / (answers.width * answers.height)).toFixed(1);
    const found = answer.is_no_target
      ? [make("b", {}, "no target"), ": nothing in the image is meant"]
      : [`${share}% of the image`];
    found.push(...answer.notes.map((note) => make("div", { className: "ris-note" }, note)));
    const sure = answer.no_target === null
      ? "the model has no such head" : answer.no_target.toFixed(2);
    return [name, found, answer.is_no_target ? "" : answer.score.toFixed(2), sure];
  });
  $("ris-result").replaceChildren(
    table("ris-answers", ["expression", "found", "score", "no-target probability"], rows));
  $("ris-downloads").hidden = false;

  const kept = answers.from_cache ? "kept from before" : "once";
  const times = Object.entries(answers.seconds).map(([stage, seconds]) =>
    [stage.replace("image.", ""), (1000 * seconds).toFixed(1),
      stage.startsWith("image.") ? kept : "all expressions"]);
  $("ris-times-box").replaceChildren(table("ris-times", ["stage", "milliseconds", ""], times));
}

function paint() {
  const canvas = $("ris-picture"), { width, height } = answers;
  const scale = Math.min(1, SHOWN_SIDE / Math.max(width, height));
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  canvas.hidden = false;
  const context = canvas.getContext("2d");
  if (answers.bitmap) context.drawImage(answers.bitmap, 0, 0, canvas.width, canvas.height);
  context.scale(canvas.width / width, canvas.height / height);
  answers.answers.forEach((answer, number) => {
    if (!answer.polygons || !answer.shown) return;
    context.fillStyle = `rgba(${colour(number)}, .5)`;
    context.strokeStyle = `rgb(${colour(number)})`;
    context.lineWidth = 2 / scale;
    for (const { outer, holes } of answer.polygons) {
      context.beginPath();
      for (const ring of [outer, ...holes]) {
        ring.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
        context.closePath();
      }
      context.fill("evenodd");
      context.stroke();
    }
  });
}

function toggle(number) {
  const answer = answers?.answers[number];
  if (!answer) return;
  answer.shown = !answer.shown;
  show();
}

// Files

function download(blob, suffix) {
  const link = make("a", { href: URL.createObjectURL(blob) });
  link.download = answers.name.replace(/\.[^.]*$/, "") + suffix;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

const asJson = (data) => new Blob([JSON.stringify(data) + "\n"], { type: "application/json" });
const answered = () => answers.answers.filter((answer) => !answer.error);
const closed = (ring) => [...ring, ring[0]];

function downloadPolygons() {
  const features = answered().map((answer) => ({
    type: "Feature",
    geometry: {
      type: "MultiPolygon",
      coordinates: answer.polygons.map(({ outer, holes }) => [outer, ...holes].map(closed)),
    },
    properties: {
      image: answers.name, height: answers.height, width: answers.width,
      expression: answer.expression, category: answer.category, score: answer.score,
      is_no_target: answer.is_no_target, box: answer.box,
    },
  }));
  download(asJson({ type: "FeatureCollection", features }), ".geojson");
}

function downloadCoco() {
  const named = (answer) => answer.category ?? answer.expression;
  const names = [...new Set(answered().map(named))];
  const annotations = answered().filter((answer) => answer.box).map((answer, i) => ({
    id: i + 1, image_id: 1, category_id: names.indexOf(named(answer)) + 1,
    segmentation: answer.coco, area: answer.area, bbox: answer.box, iscrowd: 0,
    expression: answer.expression, score: answer.score,
  }));
  download(asJson({
    info: { description: `Answers of ris-runtime ${model.version} to referring expressions` },
    licenses: [],
    images: [{ id: 1, file_name: answers.name, width: answers.width, height: answers.height }],
    annotations,
    categories: names.map((name, i) => ({ id: i + 1, name })),
  }), ".coco.json");
}

const downloadPicture = () => $("ris-picture").toBlob((blob) => download(blob, ".masks.png"));

// The image

async function take(file, name) {
  const most = model?.limits.image_bytes;
  if (most && file.size > most) {
    return refuse(`the image file has ${(file.size / 1e6).toFixed(1)} MB, at most ${most / 1e6} MB`
      + " are accepted");
  }
  image = { file, name: name || file.name || "image", id: null, bitmap: null };
  if (thumb.src) URL.revokeObjectURL(thumb.src);
  thumb.src = URL.createObjectURL(file);
  thumb.hidden = false;
  // formats that the browser does not show, such as TIFF, are asked about all the same
  try { image.bitmap = await createImageBitmap(file); } catch { thumb.hidden = true; }
}

box.addEventListener("click", () => picker.click());
box.addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === " ") { event.preventDefault(); picker.click(); }
});
picker.addEventListener("click", (event) => event.stopPropagation());
picker.addEventListener("change", () => picker.files[0] && take(picker.files[0]));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  box.classList.add("over");
});
document.addEventListener("dragleave", () => box.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  box.classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) take(file);
});
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) { event.preventDefault(); take(file, "pasted.png"); }
});

async function offerExamples() {
  const offered = await call("examples").catch(() => []);
  $("ris-examples").replaceChildren(...offered.map((example, number) => make("button", {
    type: "button",
    title: example.expressions.join("\n"),
    onclick: async () => {
      const file = await (await fetch(example.image)).blob();
      await take(file, `example-${number + 1}.png`);
      text.value = example.expressions.join("\n");
    },
  }, make("img", { src: example.image, alt: `Example ${number + 1}` }))));
}

// What was asked before stays in this browser

function history() {
  try { return JSON.parse(localStorage.getItem(HISTORY)) ?? []; } catch { return []; }
}

function remember(asked) {
  const texts = [asked, ...history().filter((other) => other !== asked)].slice(0, KEPT);
  try { localStorage.setItem(HISTORY, JSON.stringify(texts)); } catch { /* a private window */ }
  place = -1;
  list();
}

function list() {
  $("ris-history").replaceChildren(...history().map((asked) => make("li", {},
    make("button", { type: "button", onclick: () => { text.value = asked; text.focus(); } },
      asked.split("\n").join(" · ")))));
}

function recall(step) {
  const texts = history();
  if (place === -1) draft = text.value;
  place = Math.min(Math.max(place + step, -1), texts.length - 1);
  text.value = place === -1 ? draft : texts[place];
}

$("ris-forget").addEventListener("click", () => { localStorage.removeItem(HISTORY); list(); });

// Keys

text.addEventListener("keydown", (event) => {
  const { key } = event;
  if (key === "Enter" && (event.shiftKey || event.ctrlKey || event.metaKey)) ask();
  else if (event.altKey && key === "ArrowUp") recall(1);
  else if (event.altKey && key === "ArrowDown") recall(-1);
  else if (key === "Escape" && !running) text.blur();
  else return;
  event.preventDefault();
});

const KEYS = {
  "/": () => text.focus(),
  o: () => picker.click(),
  p: () => answers && downloadPolygons(),
  c: () => answers && downloadCoco(),
  m: () => answers && downloadPicture(),
};

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
  const writing = event.target.closest("textarea, input, select");
  if (writing || event.ctrlKey || event.altKey || event.metaKey) return;
  const action = /^[1-9]$/.test(event.key) ? () => toggle(event.key - 1) : KEYS[event.key];
  if (action) { event.preventDefault(); action(); }
});

$("ris-ask").addEventListener("click", ask);
$("ris-cancel").addEventListener("click", () => running?.abort());
$("ris-polygons").addEventListener("click", downloadPolygons);
$("ris-coco").addEventListener("click", downloadCoco);
$("ris-png").addEventListener("click", downloadPicture);
$("ris-token").addEventListener("change", learn);

learn();
offerExamples();
list();
