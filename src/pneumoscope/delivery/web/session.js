// The images of this tab: a table with keyboard navigation, and the same rows as CSV.

import { cautions, chance, inShort } from "./words.js";

const COLUMNS = ["path", "status", "reason", "probability", "prediction", "threshold", "input_score", "warnings", "detail"];

export function tableRow(number, entry, choose) {
  const line = document.createElement("tr");
  const { row, at } = entry;
  const name = document.createElement("th");
  name.scope = "row";
  const button = document.createElement("button");
  button.type = "button";
  button.className = "link";
  button.textContent = row.path;
  button.addEventListener("click", () => choose(number));
  name.append(button);
  const result = cell(inShort(row));
  result.className = row.status === "ok" ? row.prediction.toLowerCase() : "none";
  if (row.warnings) {
    const warning = document.createElement("div");
    warning.className = "warning";
    warning.textContent = cautions(row);
    result.append(warning);
  }
  const probability = cell(row.probability === null ? "–" : chance(row.probability));
  probability.className = "num";
  line.dataset.number = number;
  line.append(name, result, probability, cell(at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" })));
  return line;
}

function cell(text) {
  const made = document.createElement("td");
  made.textContent = text;
  return made;
}

// The columns of predictions.csv. A name that a spreadsheet would run as a formula gets a quote.
export function asCsv(entries) {
  const quoted = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    const harmless = typeof value === "string" && /^[=+\-@\t]/.test(text) ? `'${text}` : text;
    return /[",\n\r]/.test(harmless) ? `"${harmless.replaceAll('"', '""')}"` : harmless;
  };
  const lines = entries.map(({ row }) => COLUMNS.map((name) => quoted(row[name])).join(","));
  return `${[COLUMNS.join(","), ...lines].join("\n")}\n`;
}

export function download(text, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
