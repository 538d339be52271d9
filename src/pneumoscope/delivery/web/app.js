// The page: reads images, sends them to the server, and shows results.

import { startPlanner } from "./planner.js";
import { arranged, countKinds, KINDS, KIND_WORDS, PER_PAGE, summary } from "./batch.js";
import { filesOf, filesOfFolder } from "./dropped.js";
import { loadModel, ownPicture, picture, resultFor, useKey } from "./server.js";
import { asCsv, download, tableRow } from "./session.js";
import { Viewer } from "./viewer.js";
import { aboutMap, aboutModel, chance, explained, fixed, inDetail, inShort, LOADING, noPicture, NOT_KEPT, OWN_PICTURE, verdict } from "./words.js";

const AT_ONCE = 2;
const PICTURES_KEPT = 100;
const FEW = 8;

const byId = (id) => document.getElementById(id);
const viewer = new Viewer(byId("xray"));
const entries = [];
const pictured = []; // numbers of the entries whose pictures are kept, the oldest first
const asking = { kind: "", text: "", by: "time", falling: true };
let page = 0;
let batch = null; // the files under way; after a stop its requests find another one here, or none
let following = true; // each new result is shown, until one is chosen
let model = null;
let shown = -1;

async function start() {
  try {
    model = await loadModel();
  } catch (error) {
    say(error.message);
    return;
  }
  byId("key-form").hidden = model !== null;
  if (model === null) {
    if (byId("key").value) say("The server did not accept this key.");
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
  if (!given.length) {
    say("No file was found in it.");
    return;
  }
  if (!batch) {
    batch = { waiting: [], asked: 0, done: 0, busy: 0, first: entries.length };
    following = true;
  }
  batch.waiting.push(...given);
  batch.asked += given.length;
  for (let k = 0; k < given.length && batch.busy < AT_ONCE; k += 1) work(batch);
  tell();
}

async function work(mine) {
  mine.busy += 1;
  while (mine.waiting.length) {
    const file = mine.waiting.shift();
    const row = await resultFor(file, () => mine !== batch);
    if (mine !== batch) return; // stopped meanwhile
    mine.done += 1;
    add(row, file);
    tell();
  }
  mine.busy -= 1;
  if (!mine.busy) end();
}

function end() {
  batch = null;
  byId("progress").hidden = true;
}

function tell() {
  const { asked, done, first } = batch;
  byId("progress").hidden = asked < 2;
  byId("bar").max = Math.max(asked, 1);
  byId("bar").value = done;
  if (asked > 1) say(done < asked ? `${done} of ${asked}. So far ${summary(entries.slice(first))}` : summary(entries.slice(first)));
  else if (done < asked) say("Reading the image …");
}

function add(row, file) {
  entries.push({ row, file, at: new Date(), dropped: false });
  keepPictures(entries.length - 1);
  byId("drop").classList.add("small");
  list();
  if (following) show(entries.length - 1);
  if (batch.asked < 2) say(`${row.path}: ${inShort(row)}${row.probability === null ? "" : `, probability ${chance(row.probability)}`}`);
}

// Pictures take memory: those of the last hundred are kept, of older ones they are loaded again.
function keepPictures(number) {
  if (!entries[number].row.preview) return;
  pictured.push(number);
  while (pictured.length > PICTURES_KEPT) {
    const old = entries[pictured.shift()];
    old.row.preview = null;
    old.row.map = null;
    old.dropped = true;
  }
}

// The table: what was asked for, in its order, a page of it.
function list() {
  const counts = countKinds(entries);
  byId("case").classList.toggle("many", entries.length > FEW);
  byId("filters").hidden = entries.length <= FEW;
  byId("kinds").replaceChildren(...["", ...KINDS].filter((kind) => !kind || counts[kind] || kind === asking.kind).map((kind) => kindButton(kind, counts)));
  const numbers = arranged(entries, asking);
  const pages = Math.max(1, Math.ceil(numbers.length / PER_PAGE));
  page = Math.min(page, pages - 1);
  const seen = numbers.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
  const focused = document.activeElement?.closest?.("#rows tr")?.dataset.number;
  byId("rows").replaceChildren(...seen.map((number) => tableRow(number, entries[number], choose)));
  mark();
  if (focused) byId("rows").querySelector(`[data-number="${focused}"] button`)?.focus();
  byId("pager").hidden = pages < 2;
  byId("pages").textContent = `${page * PER_PAGE + 1} to ${page * PER_PAGE + seen.length} of ${numbers.length}`;
  byId("before").disabled = page === 0;
  byId("after").disabled = page === pages - 1;
  for (const head of byId("heads").children) {
    const mine = head.firstElementChild.dataset.by === asking.by;
    if (mine) head.setAttribute("aria-sort", asking.falling ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
}

function kindButton(kind, counts) {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.kind = kind;
  button.textContent = kind ? `${KIND_WORDS[kind]} ${counts[kind]}` : `All ${entries.length}`;
  button.setAttribute("aria-pressed", String(kind === asking.kind));
  button.addEventListener("click", () => {
    ask({ kind });
    byId("kinds").querySelector(`[data-kind="${kind}"]`).focus();
  });
  return button;
}

function ask(change) {
  Object.assign(asking, change);
  page = 0;
  list();
}

function mark() {
  for (const line of byId("rows").children) line.classList.toggle("chosen", Number(line.dataset.number) === shown);
}

function choose(number) {
  following = false;
  show(number);
  byId("result").focus();
}

async function show(number) {
  shown = number;
  const entry = entries[number];
  const { row, at } = entry;
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
  mark();
  if (entry.dropped) {
    present(row, null, null, LOADING);
    await loadAgain(number);
    if (shown !== number) return;
    byId("map-words").textContent = aboutMap(Boolean(row.map));
  }
  const [served, map] = await Promise.all([picture(row.preview), picture(row.map)]);
  const image = served ?? (await ownPicture(entry.file));
  if (shown !== number) return; // another was chosen while this one was decoded
  if (image && !served) byId("map-words").textContent = OWN_PICTURE;
  present(row, image, map, entry.dropped ? NOT_KEPT : noPicture(row));
}

// The picture with its controls, or the reason why there is none.
function present(row, image, map, why) {
  byId("xray").hidden = image === null;
  byId("controls").hidden = image === null;
  byId("no-image").hidden = image !== null;
  byId("no-image").textContent = why;
  byId("map-on").disabled = map === null;
  byId("opacity").disabled = map === null;
  byId("xray").setAttribute("aria-label", `The image ${row.path}${map ? ", under its heatmap" : ""}: ${verdict(row)}`);
  viewer.show(image, map);
}

async function loadAgain(number) {
  const entry = entries[number];
  const again = await resultFor(entry.file, () => shown !== number);
  if (!again.preview || !entry.dropped || entries[number] !== entry) return; // forgotten meanwhile
  entry.row.preview = again.preview;
  entry.row.map = again.map ?? null;
  entry.dropped = false;
  keepPictures(number);
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
  const facts = { File: row.path, Scored: at.toLocaleString(), Model: row.model ?? "" };
  byId("print-facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => {
    const [term, text] = [document.createElement("dt"), document.createElement("dd")];
    term.textContent = name;
    text.textContent = value;
    return [term, text];
  }));
}

function forget() {
  end();
  entries.length = 0;
  pictured.length = 0;
  shown = -1;
  Object.assign(asking, { kind: "", text: "", by: "time", falling: true });
  byId("find").value = "";
  list();
  byId("case").hidden = true;
  byId("drop").classList.remove("small");
  viewer.show(null, null);
  say("All images were removed from memory.");
}

function stop() {
  if (!batch) return;
  const { first } = batch;
  end();
  say(`Stopped. ${summary(entries.slice(first))}`);
}

function listen() {
  byId("files").addEventListener("change", (event) => {
    take(event.target.files);
    event.target.value = "";
  });
  byId("folder").addEventListener("change", (event) => {
    take(filesOfFolder(event.target.files));
    event.target.value = "";
  });
  byId("heads").addEventListener("click", (event) => {
    const by = event.target.dataset.by;
    if (by) ask({ by, falling: by === asking.by ? !asking.falling : by !== "path" });
  });
  byId("find").addEventListener("input", (event) => ask({ text: event.target.value }));
  for (const [id, step] of [["before", -1], ["after", 1]]) {
    byId(id).addEventListener("click", () => {
      page += step;
      list();
    });
  }
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
    filesOf(event.dataTransfer).then(take);
  });
  window.addEventListener("paste", (event) => {
    if ([...event.clipboardData.items].some((item) => item.kind === "file")) filesOf(event.clipboardData).then(take);
  });
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
  byId("xray").addEventListener("keydown", (event) => {
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
