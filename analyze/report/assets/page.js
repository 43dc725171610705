"use strict";
// Settings, and everything that follows them.
(() => {
  const { facts, magnitudes } = Answers;
  const { element, datum, whole, percent, number, ofStore } = Charts;
  // What sliders step through: state has an index into each.
  const GRIDS = { magnitude: magnitudes, ...(facts.thresholds.length ? { threshold: facts.thresholds } : {}) };
  const byId = (id) => document.getElementById(id);
  const WORDS = {
    signal: { input: "norm input", output: "norm output" },
    counting: { "per-sequence": "each sequence", pooled: "all as one" },
    unit: { site: "(layer, site)", layer: "layer" },
  };
  const CHOICES = { signal: facts.signals, counting: facts.countings, unit: facts.units };
  const UNIT = { absolute: "", rms: " RMS", median: " medians" }[facts.scale];

  const state = { ...facts.opening, rows: Tables.SIZES[0], sort: "critical", down: true, portrait: null };
  let results = [];

  // --- settings in the address, so that they can be kept and sent on

  // Once things are still: browsers refuse a page that moves its address too often.
  let writing = 0;
  let known = "";
  function writeHash() {
    clearTimeout(writing);
    writing = setTimeout(replaceHash, 200);
  }

  function replaceHash() {
    const words = new URLSearchParams({
      ...Object.fromEntries(Object.entries(GRIDS).map(([name, values]) => [name[0], values[state[name]]])), layers: state.layers, positions: state.positions,
      signal: state.signal, counting: state.counting, unit: state.unit,
    });
    if (state.rows !== Tables.SIZES[0]) words.set("rows", state.rows);
    if (state.portrait) {
      words.set("store", state.portrait.store);
      words.set("feature", state.portrait.feature);
      if (state.portrait.sequence !== null) words.set("sequence", state.portrait.sequence);
    }
    const hash = `#${words}`;
    // Where the address is not the one last seen, the reader has just changed it, and it is about to be read.
    if (location.hash === hash || location.hash !== known) return;
    try { history.replaceState(null, "", hash); } catch { /* a document without an address of its own */ }
    known = location.hash;
  }

  function readHash() {
    known = location.hash;
    const words = new URLSearchParams(known.slice(1));
    const given = (name) => (words.has(name) && words.get(name).trim() !== "" ? Number(words.get(name)) : NaN);
    for (const name of Object.keys(GRIDS)) {
      const value = given(name[0]);
      if (value >= 0 && value < Infinity) state[name] = nearest(GRIDS[name], value);
    }
    for (const name of ["layers", "positions"]) if (given(name) >= 0 && given(name) <= 1) state[name] = given(name);
    for (const [name, choices] of Object.entries(CHOICES)) if (choices.includes(words.get(name))) state[name] = words.get(name);
    if (Tables.SIZES.includes(given("rows"))) state.rows = given("rows");
    const inside = (name, size) => Number.isInteger(given(name)) && given(name) >= 0 && given(name) < size;
    state.portrait = null;
    if (inside("store", facts.stores.length) && inside("feature", facts.stores[given("store")].width)) {
      const store = facts.stores[given("store")];
      const sequence = inside("sequence", store.sequences.length) ? given("sequence") : null;
      state.portrait = { store: given("store"), feature: given("feature"), sequence };
    }
  }

  // --- controls

  function nearest(values, wanted) {
    let best = 0;
    for (let g = 1; g < values.length; g++) if (Math.abs(values[g] - wanted) < Math.abs(values[best] - wanted)) best = g;
    return best;
  }

  function tell(name, text, told = false) {
    const hint = byId(`${name}-hint`);
    hint.textContent = text;
    hint.classList.toggle("told", told);
    byId(`${name}-number`).setAttribute("aria-invalid", String(told && !(name in GRIDS)));
  }

  function hint(name) {
    const values = GRIDS[name];
    tell(name, values.length === 1 ? "the only one embedded"
      : `one of ${values.length}, ${number(values[0])} to ${number(values[values.length - 1])}${name === "magnitude" ? UNIT : ""}`);
  }

  function move(name, index) {
    state[name] = index;
    hint(name);
    schedule();
  }

  function buildGrid(name) {
    const values = GRIDS[name];
    byId(name).max = values.length - 1;
    byId(name).addEventListener("input", (event) => move(name, Number(event.target.value)));
    byId(`${name}-number`).addEventListener("change", (event) => {
      const value = event.target.value === "" ? NaN : Number(event.target.value);
      if (!(value >= 0)) {
        tell(name, "expected a number, 0 or more", true);
        schedule();
      } else {
        move(name, nearest(values, value));
        if (values[state[name]] !== value) tell(name, `${value} is not in this page; ${values[state[name]]} is the nearest that is`, true);
      }
    });
    byId(`${name}-number`).addEventListener("keydown", (event) => {
      const by = { ArrowUp: 1, ArrowDown: -1 }[event.key];
      if (!by) return;
      event.preventDefault();
      move(name, Math.min(Math.max(state[name] + by, 0), values.length - 1));
    });
    hint(name);
  }

  function build() {
    for (const name of Object.keys(GRIDS)) buildGrid(name);
    for (const name of ["layers", "positions"]) {
      byId(name).addEventListener("input", (event) => {
        state[name] = Number(event.target.value);
        schedule();
      });
      byId(`${name}-number`).addEventListener("change", (event) => {
        const value = event.target.value === "" ? NaN : Number(event.target.value);
        if (value >= 0 && value <= 1) {
          state[name] = value;
          schedule();
        } else tell(name, "expected a share, 0 to 1", true);
      });
    }
    for (const [name, choices] of Object.entries(CHOICES)) {
      for (const choice of choices) {
        const input = element("input", { type: "radio", name, value: choice, onchange: () => { state[name] = choice; schedule(); } });
        byId(name).append(element("label", {}, input, element("span", {}, WORDS[name][choice])));
      }
      byId(name).hidden = choices.length < 2;
    }
    for (const name of ["study", "dettmers"]) {
      const { signal, counting, layer_unit: unit } = facts.presets[name];
      const button = byId(`preset-${name}`);
      button.disabled = !facts.signals.includes(signal);
      button.addEventListener("click", () => { Object.assign(state, { signal, counting, unit }); schedule(); });
    }
    byId("preset-reset").addEventListener("click", () => { Object.assign(state, facts.opening); Object.keys(GRIDS).forEach(hint); schedule(); });
    byId("view").textContent = viewWords();
    byId("about").replaceChildren(...aboutWords().map((text) => element("p", {}, text)));
    byId("theme").addEventListener("click", () => theme(isDark() ? "light" : "dark"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme(document.documentElement.dataset.theme));
    if (facts.stores.length === 1) document.title = `Outlier features of ${facts.stores[0].name}`;
  }

  function viewWords() {
    const count = facts.stores.length;
    const own = facts.view.length ? `, ${facts.view.join(" ")}` : "";
    return `${count === 1 ? facts.stores[0].name : `${count} captures side by side`}${own}. Every number is that of outliers find.`;
  }

  function aboutWords() {
    const words = [
      "Of each feature, and each sequence: how many layers, (layer, site) pairs and positions reach each of " +
      `${magnitudes.length} magnitudes, and its largest magnitude. Any share of layers and positions is answered exactly from these.`,
      facts.chosen ? "The magnitudes were chosen by whoever wrote this page."
        : "The magnitudes are round numbers, as densely as the file's size allows, and the last is above every finite value.",
      "Left out: magnitudes in between (the page moves to the nearest that it has), exact critical magnitudes (it shows " +
      "the two magnitudes around them), values at single positions, layers and positions of single sequences in portraits.",
      "Other scales, layers, sites or skipped positions need another page: outliers report takes the same options as outliers find.",
    ];
    if (facts.view.length) words.push(`This one holds the view ${facts.view.join(" ")}.`);
    words.push("Charts by uPlot 1.6.32 (MIT, © 2022 Leon Sorokin). This file loads nothing and sends nothing.");
    return words;
  }

  const isDark = () => {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };

  function theme(name) {
    if (name) document.documentElement.dataset.theme = name;
    byId("theme").textContent = isDark() ? "Light" : "Dark";
    byId("theme").setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
    Charts.redrawAll();
  }

  // --- one card for each store; its table is made in tables.js

  const cards = facts.stores.map((store, s) => {
    const cells = {};
    const figure = (name, title) => {
      cells[name] = element("dd", { "data-figure": name });
      return element("div", {}, element("dt", {}, title), cells[name]);
    };
    const command = element("code", {});
    const needs = element("p", {});
    const loss = element("p", {}, "Perplexity ", store.perplexity === null ? "unknown" : datum(store.perplexity, store.perplexity.toFixed(2)), ".");
    const flag = element("p", { class: "flag", hidden: true });
    const lost = element("p", { class: "flag", hidden: true });
    const rounded = store.rounded === null ? null : element("p", { class: "flag" }, `Rounded: ${store.rounded}.`);
    const sizes = `${whole(store.sequences.length)} × ${span(store.counted)} tokens, ${whole(store.layers.length)} layers, ` +
      `${store.sites.length} site${store.sites.length === 1 ? "" : "s"}, ${whole(store.width)} wide`;
    const rows = [["folder", store.folder], ["sites", store.sites.join(", ")], ...store.attributes].filter(([, value]) => value);
    const article = element("article", { class: "store", style: { "--colour": ofStore(s) }, "data-store": s, "aria-label": store.name },
      element("header", {}, element("h3", {}, store.name),
        element("p", { class: "quiet small" }, facts.stores.length > 1 && store.folder ? `${store.folder}: ${sizes}` : sizes)),
      element("dl", { class: "figures" }, figure("count", "outliers"), figure("distinct", "distinct"),
        figure("layers", "mean L%"), figure("positions", "mean S%")),
      flag, lost, rounded, element("div", { class: "quiet small" }, needs, loss),
      element("details", {}, element("summary", {}, "The same on the command line, and the capture"), command,
        element("dl", { class: "facts" }, ...rows.flatMap(([name, value]) => [
          element("dt", {}, name.replaceAll("_", " ")), element("dd", {}, value)]))));
    byId("stores").append(article);
    return { cells, command, needs, flag, lost };
  });

  const table = Tables.build({ state, result: (s) => results[s], change: schedule });
  const curves = Curves.build({ state, results: () => results, move: (index) => move("magnitude", index) });
  const quantise = Quantise.build({ state, quoted, move: (index) => move("threshold", index) });

  function card(s) {
    const { hits, answer } = results[s];
    const store = facts.stores[s];
    const { cells, command, needs, flag, lost } = cards[s];
    const share = answer.distinct / store.width;
    cells.count.replaceChildren(datum(answer.count, whole(answer.count)));
    cells.distinct.replaceChildren(datum(answer.distinct, whole(answer.distinct)),
      element("small", {}, `of ${whole(store.width)}, ${percent(share)}`));
    cells.layers.replaceChildren(datum(answer.meanLayers, percent(answer.meanLayers)));
    cells.positions.replaceChildren(datum(answer.meanPositions, percent(answer.meanPositions)));
    flag.hidden = !(share > facts.saturated);
    flag.textContent = "Saturated: over half of the width qualifies, so that the criterion tells features apart no longer.";
    const nonfinite = store.signals[state.signal].nonfinite;
    lost.hidden = nonfinite === 0;
    lost.textContent = `${whole(nonfinite)} ${nonfinite === 1 ? "value is" : "values are"} NaN or infinite; a NaN never hits.`;
    const [layers, positions] = Answers.thresholds(hits, state);
    const units = state.unit === "site" ? "(layer, site) pairs" : "layers";
    needs.textContent = `Asks for ${whole(layers)} of ${whole(hits.units)} ${units} and ${span(positions)} of ${span(hits.positions)} positions.`;
    command.textContent = commandWords(store);
  }

  // A word for a shell. Names of folders and sites are a stranger's, and this line is there to be copied.
  function quoted(word) {
    return /^[\w.@%+=:,-]+$/.test(word) ? String(word) : `'${word.replaceAll("'", "'\\''")}'`;
  }

  // Whole numbers as one, or from the least to the largest.
  function span(values) {
    const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
    return low === high ? whole(low) : `${whole(low)} to ${whole(high)}`;
  }

  function commandWords(store) {
    return ["outliers", "find", store.folder === null ? "STORE" : store.folder, "--magnitude", magnitudes[state.magnitude], "--layers", state.layers, "--positions", state.positions,
      "--signal", state.signal, "--counting", state.counting, "--layer-unit", state.unit, ...facts.view].map(quoted).join(" ");
  }

  // --- everything that follows the settings

  let asked = 0;
  let waiting = false;
  let spoken = 0;

  function schedule() {
    asked += 1;
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; render().catch(fail); });
  }

  async function render() {
    const turn = asked;
    controls();
    writeHash();
    const [data, kept] = await Promise.all([
      Promise.all(facts.stores.map((_, s) => Answers.load(s, state.signal))),
      Promise.all(facts.stores.map((_, s) => Answers.kept(s))),
    ]);
    if (turn !== asked) return; // the settings have moved on, and another turn is on its way
    results = data.map((each) => {
      const hits = Answers.cube(each, state.counting, state.unit);
      return { data: each, hits, answer: Answers.find(hits, state), curves: Answers.curves(hits, state) };
    });
    byId("results").hidden = false;
    byId("trouble").hidden = true;
    facts.stores.forEach((_, s) => { card(s); table(s); });
    curves();
    quantise(kept);
    portrait();
    document.body.dataset.settled = String(turn);
    clearTimeout(spoken);
    spoken = setTimeout(() => {
      byId("status").textContent = results.map(({ answer }, s) =>
        `${facts.stores[s].name}: ${answer.count} outliers, ${answer.distinct} distinct features.`).join(" ");
    }, 600);
  }

  function controls() {
    for (const [name, values] of Object.entries(GRIDS)) {
      byId(name).value = state[name];
      byId(name).setAttribute("aria-valuetext", number(values[state[name]]));
      byId(`${name}-number`).value = values[state[name]];
    }
    for (const name of ["layers", "positions"]) {
      byId(name).value = state[name];
      byId(name).setAttribute("aria-valuetext", percent(state[name]));
      byId(`${name}-number`).value = state[name];
      tell(name, percent(state[name]));
    }
    for (const name of Object.keys(CHOICES)) for (const input of byId(name).querySelectorAll("input")) input.checked = input.value === state[name];
    byId("charts-note").textContent = "A click moves the magnitude there." + (facts.stores.length > 1 ? " Colours are those of the captures above." : "");
  }

  let opened = "";
  function portrait() {
    const key = state.portrait ? JSON.stringify([state.portrait, { ...state, portrait: null, rows: 0, sort: 0, down: 0, threshold: 0 }]) : "";
    if (key === opened) return;
    opened = key;
    if (!state.portrait) { Portrait.close(); return; }
    const { store, feature, sequence } = state.portrait;
    Portrait.open({
      data: results[store].data, store, feature, sequence, state,
      onGroup: (chosen) => { state.portrait = { store, feature, sequence: chosen }; schedule(); },
      onClose: () => {
        const row = feature * results[store].hits.N + (sequence === null ? 0 : sequence);
        state.portrait = null;
        opened = "";
        writeHash();
        // The table may have been written anew since, and the focus belongs on the row that it came from.
        const source = document.querySelector(`#tables [data-store="${store}"] [data-row="${row}"]`);
        if (source) source.focus();
      },
    });
  }

  // Numbers of other settings must not stand there as if they were these.
  function fail(error) {
    byId("results").hidden = true;
    byId("trouble").hidden = false;
    byId("trouble").textContent = `This page cannot show its data: ${error.message}.`;
    throw error;
  }

  async function start() {
    try {
      if (typeof DecompressionStream === "undefined") throw new Error("this browser cannot unpack it; use Chrome or Edge 103, Firefox 113, Safari 16.4, or a newer one");
      build();
      readHash();
      byId("columns").hidden = false;
      theme();
      addEventListener("hashchange", () => { readHash(); schedule(); });
      asked += 1;
      await render();
    } catch (error) {
      fail(error);
    }
  }
  start();
})();
