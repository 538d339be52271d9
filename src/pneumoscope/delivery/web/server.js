// Talks to the server of this page, and to nothing else. Comes in: files. Goes out: rows.

const TRIES = 60;

let key = "";

export function useKey(given) {
  key = given;
}

function headers() {
  return key ? { "X-API-Key": key } : {};
}

export async function loadModel() {
  const response = await fetch("v1/model", { headers: headers() });
  if (response.status === 401) return null;
  if (!response.ok) throw new Error(`/v1/model: ${response.status}`);
  return response.json();
}

// One row for a file, whatever happens; waits and asks again where the server is full.
export async function answerFor(file, stopped) {
  for (let tried = 0; tried < TRIES && !stopped(); tried += 1) {
    const body = new FormData();
    body.append("file", file, file.name);
    let response;
    try {
      response = await fetch("v1/predictions?preview=true", { method: "POST", body, headers: headers() });
    } catch {
      return failed(file, "unreachable", "");
    }
    if (response.status === 503 || response.status === 429) {
      await pause(Number(response.headers.get("Retry-After")) || 1);
      continue;
    }
    const row = await response.json().catch(() => ({}));
    return "path" in row ? row : failed(file, row.reason ?? "", row.detail ?? "");
  }
  return failed(file, "overloaded", "");
}

function failed(file, reason, detail) {
  return { path: file.name, status: "error", reason, detail, probability: null, prediction: null, threshold: null, input_score: null };
}

function pause(seconds) {
  return new Promise((resume) => setTimeout(resume, 1000 * seconds));
}

// A PNG in base64 as a picture that a canvas can draw; null stays null.
export async function picture(base64) {
  if (!base64) return null;
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return createImageBitmap(new Blob([bytes], { type: "image/png" }));
}
