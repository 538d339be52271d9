// The meaning of results and rejections in plain words, from a row and the model's document.

const REFUSALS = {
  not_an_image: "This file is not an image in a supported format.",
  empty_file: "The file is empty.",
  truncated: "The file ends too early. It may have been truncated while it was copied: fetch it again.",
  corrupt: "The file is damaged. Fetch it again from where it was made.",
  unsupported_encoding: "The image is stored in a way that can't be read here. Export it as PNG or uncompressed DICOM.",
  file_too_large: "The file is larger than this server accepts.",
  too_many_pixels: "The image has more pixels than this server accepts. Scale it down.",
  too_complex: "Reading the image would take far longer than any X-ray does. Save it again as PNG or uncompressed DICOM.",
  too_small: "The image is too small to be scored. Give the original, not a thumbnail.",
  extreme_aspect: "The image is far too narrow or too wide for a whole chest X-ray.",
  multi_frame: "The file holds several frames. Give a single image.",
  no_pixel_data: "The DICOM file holds no image.",
  non_finite_pixels: "Some of its pixel values are not numbers.",
  blank: "The image is blank: all its pixels have the same value.",
  wrong_modality: "According to its header this is not an X-ray.",
  wrong_body_part: "According to its header this shows another body part than the chest.",
  not_a_chest_xray: "This differs from the X-rays that the model was trained on. It may not be a frontal chest X-ray, or the patient may be of another age: the model that ships was trained on children of 1 to 5 years.",
  outside_age_range: "According to its header the patient's age is outside the range that the model is for.",
  rotated: "The image seems to be rotated. Turn it upright.",
  inverted: "Black and white seem to be swapped. Invert it.",
  lateral_view: "This seems to be a lateral view. The model was trained on frontal views only.",
  no_key: "The server requires a valid API key.",
  rate_limited: "Too many requests. Wait a little.",
  overloaded: "The server is busy. Try again in a moment.",
  unreachable: "The server can't be reached. Is it still running?",
  gone: "The browser can no longer read this file: it was moved, changed or removed. Choose it again.",
};

const UNREADABLE = new Set(["not_an_image", "empty_file", "truncated", "corrupt", "unsupported_encoding", "no_pixel_data", "not_found", "permission_denied", "gone", "internal_error"]);
const NOT_TAKEN = new Set(["file_too_large", "no_key", "rate_limited", "overloaded", "unreachable"]);

// Why an image is not displayed.
export function noPicture(row) {
  if (NOT_TAKEN.has(row.reason)) return "No image: the server did not accept the file.";
  if (UNREADABLE.has(row.reason)) return "No image: the file could not be read.";
  return "No image: it was rejected.";
}

export const LOADING = "Loading the image again …";
export const NOT_KEPT = "The image is no longer in memory and can't be loaded again. Choose the file again.";
export const OWN_PICTURE = "The image is shown as your browser decodes it.";

export function verdict(row) {
  if (row.status !== "ok") return row.status === "refused" ? "No result: rejected" : "No result";
  if (row.prediction === "uncertain") return "Indeterminate: the model abstains";
  return row.prediction === "PNEUMONIA" ? "Predicted: pneumonia" : "Predicted: normal";
}

export function inShort(row) {
  if (row.status !== "ok") return row.status === "refused" ? "rejected" : "no result";
  return { PNEUMONIA: "pneumonia", NORMAL: "normal" }[row.prediction] ?? "indeterminate";
}

// The images that the model's stated metrics were measured on.
export function measuredOn(model) {
  return model.validation.on ?? "the validation images, where the threshold was chosen";
}

export function explained(row, model) {
  if (row.status !== "ok") return REFUSALS[row.reason] ?? "There is no result for this file.";
  if (row.prediction === "uncertain") {
    return `The probability is close to the threshold of ${fixed(row.threshold)}, so the model abstains. Treat it as no result.`;
  }
  const side = row.prediction === "PNEUMONIA" ? "at or above" : "below";
  const text = `The probability is ${side} the threshold of ${fixed(row.threshold)}.`;
  const metrics = model?.validation?.metrics;
  if (!metrics?.sensitivity || !metrics?.specificity) return text;
  const missed = 1 - metrics.sensitivity.value;
  const alarms = 1 - metrics.specificity.value;
  return row.prediction === "PNEUMONIA"
    ? `${text} On ${measuredOn(model)}, pneumonia was also predicted for ${percent(alarms)} of those without it; expect more elsewhere.`
    : `${text} On ${measuredOn(model)}, normal was also predicted for ${percent(missed)} of those with pneumonia; expect more elsewhere.`;
}

export function inDetail(row) {
  if (row.status === "ok") {
    const distance = typeof row.input_score === "number" ? `Distance from the training images: ${fixed(row.input_score)} (limit 1.00).` : "";
    return [distance, cautions(row)].filter(Boolean).join(" ");
  }
  return row.detail ? `${row.detail[0].toUpperCase()}${row.detail.slice(1)}.` : "";
}

// Warnings about the file, if there are any.
export function cautions(row) {
  return row.warnings ? `Warning: ${row.warnings}.` : "";
}

export function aboutMap(hasMap) {
  return hasMap ? "The heatmap shows coarsely which regions raised the probability; it does not outline disease." : "";
}

export function aboutModel(model) {
  const data = model.training_data;
  const auc = model.validation?.metrics?.auc?.value;
  const parts = [`Model ${model.id}`];
  if (data.images) parts.push(`trained on ${data.images.toLocaleString("en")} images of ${data.patients.toLocaleString("en")} patients`);
  if (typeof auc === "number") parts.push(`AUC ${auc.toFixed(3)} on ${model.validation.on ?? "validation"}`);
  parts.push(`threshold ${fixed(model.threshold.value)} (${model.threshold.rule})`);
  return `${parts.join(" · ")}.`;
}

// Three digits; never 0 or 1 by rounding alone.
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
