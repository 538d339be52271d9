// What answers and refusals mean, in plain words. Comes in: an answer's row, the model's document.
// Goes out: text. Knows nothing of the page.

const REFUSALS = {
  not_an_image: "This file is no image that can be read here.",
  empty_file: "The file is empty.",
  truncated: "The file ends too early. It may have been cut off while it was copied: fetch it again.",
  corrupt: "The file is damaged. Fetch it again from where it was made.",
  unsupported_encoding: "The image is stored in a way that can't be read here. Export it as PNG or uncompressed DICOM.",
  file_too_large: "The file is larger than this server takes.",
  too_many_pixels: "The image has more pixels than this server takes. Scale it down.",
  too_complex: "Reading the image would take far longer than any X-ray does. Save it anew, as PNG or uncompressed DICOM.",
  too_small: "The image is too small to be answered for. Give the original, not a thumbnail.",
  extreme_aspect: "The image is far longer than wide, or wider than long: no whole film.",
  multi_frame: "The file holds several frames. Give one film.",
  no_pixel_data: "The DICOM file holds no picture.",
  non_finite_pixels: "Some of its pixels are no numbers.",
  blank: "The image shows nothing: all its pixels are alike.",
  wrong_modality: "By its header this is no X-ray.",
  wrong_body_part: "By its header this shows something else than a chest.",
  not_a_chest_xray: "This is unlike the X-rays that the model was trained on. It may show something else than a chest from the front, or a patient of another age: the model that ships was trained on children of 1 to 5 years.",
  outside_age_range: "By its header the patient's age is outside the range that the model was made for.",
  rotated: "The film seems to lie on its side or head. Turn it upright.",
  inverted: "Black and white seem to be swapped. Invert it.",
  lateral_view: "This seems to be a view from the side. The model knows front views alone.",
  no_key: "The server wants an API key, or another one.",
  rate_limited: "Too many films at once from here. Wait a little.",
  overloaded: "The server has too much to do. Try again in a moment.",
  unreachable: "The server can't be reached. Is it still running?",
  gone: "The browser can't read this file any more: it was moved, changed or removed. Choose it again.",
};

const UNREADABLE = new Set(["not_an_image", "empty_file", "truncated", "corrupt", "unsupported_encoding", "no_pixel_data", "not_found", "permission_denied", "gone", "internal_error"]);
const NOT_TAKEN = new Set(["file_too_large", "no_key", "rate_limited", "overloaded", "unreachable"]);

// Why no picture is shown of an image.
export function noPicture(row) {
  if (NOT_TAKEN.has(row.reason)) return "No picture: the server did not take the file.";
  if (UNREADABLE.has(row.reason)) return "No picture: the file could not be read.";
  return "No picture: the image was refused.";
}

export const LOADING = "Loading the picture again …";
export const NOT_KEPT = "The picture is no longer kept, and can't be loaded again. Choose the file again.";
export const OWN_PICTURE = "The picture is as your browser reads it.";

export function verdict(row) {
  if (row.status !== "ok") return row.status === "refused" ? "No answer: refused" : "No answer";
  if (row.prediction === "uncertain") return "Uncertain: the model gives no class";
  return row.prediction === "PNEUMONIA" ? "Flagged as pneumonia" : "Not flagged";
}

export function inShort(row) {
  if (row.status !== "ok") return row.status === "refused" ? "refused" : "no answer";
  return { PNEUMONIA: "pneumonia", NORMAL: "normal" }[row.prediction] ?? "uncertain";
}

export function explained(row, model) {
  if (row.status !== "ok") return REFUSALS[row.reason] ?? "There is no answer for this file.";
  if (row.prediction === "uncertain") {
    return `So near the threshold of ${fixed(row.threshold)} the model withholds its class. Take it as no answer.`;
  }
  const side = row.prediction === "PNEUMONIA" ? "At or above" : "Below";
  const text = `${side} the threshold of ${fixed(row.threshold)}, so the film is ${row.prediction === "PNEUMONIA" ? "flagged" : "not flagged"}.`;
  const metrics = model?.validation?.metrics;
  if (!metrics?.sensitivity || !metrics?.specificity) return text;
  const missed = 1 - metrics.sensitivity.value;
  const alarms = 1 - metrics.specificity.value;
  return row.prediction === "PNEUMONIA"
    ? `${text} In the model's own validation ${percent(alarms)} of films without pneumonia were flagged too.`
    : `${text} In the model's own validation ${percent(missed)} of films with pneumonia were not flagged either.`;
}

export function inDetail(row) {
  if (row.status === "ok") {
    const distance = typeof row.input_score === "number" ? `Distance from the training images: ${fixed(row.input_score)} (limit 1.00).` : "";
    return [distance, cautions(row)].filter(Boolean).join(" ");
  }
  return row.detail ? `${row.detail[0].toUpperCase()}${row.detail.slice(1)}.` : "";
}

// Cautions that reading the file gave, if the server sends any.
function cautions(row) {
  const told = Array.isArray(row.warnings) ? row.warnings.join("; ") : row.warnings ?? "";
  return told ? `Read with a caution: ${told}.` : "";
}

export function aboutMap(hasMap) {
  return hasMap ? "The heatmap shows what raised the answer, coarsely; it does not outline an illness." : "";
}

export function aboutModel(model) {
  const data = model.training_data;
  const auc = model.validation?.metrics?.auc?.value;
  const parts = [`Model ${model.id}`];
  if (data.images) parts.push(`trained on ${data.images.toLocaleString("en")} films of ${data.patients.toLocaleString("en")} patients`);
  if (typeof auc === "number") parts.push(`validation AUC ${auc.toFixed(3)}`);
  parts.push(`threshold ${fixed(model.threshold.value)} (${model.threshold.rule})`);
  return `${parts.join(" · ")}.`;
}

// Three digits, and no certainty that rounding alone would make.
export function chance(probability) {
  if (probability > 0.9995) return "> 0.999";
  return probability < 0.0005 ? "< 0.001" : fixed(probability, 3);
}

export function fixed(value, digits = 2) {
  return value.toFixed(digits);
}

export function percent(share, digits = 0) {
  return `${(100 * share).toFixed(digits)} %`;
}
