// The page of silt's gateway: reads /api/status once a second, draws each stream's memory as a strip
// and asks questions by /api/ask. Text from streams is only ever put in as text.
"use strict";

const byId = (id) => document.getElementById(id);
const cards = new Map();  // stream -> its elements
let chosen = location.hash.slice(1);
let key = sessionStorage.getItem("key") || "";
let keyless = false;  // no key was given when asked: not to be asked again with each look
let asking = null;  // AbortController of the question under way

function element(kind, className, text) {
  const made = document.createElement(kind);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function bytes(n) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (n >= 1000 && unit < units.length - 1) { n /= 1000; unit++; }
  return `${unit && n < 100 ? n.toFixed(1) : Math.round(n)} ${units[unit]}`;
}

const count = (n) => Math.round(n).toLocaleString("en");

async function request(path, options = {}) {
  const headers = {...options.headers};
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await fetch(path, {...options, headers});
  if (response.status === 401) {
    const given = keyless ? null : prompt("The key of this gateway:");
    keyless = !given;
    if (given) {
      key = given;
      sessionStorage.setItem("key", key);
      return request(path, options);
    }
    throw new Error("This gateway has a key: click this line at the top to give it");
  }
  if (!response.ok) {
    let message = `${response.status} ${response.statusText}`;
    try { message = (await response.json()).error.message; } catch { /* not ours */ }
    throw new Error(message);
  }
  return response;
}

// ---- streams ----

function makeCard(name) {
  const root = element("button", "stream");
  root.type = "button";
  const top = element("div", "top");
  const card = {root, name: element("span", "name", name), numbers: element("span", "numbers"),
                strip: element("div", "strip"), below: element("div", "numbers"),
                bad: element("div", "bad"), ring: -1};
  top.append(card.name, card.numbers);
  root.append(top, card.strip, card.below, card.bad);
  root.addEventListener("click", () => choose(name));
  return card;
}

function tier(stream, name) {
  return stream.tiers.find((one) => one.name === name) || {bytes_plan: 0, bytes_used: 0};
}

function part(kind, share, title) {
  const made = element("div", `part ${kind}`);
  made.style.flex = `${share} 1 0`;
  made.title = title;
  return made;
}

function filled(kind, one, title) {
  const made = part("", Math.max(one.bytes_plan, 1), `${title}: ${bytes(one.bytes_used)} of ` +
    `${bytes(one.bytes_plan)}`);
  const fill = element("div", `fill ${kind}`);
  fill.style.width = one.bytes_plan ? `${Math.min(100, 100 * one.bytes_used / one.bytes_plan)}%` : 0;
  made.append(fill);
  return made;
}

function ringPart(stream, card, one) {
  const made = part("", Math.max(one.bytes_plan, 1), `ring: ${stream.segments_ring} of ` +
    `${stream.ring_segments} segments, ${bytes(one.bytes_used)} of ${bytes(one.bytes_plan)}`);
  for (let i = 0; i < stream.ring_segments; i++) {
    const cell = element("div", i < stream.segments_ring ? "cell full" : "cell");
    if (card.chunks !== undefined && stream.chunks > card.chunks && i === stream.segments_ring - 1)
      cell.classList.add("fresh");
    made.append(cell);
  }
  return made;
}

// Where on the disk's part a recalled segment stands, lit up for a while.
function light(card, segments) {
  card.hits = segments;
  card.litUntil = Date.now() + 6000;
}

function addTicks(stream, card, cold) {
  if (stream.recalled && stream.recalled.length && stream.recalled_us !== card.recalled) {
    if (card.recalled !== undefined) light(card, stream.recalled);
    card.recalled = stream.recalled_us;
  }
  if (!card.hits || Date.now() > card.litUntil) return;
  const all = Math.max(1, stream.chunks - stream.segments_ring);
  for (const segment of card.hits) {
    const tick = element("div", "tick");
    tick.style.left = `${Math.min(100, 100 * (segment + 0.5) / all)}%`;
    cold.append(tick);
  }
}

// Oldest first, as queries attend: cold ones grow with the logarithm of their number, so that a
// stream of millions still shows what is in memory.
function drawStrip(stream, card) {
  const parts = [];
  const plan = Math.max(stream.bytes_plan, 1);
  if (stream.segments_cold) {
    const share = plan * 0.08 * Math.log2(1 + stream.segments_cold) / 2;
    const cold = part("cold", share, `${count(stream.segments_cold)} cold segments on disk`);
    cold.textContent = count(stream.segments_cold);
    addTicks(stream, card, cold);
    parts.push(cold);
  }
  const ring = tier(stream, "ring"), pins = tier(stream, "pins");
  parts.push(filled("sinks", tier(stream, "sinks"), "sinks"));
  if (stream.pin_tokens) {
    pins.bytes_plan *= stream.pin_tokens / stream.pin_tokens_max;
    parts.push(filled("pins", pins, `${count(stream.pin_tokens)} tokens pinned`));
  }
  parts.push(filled("summary", tier(stream, "summary"), "summary"), ringPart(stream, card, ring));
  parts.push(filled("window", tier(stream, "window"), "window"));
  card.strip.replaceChildren(...parts);
  card.chunks = stream.chunks;
}

function lossText(loss) {
  if (!loss || !loss.chunks) return "";
  const sign = loss.difference < 0 ? "−" : "+";
  return `, loss ${sign}${Math.abs(loss.difference).toFixed(3)} nats against a window` +
    (loss.flagged ? ": too much" : "");
}

