// Computes captions, beside the page: preprocessing as Pillow's, three ONNX graphs, beam search as clipcap's.
"use strict";

let ort, config, tokens, sessions;

// ---- a picture as the encoder takes it

const FILTERS = {
  bicubic: { support: 2, weight: (x) => {
    x = Math.abs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
  } },
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
};
const BITS = 22; // of Pillow's fixed-point weights

/** For each of `size` output places: its first input place, and whole-number weights, as Pillow computes them. */
function weights(length, size, filter) {
  const scale = length / size, stretch = Math.max(scale, 1), support = filter.support * stretch;
  return Array.from({ length: size }, (_, place) => {
    const center = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const last = Math.min(length, Math.trunc(center + support + 0.5));
    const found = [];
    for (let x = first; x < last; x++) found.push(filter.weight((x - center + 0.5) / stretch));
    const sum = found.reduce((a, b) => a + b, 0);
    const whole = found.map((w) => {
      const exact = (sum ? w / sum : w) * 2 ** BITS;
      return Math.trunc(exact < 0 ? exact - 0.5 : exact + 0.5);
    });
    return { first, whole };
  });
}

const rounded = (sum) => Math.min(255, Math.max(0, (sum + 2 ** (BITS - 1)) >> BITS));

/** Pixels {data: RGBA, width, height} → bytes RGB of another size, to the bit as Pillow's resize. */
function resize(image, width, height, filter) {
  const across = weights(image.width, width, filter), down = weights(image.height, height, filter);
  const top = down[0].first, bottom = down[height - 1].first + down[height - 1].whole.length;
  const rows = new Uint8ClampedArray((bottom - top) * width * 3);
  for (let y = top, at = 0; y < bottom; y++) {
    for (let x = 0; x < width; x++) {
      const { first, whole } = across[x];
      let r = 0, g = 0, b = 0;
      for (let k = 0, from = (y * image.width + first) * 4; k < whole.length; k++, from += 4) {
        const w = whole[k];
        r += image.data[from] * w; g += image.data[from + 1] * w; b += image.data[from + 2] * w;
      }
      rows[at++] = rounded(r); rows[at++] = rounded(g); rows[at++] = rounded(b);
    }
  }
  const out = new Uint8ClampedArray(width * height * 3);
  for (let y = 0; y < height; y++) {
    const { first, whole } = down[y];
    for (let x = 0; x < width * 3; x++) {
      let sum = 0;
      for (let k = 0, from = (first - top) * width * 3 + x; k < whole.length; k++, from += width * 3) {
        sum += rows[from] * whole[k];
      }
      out[y * width * 3 + x] = rounded(sum);
    }
  }
  return { data: out, width, height };
}

/** Half to even, as Python rounds. */
function even(x) {
  const below = Math.floor(x);
  return x - below === 0.5 ? below + (below % 2) : Math.round(x);
}

/** Pixels RGBA → float32 [1, 3, R, R]. */
function preprocess(image) {
  const how = config.preprocess;
  let [height, width] = how.size || [0, 0];
  if (how.shorter) {
    const long = Math.trunc((how.shorter * Math.max(image.width, image.height)) / Math.min(image.width, image.height));
    [width, height] = image.width <= image.height ? [how.shorter, long] : [long, how.shorter];
  }
  const small = resize(image, width, height, FILTERS[how.filter]);
  const [tall, wide] = how.crop || [height, width];
  const left = even((width - wide) / 2), top = even((height - tall) / 2);
  const pixels = new Float32Array(3 * tall * wide);
  for (let c = 0, at = 0; c < 3; c++) {
    for (let y = 0; y < tall; y++) {
      for (let x = 0; x < wide; x++) {
        const inside = x + left >= 0 && x + left < width && y + top >= 0 && y + top < height;
        const value = inside ? small.data[((y + top) * width + x + left) * 3 + c] : 0;
        pixels[at++] = (value / 255 - how.mean[c]) / how.std[c];
      }
    }
  }
  return new ort.Tensor("float32", pixels, [1, 3, tall, wide]);
}

const RIBBON = 32; // images longer than this many times their width are cut

