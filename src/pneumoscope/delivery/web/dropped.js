// The files that were dropped or pasted, including all files in folders at any depth. A file from a
// folder has its path there as `place`.

const LEFT_OUT = /^\.|^(thumbs\.db|desktop\.ini|__macosx)$/i;

export async function filesOf(data) {
  const items = [...data.items].filter((item) => item.kind === "file");
  // Both must be read now: they are not available after the event.
  const given = items.map((item) => ({ entry: item.webkitGetAsEntry?.() ?? null, file: item.getAsFile() }));
  const found = [];
  for (const { entry, file } of given) {
    if (entry?.isDirectory) await walk(entry, found);
    else if (file) found.push(file);
  }
  return items.length ? found : [...data.files];
}

// The files of a folder field, without what file managers leave behind.
export function filesOfFolder(files) {
  const kept = [...files].filter((file) => !file.webkitRelativePath.split("/").some((part) => LEFT_OUT.test(part)));
  for (const file of kept) file.place = file.webkitRelativePath;
  return kept.sort((one, other) => one.place.localeCompare(other.place, undefined, { numeric: true }));
}

async function walk(folder, found) {
  const reader = folder.createReader();
  const entries = [];
  for (let part = await read(reader); part.length; part = await read(reader)) entries.push(...part);
  entries.sort((one, other) => one.name.localeCompare(other.name, undefined, { numeric: true }));
  for (const entry of entries.filter(({ name }) => !LEFT_OUT.test(name))) {
    if (entry.isDirectory) await walk(entry, found);
    else found.push(await fileOf(entry));
  }
}

function read(reader) {
  return new Promise((resolve) => reader.readEntries(resolve, () => resolve([])));
}

async function fileOf(entry) {
  const file = await new Promise((resolve) => entry.file(resolve, () => resolve(new File([], entry.name))));
  file.place = entry.fullPath.replace(/^\//, "");
  return file;
}
