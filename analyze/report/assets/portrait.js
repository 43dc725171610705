"use strict";
// One feature: where it is extreme, and how its shares fall with the magnitude.
const Portrait = (() => {
  const { magnitudes } = Answers;
  const { element, number, percent } = Charts;
  const dialog = document.getElementById("portrait");
  const group = document.getElementById("portrait-group");
  let charts = [];
  let closed = () => {};

  // What is known of a peak at a level: it reaches magnitudes[level - 1] and not magnitudes[level].
  const least = (level) => (level > 0 ? magnitudes[level - 1] : 0);
  function bracket(level) {
    if (level === 0) return `below ${number(magnitudes[0])}`;
    if (level === magnitudes.length) return `${number(magnitudes[level - 1])} or more`;
    return `${number(magnitudes[level - 1])}–${number(magnitudes[level])}`;
  }

  // A name in the colour of its line.
  const mark = (name, s) => element("b", { style: { color: Charts.ofStore(s) } }, name);

  function open({ data, store, feature, sequence, state, onGroup, onClose }) {
    const S = data.store.sites.length;
    closed = onClose;
    for (const each of charts) each.remove();
    document.getElementById("portrait-title").textContent = `Feature ${feature}`;
    document.getElementById("portrait-place").textContent =
      `${data.store.name}${data.store.folder ? `, ${data.store.folder}` : ""}; norm ${state.signal}`;
    group.replaceChildren(element("option", { value: "" }, "all sequences as one"),
      ...data.store.sequences.map((n, i) => element("option", { value: String(i) }, `sequence ${n}`)));
    group.value = sequence === null ? "" : String(sequence);
    group.onchange = () => onGroup(group.value === "" ? null : Number(group.value));

    const hits = Answers.cube(data, sequence === null ? "pooled" : "per-sequence", state.unit);
    const i = feature * hits.N + (sequence === null ? 0 : sequence);
    const size = hits.F * hits.N;
    const at = state.magnitude * size + i;
    const shares = [hits.layer, hits.position].map((each, kind) =>
      magnitudes.map((_, g) => each[g * size + i] / (kind ? hits.positions[i % hits.N] : hits.units)));
    const critical = Answers.critical(hits, i, Answers.thresholds(hits, state));
    const rows = [
      [`hits at ${number(magnitudes[state.magnitude])}`,
        `${hits.layer[at]} of ${hits.units} ${state.unit === "site" ? "(layer, site) pairs" : "layers"}, ` +
        `${Charts.whole(hits.position[at])} of ${Charts.whole(hits.positions[i % hits.N])} positions`],
      ["largest |x|", number(hits.largest[i])],
      ["critical |x|", critical < 0 ? `below ${number(magnitudes[0])}` : bracket(critical + 1)],
    ];
    document.getElementById("portrait-facts").replaceChildren(
      ...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));

    charts = [layers(data, feature, S), positions(data, feature), falls(shares, state)];
    document.getElementById("portrait-charts").replaceChildren(...charts.map((each) => each.figure));
    if (!dialog.open) dialog.showModal();
    for (const each of charts) each.redraw();
  }

  function layers(data, feature, S) {
    const { store } = data;
    const F = store.width;
    const cells = (s) => store.layers.map((_, l) => (l * S + s) * F + feature);
    const signed = store.sites.map((_, s) => cells(s).map((c) => (data.negative[c] ? -1 : 1) * least(data.profile[c])));
    return Charts.chart({
      title: "By layer, with its sign",
      note: "the value of largest magnitude over all sequences, at the embedded magnitude that it reaches",
      className: "wide",
      height: 230,
      build: (handle) => {
        const read = (index) => {
          const parts = store.sites.flatMap((name, s) => {
            const c = cells(s)[index];
            const value = data.profile[c] ? `${data.negative[c] ? "−" : ""}(${bracket(data.profile[c])})` : `|x| ${bracket(0)}`;
            return [s ? "; " : "", mark(name, s), ` ${value}`];
          });
          handle.reading.replaceChildren(`layer ${store.layers[index]}: `, ...parts);
        };
        const sizes = signed.flat().map(Math.abs);
        read(sizes.indexOf(Math.max(...sizes)) % store.layers.length);
        const most = Math.max(...sizes, magnitudes[0]);
        const floor = Math.max(Math.min(...sizes.filter((value) => value > 0), most), most / 1e3) || 1;
        const ticks = signedTicks(floor, most);
        return {
          data: [store.layers, ...signed],
          options: {
            scales: { x: { time: false, range: () => [store.layers[0] - 0.5, store.layers[store.layers.length - 1] + 0.5] },
              y: { distr: 4, asinh: floor, range: (u, low, high) => [Math.min(low * 1.3, -floor), Math.max(high * 1.3, floor)] } },
            axes: [Charts.axis({ label: "layer", labelSize: 18, size: 30, labelFont: "12px system-ui, sans-serif", incrs: [1, 2, 5, 10, 20, 50, 100] }),
              Charts.axis({ size: 58, splits: () => ticks, filter: (u, splits) => splits, values: (u, splits) => splits.map(number) })],
            series: [{}, ...store.sites.map((name, s) => ({
              label: name, stroke: Charts.colour(`--s${s % 8}`), width: 1.75, dash: Charts.DASHES[s % 4],
              points: { show: true, size: 6 },
            }))],
            hooks: { setCursor: [(u) => { if (u.cursor.idx !== null && u.cursor.idx !== undefined) read(u.cursor.idx); }] },
          },
        };
      },
    });
  }

  function signedTicks(floor, most) {
    const powers = [];
    for (let p = Math.floor(Math.log10(floor)); 10 ** p <= most; p++) powers.push(10 ** p);
    const shown = powers.filter((value) => value > 2.5 * floor).slice(-4);
    return [...shown.map((value) => -value).reverse(), 0, ...shown];
  }

  function positions(data, feature) {
    const { store } = data;
    const F = store.width;
    const starts = store.buckets.map((start) => start + store.first_position);
    const levels = starts.map((_, b) => data.buckets[b * F + feature]);
    const end = store.positions + store.first_position;
    const shared = starts.length < store.positions;
    return Charts.chart({
      title: "By position",
      note: shared ? "largest magnitude of each stretch of positions over all sequences; the first position by itself"
        : "largest magnitude at each position over all sequences",
      build: (handle) => {
        const read = (index) => {
          const last = (index + 1 < starts.length ? starts[index + 1] : end) - 1;
          const place = last > starts[index] ? `positions ${starts[index]} to ${last}` : `position ${starts[index]}`;
          handle.reading.textContent = `${place}: ${bracket(levels[index])}`;
        };
        read(levels.indexOf(Math.max(...levels)));
        const low = magnitudes.find((value) => value > 0) || 1;
        const values = levels.map((level) => least(level) || low / 2);
        return {
          data: [[...starts, end], [...values, values[values.length - 1]]],
          options: {
            scales: { x: { time: false, range: () => [starts[0], end] },
              y: { distr: 3, range: (u, from, to) => [from / 1.4, to * 1.6] } },
            axes: [Charts.axis({ label: "position", labelSize: 18, size: 30, labelFont: "12px system-ui, sans-serif" }), Charts.logAxis({ size: 50 })],
            series: [{}, { stroke: Charts.colour("--s0"), width: 1.75, fill: `${Charts.colour("--s0")}26`,
              paths: uPlot.paths.stepped({ align: 1 }), points: { show: false } }],
            hooks: { setCursor: [(u) => {
              if (u.cursor.left >= 0) {
                const x = u.posToVal(u.cursor.left, "x");
                read(Math.max(0, starts.findLastIndex((start) => start <= x)));
              }
            }] },
          },
        };
      },
    });
  }

  function falls(shares, state) {
    const from = magnitudes[0] > 0 ? 0 : 1;
    const x = magnitudes.slice(from);
    const names = [state.unit === "site" ? "(layer, site) pairs" : "layers", "positions"];
    return Charts.chart({
      title: "Shares with a hit, against the magnitude",
      build: (handle) => {
        const read = (g) => {
          handle.reading.replaceChildren(`at ${number(magnitudes[g])}: `, ...names.flatMap((name, kind) => [
            kind ? "; " : "", mark(name, kind), ` ${percent(shares[kind][g])}`]));
        };
        read(state.magnitude);
        return {
          data: [x, ...shares.map((each) => each.slice(from).map((value) => 100 * value))],
          options: {
            scales: { x: { time: false, distr: 3, range: () => Charts.padded(x[0], x[x.length - 1]) }, y: { range: () => [0, 103] } },
            axes: [Charts.logAxis({ size: 30 }), Charts.axis({ size: 50, values: (u, splits) => splits.map((value) => `${value}%`) })],
            series: [{}, ...names.map((label, kind) => ({
              label, stroke: Charts.colour(`--s${kind}`), width: 1.75, dash: Charts.DASHES[kind], points: { show: x.length === 1 },
            }))],
            hooks: {
              draw: [Charts.marker(() => magnitudes[state.magnitude])],
              setCursor: [(u) => read(u.cursor.idx === null || u.cursor.idx === undefined ? state.magnitude : u.cursor.idx + from)],
            },
          },
        };
      },
    });
  }

  document.getElementById("portrait-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => {
    for (const each of charts) each.remove();
    charts = [];
    closed();
  });

  return { open, bracket, close: () => { if (dialog.open) dialog.close(); } };
})();
