"use strict";
// Peaks inside the page, and every answer taken from them. Draws nothing.
const Answers = (() => {
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const magnitudes = facts.magnitudes;
  const G = magnitudes.length;
  const TYPES = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array };
  const loading = new Map();

  async function inflate(base64) {
    const binary = atob(base64);
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // An array of the page: base64, a zlib stream, byte planes (all first bytes, then all second bytes, ...).
  async function unpack([block, size]) {
    const element = document.getElementById(`block-${block}`);
    const planes = await inflate(element.textContent).catch(() => {
      throw new Error("it was damaged on its way; get the file again");
    });
    element.remove();
    if (size === 1) return planes;
    const length = planes.length / size;
    const values = new TYPES[size](length);
    for (let plane = 0; plane < size; plane++) {
      const start = plane * length;
      const shift = 8 * plane;
      for (let i = 0; i < length; i++) values[i] |= planes[start + i] << shift;
    }
    return values;
  }

  // Features are stored by size. Back to their own places: (..., feature, sequences) where `each` is 1 or more.
  function inPlace(values, order, each = 1) {
    const result = new values.constructor(values.length);
    const F = order.length;
    for (let start = 0; start < values.length; start += F * each) {
      for (let f = 0; f < F; f++) {
        const from = start + f * each, to = start + order[f] * each;
        for (let n = 0; n < each; n++) result[to + n] = values[from + n];
      }
    }
    return result;
  }

  // Counts at each level become counts at that level or a higher one: hits.
  function accumulate(counts) {
    const step = counts.length / G;
    for (let i = counts.length - step - 1; i >= 0; i--) counts[i] += counts[i + step];
    return counts;
  }

  function load(store, signal) {
    const key = `${store} ${signal}`;
    if (!loading.has(key)) loading.set(key, read(facts.stores[store], signal));
    return loading.get(key);
  }

  async function read(store, signal) {
    const blocks = store.signals[signal].blocks;
    const names = Object.keys(blocks);
    const arrays = await Promise.all(names.map((name) => unpack(blocks[name])));
    const { order, ...stored } = Object.fromEntries(names.map((name, i) => [name, arrays[i]]));
    const bySequence = ["layer", "extra", "position", "largest"];
    const data = {};
    for (const [name, values] of Object.entries(stored)) {
      data[name] = inPlace(values, order, bySequence.includes(name) ? store.sequences.length : 1);
    }
    const layer = accumulate(data.layer);
    const site = accumulate(data.extra);
    const L = store.layers.length;
    const S = store.sites.length;
    // Together they may need more bits than apart.
    const pairs = L * S > 255 && site.BYTES_PER_ELEMENT === 1 ? Uint16Array.from(site) : site;
    for (let i = 0; i < pairs.length; i++) pairs[i] += layer[i];
    return {
      store,
      layer: { site: pairs, layer },
      position: accumulate(data.position),
      largest: new Float32Array(data.largest.buffer),
      profile: data.profile,
      negative: data.negative,
      buckets: data.buckets,
      cubes: {},
    };
  }

  // Columns that each threshold keeps in a store, (threshold, layer, site); null where the page does not know.
  function kept(store) {
    const key = `${store} kept`;
    const { blocks } = facts.stores[store].quantised;
    if (!loading.has(key)) loading.set(key, blocks.kept ? unpack(blocks.kept) : Promise.resolve(null));
    return loading.get(key);
  }

  // Hits of groups (magnitude, feature, group): a group is a sequence, or all of them.
  function cube(data, counting, unit) {
    const key = `${counting} ${unit}`;
    if (!data.cubes[key]) data.cubes[key] = counting === "pooled" ? pooled(data, unit) : single(data, unit);
    return data.cubes[key];
  }

  function single(data, unit) {
    const { store } = data;
    return {
      layer: data.layer[unit],
      position: data.position,
      largest: data.largest,
      F: store.width,
      N: store.sequences.length,
      units: store.layers.length * (unit === "site" ? store.sites.length : 1),
      positions: store.counted,
    };
  }

  function pooled(data, unit) {
    const { store } = data;
    const F = store.width;
    const N = store.sequences.length;
    const L = store.layers.length;
    const S = store.sites.length;
    const layer = new Uint32Array(G * F);
    for (let place = 0; place < L; place++) {
      for (let f = 0; f < F; f++) {
        let highest = 0;
        for (let s = 0; s < S; s++) {
          const level = data.profile[(place * S + s) * F + f];
          if (unit === "site") {
            if (level > 0) layer[(level - 1) * F + f] += 1;
          } else if (level > highest) highest = level;
        }
        if (highest > 0) layer[(highest - 1) * F + f] += 1;
      }
    }
    const position = new Uint32Array(G * F);
    for (let i = 0, j = 0; i < position.length; i++) for (let n = 0; n < N; n++) position[i] += data.position[j++];
    const largest = new Float32Array(F).fill(-Infinity);
    for (let f = 0, j = 0; f < F; f++) for (let n = 0; n < N; n++) largest[f] = Math.max(largest[f], data.largest[j++]);
    const units = L * (unit === "site" ? S : 1);
    return { layer: accumulate(layer), position, largest, F, N: 1, units, positions: [store.counted.reduce((a, b) => a + b, 0)] };
  }

  // Smallest number of hits whose share is at least the fraction: the quotient is compared, as analyze.criteria does.
  // Of nothing that counts 1 is asked, which is more than there is.
  function required(fraction, total) {
    if (total === 0) return 1;
    let hits = Math.min(Math.max(Math.ceil(fraction * total), 0), total);
    while (hits > 0 && (hits - 1) / total >= fraction) hits -= 1;
    while (hits / total < fraction) hits += 1;
    return hits;
  }

  // Least hits: of layer units, and of the positions of each group.
  function thresholds(hits, state) {
    return [required(state.layers, hits.units), hits.positions.map((total) => required(state.positions, total))];
  }

  // The outliers at one magnitude; `found` are indices into (feature, group).
  function find(hits, state) {
    const [leastLayers, leastPositions] = thresholds(hits, state);
    const size = hits.F * hits.N;
    const start = state.magnitude * size;
    const found = [];
    let layers = 0, distinct = 0, last = -1;
    const positions = new Map(); // hits by the number of positions that they are out of
    for (let i = 0; i < size; i++) {
      const a = hits.layer[start + i], b = hits.position[start + i], n = i % hits.N;
      if (a < leastLayers || b < leastPositions[n]) continue;
      found.push(i);
      layers += a;
      positions.set(hits.positions[n], (positions.get(hits.positions[n]) || 0) + b);
      const f = Math.floor(i / hits.N);
      if (f !== last) { distinct += 1; last = f; }
    }
    const count = found.length;
    let meanPositions = count ? 0 : NaN;
    for (const [total, sum] of positions) meanPositions += sum / (total * count);
    return {
      found, count, distinct, meanPositions,
      meanLayers: count ? layers / (hits.units * count) : NaN,
    };
  }

  // The same numbers at every magnitude.
  function curves(hits, state) {
    const key = thresholds(hits, state).join(" ");
    if (hits.curves && hits.curves.key === key) return hits.curves;
    const result = { key, count: [], distinct: [], meanLayers: [], meanPositions: [] };
    for (let g = 0; g < G; g++) {
      const answer = find(hits, { ...state, magnitude: g });
      for (const name of ["count", "distinct", "meanLayers", "meanPositions"]) result[name].push(answer[name]);
    }
    hits.curves = result;
    return result;
  }

  // Index of the largest magnitude at which (feature, group) i is an outlier; -1 where it is at none.
  function critical(hits, i, [leastLayers, leastPositions]) {
    const size = hits.F * hits.N;
    let low = -1, high = G;
    while (high - low > 1) {
      const g = (low + high) >> 1;
      const at = g * size + i;
      if (hits.layer[at] >= leastLayers && hits.position[at] >= leastPositions[i % hits.N]) low = g; else high = g;
    }
    return low;
  }

  return { facts, magnitudes, load, kept, cube, find, curves, critical, thresholds };
})();
