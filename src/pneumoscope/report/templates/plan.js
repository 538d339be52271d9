
"use strict";
// Updates the table when the threshold or prevalence changes; all numbers come from the page's data.
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("plan-data").textContent);
  const slider = byId("plan-threshold");
  const share = byId("plan-prevalence");
  const rows = data.thresholds.length;

  // Bayes' rule from the value at a prevalence of 1/2, as in evaluation/plan.py.
  const at = (even, p) => {
    if (even === null) return null;
    const whole = even * p + (1 - even) * (1 - p);
    return whole === 0 ? null : (even * p) / whole;
  };
  const spread = (column, change) => column.map((value) => (value === null ? null : change(value)));
  const digits = (value, places) =>
    value === null ? "–" : value.toFixed(places).replace("-", "−");

  const show = (name, [value, low, high], places) => {
    byId(`plan-${name}`).textContent = digits(value, places);
    byId(`plan-${name}-span`).textContent =
      low === null || high === null ? "–" : `${digits(low, places)}–${digits(high, places)}`;
    return digits(value, places);
  };

  const update = () => {
    const k = Number(slider.value);
    const percent = Number(share.value);
    const valid = share.value !== "" && percent > 0 && percent < 100;
    share.setAttribute("aria-invalid", String(!valid));
    byId("plan-wrong").hidden = valid;
    if (!valid) return;
    const p = percent / 100;
    const [sensitivity, specificity] = [data.sensitivity[k], data.specificity[k]];
    const threshold = digits(data.thresholds[k], 4);
    slider.setAttribute("aria-valuetext", threshold);
    byId("plan-at").textContent = threshold;
    const shown = [
      show("sensitivity", sensitivity, 3),
      show("specificity", specificity, 3),
      show("ppv", spread(data.even_ppv[k], (v) => at(v, p)), 3),
      show("npv", spread(data.even_npv[k], (v) => at(v, 1 - p)), 3),
    ];
    // Missed cases decrease where sensitivity increases, so the limits swap places.
    const swapped = ([value, low, high]) => [value, high, low];
    const missed = show("missed", swapped(spread(sensitivity, (v) => 1000 * p * (1 - v))), 1);
    const alarms = show("alarms", swapped(spread(specificity, (v) => 1000 * (1 - p) * (1 - v))), 1);
    byId("plan-summary").textContent =
      `Threshold ${threshold}, prevalence ${percent} %: sensitivity ${shown[0]}, specificity ` +
      `${shown[1]}, PPV ${shown[2]}, NPV ${shown[3]}; ${missed} missed cases and ${alarms} false ` +
      `alarms per 1,000 patients.`;
  };

  slider.max = String(rows - 1);
  slider.value = String(data.at);
  share.value = String(Number((100 * data.prevalence).toFixed(2)));
  slider.addEventListener("input", update);
  share.addEventListener("input", update);
  byId("plan-controls").hidden = false;
  update();
})();
