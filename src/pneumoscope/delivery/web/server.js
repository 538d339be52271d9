// Requests to the server of this page, and to no other.

const TRIES = 60;

let key = "";

export function useKey(given) {
  key = given;
}

function headers() {
  return key ? { "X-API-Key": key } : {};
}

// What the server says of its model; null if it wants another key. Errors are worded for the page.
export async function loadModel() {
  const response = await fetch("v1/model", { headers: headers() }).catch(() => {
    throw new Error("The server can't be reached. Is it still running?");
  });
  if (response.status === 401) return null;
  if (response.status === 429 || response.status === 503) throw new Error("The server is busy. Load the page again in a minute.");
  if (!response.ok) throw new Error(`The server returned no description of its model (status ${response.status}). See its log.`);
  return response.json();
}

// One row for a file, whatever happens; waits and asks again where the server is full.
export async function resultFor(file, stopped) {
  for (let tried = 0; tried < TRIES && !stopped(); tried += 1) {
    const body = new FormData();
    body.append("file", file, file.name);
    let response;
    try {
      response = await fetch("v1/predictions?preview=true", { method: "POST", body, headers: headers() });
    } catch {
      return failed(file, (await canBeRead(file)) ? "unreachable" : "gone", "");
    }
    if (response.status === 503 || response.status === 429) {
      await pause(Number(response.headers.get("Retry-After")) || 1);
      continue;
    }
    const row = await response.json().catch(() => ({}));
    return "path" in row ? { ...row, path: placed(file, row.path) } : failed(file, row.reason ?? "", row.detail ?? "");
  }
  return failed(file, "overloaded", "");
}

function failed(file, reason, detail) {
  return { path: placed(file, file.name), status: "error", reason, detail, probability: null, prediction: null, threshold: null, input_score: null, warnings: "" };
}

// The name with the folders that the file was dropped in.
function placed(file, name) {
  const place = file.place ?? "";
  return place.includes("/") ? `${place.slice(0, place.lastIndexOf("/"))}/${name}` : name;
}

async function canBeRead(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
    return true;
  } catch {
    return false;
  }
}

function pause(seconds) {
  return new Promise((resume) => setTimeout(resume, 1000 * seconds));
}

// The file as the browser decodes it, or null: for images that the server rejected.
export async function ownPicture(file) {
  if (!/^image\/(png|jpeg|webp|bmp)$/.test(file.type)) return null;
  return createImageBitmap(file).catch(() => null);
}

// A PNG in base64 as a picture that a canvas can draw; null stays null.
export async function picture(base64) {
  if (!base64) return null;
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return createImageBitmap(new Blob([bytes], { type: "image/png" }));
}
