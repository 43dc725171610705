"use strict";
// Quantisers: the columns that each threshold of LLM.int8() keeps, and what schemes lose where the page knows it.
const Quantise = (() => {
  const { facts } = Answers;
  const { thresholds } = facts;
  const { element, datum, percent, number, ofStore, colour } = Charts;
  const COLUMNS = [
    ["scheme", "scheme", String], ["transform", "transform", String], ["threshold", "threshold", String], ["bits", "bits", number],
    ["error", "error", number], ["output_error", "output error", number], ["worst_error", "worst", number],
    ["at_layer", "at layer", String], ["at_site", "at site", String], ["kept_fraction", "kept", percent],
    ["perplexity", "perplexity", number],
  ];
  const kindOf = (row) => (row.transform === "none" ? row.scheme : `${row.scheme} ${row.transform}`);

  // Shares of the columns that the threshold of index t keeps: mean over places, the largest, and each.
  function keptAt(store, counts, t) {
    const size = store.layers.length * store.sites.length;
    const shares = Array.from(counts.subarray(t * size, (t + 1) * size), (count) => count / store.quantised.columns);
    const most = shares.indexOf(Math.max(...shares));
    return {
      shares, mean: shares.reduce((a, b) => a + b, 0) / size, largest: shares[most],
      layer: store.layers[Math.floor(most / store.sites.length)], site: store.sites[most % store.sites.length],
    };
  }

  // A chart that follows the threshold: `lines` are [label, values, colour], and `say` writes a value.
  function chart({ title, note, x, lines, points = false, state, say, move }) {
    return Charts.chart({
      title, note, label: `${title}; the line above reads the values`,
      build: (handle) => {
        const series = lines();
        const own = x();
        handle.read = (value) => {
          const at = own.indexOf(value);
          handle.reading.replaceChildren(`at ${number(value)}: `, ...(at < 0 ? ["not known"] : series.flatMap(([label, values, stroke], n) => [
            n ? " · " : "", element("b", { style: { color: stroke } }, label), ` ${say(values[at])}`])));
        };
        handle.read(thresholds[state.threshold]);
        const positive = series.flatMap(([, values]) => values.filter((value) => value > 0));
        return {
          data: [own, ...series.map(([, values]) => values.map((value) => (value > 0 ? value : null)))],
          options: {
            cursor: { y: false, points: { size: 7 }, drag: { x: false, y: false },
              bind: { click: (u) => () => { if (u.cursor.idx !== null && u.cursor.idx !== undefined) move(thresholds.indexOf(own[u.cursor.idx])); } } },
            scales: { x: { time: false, distr: 3, range: () => Charts.padded(own[0], own[own.length - 1]) },
              y: { distr: 3, range: () => (positive.length ? [Math.min(...positive) / 1.6, Math.max(...positive) * 1.6] : [0.1, 1]) } },
            axes: [Charts.logAxis({ size: 30 }), Charts.logAxis({ size: 66, values: (u, splits) => splits.map(say) })],
            series: [{}, ...series.map(([label, , stroke], n) => ({
              label, stroke: resolved(stroke), width: 2, dash: Charts.DASHES[Math.floor(n / 8) % 4], spanGaps: points, points: { show: points || own.length === 1, size: 6 },
            }))],
            hooks: {
              draw: [Charts.marker(() => thresholds[state.threshold])],
              setCursor: [(u) => handle.read(u.cursor.idx === null || u.cursor.idx === undefined ? thresholds[state.threshold] : own[u.cursor.idx])],
            },
          },
        };
      },
    });
  }

  // With more digits where one column in thousands is kept.
  const share = (value) => (value > 0 && value < 0.01 ? `${number(100 * value)}%` : percent(value));
  const resolved = (stroke) => colour(stroke.slice(4, -1)); // a canvas knows no var(--name)

  // `state` is the page's, `quoted` writes a word for a shell, and `move` is called with the index of another threshold.
  // Returns a function that shows everything anew, given the kept columns of each store.
  function build({ state, quoted, move }) {
    const panel = document.getElementById("quantise");
    panel.hidden = thresholds.length === 0;
    if (panel.hidden) return () => {};
    let kept = [];
    const knows = facts.stores.map((_, s) => s).filter((s) => facts.stores[s].quantised.columns !== null);
    const shared = chart({
      title: "Columns kept in 16 bits, mean over layers and sites", note: "A click moves the threshold there.", x: () => thresholds, state, move, say: share,
      lines: () => knows.map((s) => [facts.stores[s].name, thresholds.map((_, t) => keptAt(facts.stores[s], kept[s], t).mean), ofStore(s)]),
    });
    if (knows.length) document.getElementById("quantise-charts").append(shared.figure);

    const cards = facts.stores.map((store, s) => {
      const { quantised } = store;
      const cells = {};
      const figure = (name, title) => {
        cells[name] = element("dd", { "data-figure": name });
        return element("div", {}, element("dt", {}, title), cells[name]);
      };
      const columns = COLUMNS.filter(([name]) => quantised.rows.some((row) => row[name] !== null && row[name] !== undefined && row[name] !== "-"));
      const body = element("tbody", {});
      const jump = element("p", { class: "small jump" });
      const command = element("code", {});
      const known = [...new Set(quantised.rows.map((row) => row.threshold).filter((value) => value !== null))].sort((a, b) => a - b);
      const kinds = [...new Set(quantised.rows.filter((row) => row.threshold !== null && row[quantised.measure] > 0).map(kindOf))];
      const errors = kinds.length === 0 ? null : chart({
        title: `What is lost: ${quantised.measure.replace("_", " ")}`, note: "", x: () => known, points: true, state, move, say: number,
        lines: () => kinds.map((kind, n) => [kind, known.map((value) => {
          const row = quantised.rows.find((each) => kindOf(each) === kind && each.threshold === value);
          return row ? row[quantised.measure] : null;
        }), ofStore(n)]),
      });
      if (known.length) {
        jump.replaceChildren("With a threshold, what is lost is known at ", ...known.map((value) => element("button", {
          type: "button", "data-jump": value, "aria-label": `Threshold ${value}`, onclick: () => move(thresholds.indexOf(value)) }, number(value))));
      }
      document.getElementById("quantise-stores").append(element("section", { class: "rows", style: { "--colour": ofStore(s) }, "data-store": s, "aria-label": `Quantisers of ${store.name}` },
        element("h3", {}, store.name),
        quantised.columns === null ? element("p", { class: "flag" }, quantised.why_no_columns)
          : element("dl", { class: "figures" }, figure("mean", "columns kept"), figure("largest", "most at one place")),
        quantised.why_no_errors === null ? null : element("p", { class: "quiet small" }, quantised.why_no_errors),
        proof(quantised), quantised.left_out > 0 ? element("p", { class: "flag" }, `${Charts.whole(quantised.left_out)} rows with values that are not finite are left out of errors.`) : null,
        jump,
        quantised.rows.length === 0 ? null : element("div", { class: "scroll" }, element("table", {}, element("thead", {},
          element("tr", {}, ...columns.map(([, title]) => element("th", { scope: "col" }, title)))), body)),
        errors && errors.figure, element("details", {}, element("summary", {}, "The same on the command line"), command)));
      return { cells, body, columns, errors, command };
    });

    function card(s) {
      const store = facts.stores[s];
      const { rows } = store.quantised;
      const { cells, body, columns, command } = cards[s];
      const threshold = thresholds[state.threshold];
      if (store.quantised.columns !== null) {
        const { mean, largest, layer, site } = keptAt(store, kept[s], state.threshold);
        cells.mean.replaceChildren(datum(mean, share(mean)));
        cells.largest.replaceChildren(datum(largest, share(largest)), element("small", {}, "layer ", datum(layer, String(layer)), ` ${site}`));
      }
      const shown = rows.filter((row) => row.threshold === null || row.threshold === threshold);
      body.replaceChildren(...shown.map((row) => element("tr", {}, ...columns.map(([name, , say]) =>
        element("td", {}, row[name] === null || row[name] === undefined ? "-" : datum(row[name], say(row[name])))))));
      const folder = store.folder === null ? "STORE" : store.folder;
      const lines = [["outliers", "quantize", folder, "--threshold", threshold, ...facts.view]];
      if (!facts.view.length) lines.unshift(["outliers", "fits", folder, "--threshold", threshold]);
      command.replaceChildren(...lines.map((words) => element("span", {}, words.map(quoted).join(" "))));
    }

    let drawn = false;
    return (columns) => {
      kept = columns;
      facts.stores.forEach((_, s) => card(s));
      for (const handle of [...(knows.length ? [shared] : []), ...cards.map(({ errors }) => errors)]) {
        if (handle === null) continue;
        if (!drawn || !handle.u) handle.redraw();
        else { handle.read(thresholds[state.threshold]); handle.u.redraw(false, false); }
      }
      drawn = true;
    };
  }

  // What the model itself said, where it was run.
  function proof({ perplexity, measure, rank_correlation: rank }) {
    if (perplexity === null || perplexity === undefined) return null;
    const words = ["Perplexity ", datum(perplexity, number(perplexity)), " without a quantiser"];
    if (rank) {
      words.push("; Spearman's rank correlation of ", `${measure.replace("_", " ")} and perplexity `, datum(rank.spearman, rank.spearman.toFixed(3)),
        ` over ${rank.schemes} schemes, p = ${rank.p_value.toPrecision(2)}`);
    }
    return element("p", { class: "small proof" }, ...words, ".");
  }

  return { build };
})();
