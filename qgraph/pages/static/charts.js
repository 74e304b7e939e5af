"use strict";
/* Charts of a page, drawn by uPlot from the JSON of the page. */
const data = JSON.parse(document.getElementById("data").textContent);

const colour = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const digits = value => value === 0 ? "0" : Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3
  ? value.toExponential(1) : String(Number(value.toPrecision(3)));

function axis(label, more) {
  return Object.assign({
    label, labelSize: 18, labelGap: 0, size: 60, gap: 4, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif",
    stroke: colour("soft"), grid: {stroke: colour("grid"), width: 1}, ticks: {stroke: colour("grid"), width: 1},
    values: (_, splits) => splits.map(value => value === null ? "" : digits(value)),
  }, more);
}

/* Of a logarithmic axis: a line at each power of ten. */
const powers = {splits: (u, _, low, high) => {
  const first = Math.ceil(Math.log10(low)), count = Math.floor(Math.log10(high)) - first + 1;
  const step = Math.max(1, Math.ceil(count / 5));
  return Array.from({length: Math.ceil(count / step)}, (_, number) => 10 ** (first + number * step));
}};

function tell(plot, text) {
  plot.setAttribute("role", "img");
  plot.setAttribute("aria-label", text);
}

/* Lines at the ends of ranges, each method in a row of its own above the bars, so that no name covers another. */
function drawRanges(u, ranges) {
  const context = u.ctx, ratio = devicePixelRatio, bottom = u.bbox.top + u.bbox.height;
  context.save();
  context.font = 11 * ratio + "px system-ui, sans-serif";
  context.textBaseline = "middle";
  context.textAlign = "left";
  ranges.forEach((range, row) => {
    const y = u.bbox.top - (ranges.length - row - .5) * 14 * ratio;
    const limit = x => Math.min(Math.max(x, u.bbox.left), u.bbox.left + u.bbox.width);
    const ends = [range.low, range.high].map(value => limit(u.valToPos(value, "x", true)));
    context.strokeStyle = context.fillStyle = colour(range.chosen ? "ink" : "soft");
    context.lineWidth = (range.chosen ? 2 : 1) * ratio;
    context.setLineDash(range.chosen ? [] : [4 * ratio, (2 + row) * ratio]);
    context.beginPath();
    ends.forEach(x => { context.moveTo(x, y); context.lineTo(x, bottom); });
    context.stroke();
    context.setLineDash([]);
    context.beginPath();
    context.moveTo(ends[0], y);
    context.lineTo(ends[1], y);
    context.stroke();
    const text = range.name + (range.chosen && range.name !== "codes" ? ", chosen" : "");
    const width = context.measureText(text).width + 8 * ratio;
    const at = Math.max(u.bbox.left, Math.min((ends[0] + ends[1] - width) / 2, u.bbox.left + u.bbox.width - width));
    context.clearRect(at, y - 6 * ratio, width, 12 * ratio);
    context.fillText(text, at + 4 * ratio, y);
  });
  context.restore();
}

function bars(plot, options) {
  const {counts, low, high, ranges = []} = options, width = (high - low) / counts.length;
  const x = counts.map((_, number) => low + (number + .5) * width), y = counts.map(count => count || null);
  const left = Math.min(low, ...ranges.map(range => range.low)), right = Math.max(high, ...ranges.map(range => range.high));
  const most = Math.max(1, ...counts), rim = (right - left || 1) * .02;
  return new uPlot({
    width: plot.clientWidth, height: 190 + 14 * ranges.length, padding: [ranges.length * 14 + 6, 12, 0, 0],
    legend: {show: false}, cursor: {show: false},
    scales: {x: {time: false, range: [left - rim, right + rim]}, y: {distr: 3, range: [.5, most * 2]}},
    axes: [axis(options.label, {size: 28}), axis("values", powers)],
    series: [{}, {fill: colour("int8"), stroke: colour("int8"), width: 0, points: {show: false},
                  paths: uPlot.paths.bars({size: [.92, Infinity], align: 0})}],
    hooks: {draw: [u => drawRanges(u, ranges)]},
  }, [x, y], plot);
}

