// The data of a page of features: columns of the table, details by number, texts of tokens.

/** Reads the data block; `rowOf` gives the table's row of a feature on this page. */
function readFeatures(text) {
  const data = JSON.parse(text);
  const table = data.table;
  const rowOf = new Map(table.feature.map((f, i) => [`${table.layer[i]}/${f}`, i]));
  return { ...data, n: table.feature.length, rowOf };
}

/** What a number in the data stands for. */
function wordOf(data, number) {
  return data.words[number] ?? "";
}

/** The rows of the table that a search and the switch for dead features leave, in the order asked for. */
function listed(data, view) {
  const table = data.table;
  const query = view.query.trim().toLowerCase();
  const words = query ? new Set(data.words.flatMap((w, i) => (w.toLowerCase().includes(query) ? [i] : []))) : null;
  const place = /^(?:l?(\d+)\/)?#?(\d+)$/.exec(query);
  const fits = (i) =>
    !query ||
    table.tokens[i].some((w) => words.has(w)) ||
    table.promoted[i].some((w) => words.has(w)) ||
    (place && Number(place[2]) === table.feature[i] && (place[1] === undefined || Number(place[1]) === table.layer[i]));
  const rows = [];
  for (let i = 0; i < data.n; i++) if ((view.dead || table.density[i] > 0) && fits(i)) rows.push(i);
  const column = table[view.sort];
  const text = view.sort === "tokens" || view.sort === "promoted";
  const value = text ? (i) => wordOf(data, column[i][0]).trim().toLowerCase() : (i) => column[i];
  const compare = text ? (a, b) => value(a).localeCompare(value(b)) : (a, b) => value(a) - value(b);
  rows.sort((a, b) => (view.rising ? compare(a, b) : compare(b, a)) || a - b);
  return rows;
}
