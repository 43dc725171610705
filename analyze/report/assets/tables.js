"use strict";
// The outliers of each store as a table: sorted, looked up, a page at a time, and saved as CSV.
const Tables = (() => {
  const { facts, magnitudes } = Answers;
  const { element, datum, whole, percent, number, ofStore } = Charts;
  const SIZES = [25, 100, 1000];
  const COLUMNS = [
    ["sequence", "seq.", "Number of the sequence"],
    ["feature", "feature", "Index into the hidden dimension"],
    ["layers", "L%", "Share of layer units with a hit"],
    ["positions", "S%", "Share of positions with a hit"],
    ["largest", "max |x|", "Largest magnitude"],
    ["critical", "critical", "Between which two magnitudes of this page it stops being an outlier"],
  ];

  // One table for each store. `state` is the page's, `result` gives what it found in a store, and `change` is called where
  // the reader changes the state. Returns a function that shows a store's table anew.
  function build({ state, result, change }) {
    const views = facts.stores.map(() => ({ page: 0, filter: "" }));
    const tables = facts.stores.map((store, s) => {
      const heads = {};
      const head = element("tr", {}, ...COLUMNS.map(([name, title, help]) => {
        const button = element("button", { type: "button", title: help, onclick: () => {
          state.down = state.sort === name ? !state.down : !["sequence", "feature"].includes(name);
          state.sort = name;
          for (const view of views) view.page = 0;
          change();
        } }, title);
        heads[name] = element("th", { scope: "col" }, button);
        return heads[name];
      }));
      const body = element("tbody", {});
      const title = element("p", { class: "quiet small" });
      const filter = element("input", { type: "search", inputmode: "numeric", placeholder: "feature", "aria-label": `Feature to look up in ${store.name}`,
        oninput: (event) => { views[s].filter = event.target.value.trim(); views[s].page = 0; table(s); } });
      const turn = (by) => () => { views[s].page += by; table(s); };
      const back = element("button", { type: "button", onclick: turn(-1), "aria-label": "Previous rows" }, "‹");
      const next = element("button", { type: "button", onclick: turn(1), "aria-label": "Next rows" }, "›");
      const size = element("select", { "aria-label": "Rows at a time", onchange: (event) => {
        state.rows = Number(event.target.value);
        for (const view of views) view.page = 0;
        change();
      } }, ...SIZES.map((each) => element("option", { value: each }, `${each} rows`)));
      const save = element("button", { type: "button", onclick: () => download(s) }, "CSV");
      document.getElementById("tables").append(element("section", { class: "rows", style: { "--colour": ofStore(s) }, "data-store": s, "aria-label": `Outliers of ${store.name}` },
        element("h3", {}, store.name, facts.stores.length > 1 && store.folder ? element("span", { class: "quiet small" }, ` ${store.folder}`) : null),
        element("div", { class: "bar" }, title, element("span", { class: "turn" }, back, next), element("span", { class: "grow" }), filter, size, save),
        element("div", { class: "scroll" }, element("table", {}, element("thead", {}, head), body))));
      return { heads, body, title, back, next, size };
    });

    // Sorted rows: by the column asked for, then as outliers find breaks ties.
    function ordered(s) {
      const found = result(s);
      const key = `${state.sort} ${state.down}`;
      if (found.order && found.order.key === key) return found.order.rows;
      const { hits, answer } = found;
      const size = hits.F * hits.N;
      const start = state.magnitude * size;
      const least = Answers.thresholds(hits, state);
      const rows = answer.found.map((i) => ({
        i, feature: Math.floor(i / hits.N), sequence: i % hits.N, layers: hits.layer[start + i], positions: hits.position[start + i],
        share: hits.position[start + i] / hits.positions[i % hits.N],
        largest: hits.largest[i], critical: Answers.critical(hits, i, least),
      }));
      const by = state.sort === "positions" ? "share" : state.sort;
      const sign = state.down ? -1 : 1;
      rows.sort((a, b) => (a[by] === b[by] ? 0 : sign * (a[by] < b[by] ? -1 : 1)) || b.critical - a.critical ||
        a.sequence - b.sequence || a.feature - b.feature);
      found.order = { key, rows };
      return rows;
    }

    function table(s) {
      const { hits } = result(s);
      const store = facts.stores[s];
      const view = views[s];
      const { heads, body, title, back, next, size } = tables[s];
      const pooled = state.counting === "pooled";
      const every = ordered(s);
      const rows = view.filter === "" ? every : every.filter((row) => String(row.feature) === view.filter);
      const last = Math.max(0, Math.ceil(rows.length / state.rows) - 1);
      view.page = Math.min(Math.max(view.page, 0), last);
      const from = view.page * state.rows;
      const shown = rows.slice(from, from + state.rows);
      heads.sequence.hidden = pooled;
      for (const [name] of COLUMNS) {
        if (state.sort === name) heads[name].setAttribute("aria-sort", state.down ? "descending" : "ascending");
        else heads[name].removeAttribute("aria-sort");
      }
      title.textContent = rows.length ? `${whole(from + 1)} to ${whole(from + shown.length)} of ${whole(rows.length)}`
        : view.filter === "" ? "no outliers at these settings" : `feature ${view.filter} is no outlier at these settings`;
      back.disabled = view.page === 0;
      next.disabled = view.page === last;
      size.value = String(state.rows);
      body.replaceChildren(...shown.map((row) => element("tr", {},
        pooled ? null : element("td", {}, datum(store.sequences[row.sequence], String(store.sequences[row.sequence]))),
        element("td", {}, element("button", { type: "button", "aria-haspopup": "dialog", "data-row": row.i, "aria-label": `Portrait of feature ${row.feature}`, onclick: () => {
          state.portrait = { store: s, feature: row.feature, sequence: pooled ? null : row.sequence };
          change();
        } }, datum(row.feature, String(row.feature)))),
        element("td", {}, datum(row.layers / hits.units, percent(row.layers / hits.units))),
        element("td", {}, datum(row.share, percent(row.share))),
        element("td", {}, datum(row.largest, number(row.largest))),
        element("td", {}, datum(row.critical, Portrait.bracket(row.critical + 1))))));
    }

    function download(s) {
      const { hits } = result(s);
      const store = facts.stores[s];
      const pooled = state.counting === "pooled";
      const top = (row) => (row.critical + 1 < magnitudes.length ? magnitudes[row.critical + 1] : "");
      const lines = [["sequence", "feature", "layer_fraction", "position_fraction", "max_magnitude", "critical_from", "critical_below"],
        ...ordered(s).map((row) => [pooled ? "" : store.sequences[row.sequence], row.feature, row.layers / hits.units,
          row.share, row.largest, magnitudes[row.critical], top(row)])];
      const address = URL.createObjectURL(new Blob([lines.map((line) => `${line.join(",")}\n`).join("")], { type: "text/csv" }));
      element("a", { href: address, download: "outliers.csv" }).click();
      setTimeout(() => URL.revokeObjectURL(address), 1000);
    }
    return table;
  }

  return { SIZES, build };
})();
