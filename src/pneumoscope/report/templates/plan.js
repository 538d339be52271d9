
"use strict";
// Moves the page's threshold and prevalence; every number comes from the page's own data block.
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("plan-data").textContent);
  const slider = byId("plan-threshold");
  const share = byId("plan-prevalence");
  const rows = data.thresholds.length;

  // Bayes' rule from the value at even prevalence, as evaluation/plan.py does.
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
    const told = [
      show("sensitivity", sensitivity, 3),
      show("specificity", specificity, 3),
      show("ppv", spread(data.even_ppv[k], (v) => at(v, p)), 3),
      show("npv", spread(data.even_npv[k], (v) => at(v, 1 - p)), 3),
    ];
    // What is missed falls where sensitivity rises: the ends change places.
    const turned = ([value, low, high]) => [value, high, low];
    const missed = show("missed", turned(spread(sensitivity, (v) => 1000 * p * (1 - v))), 1);
    const alarms = show("alarms", turned(spread(specificity, (v) => 1000 * (1 - p) * (1 - v))), 1);
    byId("plan-told").textContent =
      `Threshold ${threshold}, prevalence ${percent} %: sensitivity ${told[0]}, specificity ` +
      `${told[1]}, PPV ${told[2]}, NPV ${told[3]}; ${missed} missed and ${alarms} false alarms ` +
      `per 1,000.`;
  };

  slider.max = String(rows - 1);
  slider.value = String(data.at);
  share.value = String(Number((100 * data.prevalence).toFixed(2)));
  slider.addEventListener("input", update);
  share.addEventListener("input", update);
  byId("plan-controls").hidden = false;
  update();
})();
