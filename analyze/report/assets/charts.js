"use strict";
// Charts on uPlot, and how numbers are written.
const Charts = (() => {
  const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3]];
  const live = new Set();

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const ofStore = (number) => `var(--s${number % 8})`;

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "style") for (const [key, each] of Object.entries(value)) made.style.setProperty(key, each);
      else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value === true) made.setAttribute(name, "");
      else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
    }
    // Strings become text nodes: never markup.
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }

  // The number for a reader, the exact one for whoever reads the attribute.
  const datum = (value, shown) => element("data", { value: String(value) }, shown);
  const whole = (value) => value.toLocaleString("en");
  const percent = (value) => (Number.isNaN(value) ? "none" : `${(100 * value).toFixed(1)}%`);
  const number = (value) => {
    if (value === null || value === undefined || Number.isNaN(value)) return "none";
    if (value === Infinity) return "∞";
    if (value === -Infinity) return "none";
    const rounded = Number(value.toPrecision(4));
    return Math.abs(rounded) >= 1e6 || (rounded !== 0 && Math.abs(rounded) < 1e-3) ? value.toExponential(2) : String(rounded);
  };

  // A figure with a caption, a line that reads the values, and a plot that follows the width of the page.
  function chart({ title, note = "", label, className = "", height = 210, build }) {
    const reading = element("p", { class: "reading" });
    const plot = element("div", { class: "plot", role: "img", "aria-label": label || title });
    const figure = element("figure", { class: `chart ${className}` }, element("figcaption", {}, title),
      note ? element("p", { class: "quiet small" }, note) : null, reading, plot);
    const handle = { figure, reading, plot, u: null, height, build, width: 0 };
    handle.redraw = () => {
      const width = Math.floor(plot.clientWidth);
      if (width < 50) return;
      if (handle.u) handle.u.destroy();
      const { options, data } = build(handle);
      handle.width = width;
      handle.u = new uPlot({ ...base(width, height), ...options }, data, plot);
    };
    handle.remove = () => { if (handle.u) handle.u.destroy(); live.delete(handle); figure.remove(); };
    live.add(handle);
    return handle;
  }

  function base(width, height) {
    return {
      width, height, legend: { show: false }, padding: [8, 10, 0, 0],
      cursor: { y: false, points: { size: 7 }, drag: { x: false, y: false } },
    };
  }

  function axis(extra = {}) {
    return {
      stroke: colour("--soft"), font: "12px system-ui, sans-serif", grid: { stroke: colour("--grid"), width: 1 },
      ticks: { stroke: colour("--grid"), width: 1, size: 5 }, gap: 4, ...extra,
    };
  }

  // Lines and labels of a logarithmic axis: powers of ten, and 2 and 5 where there is room.
  function logAxis(extra = {}) {
    const splits = (u, index, low, high) => {
      const decades = Math.log10(high / low);
      const mantissas = decades < 1 ? [1, 2, 3, 4, 5, 6, 7, 8, 9] : decades < 3.2 ? [1, 2, 5] : [1];
      const values = [];
      for (let p = Math.floor(Math.log10(low)); p <= Math.log10(high); p++) {
        for (const mantissa of mantissas) values.push(Number(`${mantissa}e${p}`));
      }
      return values.filter((value) => value >= low && value <= high);
    };
    return axis({
      splits,
      filter: (u, shown) => shown,
      values: (u, shown) => shown.map(short),
      ...extra,
    });
  }

  function short(value) {
    if (value >= 1e9) return value.toExponential();
    if (value >= 1e6) return `${value / 1e6}M`;
    if (value >= 1e4) return `${value / 1e3}k`;
    return String(Number(value.toPrecision(6)));
  }

  // A vertical line at a value of x, on top of the plot.
  function marker(at) {
    return (u) => {
      const x = Math.round(u.valToPos(at(), "x", true));
      if (!(x >= u.bbox.left - 1 && x <= u.bbox.left + u.bbox.width + 1)) return;
      u.ctx.save();
      u.ctx.strokeStyle = colour("--ink");
      u.ctx.lineWidth = devicePixelRatio;
      u.ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
      u.ctx.beginPath();
      u.ctx.moveTo(x, u.bbox.top);
      u.ctx.lineTo(x, u.bbox.top + u.bbox.height);
      u.ctx.stroke();
      u.ctx.restore();
    };
  }

  const padded = (low, high) => (low < high ? [low, high] : [low / 1.5, high * 1.5]);
  const redrawAll = () => live.forEach((handle) => { if (handle.u) handle.redraw(); });
  new ResizeObserver(() => {
    for (const handle of live) if (handle.u && Math.floor(handle.plot.clientWidth) !== handle.width) handle.redraw();
  }).observe(document.documentElement);

  return { chart, axis, logAxis, marker, colour, ofStore, element, datum, whole, percent, number, padded, redrawAll, DASHES };
})();
