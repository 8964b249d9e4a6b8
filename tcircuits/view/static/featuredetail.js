// One feature: figures, histogram, words, neighbours, and its examples with the activation of every token.

/** The figures of a feature. */
function featureFacts(data, i, detail) {
  const table = data.table;
  const facts = [
    ["Density", table.density[i] ? formatPart(table.density[i]) : "dead", "Share of positions where it is on"],
    ["Activations", formatCount(detail.count), "Positions where it is on"],
    ["Largest", formatNumber(table.largest[i]), "Largest activation"],
    ["Mean", formatNumber(table.mean[i]), "Mean activation where it is on"],
    ["Smallest", formatNumber(detail.least), "Smallest activation"],
    ["Positions", formatCount(data.positions), "Positions of the corpus; the first of a row is not counted"],
  ];
  return html(
    "dl",
    { className: "facts" },
    ...facts.map(([name, value, title]) => html("div", { title }, html("dt", {}, name), html("dd", {}, value))),
  );
}

/** The histogram of activations: bins a third of an octave wide, heights by count. */
function histogramSection(data, detail) {
  const [first, counts] = detail.bins;
  if (!counts.length) return null;
  const edge = (j) => 2 ** (data.bins.lowest + (j - 1) / data.bins.perOctave); // the lower edge of bin j
  const top = Math.max(...counts);
  const step = 600 / counts.length;
  const picture = svg("svg", { class: "histogram", viewBox: "0 0 600 96", preserveAspectRatio: "none", role: "img", "aria-label": "Histogram of activations" });
  counts.forEach((n, j) => {
    const height = (78 * n) / top;
    const low = first + j === 0 ? "below" : formatNumber(edge(first + j));
    const bar = svg("rect", { x: (j * step + 0.5).toFixed(1), y: (80 - height).toFixed(1), width: Math.max(0.5, step - 1).toFixed(1), height: height.toFixed(1) });
    bar.append(svg("title", {}, document.createTextNode(`${low} to ${formatNumber(edge(first + j + 1))}: ${formatCount(n)}`)));
    picture.append(bar);
  });
  picture.append(svg("line", { x1: 0, x2: 600, y1: 80.5, y2: 80.5 }));
  const ends = html(
    "div",
    { className: "ends dim" },
    html("span", {}, first === 0 ? `below ${formatNumber(edge(1))}` : formatNumber(edge(first))),
    html("span", {}, formatNumber(edge(first + counts.length))),
  );
  return html("section", { "aria-label": "Activations" }, html("h3", {}, "Activations", html("span", { className: "count" }, "logarithmic bins")), picture, ends);
}

/** Two lists of tokens side by side, with their scores. */
function wordLists(data, label, pairs) {
  const lists = pairs.filter(([, list]) => list && list.length);
  if (!lists.length) return null;
  const top = Math.max(1e-300, ...lists.flatMap(([, list]) => list.map(([, value]) => Math.abs(value))));
  const column = ([title, list]) => {
    const rows = list.map(([word, value]) => {
      const bar = html("span", { className: `bar ${value < 0 ? "negative" : "positive"}`, "aria-hidden": "true" });
      bar.style.setProperty("--part", `${((100 * Math.abs(value)) / top).toFixed(1)}%`);
      return html("li", {}, bar, tokenElement(wordOf(data, word)), html("span", { className: "value" }, formatNumber(value, true)));
    });
    return html("div", {}, html("h3", {}, title), html("ol", { className: "vocabulary" }, ...rows));
  };
  return html("section", { className: "promotes", "aria-label": label }, ...lists.map(column));
}

/** The nearest features, each a link, with the tokens at which it is strongest. */
function nearSection(data, detail) {
  const column = ([title, list, meaning]) => {
    const rows = list.map(([feature, cosine]) => {
      const i = data.rowOf.get(`${data.layer}/${feature}`);
      return html(
        "a",
        { href: `#${feature}` },
        html("span", { className: "cosine" }, formatNumber(cosine)),
        html("span", {}, String(feature)),
        html("span", { className: "hint" }, ...data.table.tokens[i].flatMap((w) => [tokenElement(wordOf(data, w)), " "])),
      );
    });
    return html("div", { title: meaning }, html("h3", {}, title), html("div", { className: "near" }, ...rows));
  };
  return html(
    "section",
    { className: "promotes", "aria-label": "Nearest features" },
    column(["Nearest by decoder", detail.near.decoder, "Cosine of what the features write"]),
    column(["Nearest by encoder", detail.near.encoder, "Cosine of what the features read"]),
  );
}

/** One example of this page's data: a row of text, a position in it, and the activations around that. */
function exampleLine(data, [row, pos, flat], largest) {
  const around = new Map();
  for (let k = 0; k < flat.length; k += 2) around.set(pos + flat[k], flat[k + 1]);
  const tokens = data.rows[row];
  const from = Math.max(0, pos - data.width);
  const to = Math.min(tokens.length, pos + data.width + 1);
  const texts = tokens.slice(from, to).map((token) => wordOf(data, token));
  const values = texts.map((_, k) => around.get(from + k) ?? 0);
  return exampleElement(texts, values, pos - from, largest, { before: from > 0, after: to < tokens.length });
}

function exampleSections(data, detail, largest) {
  return detail.groups.map(([name, list]) =>
    html(
      "section",
      { className: "group", "aria-label": name },
      html("h3", {}, name, html("span", { className: "count" }, formatCount(list.length))),
      ...list.map((example) => exampleLine(data, example, largest)),
    ),
  );
}

function featureContent(data, layer, feature) {
  const i = data.rowOf.get(`${layer}/${feature}`);
  if (i === undefined) return [html("p", { className: "empty-page" }, "There is no such feature in this layer.")];
  const detail = data.features[feature];
  const words = detail.words;
  const largest = Math.max(1e-30, Math.abs(data.table.largest[i]));
  return [
    html("p", { className: "dim" }, `Layer ${layer}`),
    html("h2", {}, `Feature ${feature}`),
    featureFacts(data, i, detail),
    histogramSection(data, detail),
    wordLists(data, "Effect on the vocabulary", [["Promotes", words.promotes], ["Suppresses", words.suppresses]]),
    wordLists(data, "De-embedding", [["Reads embeddings of", words.reads], ["Against embeddings of", words.against]]),
    nearSection(data, detail),
    detail.count ? null : html("p", { className: "empty" }, "It is on nowhere in this corpus, so there are no examples."),
    ...exampleSections(data, detail, largest),
  ].filter((part) => part !== null);
}