/** A file → upright pixels on white, and a small JPEG to show. */
async function read(file) {
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(file, options);
  const longest = RIBBON * Math.min(bitmap.width, bitmap.height);
  const left = Math.max(0, bitmap.width - longest) >> 1, top = Math.max(0, bitmap.height - longest) >> 1;
  const width = bitmap.width - 2 * left, height = bitmap.height - 2 * top;
  const pixels = drawn(bitmap, width, height, left, top).getImageData(0, 0, width, height);
  const shrink = Math.min(1, 224 / Math.min(width, height));
  const look = drawn(bitmap, Math.max(1, width * shrink), Math.max(1, height * shrink), left, top, width, height);
  const jpeg = await look.canvas.convertToBlob({ type: "image/jpeg", quality: 0.85 });
  bitmap.close();
  return { pixels, jpeg };
}

/** A part of a bitmap, drawn on white. */
function drawn(bitmap, width, height, left, top, fromWidth = width, fromHeight = height) {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, left, top, fromWidth, fromHeight, 0, 0, width, height);
  return context;
}

// ---- the language model

/** Logits after prefix [B, P, E] and tokens [B, T], where P or T may be 0, and the cache with them. */
async function step(prefix, ids, rows, past) {
  const inputs = { prefix, input_ids: new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [rows, ids.length / rows]) };
  past.forEach((states, i) => { inputs[`past_key_values.${i >> 1}.${i % 2 ? "value" : "key"}`] = states; });
  const found = await sessions.language_model.run(inputs);
  return { logits: found.logits.data, past: past.map((_, i) => found[`present.${i >> 1}.${i % 2 ? "value" : "key"}`]) };
}

/** Cached states in which row n continues row `from[n]`. */
function rowsOf(states, from) {
  const [, ...dims] = states.dims, size = dims.reduce((a, b) => a * b, 1);
  const data = new Float32Array(from.length * size);
  from.forEach((row, n) => data.set(states.data.subarray(row * size, (row + 1) * size), n * size));
  return new ort.Tensor("float32", data, [from.length, ...dims]);
}

/** The k likeliest tokens of a row of logits: [token, log-probability] each, likeliest first. */
function likeliest(logits, k) {
  let largest = -Infinity, sum = 0;
  for (const x of logits) if (x > largest) largest = x;
  for (const x of logits) sum += Math.exp(x - largest);
  const shift = largest + Math.log(sum), best = [];
  for (let token = 0; token < logits.length; token++) {
    if (best.length === k && logits[token] <= best[k - 1][1]) continue;
    let place = best.length;
    while (place && best[place - 1][1] < logits[token]) place--;
    best.splice(place, 0, [token, logits[token]]);
    if (best.length > k) best.pop();
  }
  return best.map(([token, x]) => [token, x - shift]);
}

/** Beam search, as clipcap's: finished beams stay in the competition with their average (ClipCap, section 3.4). */
async function search(prefix, beams) {
  const width = prefix.dims[2], stop = new Set(config.stop_ids);
  const empty = new ort.Tensor("float32", new Float32Array(0), [1, config.heads, 0, config.head_width]);
  let { logits, past } = await step(prefix, [], 1, Array(2 * config.layers).fill(empty));
  let live = likeliest(logits, beams).map(([token, total]) => ({ ids: [token], total, stopped: stop.has(token) }));
  past = past.map((states) => rowsOf(states, live.map(() => 0)));
  const nothing = new ort.Tensor("float32", new Float32Array(0), [live.length, 0, width]);
  for (let length = 2; length <= config.max_new_tokens && !live.every((beam) => beam.stopped); length++) {
    ({ logits, past } = await step(nothing, live.map((beam) => beam.ids.at(-1)), live.length, past));
    const size = logits.length / live.length;
    const candidates = live.flatMap((beam, parent) => beam.stopped
      ? [{ ...beam, parent }]
      : likeliest(logits.subarray(parent * size, (parent + 1) * size), beams).map(([token, gain]) => (
        { ids: [...beam.ids, token], total: beam.total + gain, stopped: stop.has(token), parent })));
    live = candidates.sort((a, b) => average(b) - average(a)).slice(0, live.length);
    past = past.map((states) => rowsOf(states, live.map((beam) => beam.parent)));
  }
  return live.sort((a, b) => average(b) - average(a)).map((beam) => ({ ids: beam.ids, score: average(beam) }));
}