const drawers = {
  histogram(plot, layer) {
    const {histogram} = layer;
    tell(plot, "Histogram. " + histogram.ranges.map(range => `${range.name}${range.chosen ? ", chosen" : ""}: `
      + `${digits(range.low)} to ${digits(range.high)}`).join("; ") + ". The table below has the ranges.");
    return bars(plot, {...histogram, label: "value"});
  },
  codes(plot, layer) {
    const {codes} = layer, used = codes.counts.filter(count => count).length;
    tell(plot, `Histogram of codes between ${digits(codes.low)} and ${digits(codes.high)}: ${used} of `
      + `${codes.counts.length} bins are used.`);
    return bars(plot, {...codes, label: "value that the code stands for"});
  },
  channels(plot, layer) {
    const {largest, per} = layer.channels, some = largest.filter(value => value > 0);
    const low = some.length ? Math.min(...some) : 1, high = some.length ? Math.max(...some) : 1;
    tell(plot, `Largest weight of each channel, from ${digits(low)} to ${digits(high)}; `
      + `${largest.length - some.length} are zero.`);
    const wide = high / low > 30;
    return new uPlot({
      width: plot.clientWidth, height: 210, legend: {show: false}, cursor: {show: false}, padding: [8, 12, 0, 0],
      scales: {x: {time: false, range: [-.7 * per, (largest.length - .3) * per]},
               y: wide ? {distr: 3, range: [low / 2, high * 1.5]} : {range: [0, high * 1.05]}},
      axes: [axis("output channel", {size: 28}), axis("largest weight", wide ? powers : {})],
      series: [{}, {fill: colour("int8"), stroke: colour("int8"), width: 0, points: {show: false},
                    paths: uPlot.paths.bars({size: [.8, Infinity]})}],
    }, [largest.map((_, number) => number * per), largest.map(value => value || null)], plot);
  },
  sqnr(plot) {
    const values = data.noise.map(row => row.sqnr), known = values.filter(value => value !== null);
    const low = data.noise[values.indexOf(Math.min(...known))];
    tell(plot, known.length ? `SQNR of ${values.length} tensors, from ${digits(Math.min(...known))} dB in ${low.name} to `
      + `${digits(Math.max(...known))} dB. The table of layers has them all.` : "All tensors are equal.");
    return along(plot, values, "dB", {stroke: colour("int8"), width: 2, spanGaps: false,
      points: {show: true, size: 6, fill: colour("int8")}},
      [Math.min(0, ...known), Math.min(80, Math.max(10, ...known) * 1.1)]);  // the rest is as good as equal
  },
  added(plot) {
    const values = data.noise.map(row => row.added), known = values.filter(value => value !== null);
    const most = data.noise[values.indexOf(Math.max(...known))];
    tell(plot, known.length ? `Noise added by ${values.length} layers, most by ${most.name}: ${digits(Math.max(...known))} `
      + "of the signal. The table of layers has them all." : "Not known.");
    return along(plot, values, "noise / signal", {fill: colour("float"), stroke: colour("float"), width: 0,
      points: {show: false}, paths: uPlot.paths.bars({size: [.7, 30]})}, [0, Math.max(1e-9, ...known) * 1.1]);
  },
};

/* A chart over the layers: pointing at it tells the layer, a click goes to its details. */
function along(plot, values, label, series, range) {
  const places = data.noise.map(row => row.at);
  const readout = document.querySelector("[data-readout]");
  const said = row => `${row.name}: ${row.sqnr === null ? "equal" : digits(row.sqnr) + " dB"}`
    + (row.added === null ? "" : `, adds ${digits(row.added)}`);
  const chart = new uPlot({
    width: plot.clientWidth, height: 200, legend: {show: false}, padding: [8, 12, 0, 0],
    cursor: {sync: {key: "noise"}, drag: {x: false, y: false}, y: false, points: {show: false}},
    scales: {x: {time: false, range: [places[0] - .7, places[places.length - 1] + .7]}, y: {range}},
    axes: [axis("layer, by its number in the table", {size: 28, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500]}), axis(label)],
    series: [{}, series],
    hooks: {setCursor: [u => { if (u.cursor.idx !== null) readout.textContent = said(data.noise[u.cursor.idx]); }]},
  }, [places, values], plot);
  chart.over.addEventListener("click", () => {
    if (chart.cursor.idx !== null) location.hash = "#" + data.noise[chart.cursor.idx].id;
  });
  return chart;
}

/* Draws each chart when it first has a width, and again when the width or the colours change. */
const drawn = new Map();
function draw(figure) {
  const plot = figure.querySelector(".plot");
  if (!plot.clientWidth) return;
  const holder = figure.closest("details");
  if (drawn.has(figure)) drawn.get(figure).destroy();
  drawn.set(figure, drawers[figure.dataset.chart](plot, holder ? data.layers[holder.id] : null));
}
const watcher = new ResizeObserver(entries => entries.forEach(entry => {
  const figure = entry.target.closest("figure"), width = entry.target.clientWidth;
  if (width && (!drawn.has(figure) || drawn.get(figure).width !== width)) draw(figure);
}));
document.querySelectorAll("[data-chart] .plot").forEach(plot => watcher.observe(plot));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => [...drawn.keys()].forEach(draw));
