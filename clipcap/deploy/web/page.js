// The page: photos in, captions out; the worker computes.
"use strict";

const by = (id) => document.getElementById(id);
const facts = JSON.parse(by("facts").textContent);

// ---- the worker, and what it needs, unpacked from this file

let lastId = 0;
const waiting = new Map();
let worker;

function ask(work, given, transfer = []) {
  return new Promise((resolve, reject) => {
    waiting.set(++lastId, { resolve, reject });
    worker.postMessage({ id: lastId, work, given }, transfer);
  });
}

/** The bytes of a part of this file: gzip in base64. */
async function unpack(id) {
  const element = by(id), text = element.textContent;
  element.remove();
  const pieces = [];
  for (let at = 0, size = 2 ** 22; at < text.length; at += size) {
    const piece = atob(text.slice(at, at + size)), bytes = new Uint8Array(piece.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = piece.charCodeAt(i);
    pieces.push(bytes);
  }
  const stream = new Blob(pieces).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

async function start() {
  const url = URL.createObjectURL(new Blob([by("worker").textContent], { type: "text/javascript" }));
  worker = new Worker(url);
  worker.onmessage = ({ data: { id, answer, error } }) => {
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    if (error === undefined) resolve(answer); else reject(new Error(error));
  };
  const library = await unpack("library"), wasm = await unpack("wasm"), graphs = {};
  for (const name of facts.graphs) graphs[name] = new Uint8Array(await unpack(name));
  const { config, tokens } = facts;
  await ask("load", { library, wasm, graphs, config, tokens }, [library, wasm, ...Object.values(graphs).map((g) => g.buffer)]);
}

// ---- photos

const photos = []; // {name, captions, error, item}
let queue = [], running = false, spent = 0;

function add(files) {
  const found = [...files].filter((file) => file.type.startsWith("image/") || !file.type);
  const others = files.length - found.length;
  queue.push(...found);
  if (!found.length) say(others ? "These files are not pictures." : "No files were found.");
  else run();
}

async function run() {
  if (running) return;
  running = true;
  await ready;
  let number = 0;
  while (queue.length) {
    const file = queue.shift(), name = file.webkitRelativePath || file.name || "picture";
    say(`Captioning ${name} …`, ++number, number + queue.length);
    const photo = { name };
    try {
      const { captions, jpeg, ms } = await ask("caption", { file, several: Number(by("several").value) });
      Object.assign(photo, { captions, jpeg });
      spent += ms;
    } catch (error) {
      photo.error = error.name === "InvalidStateError" || /decoded|decode/i.test(error.message)
        ? "This browser cannot read the file as a picture." : error.message;
    }
    photos.push(photo);
    show(photo);
  }
  running = false;
  finish();
}

function finish() {
  const good = photos.filter((photo) => photo.captions).length, bad = photos.length - good;
  const failed = bad ? ` ${bad} could not be read.` : "";
  const speed = good ? ` ${Math.round(spent / good)} ms a photo.` : "";
  say(photos.length ? `${good} ${good === 1 ? "photo has" : "photos have"} captions.${failed}${speed}` : "Ready.");
  for (const id of ["copy", "save"]) by(id).hidden = !good;
  by("clear").hidden = !photos.length;
}

function say(text, done, total) {
  by("status").textContent = text;
  by("progress").hidden = by("stop").hidden = done === undefined;
  if (done !== undefined) Object.assign(by("progress"), { max: total, value: done - 1 });
}

function element(kind, properties, ...children) {
  const made = Object.assign(document.createElement(kind), properties);
  made.append(...children);
  return made;
}

function show(photo) {
  const look = photo.jpeg
    ? element("img", { className: "look", alt: "", src: URL.createObjectURL(photo.jpeg) })
    : element("div", { className: "look" });
  const lines = photo.captions
    ? photo.captions.map((caption) => element("p", { className: "caption", textContent: caption.text }))
    : [element("p", { className: "caption bad", textContent: photo.error })];
  const text = element("div", { className: "text" }, element("p", { className: "name", textContent: photo.name, title: photo.name }), ...lines);
  if (photo.captions) {
    const button = element("button", { textContent: "Copy" });
    button.setAttribute("aria-label", `Copy the caption of ${photo.name}`);
    button.onclick = () => copy(photo.captions.map((caption) => caption.text).join("\n"), button);
    text.append(button);
  }
  by("photos").append(element("li", {}, look, text));
}

async function copy(text, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = element("textarea", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = label; }, 1500);
}

const rows = () => photos.flatMap((photo) => (photo.captions || []).map((caption, i) => [photo.name, i + 1, caption.text, caption.score.toFixed(4)]));

function table() {
  const cell = (value) => (/[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
  return [["image", "rank", "caption", "score"], ...rows()].map((row) => row.map(cell).join(",") + "\r\n").join("");
}

function save() {
  const url = URL.createObjectURL(new Blob([table()], { type: "text/csv" }));
  element("a", { href: url, download: "captions.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// ---- ways to add photos

by("choose").onclick = () => by("files").click();
by("folder").onclick = () => by("tree").click();
for (const id of ["files", "tree", "snap"]) {
  by(id).onchange = ({ target }) => {
    const files = [...target.files];
    target.value = "";
    add(id === "tree" ? files.filter((file) => file.type.startsWith("image/")) : files);
  };
}
by("stop").onclick = () => { queue = []; };
by("copy").onclick = () => copy(rows().map(([name, , text]) => `${name}\t${text}\n`).join(""), by("copy"));
by("save").onclick = save;
by("clear").onclick = () => {
  photos.length = spent = 0;
  for (const image of by("photos").querySelectorAll("img")) URL.revokeObjectURL(image.src);
  by("photos").replaceChildren();
  finish();
};

/** The files of a dropped entry, folders to the bottom. */
async function filesOf(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader(), found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return found;
    for (const below of some) found.push(...(await filesOf(below)));
  }
}

document.addEventListener("dragover", (event) => { event.preventDefault(); by("drop").classList.add("over"); });
document.addEventListener("dragleave", () => by("drop").classList.remove("over"));
document.addEventListener("drop", async (event) => {
  event.preventDefault();
  by("drop").classList.remove("over");
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry());
  if (!entries.length || entries.some((entry) => !entry)) return add(event.dataTransfer.files);
  add((await Promise.all(entries.map(filesOf))).flat());
});
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) add(files);
});

// ---- camera: live where the browser allows it, else the device's own

let stream;
by("camera").onclick = async () => {
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch {
    by("snap").click();
    return;
  }
  by("video").srcObject = stream;
  by("shoot").showModal();
};
by("take").onclick = async () => {
  const video = by("video"), canvas = element("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  by("shoot").close();
  if (blob) add([new File([blob], "camera.png", { type: "image/png" })]);
};
by("close").onclick = () => by("shoot").close();
by("shoot").onclose = () => { stream.getTracks().forEach((track) => track.stop()); by("video").srcObject = null; };

// ---- for other scripts: await captioner.ready; await captioner.caption(file, 3)

const ready = start();
ready.then(() => { if (!running) finish(); }, (error) => { say(`This browser cannot run the models: ${error.message}`); });
window.captioner = {
  ready,
  ask,
  caption: async (file, several = 1) => { await ready; return (await ask("caption", { file, several })).captions; },
};