const average = (beam) => beam.total / beam.ids.length;

/** Token ids → text. */
function decode(ids) {
  const shown = config.hidden_ids.includes(ids.at(-1)) ? ids.slice(0, -1) : ids;
  const bytes = shown.map((id) => tokens[id]).join("");
  return tidy(new TextDecoder().decode(Uint8Array.from(bytes, (c) => c.charCodeAt(0))));
}

// ---- captions as text: clipcap's captioning/tidy.py

const SPACE = "[ \\t\\n\\r\\f\\v\\x1c-\\x1f\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]";
const SPACES = new RegExp(`${SPACE}+`, "gu"), OWN_BLANKS = ["\u00a0", "\u202f", "\u3000"];
const HIDDEN = new RegExp(`(?!${SPACE})[\\p{Cc}\\p{Cs}\\p{Co}\\p{Cn}\\ufffd]`, "gu");
const WORD = /[\p{L}\p{Nl}\p{No}]+/gu, LATIN = /^[\x00-\x7f\p{Script=Latin}\p{Lm}]*$/u;
const CONTRACTION = /(?<![\p{L}\p{N}_])([\p{L}\p{N}_]+) (n't|'(?:s|re|ve|ll|d|m))(?![\p{L}\p{N}_])/gu;

function tidy(caption) {
  const { english, foreign, wide } = config.tidy;
  let text = caption.replace(HIDDEN, "").replace(SPACES, (found) => (OWN_BLANKS.includes(found) ? found : " "));
  text = text.replace(new RegExp(`^${SPACE}+|${SPACE}+$`, "gu"), "");
  const count = (pattern) => (text.match(new RegExp(pattern, "gu")) || []).length;
  if (count(`[${wide}] +(?=[${wide}])`) > count(`[${wide}](?=[${wide}])`)) {
    text = text.replace(new RegExp(`(?<=[${wide}]) +(?=[${wide}.,!?;:])`, "gu"), "");
  }
  const words = (text.match(WORD) || []).map((word) => word.toLowerCase());
  if (!words.every((word) => LATIN.test(word))) return text;
  text = text.replace(/ +([.,)\]}])/g, "$1").replace(/([(\[{]) +/g, "$1");
  const strange = words.filter((word) => foreign.includes(word) || /[^\x00-\x7f]/.test(word)).length;
  const own = words.filter((word) => english.includes(word)).length;
  if (!/[«»¿¡]/.test(text) && (strange === 0 || own > strange)) {
    text = text.replace(/ +([!?;:%])/g, "$1").replace(CONTRACTION, "$1$2");
  }
  return text;
}

// ---- messages of the page

async function load(given) {
  ({ config, tokens } = given);
  const url = URL.createObjectURL(new Blob([given.library], { type: "text/javascript" }));
  ort = await import(url);
  URL.revokeObjectURL(url);
  Object.assign(ort.env.wasm, { wasmBinary: given.wasm, numThreads: 1, proxy: false });
  ort.env.logLevel = "error";
  sessions = {};
  for (const [name, graph] of Object.entries(given.graphs)) {
    sessions[name] = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
  }
}

async function caption({ file, several }) {
  const { pixels, jpeg } = await read(file);
  const started = performance.now();
  const { clip_embedding } = await sessions.encoder.run({ pixels: preprocess(pixels) });
  const { prefix } = await sessions.mapper.run({ clip_embedding });
  const found = await search(prefix, Math.max(config.beam_size, several));
  const captions = found.slice(0, several).map(({ ids, score }) => ({ text: decode(ids), token_ids: ids, score }));
  return { captions, jpeg, ms: performance.now() - started };
}

const WORK = { load, caption, tidy: async (text) => tidy(text), pixels: async ({ file }) => preprocess((await read(file)).pixels).data };

self.onmessage = async ({ data: { id, work, given } }) => {
  try {
    self.postMessage({ id, answer: await WORK[work](given) });
  } catch (error) {
    self.postMessage({ id, error: String((error && error.message) || error) });
  }
};
