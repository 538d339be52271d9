// The page: films in, answers shown. Puts the other modules together.

import { startPlanner } from "./planner.js";
import { answerFor, loadModel, picture, useKey } from "./server.js";
import { asCsv, download, tableRow } from "./session.js";
import { Viewer } from "./viewer.js";
import { aboutMap, aboutModel, chance, explained, fixed, inDetail, inShort, verdict } from "./words.js";

const AT_ONCE = 2;
const PICTURES_KEPT = 100;

const byId = (id) => document.getElementById(id);
const viewer = new Viewer(byId("film"));
const entries = [];
const waiting = [];
let asked = 0;
let done = 0;
let busy = 0;
let model = null;
let shown = -1;

async function start() {
  try {
    model = await loadModel();
  } catch {
    say("The server can't be reached. Is it still running?");
    return;
  }
  byId("key-form").hidden = model !== null;
  if (model === null) {
    byId("key").focus();
    return;
  }
  byId("model").textContent = aboutModel(model);
  startPlanner(model);
}

function say(text) {
  byId("said").textContent = text;
}

function take(files) {
  const given = [...files];
  if (!given.length) return;
  waiting.push(...given);
  asked += given.length;
  for (let k = 0; k < given.length && busy < AT_ONCE; k += 1) work();
  tell();
}

async function work() {
  busy += 1;
  while (waiting.length) {
    const file = waiting.shift();
    const row = await answerFor(file, () => asked === 0);
    if (asked === 0) break; // stopped meanwhile
    done += 1;
    add(row);
    tell();
  }
  busy -= 1;
  if (!busy) {
    asked = 0;
    done = 0;
    byId("progress").hidden = true;
  }
}

function tell() {
  byId("progress").hidden = asked < 2;
  byId("bar").max = Math.max(asked, 1);
  byId("bar").value = done;
  if (asked > 1 && done < asked) say(`${done} of ${asked} films answered for`);
  else if (asked > 1) say(`All ${asked} films answered for`);
  else if (done < asked) say("Reading the film …");
}

function add(row) {
  entries.push({ row, at: new Date() });
  if (entries.length > PICTURES_KEPT) {
    const old = entries[entries.length - 1 - PICTURES_KEPT].row;
    old.preview = null;
    old.map = null;
  }
  byId("drop").classList.add("small");
  byId("rows").prepend(tableRow(entries.length - 1, entries.at(-1), choose));
  show(entries.length - 1);
  if (asked < 2) say(`${row.path}: ${inShort(row)}${row.probability === null ? "" : `, probability ${chance(row.probability)}`}`);
}

function choose(number) {
  show(number);
  byId("answer").focus();
}

async function show(number) {
  shown = number;
  const { row, at } = entries[number];
  byId("case").hidden = false;
  byId("case-file").textContent = row.path;
  byId("verdict").textContent = verdict(row);
  byId("verdict").className = `verdict ${row.status === "ok" ? row.prediction.toLowerCase() : "none"}`;
  byId("words").textContent = explained(row, model);
  byId("more").textContent = inDetail(row);
  byId("map-words").textContent = aboutMap(Boolean(row.map));
  byId("scored").hidden = row.probability === null;
  if (row.probability !== null) drawScale(row);
  writePrinted(row, at);
  const lines = [...byId("rows").children];
  lines.forEach((line, k) => line.classList.toggle("chosen", lines.length - 1 - k === number));
  const [film, map] = await Promise.all([picture(row.preview), picture(row.map)]);
  if (shown !== number) return; // another was chosen while this one was decoded
  byId("film").hidden = film === null;
  byId("controls").hidden = film === null;
  byId("no-film").hidden = film !== null;
  byId("map-on").disabled = map === null;
  byId("opacity").disabled = map === null;
  byId("film").setAttribute("aria-label", `The film ${row.path}${map ? ", under its heatmap" : ""}: ${verdict(row)}`);
  viewer.show(film, map);
}

function drawScale(row) {
  byId("probability").textContent = chance(row.probability);
  byId("mark").style.left = `${100 * row.probability}%`;
  byId("mark").className = `mark ${row.prediction.toLowerCase()}`;
  byId("tick").style.left = `${100 * row.threshold}%`;
  byId("tick").classList.toggle("late", row.threshold > 0.75);
  byId("tick").classList.toggle("early", row.threshold < 0.25);
  byId("below").style.width = `${100 * row.threshold}%`;
  byId("tick-text").textContent = `threshold ${fixed(row.threshold)}`;
  byId("scale").setAttribute("aria-label", `Probability ${chance(row.probability)} on a scale from 0 to 1, threshold ${fixed(row.threshold)}`);
}

function writePrinted(row, at) {
  const facts = { File: row.path, Answered: at.toLocaleString(), Model: row.model ?? "" };
  byId("print-facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => {
    const [term, text] = [document.createElement("dt"), document.createElement("dd")];
    term.textContent = name;
    text.textContent = value;
    return [term, text];
  }));
}

function forget() {
  entries.length = 0;
  shown = -1;
  byId("rows").replaceChildren();
  byId("case").hidden = true;
  byId("drop").classList.remove("small");
  viewer.show(null, null);
  say("Nothing is kept any more.");
}

function stop() {
  waiting.length = 0;
  asked = 0;
  byId("progress").hidden = true;
  say("Stopped.");
}

function listen() {
  byId("files").addEventListener("change", (event) => {
    take(event.target.files);
    event.target.value = "";
  });
  const drop = byId("drop");
  window.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  window.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) drop.classList.remove("over");
  });
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take(event.dataTransfer.files);
  });
  window.addEventListener("paste", (event) => take(event.clipboardData.files));
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    useKey(byId("key").value.trim());
    start();
  });
  byId("map-on").addEventListener("change", (event) => viewer.set("map", event.target.checked));
  for (const name of ["opacity", "window", "level"]) {
    byId(name).addEventListener("input", (event) => viewer.set(name, event.target.value / 100));
  }
  byId("zoom-in").addEventListener("click", () => viewer.zoom(1.5));
  byId("zoom-out").addEventListener("click", () => viewer.zoom(1 / 1.5));
  byId("reset").addEventListener("click", resetView);
  byId("film").addEventListener("keydown", (event) => {
    if (event.key.toLowerCase() !== "h" || byId("map-on").disabled) return;
    byId("map-on").checked = !byId("map-on").checked;
    viewer.set("map", byId("map-on").checked);
  });
  byId("print").addEventListener("click", () => window.print());
  byId("stop").addEventListener("click", stop);
  byId("forget").addEventListener("click", forget);
  byId("download").addEventListener("click", () => download(asCsv(entries), "predictions.csv"));
}

function resetView() {
  byId("window").value = 100;
  byId("level").value = 50;
  viewer.set("window", 1);
  viewer.set("level", 0.5);
  viewer.reset();
}

listen();
start();
