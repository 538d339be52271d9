// Predictive values at a prevalence, from sensitivity and specificity on the model's validation, by
// Bayes' rule. Ranges are the ends of the 95 % intervals.

import { fixed, measuredOn, percent } from "./words.js";

const byId = (id) => document.getElementById(id);

// Both rates at the model's own threshold, with intervals; null where validation lacks them.
function ownRates(model) {
  const { sensitivity, specificity } = model.validation?.metrics ?? {};
  const known = (rate) => rate && typeof rate.value === "number";
  return known(sensitivity) && known(specificity) ? { sensitivity, specificity } : null;
}

// Both rates at the lower edge of bin `step` of validation's histogram of probabilities.
export function ratesAt(histogram, step) {
  const sum = (counts) => counts.reduce((a, b) => a + b, 0);
  const { normal, pneumonia } = histogram;
  if (!sum(normal) || !sum(pneumonia)) return null;
  return {
    sensitivity: { value: sum(pneumonia.slice(step)) / sum(pneumonia) },
    specificity: { value: sum(normal.slice(0, step)) / sum(normal) },
  };
}

// Positive and negative predictive value, with the four cells per patient; null for 0 of 0.
export function predictiveValues(sensitivity, specificity, prevalence) {
  const tp = sensitivity * prevalence;
  const fp = (1 - specificity) * (1 - prevalence);
  const tn = specificity * (1 - prevalence);
  const fn = (1 - sensitivity) * prevalence;
  return { tp, fp, tn, fn, ppv: tp + fp > 0 ? tp / (tp + fp) : null, npv: tn + fn > 0 ? tn / (tn + fn) : null };
}

export function startPlanner(model) {
  const rates = ownRates(model);
  const source = byId("planner-source");
  if (!rates) {
    source.textContent = "The model states no sensitivity and specificity, so predictive values can't be computed.";
    return;
  }
  const { validation } = model;
  const patients = validation.patients ? ` of ${validation.patients} patients` : "";
  source.textContent = `Measured on ${measuredOn(model)} (${validation.n} images${patients}): expect lower values, also on other patients of the same hospital (model card). Measure on your own images first.`;
  byId("plan").hidden = false;
  const histogram = validation.curves?.histogram;
  const slider = byId("threshold");
  const steps = histogram?.normal?.length ?? 0;
  slider.max = steps;
  slider.disabled = steps === 0;
  let own = true;

  const update = () => {
    const prevalence = Number(byId("prevalence").value) / 100;
    const valid = prevalence > 0 && prevalence < 1;
    byId("prevalence").setAttribute("aria-invalid", String(!valid));
    const at = own ? rates : ratesAt(histogram, Number(slider.value));
    const threshold = own ? model.threshold.value : Number(slider.value) / steps;
    const words = own ? `${fixed(threshold)}, the model's own` : fixed(threshold);
    byId("threshold-text").textContent = words;
    slider.setAttribute("aria-valuetext", words);
    byId("own-threshold").disabled = own;
    write(at, valid ? prevalence : null);
  };
  slider.addEventListener("input", () => { own = false; update(); });
  byId("prevalence").addEventListener("input", update);
  byId("plan-form").addEventListener("submit", (event) => event.preventDefault());
  const back = () => { own = true; slider.value = Math.round(model.threshold.value * steps); update(); };
  byId("own-threshold").addEventListener("click", back);
  back();
}

// Without a prevalence (null) only the two rates.
function write({ sensitivity, specificity }, prevalence) {
  const at = (end) => {
    const known = prevalence !== null && [sensitivity, specificity].every((rate) => typeof rate[end] === "number");
    return known ? predictiveValues(sensitivity[end], specificity[end], prevalence) : null;
  };
  const [found, low, high] = ["value", "low", "high"].map(at);
  for (const name of ["tp", "fp", "fn", "tn"]) byId(name).textContent = found ? Math.round(1000 * found[name]) : "–";
  for (const name of ["ppv", "npv"]) {
    byId(name).textContent = typeof found?.[name] === "number" ? percent(found[name], 1) : "–";
    range(`${name}-range`, low?.[name], high?.[name]);
  }
  for (const [name, rate] of Object.entries({ sensitivity, specificity })) {
    byId(name).textContent = percent(rate.value, 1);
    range(`${name}-range`, rate.low, rate.high);
  }
}

function range(id, low, high) {
  const there = typeof low === "number" && typeof high === "number";
  byId(id).textContent = there ? `${percent(low, 1)} to ${percent(high, 1)}` : "";
}