function drawStream(stream) {
  let card = cards.get(stream.stream);
  if (!card) {
    card = makeCard(stream.stream);
    cards.set(stream.stream, card);
  }
  card.root.classList.toggle("chosen", stream.stream === chosen);
  card.numbers.textContent = `${count(stream.tokens_acked)} tokens` +
    (stream.lag_tokens ? `, ${count(stream.lag_tokens)} behind at ` +
                         `${count(stream.tokens_per_second)}/s` : "");
  card.numbers.classList.toggle("lag", stream.lag_tokens > 0);
  drawStrip(stream, card);
  card.below.textContent = `${bytes(stream.bytes_used)} of ${bytes(stream.bytes_plan)} planned, ` +
    `${stream.parked ? "parked" : `${stream.dmc_ratio.toFixed(1)}x merged`}, ` +
    `${count(stream.chunks)} chunks, ` +
    `${bytes(stream.bytes_disk)} on disk` + lossText(stream.loss);
  card.bad.textContent = stream.degraded.join("; ");
  return card.root;
}

function drawProcess(process) {
  byId("process").textContent = `${process.model || "no model"}, ${process.kernels} on ` +
    `${process.device}, ${bytes(process.bytes_used)} of ${bytes(process.bytes_plan)} planned ` +
    `(resident ${bytes(process.bytes_resident)}), ${process.forks} of ${process.forks_max} ` +
    "questions under way";
  trouble(process.degraded.join("; "));
}

function trouble(text) {
  byId("trouble").textContent = text;
  byId("trouble").hidden = !text;
}

async function refresh() {
  try {
    const status = await (await request("/api/status")).json();
    const streams = byId("streams");
    const roots = status.streams.map(drawStream);
    drawProcess(status.process);
    if (roots.length !== streams.children.length ||
        roots.some((root, i) => streams.children[i] !== root))
      streams.replaceChildren(...roots);
    const names = new Set(status.streams.map((one) => one.stream));
    for (const name of cards.keys()) if (!names.has(name)) cards.delete(name);
    byId("none").hidden = roots.length > 0;
    if (chosen && names.has(chosen) && byId("side").hidden) choose(chosen);
  } catch (error) {
    trouble(error.message);
  }
}

async function watch() {
  for (;;) {
    if (!document.hidden) await refresh();
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

// ---- questions ----

function choose(name) {
  chosen = name;
  history.replaceState(null, "", `#${name}`);
  byId("asked-name").textContent = name;
  byId("side").hidden = false;
  document.querySelector("main").classList.add("asking");
  for (const [one, card] of cards) card.root.classList.toggle("chosen", one === name);
  byId("question").focus({preventScroll: true});
  // Narrow, it stands above the streams, perhaps a long way up.
  const box = byId("ask").getBoundingClientRect();
  if (box.top < 0 || box.bottom > innerHeight) byId("side").scrollIntoView();
}

function showDone(box, message) {
  const silt = message.done;
  const what = message.finish === "length" ? ", cut at its longest" : "";
  box.append(element("div", "faint", `at token ${count(silt.position)} of ${count(silt.acked)}, ` +
    `${(silt.wait_seconds + silt.prefill_seconds).toFixed(1)} s to read the question, ` +
    `${message.usage.completion_tokens} tokens in ${silt.decode_seconds.toFixed(1)} s${what}`));
  const card = cards.get(silt.stream);
  if (card) light(card, silt.sources.map((source) => source.segment));
  for (const source of silt.sources)
    box.append(element("div", "source", `tokens ${count(source.from)} to ${count(source.to)}: ` +
      source.text.slice(0, 300)));
}

async function readEvents(response, each) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    const frames = (rest + value).split("\n\n");
    rest = frames.pop();
    for (const frame of frames)
      if (frame.startsWith("data: ")) each(JSON.parse(frame.slice(6)));
  }
}

async function ask(event) {
  event.preventDefault();
  const question = byId("question").value.trim();
  if (!question || asking) return;
  const box = element("div", "answer");
  const text = element("div", "text");
  box.append(element("q", "", `${chosen}: ${question}`), text);
  byId("answers").prepend(box);
  asking = new AbortController();
  byId("send").disabled = true;
  byId("stop").hidden = false;
  try {
    const response = await request("/api/ask", {
      method: "POST", signal: asking.signal, headers: {"Content-Type": "application/json"},
      body: JSON.stringify({stream: chosen, question, wait: byId("wait").checked,
                            silt: {recall: byId("recall").value, wait: byId("wait").checked}}),
    });
    await readEvents(response, (message) => {
      if (message.text) text.textContent += message.text;
      if (message.error) throw new Error(message.error.message);
      if (message.done) showDone(box, message);
    });
  } catch (error) {
    const what = error.name === "AbortError" ? "stopped" : error.message;
    box.append(element("div", "bad", what));
  } finally {
    asking = null;
    byId("send").disabled = false;
    byId("stop").hidden = true;
  }
}

window.addEventListener("hashchange", () => {
  if (cards.has(location.hash.slice(1))) choose(location.hash.slice(1));
});
byId("trouble").addEventListener("click", () => { keyless = false; });
byId("ask").addEventListener("submit", ask);
byId("stop").addEventListener("click", () => asking && asking.abort());
byId("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) ask(event);
});
watch();
