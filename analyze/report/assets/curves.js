"use strict";
// What each store has at every magnitude, as charts that all stores share.
const Curves = (() => {
  const { facts, magnitudes } = Answers;
  const { element, whole, percent, number, ofStore, colour } = Charts;
  const from = magnitudes[0] > 0 ? 0 : 1;
  const x = magnitudes.slice(from);
  const KINDS = [
    ["count", "Outliers", (v) => (v > 0 ? v : null), (v) => whole(v), true],
    ["distinct", "Distinct features, share of the width", (v, s) => (100 * v) / facts.stores[s].width, (v, s) => percent(v / facts.stores[s].width), false],
    ["meanLayers", "Mean L%", (v) => (Number.isNaN(v) ? null : 100 * v), percent, false],
    ["meanPositions", "Mean S%", (v) => (Number.isNaN(v) ? null : 100 * v), percent, false],
  ];

  // `state` is the page's, `results` gives what it found in each store, and `move` is called with the magnitude that the
  // reader clicks on. Returns a function that shows the charts anew.
  function build({ state, results, move }) {
    const charts = KINDS.map(([name, title, value, say, log]) => Charts.chart({
      title,
      label: `${title} against the magnitude; the line above reads the values`,
      build: (handle) => {
        const shared = results().map(({ curves }, s) => curves[name].slice(from).map((v) => value(v, s)));
        const most = Math.max(1, ...shared.flat());
        handle.read = (g) => {
          handle.reading.replaceChildren(`at ${number(magnitudes[g])}: `, ...results().flatMap(({ curves }, s) => [
            s ? " · " : "", element("b", { style: { color: ofStore(s) } }, say(curves[name][g], s))]));
        };
        handle.read(state.magnitude);
        return {
          data: [x, ...shared],
          options: {
            cursor: { y: false, points: { size: 7 }, drag: { x: false, y: false }, sync: { key: "outliers" },
              bind: { click: (u) => () => { if (u.cursor.idx !== null && u.cursor.idx !== undefined) move(u.cursor.idx + from); } } },
            scales: { x: { time: false, distr: 3, range: () => Charts.padded(x[0], x[x.length - 1]) },
              y: log ? { distr: 3, range: () => [0.8, most * 1.6] } : { range: () => [0, 103] } },
            axes: [Charts.logAxis({ size: 30 }), log ? Charts.logAxis({ size: 50 }) : Charts.axis({ size: 50, values: (u, splits) => splits.map((v) => `${v}%`) })],
            series: [{}, ...facts.stores.map((store, s) => ({
              label: store.name, stroke: colour(`--s${s % 8}`), width: 2, dash: Charts.DASHES[Math.floor(s / 8) % 4 || s % 4],
              points: { show: x.length === 1, size: 6 }, spanGaps: false,
            }))],
            hooks: {
              draw: [Charts.marker(() => magnitudes[state.magnitude])],
              setCursor: [(u) => handle.read(u.cursor.idx === null || u.cursor.idx === undefined ? state.magnitude : u.cursor.idx + from)],
            },
          },
        };
      },
    }));
    document.getElementById("charts").append(...charts.map(({ figure }) => figure));

    let drawn = "";
    return () => {
      // Curves depend on everything but the magnitude, which is only a line on them.
      const settings = JSON.stringify([state.layers, state.positions, state.signal, state.counting, state.unit]);
      for (const handle of charts) {
        if (settings !== drawn || !handle.u) handle.redraw();
        else { handle.read(state.magnitude); handle.u.redraw(false, false); }
      }
      drawn = settings;
    };
  }

  return { build };
})();
