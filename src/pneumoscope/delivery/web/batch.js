// Many results: counts, filters, sorting, paging, and a summary sentence. Does not draw.

export const PER_PAGE = 20;
export const KINDS = ["pneumonia", "normal", "uncertain", "refused", "unread"];
export const KIND_WORDS = { pneumonia: "Pneumonia", normal: "Normal", uncertain: "Indeterminate", refused: "Rejected", unread: "Not read" };

export function kindOf(row) {
  if (row.status === "ok") return row.prediction.toLowerCase();
  return row.status === "refused" ? "refused" : "unread";
}

export function countKinds(entries) {
  const counts = Object.fromEntries(KINDS.map((kind) => [kind, 0]));
  for (const { row } of entries) counts[kindOf(row)] += 1;
  return counts;
}

const KEYS = {
  path: (entry) => entry.row.path,
  result: (entry) => KINDS.indexOf(kindOf(entry.row)),
  probability: (entry) => entry.row.probability,
  time: (entry, number) => number,
};

// The numbers of the entries to show. What has no probability stands last, whichever way.
export function arranged(entries, { kind, text, by, falling }) {
  const wanted = text.trim().toLowerCase();
  const kept = entries
    .map((entry, number) => ({ number, row: entry.row, key: KEYS[by](entry, number) }))
    .filter(({ row }) => (!kind || kindOf(row) === kind) && row.path.toLowerCase().includes(wanted));
  const way = falling ? -1 : 1;
  kept.sort((one, other) => {
    if ((one.key === null) !== (other.key === null)) return one.key === null ? 1 : -1;
    const order = typeof one.key === "string" ? one.key.localeCompare(other.key, undefined, { numeric: true }) : one.key - other.key;
    return order * way || one.number - other.number;
  });
  return kept.map(({ number }) => number);
}

// The summary of a batch: 200 images: 180 scored (60 pneumonia, 120 normal), 15 rejected, 5 not read.
export function summary(entries) {
  const counts = countKinds(entries);
  const scored = ["pneumonia", "normal", "uncertain"].filter((kind) => counts[kind]);
  const total = scored.reduce((sum, kind) => sum + counts[kind], 0);
  const parts = [`${total} scored${total ? ` (${scored.map((kind) => `${counts[kind]} ${kind === "uncertain" ? "indeterminate" : kind}`).join(", ")})` : ""}`];
  if (counts.refused) parts.push(`${counts.refused} rejected`);
  if (counts.unread) parts.push(`${counts.unread} not read`);
  return `${entries.length} image${entries.length === 1 ? "" : "s"}: ${parts.join(", ")}.`;
}
